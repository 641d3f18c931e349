"""Accuracy on real servers: train on some of them, forecast the others, and print the result tables.

    python benchmarks/real_servers.py                          # both real data sets, 15 minutes of training each
    python benchmarks/real_servers.py --minutes 2              # a quick look
    python benchmarks/real_servers.py --steps 800              # the same training on any machine, however busy
    python benchmarks/real_servers.py --data my_fleet.parquet --folds 4

In each fold tft_trainer.py trains with a different quarter of the servers held out and is scored with the baselines on
the last 30 % of the time. tft_inference.py then forecasts the held-out servers every 8 hours of that period. Models and
forecasts are kept in models/real/. Tables (Markdown) go to stdout; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tft_inference  # noqa: E402
import tft_trainer  # noqa: E402
from data_contract import ContractError, DataFileError, read_metrics  # noqa: E402
from fleet_forecast.evaluation.backtest import MODEL  # noqa: E402
from fleet_forecast.inference.model_directory import TRAINING_INFO_FILE  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

DATA = (ROOT / "../shared/data/bitbrains_public.parquet", ROOT / "../shared/data/smd_fleet.parquet")
HELD_OUT_SHARE = 0.25
MODELS = Path("models/real")
SEED = 0
SCORE_COLUMNS = ("wql", "mase", "accuracy", "coverage_80")


class FailedRunError(RuntimeError):
    """One of the scripts failed; its message is on stderr."""


class TrainingLength(NamedTuple):
    """Optimisation steps of each training, or its minutes if they are None."""

    minutes: float
    steps: int | None

    def __str__(self) -> str:
        """As in the titles of tables."""
        return f"{self.steps} steps of training" if self.steps else f"{self.minutes:g} minutes of training"

    @property
    def flags(self) -> list[str]:
        """Of tft_trainer.py."""
        return ["--steps", str(self.steps)] if self.steps else ["--max-minutes", f"{self.minutes:g}"]


def held_out_names(path: Path, folds: int) -> list[list[str]]:
    """Servers held out in each fold: consecutive quarters of a random order, repeated if there are not enough."""
    names = sorted(map(str, read_metrics(path).frame["server_name"].unique()))
    if len(names) < 2:
        raise DataFileError(f"{path}: holds {len(names)} server; holding some out needs at least two")
    shuffled = list(np.random.default_rng(SEED).permutation(names))
    count = max(1, round(HELD_OUT_SHARE * len(names)))
    return [sorted((shuffled * (fold + 2))[fold * count : (fold + 1) * count]) for fold in range(folds)]


def last_json_line(main: Callable[[Sequence[str]], int], flags: Sequence[str]) -> dict[str, Any]:
    """Run one of the scripts; the JSON object in its last line. Raises FailedRunError."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(flags)
    if code != 0:
        raise FailedRunError(f"{' '.join(flags)}: ended with exit code {code}")
    result: dict[str, Any] = json.loads(output.getvalue().splitlines()[-1])
    return result


def one_fold(path: Path, held_out: Sequence[str], length: TrainingLength, seed: int) -> dict[str, Any]:
    """Train without some servers and forecast these; the JSON lines of both scripts."""
    folder = ROOT / MODELS / path.stem
    flags = ["--training-dir", str(path), "--models-dir", str(folder), *length.flags]
    flags += ["--no-final-fit", "--no-risk-model", "--no-promote"]  # the final fit would train on the servers held out
    trained = last_json_line(tft_trainer.main, [*flags, "--holdout-servers", ",".join(held_out), "--seed", str(seed)])
    model_dir = Path(trained["model_dir"])
    test_start = json.loads((model_dir / TRAINING_INFO_FILE).read_text(encoding="utf-8"))["test_start"]
    unseen = folder / f"{model_dir.name}_held_out.parquet"
    frame = read_metrics(path).frame
    frame[frame["server_name"].isin(held_out)].to_parquet(unseen, index=False)
    output = folder / f"{model_dir.name}_forecasts.parquet"
    flags = ["--model", str(model_dir), "--input", str(unseen), "--output", str(output)]
    made = last_json_line(tft_inference.main, [*flags, "--origins", "every:8h", "--from", test_start])
    return {"trained": trained, "forecasts": made}


def table_of(folds: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The table of `ratios` over the folds."""
    records = pd.DataFrame.from_records(
        {"servers": servers, "method": method, "fold": number, "metric": metric, **row}
        for number, fold in enumerate(folds)
        for servers, methods in fold["trained"]["scores"].items()
        for method, by_metric in methods.items()
        for metric, row in by_metric.items()
    )
    return ratios(records, [MODEL])


def ratios(records: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Scores of each method, means over metrics and folds, for training and for unseen servers.

    ratio: WQL / WQL of the best baseline, mean over the folds; spread: its standard deviation.
    pooled: the same ratio for the WQL over the windows of all folds, which does not depend on the assignment of servers
    to folds. models: the methods that are not baselines. records: rows of evaluation.Backtest.scores with the columns
    `fold` and `servers`.
    """
    scores = records[records["metric"] == "mean"].drop(columns="metric")
    simple = scores[~scores["method"].isin(models)].groupby(["servers", "method"])["wql"].mean()
    best = {servers: str(simple[servers].idxmin()) for servers in scores["servers"].unique()}
    keyed = scores.set_index(["fold", "servers", "method"])["wql"]
    scores["ratio"] = [
        wql / keyed[fold, servers, best[servers]]
        for fold, servers, wql in zip(scores["fold"], scores["servers"], scores["wql"], strict=True)
    ]
    groups = scores.groupby(["servers", "method"], sort=False)
    table = groups[[*SCORE_COLUMNS, "ratio"]].mean().assign(spread=groups["ratio"].std())
    wql = pooled_wql(records[records["metric"] != "mean"])
    table["pooled"] = [wql[key] / wql[key[0], best[key[0]]] for key in table.index]
    return table.reset_index().sort_values(["servers", "wql"], ignore_index=True)


def pooled_wql(records: pd.DataFrame) -> pd.Series[float]:
    """WQL of each (servers, method) over the windows of all folds, mean over metrics."""
    keys = ["servers", "method", "metric"]
    loss = (records["wql"] * records["total"]).groupby([records[key] for key in keys]).sum()
    return (loss / records.groupby(keys)["total"].sum()).groupby(["servers", "method"]).mean()


def markdown(title: str, table: pd.DataFrame) -> str:
    """The table in Markdown."""
    lines = [
        title,
        "",
        "| servers | method | WQL ÷ best baseline | pooled | WQL | MASE | accuracy % | 80 % band covers % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        spread = "" if pd.isna(row["spread"]) else f" ± {row['spread']:.2f}"
        name = f"**{row['method']}**" if row["method"] == MODEL else row["method"]
        lines.append(
            f"| {row['servers']} | {name} "
            f"| {row['ratio']:.2f}{spread} | {row['pooled']:.2f} "
            f"| {row['wql']:.3f} | {row['mase']:.2f} | {row['accuracy']:.1f} | {row['coverage_80']:.1f} |"
        )
    return "\n".join(lines)


def run(path: Path, folds: int, length: TrainingLength) -> dict[str, Any]:
    """Run all folds of a data set and print the table."""
    runs = [one_fold(path, names, length, SEED + fold) for fold, names in enumerate(held_out_names(path, folds))]
    table = table_of(runs)
    spent = [run["trained"]["minutes"] for run in runs]
    title = (
        f"`{path.name}`, {runs[0]['trained']['parameters']:,} parameters, {length}"
        f"{f', {folds} folds' if folds > 1 else ''}"
    )
    print(f"\n{markdown(title, table)}")
    records = json.loads(table.to_json(orient="records", double_precision=5))
    return {"minutes": spent, "scores": records, "forecasts": [run["forecasts"]["output"] for run in runs]}


def arguments_of(parser: argparse.ArgumentParser, folds: int, argv: Sequence[str] | None) -> argparse.Namespace:
    """--data, --folds (default: this number), `length` of --minutes and --steps, and what the parser has already."""
    parser.add_argument(
        "--data", type=Path, action="append", help="file or folder; may be repeated (both real data sets)"
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="training time of each model (%(default)s)")
    parser.add_argument("--steps", type=int, help="optimisation steps of each model, instead of --minutes")
    parser.add_argument("--folds", type=int, default=folds, help="number of folds (%(default)s)")
    arguments = parser.parse_args(argv)
    arguments.length = TrainingLength(arguments.minutes, arguments.steps)
    if arguments.folds < 1 or not arguments.minutes > 0 or (arguments.steps is not None and arguments.steps < 1):
        parser.error("--folds, --minutes and --steps: give numbers above 0")
    return arguments


def run_all(paths: Sequence[Path], run_one: Callable[[Path], Any]) -> int:
    """Run each data set and print the results as JSON; returns 1 if a part failed."""
    try:
        result = {path.stem: run_one(path) for path in paths}
    except (ContractError, DataFileError, FailedRunError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Train and forecast; returns 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = arguments_of(parser, 1, argv)
    paths = arguments.data or [path.resolve() for path in DATA]
    return run_all(paths, lambda path: run(path, arguments.folds, arguments.length))


if __name__ == "__main__":
    sys.exit(main())
