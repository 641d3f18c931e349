"""Text on what has changed, since when, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fleet_forecast.drift.detector import ChangeDetector, Stream, as_table
from fleet_forecast.iso_time import iso
from fleet_forecast.wording import counted

SHOWN = 3  # profiles that are named
FEWEST_NEW_SERVERS = 3  # of a profile: of three, training holds out one
NAMED_SHARE = 0.5  # of a change, in standard deviations: smaller ones are not named
DAY_SECONDS = 86_400


class Reason(NamedTuple):
    """Why a model may be too old. profile: which one is concerned, empty for all."""

    profile: str
    text: str


class NewServers(NamedTuple):
    """Servers of a profile that the model was not trained on. grown: how many have a day of history."""

    servers: int
    grown: int


def changes(detector: ChangeDetector) -> list[Reason]:
    """The profiles that changed most, the largest change first, or one reason without a profile if none can be named.

    detector: one that found a change.
    """
    return _changed_profiles(detector) or [Reason("", "the errors are higher than before")]


def _changed_profiles(detector: ChangeDetector) -> list[Reason]:
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
    return [
        Reason(each, _sentence([(streams[i], shift[i]) for i in named if streams[i].profile == each], day))
        for each in profiles
    ]


def _sentence(changes: list[tuple[Stream, float]], day: str) -> str:
    metrics = ", ".join(f"{stream.metric} by {100 * np.expm1(shift):.0f} %" for stream, shift in changes)
    return (
        f"profile {changes[0][0].profile}: since {day} the error is higher than before, relative to that of the "
        f"quantiles of the last 24 h: {metrics}"
    )


def new_profiles(found: Mapping[str, NewServers]) -> list[Reason]:
    """Profiles that the model was not trained on, from FEWEST_NEW_SERVERS servers on."""
    return [
        Reason(profile, f"profile {profile}: the model was not trained on it; {_numbers(new)}")
        for profile, new in sorted(found.items())
        if new.servers >= FEWEST_NEW_SERVERS
    ]


def can_be_trained_on(found: Mapping[str, NewServers]) -> bool:
    """Whether enough servers of a new profile have a day of history; before, a training would not help them."""
    return any(new.grown >= FEWEST_NEW_SERVERS for new in found.values())


def _numbers(new: NewServers) -> str:
    text = f"{counted(new.servers, 'server')}, {new.grown} with a day of history"
    return text if new.grown >= FEWEST_NEW_SERVERS else f"{text}; train again when {FEWEST_NEW_SERVERS} have one"
