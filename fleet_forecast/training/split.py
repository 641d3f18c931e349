"""The split of a fleet by server and by time: training, validation and test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

import numpy as np

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.iso_time import iso

VALIDATION_TIME_SHARE = 0.15  # the validation period, as a share of the steps before the test period ...
VALIDATION_HORIZONS = 1.5  # ... but at least this many horizons, so that there are several validation origins
VALIDATION_SERVER_SHARE = 0.125  # of each profile's servers that are not held out ...
MIN_SERVERS_FOR_VALIDATION = 8  # ... in profiles with at least this many


class TrainingError(ValueError):
    """The data cannot be trained on as requested. The message names the field, the value and the remedy."""


@dataclass(frozen=True)
class Split:
    """Rows (servers) and steps of a FleetGrid for each purpose; intervals of steps exclude their end.

    | period     | steps                    | servers                                          |
    |------------|--------------------------|--------------------------------------------------|
    | training   | [0, train_end)           | training_servers                                 |
    | validation | [train_end, test_start)  | training_servers and validation_servers, 1 to 1  |
    | test       | [test_start, grid.steps) | training_servers and unseen_servers, separately  |

    Validation servers exist because later periods of the training servers do not show overfitting to these servers. On
    Bitbrains (14 servers, 2 for validation, 6 unseen, 2,000 optimisation steps) the loss of the training servers fell
    to the end. The loss of the validation servers had its minimum at step 1,200, that of the unseen servers at step
    1,400; both were 1.7 % higher at the end.
    """

    training_servers: np.ndarray
    validation_servers: np.ndarray
    unseen_servers: np.ndarray
    train_end: int
    test_start: int

    @property
    def observed_servers(self) -> np.ndarray:
        """Those that may be peers; unseen servers are nobody's peers."""
        return np.union1d(self.training_servers, self.validation_servers)


def split_fleet(grid: FleetGrid, spec: WindowSpec, train_fraction: float, holdout: str, seed: int) -> Split:
    """Split servers at random within each profile, and time at fixed steps.

    train_fraction: share of the measured time before the test period. holdout: share of each profile's servers such
    as "0.1", or comma-separated server names. Raises TrainingError if the data are too short, a name is unknown or no
    server is left to train on.
    """
    measured = _steps_without_long_gaps(grid, spec)
    train_end, test_start = _split_time(len(measured), spec, train_fraction)
    if not _has_windows(len(measured), spec, train_fraction):
        least = next(steps for steps in count(len(measured)) if _has_windows(steps, spec, train_fraction))
        hours = math.ceil(least * grid.step_seconds / 360) / 10
        raise TrainingError(
            f"rows: {len(measured)} time steps are too few: {max(train_end, 0)} of them are before the validation and "
            f"test periods, where a window needs {spec.context_steps} of context and {spec.horizon_steps} of horizon, "
            f"and {len(measured) - test_start} are in the test period, which needs {spec.horizon_steps}; provide at "
            f"least {hours:g} hours, or shorten --context-hours or --horizon-hours"
        )
    unseen = _unseen_rows(grid, holdout, np.random.default_rng(seed))
    left = np.setdiff1d(np.arange(len(grid.servers)), unseen)
    if not len(left):
        raise TrainingError(f"--holdout-servers {holdout}: every server is held out; leave some to train on")
    validation = _validation_rows(grid, left, np.random.default_rng([seed, 1]))
    train_end, test_start = int(measured[train_end]), int(measured[test_start])
    return Split(np.setdiff1d(left, validation), validation, unseen, train_end, test_start)


def _split_time(steps: int, spec: WindowSpec, train_fraction: float) -> tuple[int, int]:
    """Steps before the validation period, and before the test period."""
    test_start, validation_steps = int(steps * train_fraction), int(VALIDATION_HORIZONS * spec.horizon_steps)
    return min(int(test_start * (1 - VALIDATION_TIME_SHARE)), test_start - validation_steps), test_start


def _has_windows(steps: int, spec: WindowSpec, train_fraction: float) -> bool:
    """Whether the training period has a window, and the test period a horizon."""
    train_end, test_start = _split_time(steps, spec, train_fraction)
    return train_end >= spec.context_steps + spec.horizon_steps and steps - test_start >= spec.horizon_steps


def _steps_without_long_gaps(grid: FleetGrid, spec: WindowSpec) -> np.ndarray:
    """Steps of the grid that are not in a gap of all servers of a day or more: int64 [step].

    The shares of the split are shares of this time, so that no period is empty where the data have a hole.
    """
    busy = np.zeros(grid.steps + 2, dtype=bool)
    busy[[0, -1]] = True  # the ends of the grid bound gaps, too
    for of_server in grid.values:  # one after the other: a mask of all would be a quarter of the fleet in memory
        busy[1:-1] |= ~np.isnan(of_server).all(axis=1)
    at = np.flatnonzero(busy)
    counted = np.ones(grid.steps, dtype=bool)
    for begin, end in zip(at[:-1], at[1:] - 1, strict=True):
        if end - begin >= spec.day_steps:
            counted[begin:end] = False
    return np.flatnonzero(counted)


def measured_metrics(grid: FleetGrid, split: Split) -> np.ndarray:
    """Metrics that training servers measured in the training period: boolean [metric].

    Raises TrainingError if there is no such metric, or if nothing was measured in the test period.
    """
    measured = np.zeros(len(grid.metrics), dtype=bool)
    for row in split.training_servers:  # one after the other: a mask of all would be a quarter of the fleet in memory
        measured |= ~np.isnan(grid.values[row, : split.train_end]).all(axis=0)
    if not measured.any():
        train_end = step_time(grid, split.train_end)
        raise TrainingError(f"values: no training server has a measurement before {train_end}; provide more data")
    if all(np.isnan(of_server[split.test_start :]).all() for of_server in grid.values):
        raise TrainingError(
            f"values: nothing was measured in the test period, from {step_time(grid, split.test_start)} on; provide "
            "more data, or a smaller --train-fraction"
        )
    return measured


def step_time(grid: FleetGrid, step: int) -> str:
    """Time of a grid step as ISO text."""
    return iso(int(grid.start.astype("datetime64[s]").astype(np.int64)) + step * grid.step_seconds)


def _unseen_rows(grid: FleetGrid, wanted: str, random: np.random.Generator) -> np.ndarray:
    """Rows of the named servers, or a share of each profile's rows (at least one of any profile with three servers)."""
    try:
        share = float(wanted)
    except ValueError:
        return _named_rows(grid, wanted)
    if not 0 <= share < 1:
        raise TrainingError(f"--holdout-servers {wanted}: a share must be at least 0 and below 1")
    rows = []
    for of_profile in _rows_by_profile(grid, np.arange(len(grid.servers)), random):
        minimum = 1 if share > 0 and len(of_profile) >= 3 else 0
        rows.append(of_profile[: max(minimum, round(share * len(of_profile)))])
    return np.sort(np.concatenate(rows))


def _validation_rows(grid: FleetGrid, left: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rows = [
        of_profile[: round(VALIDATION_SERVER_SHARE * len(of_profile))]
        for of_profile in _rows_by_profile(grid, left, random)
        if len(of_profile) >= MIN_SERVERS_FOR_VALIDATION
    ]
    return np.sort(np.concatenate([left[:0], *rows]))


def _rows_by_profile(grid: FleetGrid, rows: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """The rows of each profile, shuffled. Servers without a profile form one group."""
    owner = np.array([grid.profiles[row] or "" for row in rows])
    return [random.permutation(rows[owner == profile]) for profile in np.unique(owner)]


def _named_rows(grid: FleetGrid, wanted: str) -> np.ndarray:
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in grid.servers]
    if unknown or not names:
        raise TrainingError(
            f"--holdout-servers {wanted}: no server named {', '.join(unknown) or '(nothing)'} in the data; "
            "give a share such as 0.1 or names as in server_name"
        )
    return np.array(sorted(grid.servers.index(name) for name in set(names)))
