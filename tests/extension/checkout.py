"""A temporary copy of the checkout, with one entry added: nothing else in the copy is edited."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ("server_profiles.py", "data_contract.py", "metrics_generator.py", "tft_trainer.py", "tft_inference.py")
TRAINER = """
import sys, torch, tft_trainer
from fleet_forecast.training import trainer
torch.set_num_threads(1)
trainer.VALIDATION_BATCHES = 3
sys.exit(tft_trainer.main())
"""


def copy_of_checkout(folder):
    copy = folder / "checkout"
    for package in ("fleet_forecast", "tests/serving"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    for file in (*SCRIPTS, "tests/__init__.py"):
        shutil.copy(ROOT / file, copy / file)
    return copy


def insert(checkout, file, before, text):
    """Insert text before a place in a file."""
    replace(checkout, file, before, text + before)


def replace(checkout, file, old, new):
    path = checkout / file
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")


def run(checkout, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def train(checkout, *flags):
    """Train a tiny model in the copy; returns its directory."""
    result = run(checkout, "-c", TRAINER, *flags)
    assert result.returncode == 0, result.stderr
    return checkout / "models" / "current"
