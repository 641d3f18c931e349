"""Command-line flags of all scripts: every flag may be written with hyphens or with underscores."""

from __future__ import annotations

import argparse
from typing import Any

from fleet_forecast import __version__


def add_flag(group: argparse._ActionsContainer, flag: str, **options: Any) -> None:
    """`group.add_argument(flag, **options)` for both spellings of the flag; help shows the given one first."""
    name = flag.removeprefix("--")
    spellings = dict.fromkeys((name, name.replace("_", "-"), name.replace("-", "_")))
    group.add_argument(*(f"--{spelling}" for spelling in spellings), **options)


def add_version(parser: argparse.ArgumentParser) -> None:
    """--version, which prints the toolkit's version and exits with 0."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
