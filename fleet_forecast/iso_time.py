"""UTC times as text: the one form in which the toolkit writes them, and the forms that it reads."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np


def iso(moment: float | datetime | np.datetime64) -> str:
    """UTC time as 2026-11-23T10:00:00Z; a fraction of a second is cut off.

    moment: seconds since 1970, a datetime with a zone, or a NumPy time (UTC). Raises ValueError for a datetime without
    a zone.
    """
    if isinstance(moment, np.datetime64):
        return f"{moment.astype('datetime64[s]')}Z"
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    return f"{_in_utc(moment):%Y-%m-%dT%H:%M:%S}Z"


def iso_exact(moment: datetime) -> str:
    """UTC time as 2026-11-23T10:00:00.25Z, with the fraction of a second if there is one.

    Raises ValueError for a datetime without a zone.
    """
    return _in_utc(moment).isoformat().removesuffix("+00:00") + "Z"


def iso_offset(moment: datetime) -> str:
    """UTC time as 2026-11-23T10:00:00+00:00, the form of datetime.isoformat: in summaries for programs.

    Raises ValueError for a datetime without a zone.
    """
    return _in_utc(moment).isoformat()


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"the time {moment} has no zone; add one, such as UTC")
    return moment.astimezone(UTC)


def iso_milliseconds(seconds: float) -> str:
    """UTC time as 2026-11-23T10:00:00.250Z; always three digits. seconds: since 1970."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_seconds(text: str) -> float:
    """Seconds since 1970 of a time with its zone, such as 2026-11-23T10:00:00Z.

    Raises ValueError with what is wrong and the remedy, as the end of a sentence that begins with the text.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is not a time; write 2026-11-20T00:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("has no time zone; write UTC with a final Z")
    try:
        return moment.astimezone(UTC).timestamp()
    except OverflowError:
        raise ValueError("is before the year 1 in UTC; give a later time") from None
