"""Loads a model and runs its canary forecast in a process with limits of memory and processor time.

    python -m fleet_forecast.inference.trial DIR --mib 1024 --seconds 60

Exit code 0: the model can be used. Exit code 1: the last line of stdout gives the reason. Another one: the process was
ended, by a limit for example.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime  # noqa: F401 - before the limit is set

from fleet_forecast.flags import add_flag
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.risk_model import TREES_FILE
from fleet_forecast.risk.lightgbm_library import LightgbmMissingError, load_lightgbm

NICENESS = 5  # the service that waits for this process goes on meanwhile


def main(argv: Sequence[str] | None = None) -> int:
    """Try the model; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    add_flag(parser, "--mib", type=float, required=True, help="memory beyond that of the libraries")
    add_flag(parser, "--seconds", type=float, required=True, help="processor time")
    arguments = parser.parse_args(argv)
    os.nice(NICENESS)
    if (arguments.model_dir / TREES_FILE).exists():  # importing it takes longer than all the rest
        with contextlib.suppress(LightgbmMissingError):  # before the limit is set; loading the trees gives the reason
            load_lightgbm()
    limit_resources(arguments.mib, arguments.seconds)
    try:
        engine = Engine.load(arguments.model_dir, device="cpu", threads=1)
        with contextlib.suppress(ModelError):  # forecasts need no explanations
            engine.load_explanations()
    except ModelError as problem:
        print(problem)
    except MemoryError:
        print(f"{arguments.model_dir}: loading it takes more than {arguments.mib:g} MiB of memory")
    except Exception as problem:
        print(f"{arguments.model_dir}: cannot be loaded ({type(problem).__name__}: {str(problem)[:500]})")
    else:
        return 0
    return 1


def limit_resources(mib: float, seconds: float) -> None:
    """Limit the memory of this process to so much more than it has now, and its processor time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _lower_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + int(mib * 1024 * 1024))
    _lower_limit(resource.RLIMIT_CPU, int(seconds) + 1)
    _lower_limit(resource.RLIMIT_CORE, 0)


def _lower_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    sys.exit(main())
