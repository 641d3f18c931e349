"""Scaling that works for strangers: physical units -> link space -> profile units -> window units, and back.

1. A *link* maps each metric's physical range onto the real line, strictly increasing: percentages through the logit,
   rates and latencies through the inverse of softplus (logarithmic near zero, linear above the fleet's typical level).
   Going back through the link keeps any forecast within physical bounds by construction.
2. *Profile statistics* (centre and spread of the profile's training servers in link space) standardise the metric, so
   that a server without any history is already on a sensible scale.
3. The *window's own* centre and spread are shrunk toward the profile's: with n measured steps of the context the
   window's own mean has weight n / (n + k), and its deviation enters with the same weight on a log scale (a geometric
   mean, so that a very quiet server keeps its small scale). With no history the profile speaks alone; with a day of it
   the server does. This is the shrinkage of a random-effects model (Efron & Morris 1975) with a fixed k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PERCENT_FLOOR = 0.05  # percentage points: how near to 0 and 100 % the logit resolves differences
RATE_FLOOR = 0.01  # share of the metric's typical level: how near to zero the rate link resolves differences
SMALLEST_SPREAD = 1e-3  # in profile units: a constant series keeps this scale
PRIOR_STEPS_OF_SPREAD = 2.0  # a deviation measured on few steps is averaged with this many steps of the profile's


class WindowScale(NamedTuple):
    """Where a window lies and how wide it is, in link space: float32 [window, metric] each."""

    centre: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class FleetScaling:
    """Everything needed to scale any window of any server; fitted once on the training servers.

    metrics: names, in order. percent: True where the metric is a percentage [metric].
    typical: the rate link's turning point in physical units [metric] (unused for percentages).
    centre, spread, spread_within: link space, float32 [1 + profile, metric]; row 0 is the whole fleet, used for
        unknown and hidden profiles. spread is the total deviation, spread_within the usual one inside a window.
    profiles: names of the rows after row 0.
    shrinkage_steps: the k above, in measured steps.
    """

    metrics: tuple[str, ...]
    percent: np.ndarray
    typical: np.ndarray
    profiles: tuple[str, ...]
    centre: np.ndarray
    spread: np.ndarray
    spread_within: np.ndarray
    shrinkage_steps: float

    def to_link(self, values: np.ndarray) -> np.ndarray:
        """Physical units [..., metric] -> link space [..., metric], float32; NaN stays NaN."""
        linked = np.empty(values.shape, dtype=np.float32)
        for index, is_percent in enumerate(self.percent):
            column = values[..., index].astype(np.float64)
            if is_percent:
                share = (column + PERCENT_FLOOR) / (100.0 + 2 * PERCENT_FLOOR)
                linked[..., index] = np.log(share) - np.log1p(-share)
            else:
                level = column / self.typical[index] + RATE_FLOOR
                linked[..., index] = level + np.log(-np.expm1(-level))
        return linked

    def from_link(self, linked: np.ndarray) -> np.ndarray:
        """Link space [..., metric] -> physical units [..., metric], within (0, 100) or (0, inf)."""
        percent = 100.0 / (1.0 + np.exp(-np.clip(linked, -60.0, 60.0)))
        rate = self.typical * np.logaddexp(0.0, linked)
        return np.where(self.percent, percent, rate).astype(np.float32)

    def profile_rows(self, profiles: np.ndarray) -> np.ndarray:
        """Names (None = hidden or unknown) -> rows of `centre`, `spread`; int64 [server]."""
        row_of = {name: row for row, name in enumerate(self.profiles, start=1)}
        return np.array([row_of.get(name, 0) for name in profiles], dtype=np.int64)

    def window_scale(self, linked_context: np.ndarray, profile_rows: np.ndarray) -> WindowScale:
        """Shrunken centre and spread of each window.

        linked_context: [window, encoder_step, metric] in link space, NaN = not measured. profile_rows: [window].
        """
        centre, spread = self.centre[profile_rows], self.spread[profile_rows]  # [window, metric]
        measured = ~np.isnan(linked_context)
        units = (linked_context - centre[:, None]) / spread[:, None]
        n = measured.sum(axis=1).astype(np.float32)
        mean = np.where(measured, units, 0.0).sum(axis=1) / np.maximum(n, 1.0)
        squares = np.where(measured, units - mean[:, None], 0.0) ** 2
        within = self.spread_within[profile_rows] / spread
        k = PRIOR_STEPS_OF_SPREAD
        deviation = np.sqrt((squares.sum(axis=1) + k * within**2) / (n + k))
        weight = n / (n + self.shrinkage_steps)
        width = np.exp(weight * np.log(np.maximum(deviation, SMALLEST_SPREAD)))
        return WindowScale(
            (centre + spread * weight * mean).astype(np.float32),
            (spread * width).astype(np.float32),
        )

    def in_profile_units(self, scale: WindowScale, profile_rows: np.ndarray) -> WindowScale:
        """The same centre and log-spread relative to the profile: what the network is told as static reals."""
        centre, spread = self.centre[profile_rows], self.spread[profile_rows]
        return WindowScale((scale.centre - centre) / spread, np.log(scale.spread / spread))


def fit_scaling(
    values: np.ndarray,
    metrics: tuple[str, ...],
    percent: np.ndarray,
    profiles: tuple[str | None, ...],
    window_steps: int,
    shrinkage_steps: float,
) -> FleetScaling:
    """Fit links and profile statistics on training servers.

    values: float32 [server, step, metric] in physical units (training servers and days only), NaN = not measured.
    window_steps: length over which "the usual deviation inside a window" is taken (the context).
    """
    typical = np.array([_typical_level(values[..., index]) for index in range(len(metrics))])
    names = tuple(sorted({name for name in profiles if name is not None}))
    width = len(metrics)
    shape = (1 + len(names), width)
    links_only = FleetScaling(
        metrics, percent, typical, names, np.zeros(shape), np.ones(shape), np.ones(shape), shrinkage_steps
    )
    linked = links_only.to_link(values)
    fleet = _statistics(linked, window_steps)
    owner = np.array([name if name is not None else "" for name in profiles])
    own = [_statistics(linked[owner == name], window_steps) for name in names]
    table = np.stack([fleet, *own])  # [1 + profile, statistic, metric]
    # A profile whose servers never report a metric takes the fleet's word for it.
    centre, spread, within = np.where(np.isfinite(table), table, fleet).astype(np.float32).swapaxes(0, 1)
    return FleetScaling(metrics, percent, typical, names, centre, spread, within, shrinkage_steps)


def _typical_level(values: np.ndarray) -> float:
    """Median of the positive measurements, 1.0 if there is none: the level where the rate link turns linear."""
    positive = values[values > 0]
    return float(np.median(positive)) if positive.size else 1.0


def _statistics(linked: np.ndarray, window_steps: int) -> np.ndarray:
    """Centre, total deviation, usual deviation inside a window over [server, step, metric]: [3, metric]."""
    width = linked.shape[-1]
    centre, spread, within = (np.full(width, np.nan) for _ in range(3))
    for index in range(width):
        column = linked[..., index].astype(np.float64)
        column = column[~np.isnan(column).all(axis=1)]
        if column.size == 0:
            continue
        centre[index] = np.nanmean(column)
        spread[index] = max(float(np.nanstd(column)), SMALLEST_SPREAD)
        windows = max(1, column.shape[1] // window_steps)
        deviations = [
            _deviation(part[~np.isnan(part)])
            for server in column
            for part in np.array_split(server, windows)
            if np.count_nonzero(~np.isnan(part)) > 1
        ]
        within[index] = max(float(np.median(deviations)) if deviations else spread[index], SMALLEST_SPREAD)
    return np.stack([centre, spread, within])


def _deviation(values: np.ndarray) -> float:
    return float(np.std(values))
