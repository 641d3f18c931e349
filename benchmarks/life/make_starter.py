"""Makes models/starter, the model for forecasts before there is one of the fleet: `make starter`.

    OMP_NUM_THREADS=1 python benchmarks/life/make_starter.py                 # a quarter of an hour on one core
    OMP_NUM_THREADS=1 python benchmarks/life/make_starter.py --steps 60 --output /tmp/models/starter

    python benchmarks/life/make_starter.py --card                            # after a change of the card only

Trains with tft_trainer.py on the sources of starter_sources.py together, and keeps what forecasts and explanations
need. The card, models/starter/README.md, is written by hand; tests compare it with the files. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tft_trainer  # noqa: E402
from benchmarks.life.starter_sources import RECIPE, SOURCES, STEPS, load, together  # noqa: E402
from benchmarks.real_servers import last_json_line  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import CONFIG_FILE  # noqa: E402
from fleet_forecast.inference.model_directory import (  # noqa: E402
    CANARY_FILE,
    EXPLAIN_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    STARTER,
    STARTER_DIR,
    TRAINING_INFO_FILE,
    WEIGHTS_FILE,
    new_model_directory,
    write_manifest,
)

CARD_FILE = "README.md"
KEPT_FILES = (WEIGHTS_FILE, ONNX_FILE, EXPLAIN_FILE, CANARY_FILE)
KEPT_INFO = ("first_timestamp", "train_end", "test_start", "last_timestamp", "servers", "windows", "parameters")
LARGEST_BYTES = 3_000_000


def trained(steps: int, folder: Path) -> Path:
    """The model directory of a training on all sources."""
    rows = folder / "rows.parquet"
    together({name: load(name) for name in SOURCES}).to_parquet(rows, index=False)
    flags = ["--training-dir", str(rows), "--models-dir", str(folder / "models"), "--steps", str(steps), *RECIPE]
    return Path(last_json_line(tft_trainer.main, flags)["model_dir"])


def publish(model_dir: Path, output: Path) -> dict[str, Any]:
    """Write the starter model's directory from a trained one; returns the content of the JSON line."""
    info = json.loads((model_dir / TRAINING_INFO_FILE).read_text(encoding="utf-8"))
    kept = {name: info[name] for name in KEPT_INFO} | {"steps": info["settings"]["steps"]}
    kept |= {"sources": list(SOURCES), "recipe": list(RECIPE)}
    card = (STARTER_DIR / CARD_FILE).read_bytes()
    shutil.rmtree(output, ignore_errors=True)
    with new_model_directory(output.parent, output.name) as directory:
        for name in KEPT_FILES:
            shutil.copy(model_dir / name, directory / name)
        fields = json.loads((model_dir / CONFIG_FILE).read_text(encoding="utf-8")) | {"model_id": STARTER}
        (directory / CONFIG_FILE).write_text(json.dumps(fields), encoding="utf-8")
        (directory / TRAINING_INFO_FILE).write_text(json.dumps(kept, indent=2), encoding="utf-8")
        (directory / CARD_FILE).write_bytes(card)
    Engine.load(output, device="cpu")
    size = sum(path.stat().st_size for path in output.iterdir())
    if size > LARGEST_BYTES:
        raise RuntimeError(f"{output}: has {size:,} bytes, more than {LARGEST_BYTES:,}")
    return {"output": str(output), "bytes": size, **kept}


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training (%(default)s)")
    parser.add_argument("--output", type=Path, default=STARTER_DIR, help="model directory (%(default)s)")
    parser.add_argument(
        "--card", action="store_true", help="enter a changed card into the manifest, without a training"
    )
    arguments = parser.parse_args(argv)
    if arguments.card:
        (arguments.output / MANIFEST_FILE).unlink()
        write_manifest(arguments.output)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = publish(trained(arguments.steps, Path(folder)), arguments.output)
    print(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
