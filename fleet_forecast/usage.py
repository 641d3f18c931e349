"""Wrong usage of a command line, and notes to the user."""

from __future__ import annotations

import sys

from fleet_forecast.iso_time import utc_seconds


class UsageError(ValueError):
    """The command line cannot be followed; the message names the flag and the remedy."""


def note(text: str) -> None:
    """Print a note to the user on stderr; it requires no action."""
    print(f"note: {text}", file=sys.stderr)


def time_of(text: str, flag: str) -> float:
    """Seconds since 1970 of a flag's time. Raises UsageError."""
    try:
        return utc_seconds(text)
    except ValueError as problem:
        raise UsageError(f"--{flag} {text!r} {problem}") from None
