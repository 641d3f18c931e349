"""Command-line flags of all scripts: every flag may be written with hyphens or with underscores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from fleet_forecast import __version__


class FlagParser(argparse.ArgumentParser):
    """A parser whose errors are one line: its usage would be as long as the help."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 2."""
        self.exit(2, f"error: {message}; {self.prog} --help lists the flags\n")


def add_flag(group: argparse._ActionsContainer, flag: str, **options: Any) -> None:
    """`group.add_argument(flag, **options)` for both spellings of the flag; help shows the given one first."""
    name = flag.removeprefix("--")
    spellings = dict.fromkeys((name, name.replace("_", "-"), name.replace("-", "_")))
    group.add_argument(*(f"--{spelling}" for spelling in spellings), **options)


def add_version(parser: argparse.ArgumentParser) -> None:
    """--version, which prints the toolkit's version and exits with 0."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")


def path_or_address(text: str) -> Path | str:
    """An argparse type: a path, or an address such as s3://bucket/folder."""
    return text if "://" in text else Path(text)


def target_or_address(text: str) -> Path | str:
    """As path_or_address, of what is written: it must outlive the command."""
    if text.startswith("memory://"):
        raise argparse.ArgumentTypeError(f"{text}: ends with the command; give a folder or an address of a store")
    return path_or_address(text)


def add_engine_flags(group: argparse._ActionsContainer) -> None:
    """Flags of commands that work on a fleet in parts."""
    add_flag(
        group,
        "--engine",
        choices=("memory", "parts", "ray"),
        default="memory",
        help="memory: the whole fleet at once; parts: one parquet file at a time, each with all rows of its servers; "
        "ray: the same on a Ray cluster (%(default)s)",
    )
    add_ray_flags(group, "one per core")


def add_ray_flags(group: argparse._ActionsContainer, default_workers: str) -> None:
    """Flags of --engine ray."""
    add_flag(group, "--ray-address", metavar="ADDRESS", help="address of a cluster (this machine's cores)")
    help_text = f"processes of --engine ray ({default_workers})"
    add_flag(group, "--workers", type=positive_int, metavar="N", help=help_text)


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = _float_number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def fraction(text: str) -> float:
    """An argparse type: a number above 0 and below 1."""
    value = _float_number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and below 1")
    return value


def int_number(text: str) -> int:
    """An argparse type: a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _float_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
