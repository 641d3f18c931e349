"""Test every promise and print the table with the figures of this run; the last line is JSON.

    python -m tests.reliability
    python -m tests.reliability --only SIGTERM --only kill
    python -m tests.reliability --only memory --only hostile --minutes 60
    python -m tests.reliability --model models/current

Exit code 1 if a promise is broken. Times are measured under the present load of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.reliability.finding import Finding
from tests.reliability.framing import http_framing
from tests.reliability.promises import PROMISES, Experiment
from tests.reliability.strain import soak
from tests.serving.fake_daemon import REPOSITORY

VERDICTS = {True: "kept", False: "BROKEN", None: "skipped"}
LONG = {"soak": soak, "HTTP framing": http_framing}  # experiments of any length


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiments and print their findings; returns the exit code."""
    arguments = _arguments(argv)
    chosen = [(p, name, trial) for p in PROMISES for name, trial in p.experiments.items() if _wanted(arguments, p.text)]
    if not chosen:
        print(
            f"error: --only {arguments.only}: no promise contains these words; choose from {[p.text for p in PROMISES]}"
        )
        return 2
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        model = _model(arguments.model, Path(folder))
        for number, (promise, name, trial) in enumerate(chosen, 1):
            print(f"{number}/{len(chosen)} {promise.text}: {name}", file=sys.stderr, flush=True)
            if name in LONG:
                trial = _of_minutes(LONG[name], arguments.minutes)
            place = Path(folder) / str(number)
            place.mkdir()
            started = time.monotonic()
            finding = _finding_of(trial, place, model)
            seconds = round(time.monotonic() - started, 1)
            entry = {"promise": promise.text, "experiment": name, "kept": finding.kept, "shown": finding.shown}
            found.append({**entry, "seconds": seconds, "figures": finding.figures})
            print(f"    {VERDICTS[finding.kept]} ({seconds} s): {finding.shown}", file=sys.stderr, flush=True)
    print("| promise | kept | in this run |\n|---|---|---|")
    for promise in PROMISES:
        own = [entry for entry in found if entry["promise"] == promise.text]
        if own:
            print(f"| {promise.text} | {_verdict(own)} | {'; '.join(entry['shown'] for entry in own)} |")
    broken = [entry["experiment"] for entry in found if entry["kept"] is False]
    print(json.dumps({"model": model.resolve().name, "broken": broken, "experiments": found}))
    return 1 if broken else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="WORDS", help="only promises with these words; may be repeated"
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=REPOSITORY / "models" / "current",
        help="model directory (models/current; without one a tiny model is trained)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=1.0,
        help="length of the soak and of the test of HTTP framing (1); the growth of memory is tested from 10 on",
    )
    return parser.parse_args(argv)


def _wanted(arguments: argparse.Namespace, text: str) -> bool:
    return arguments.only is None or any(words.lower() in text.lower() for words in arguments.only)


def _model(path: Path, folder: Path) -> Path:
    if path.exists():
        return path.resolve()
    import tft_trainer
    from tests.conftest import tiny_flags, tiny_fleet

    print(f"{path} does not exist: training a tiny model", file=sys.stderr)
    training, models = folder / "training", folder / "models"
    training.mkdir()
    tiny_fleet().to_parquet(training / "server_metrics.parquet", index=False)
    with contextlib.redirect_stdout(sys.stderr):
        if tft_trainer.main(tiny_flags(training, models)) != 0:
            raise RuntimeError("the tiny model could not be trained; give --model DIR")
    return (models / "current").resolve()


def _of_minutes(trial: Callable[[Path, float], Finding], minutes: float) -> Experiment:
    return lambda folder, _model: trial(folder, minutes)


def _finding_of(trial: Experiment, folder: Path, model: Path) -> Finding:
    """The finding; an experiment that raises an error counts as a broken promise."""
    try:
        return trial(folder, model)
    except Exception as problem:
        return Finding(False, f"the experiment failed: {type(problem).__name__}: {str(problem)[-500:]}")


def _verdict(entries: list[dict[str, Any]]) -> str:
    kept = [entry["kept"] for entry in entries]
    if False in kept:
        return VERDICTS[False]
    return VERDICTS[True] if True in kept else VERDICTS[None]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the daemons end with their blocks
    sys.exit(main())
