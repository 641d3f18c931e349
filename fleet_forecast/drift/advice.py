"""In words, what has changed since when, and by how much."""

from __future__ import annotations

import numpy as np

from fleet_forecast.drift.detector import ChangeDetector, Stream, as_table
from fleet_forecast.iso_time import iso

SHOWN = 3  # profiles that are named
NAMED_SHARE = 0.5  # of the largest change, in standard deviations: smaller ones are not named
DAY_SECONDS = 86_400


def changes_in_words(detector: ChangeDetector) -> list[str]:
    """One sentence for each profile that changed most, the largest change first; empty without a day since a change."""
    since = detector.days_since_change
    if not since or since >= len(detector.days):
        return []
    streams, table = as_table(detector.days)
    before, after = table[:-since], table[-since:]
    known = (~np.isnan(before)).any(axis=0) & (~np.isnan(after)).any(axis=0)
    if not known.any():
        return []
    shift = np.full(len(streams), -np.inf)
    shift[known] = np.nanmedian(after[:, known], axis=0) - np.nanmedian(before[:, known], axis=0)
    deviation = np.ones(len(streams))
    deviation[known] = np.nanstd(before[:, known], axis=0) + 1e-9
    sizes = shift / deviation
    named = [index for index in np.argsort(-sizes) if sizes[index] >= NAMED_SHARE * sizes.max() and shift[index] > 0]
    day = iso(detector.days[-since].number * DAY_SECONDS)[:10]
    profiles = list(dict.fromkeys(streams[index].profile for index in named))[:SHOWN]
    return [_sentence([(streams[i], shift[i]) for i in named if streams[i].profile == each], day) for each in profiles]


def _sentence(changes: list[tuple[Stream, float]], day: str) -> str:
    metrics = ", ".join(f"{stream.metric} by {100 * np.expm1(shift):.0f} %" for stream, shift in changes)
    return (
        f"profile {changes[0][0].profile}: since {day} the error is higher than before, relative to that of the "
        f"quantiles of the last 24 h: {metrics}"
    )


def new_profiles_in_words(servers: dict[str, int], fewest: int) -> list[str]:
    """Profiles that the model was not trained on. servers: with a day of history, by profile."""
    return [
        f"profile {profile}: the model was not trained on it, and {count} servers have a day of history"
        for profile, count in sorted(servers.items())
        if count >= fewest
    ]
