"""Who and what is trained on, and what is kept from the training to judge it: some servers, and the later days."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.windows import WindowSpec

VALIDATION_SHARE = 0.15  # the last part of the training period, never trained on ...
VALIDATION_HORIZONS = 1.5  # ... or so many horizons, where that is longer: its origins must differ
WATCHED_SHARE = 0.125  # of the servers of each profile that are left to train on ...
FEWEST_TO_WATCH = 8  # ... where there are so many: fewer can spare none


class SplitError(ValueError):
    """The fleet cannot be split as asked for; the message names the field, the value and the remedy."""


@dataclass(frozen=True)
class Split:
    """Who and what is trained on. Rows are grid rows; steps are grid steps, `*_end` not included.

    Training: servers `seen`, targets in [0, fit_end). Validation: `seen` and `watched` in equal parts, targets in
    [fit_end, train_end), more than a horizon. Test: `seen` and `unseen` apart, targets in [train_end, steps).

    Watched servers are known to nothing but the validation. Later days of the servers trained on do not tell when a
    network begins to learn these by heart: on Bitbrains (14 servers, 2 watched, 6 unseen, 2,000 steps) their loss fell
    to the end, while that of the watched ones was smallest after 1,200 steps and 1.7 % larger at the end, and that of
    the unseen ones after 1,400 and 1.7 %.
    """

    seen: np.ndarray
    watched: np.ndarray
    unseen: np.ndarray
    fit_end: int
    train_end: int


def split_fleet(grid: FleetGrid, spec: WindowSpec, train_fraction: float, holdout: str, seed: int) -> Split:
    """Hold out servers and the later days, and choose servers to watch.

    holdout: a share of each profile's servers such as "0.1", or server names, comma-separated.
    Raises SplitError if the data are too short, a name is unknown or nothing would be left to train on.
    """
    train_end, validation = int(grid.steps * train_fraction), int(VALIDATION_HORIZONS * spec.horizon_steps)
    fit_end = min(int(train_end * (1 - VALIDATION_SHARE)), train_end - validation)
    window = spec.context_steps + spec.horizon_steps
    if fit_end < window or grid.steps - train_end < spec.horizon_steps:
        training = max(window / (1 - VALIDATION_SHARE), window + validation)
        steps = max(training / train_fraction, spec.horizon_steps / (1 - train_fraction))
        hours = np.ceil(steps * grid.step_seconds / 3600) + 1
        raise SplitError(
            f"rows: {grid.steps} time steps are fewer than one window needs ({spec.context_steps} of context and "
            f"{spec.horizon_steps} of horizon within the training part); provide at least {hours:.0f} hours, or "
            "shorten --context-hours or --horizon-hours"
        )
    unseen = _holdout_rows(grid, holdout, np.random.default_rng(seed))
    left = np.setdiff1d(np.arange(len(grid.servers)), unseen)
    if not len(left):
        raise SplitError(f"--holdout-servers {holdout}: every server is held out; leave some to train on")
    watched = _watched_rows(grid, left, np.random.default_rng([seed, 1]))
    return Split(np.setdiff1d(left, watched), watched, unseen, fit_end, train_end)


def _holdout_rows(grid: FleetGrid, wanted: str, random: np.random.Generator) -> np.ndarray:
    """Rows of the held-out servers: named ones, or a share of each profile's (at least one of any that has three)."""
    try:
        share = float(wanted)
    except ValueError:
        return _named_rows(grid, wanted)
    if not 0 <= share < 1:
        raise SplitError(f"--holdout-servers {wanted}: a share must be at least 0 and below 1")
    rows = []
    for of_profile in _by_profile(grid, np.arange(len(grid.servers)), random):
        least = 1 if share > 0 and len(of_profile) >= 3 else 0
        rows.append(of_profile[: max(least, round(share * len(of_profile)))])
    return np.sort(np.concatenate(rows))


def _watched_rows(grid: FleetGrid, left: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Of the rows `left`, a share of each profile that has enough of them."""
    rows = [
        of_profile[: round(WATCHED_SHARE * len(of_profile))]
        for of_profile in _by_profile(grid, left, random)
        if len(of_profile) >= FEWEST_TO_WATCH
    ]
    return np.sort(np.concatenate([left[:0], *rows]))


def _by_profile(grid: FleetGrid, rows: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """The rows of each profile, shuffled; servers without one are together, too."""
    owner = np.array([grid.profiles[row] or "" for row in rows])
    return [random.permutation(rows[owner == profile]) for profile in np.unique(owner)]


def _named_rows(grid: FleetGrid, wanted: str) -> np.ndarray:
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in grid.servers]
    if unknown or not names:
        raise SplitError(
            f"--holdout-servers {wanted}: no server named {', '.join(unknown) or '(nothing)'} in the data; "
            "give a share such as 0.1 or names as in server_name"
        )
    return np.array(sorted(grid.servers.index(name) for name in set(names)))
