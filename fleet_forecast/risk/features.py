"""Features of the risk model: one definition for training, the daemon and replays.

All values are differences from what the profile's other live servers measure at the same step (leave-one-out median),
on a scale of log odds for percentages and of logarithms for rates. A server without peers is compared with itself only.

    level      mean of the last 5 minutes to 8 hours, less the mean of the last day, in standard deviations of that day
    change     mean of the last 15 minutes to 2 hours, less that of as long a time before, in the same unit
    ..._alone  the same, less what the other metrics of the server predict for it: metrics rise and fall together
    offset     mean of the last day; deviation: logarithm of its standard deviation

and profile, business hour, weekday, number of peers, and hours in which the server was compared. A missing value is
NaN.

What the other metrics predict is a linear regression: with P the inverse of the covariance matrix of the levels z of
healthy servers, z_i - E[z_i | others] = (P z)_i / P_ii (Lauritzen 1996, section 5.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar, business_time
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.features.peers import LeaveOneOut, OrderStatistics, Peers, last_steps, medians_without_one

FEATURES_VERSION = 1  # of the features' meaning; a risk model of another one is refused
DAY_SECONDS = 86_400
LEVEL_SECONDS = (0, 900, 1_800, 3_600, 7_200, 14_400, 28_800)  # 0: the last step alone
CHANGE_SECONDS = (900, 1_800, 3_600, 7_200, 14_400)
ALONE = "_alone"  # ends the kind of a feature from which the prediction by the other metrics is subtracted
SERVER_FEATURES = ("profile", "hour", "weekday", "peers", "history_hours")
SMALLEST_SHARE = 0.0005  # percentages are kept this far from 0 and 100 %, as a share: log odds are finite
SMALLEST_RATE = 0.05  # in the metric's unit: smaller rates count as this one
PRIOR_STEPS = 24.0  # weight of the typical deviation against that of the server's own day
SMALLEST_DEVIATION = 0.01


@dataclass(frozen=True)
class RiskSpec:
    """What the features depend on besides the measurements.

    percent: whether each metric is a percentage. profiles: the code of a profile is its position; an unknown one is
    NaN. deviation: float32 [metric], typical standard deviation over a day. covariance: float32 [scale, metric,
    metric] of the levels and then the changes of healthy servers, by time scale.
    """

    metrics: tuple[str, ...]
    percent: tuple[bool, ...]
    step_seconds: int
    calendar: BusinessCalendar
    profiles: tuple[str, ...]
    deviation: np.ndarray
    covariance: np.ndarray

    @classmethod
    def empty(
        cls, metrics: Sequence[str], step_seconds: int, calendar: BusinessCalendar, profiles: Sequence[str]
    ) -> RiskSpec:
        """A spec without statistics, to fit them with."""
        scales, size = len(LEVEL_SECONDS) + len(CHANGE_SECONDS), len(metrics)
        percent = tuple(METRIC_SPECS[metric].is_percent for metric in metrics)
        deviation = np.zeros(size, dtype=np.float32)
        covariance = np.tile(np.eye(size, dtype=np.float32), (scales, 1, 1))
        return cls(tuple(metrics), percent, step_seconds, calendar, tuple(profiles), deviation, covariance)

    @property
    def profile_column(self) -> int:
        """The column of the profile's code."""
        return -len(SERVER_FEATURES)

    @property
    def day_steps(self) -> int:
        """Steps of history that the features use."""
        return DAY_SECONDS // self.step_seconds


class RiskInput(NamedTuple):
    """Servers whose features are computed.

    history: float32 [server, step, metric of the spec] in the contract's units, NaN = not measured; the last step is
    the origin. profiles: one per server, None = unknown. origins: datetime64[s] [server]. peers: with the metrics of
    the spec; None = unknown.
    """

    history: np.ndarray
    profiles: Sequence[str | None]
    origins: np.ndarray
    peers: Peers | None = None


class FeatureName(NamedTuple):
    """What one feature is: kind, time scale in seconds and metric; scale and metric are None where it has none."""

    kind: str
    seconds: int | None = None
    metric: str | None = None

    def __str__(self) -> str:
        parts = (self.kind, None if self.seconds is None else f"{self.seconds}s", self.metric)
        return ".".join(part for part in parts if part is not None)


def feature_names(metrics: Sequence[str]) -> tuple[FeatureName, ...]:
    """Names in the order of the columns of `risk_features`."""
    scaled = [("level", seconds) for seconds in LEVEL_SECONDS] + [("change", seconds) for seconds in CHANGE_SECONDS]
    alone = [(kind + ALONE, seconds) for kind, seconds in scaled]
    of_metrics = [*scaled, *alone, ("offset", DAY_SECONDS), ("deviation", DAY_SECONDS)]
    names = [FeatureName(kind, seconds, metric) for kind, seconds in of_metrics for metric in metrics]
    return (*names, *map(FeatureName, SERVER_FEATURES))


def risk_features(inputs: RiskInput, spec: RiskSpec) -> np.ndarray:
    """float32 [server, feature], NaN where unknown; the columns are `feature_names`."""
    differences, peers = differences_from_peers(inputs, spec)
    day = Day.of(differences, spec)
    scaled = day.scaled(spec)  # [scale, server, metric]
    alone = _without_others(scaled, spec.covariance)
    offset, deviation = day.mean, np.log(day.deviation / spec.deviation)
    of_metrics = np.concatenate([scaled, alone, offset[None], deviation[None]])
    of_metrics = of_metrics.transpose(1, 0, 2).reshape(len(offset), -1)
    return np.concatenate(
        [of_metrics, _of_servers(inputs, spec, peers, day.counts[-1].max(axis=1))], axis=1, dtype=np.float32
    )


class LogScale(NamedTuple):
    """Physical units <-> log odds of percentages and logarithms of rates. percent: boolean [metric]."""

    percent: np.ndarray

    def transform(self, values: np.ndarray) -> np.ndarray:
        """float32 [..., metric]; NaN stays NaN."""
        shares = np.clip(values * np.float32(0.01), SMALLEST_SHARE, 1 - SMALLEST_SHARE)
        ratio = np.where(self.percent, shares / (1 - shares), np.maximum(values, np.float32(SMALLEST_RATE)))
        return np.log(ratio, dtype=np.float32)


def differences_from_peers(inputs: RiskInput, spec: RiskSpec) -> tuple[np.ndarray, np.ndarray]:
    """Measurements of the last day less the peers' level: float32 [server, step, metric]; and the number of peers.

    A metric that no peer measured in the day is returned as it is.
    """
    scale = LogScale(np.array(spec.percent))
    values = scale.transform(last_steps(inputs.history, spec.day_steps))
    counts = np.zeros(len(values), dtype=np.float32)
    if inputs.peers is None or not len(values):
        return values, counts
    origins = np.asarray(inputs.origins, dtype="datetime64[s]").astype(np.int64) // spec.step_seconds
    whole = inputs.peers.table
    table = whole.part(whole.profiles, int(origins.min()) + 1 - values.shape[1], int(origins.max()) + 1)
    low, middle, high, members = table.statistics
    low, middle, high = (scale.transform(field) for field in (low, middle, high))
    medians = medians_without_one(OrderStatistics(low, middle, high, members))
    in_table = values
    if inputs.peers.values is not None:
        in_table = scale.transform(last_steps(inputs.peers.values, values.shape[1]))
    for servers, of_profile in _groups(medians, table.rows_of(inputs.profiles), origins - table.first_step, values):
        own = np.where(inputs.peers.members[servers, None, None], in_table[servers], np.float32(np.nan))
        values[servers] = _less_level(values[servers], own, of_profile)
        others = of_profile.counts[-1] - ~np.isnan(own[:, -1])
        counts[servers] = np.maximum(others, 0).max(axis=1)
    return values, counts


def _groups(
    medians: LeaveOneOut, rows: np.ndarray, last: np.ndarray, values: np.ndarray
) -> Iterator[tuple[np.ndarray, LeaveOneOut]]:
    """Servers of one profile and origin, and the medians of their day [step, metric], NaN outside the table."""
    steps = values.shape[1]
    for row, column in sorted(set(zip(rows.tolist(), last.tolist(), strict=True))):
        if row >= 0:
            columns = np.arange(column + 1 - steps, column + 1)
            inside = (columns >= 0) & (columns < medians.counts.shape[1])
            of_profile = [field[row, np.where(inside, columns, 0)] for field in medians]
            for field in of_profile:
                field[~inside] = 0 if field.dtype == np.int16 else np.nan
            yield np.flatnonzero((rows == row) & (last == column)), LeaveOneOut(*of_profile)


def _less_level(values: np.ndarray, own: np.ndarray, medians: LeaveOneOut) -> np.ndarray:
    """Values [server, step, metric] less the median of the others; own: those that are in the median, else NaN."""
    level = np.where(own < medians.whole, medians.without_smaller, medians.without_larger)
    np.copyto(level, medians.without_equal, where=own == medians.whole)
    not_members = np.isnan(own)
    if not_members.any():
        np.copyto(level, medians.whole, where=not_members)
    differences = np.subtract(values, level, out=level)
    if medians.counts.min() < 2:  # some steps have no peers
        lonely = np.isnan(differences).all(axis=1, keepdims=True)  # [server, 1, metric]
        differences = np.where(lonely, values, differences)
    return differences


class Day(NamedTuple):
    """Sums over the last day. sums, counts: float32 [boundary, server, metric], of the steps since each boundary."""

    boundaries: tuple[int, ...]  # steps before the end, the last is the whole day
    sums: np.ndarray
    counts: np.ndarray
    mean: np.ndarray  # float32 [server, metric]
    deviation: np.ndarray  # float32 [server, metric]

    @classmethod
    def of(cls, differences: np.ndarray, spec: RiskSpec) -> Day:
        """Sums of float32 [server, step, metric]."""
        known = ~np.isnan(differences)
        values = np.where(known, differences, np.float32(0))
        boundaries = _boundaries(spec)
        since = np.arange(differences.shape[1], 0, -1)[None] <= np.array(boundaries)[:, None]
        since = since.astype(np.float32)  # [boundary, step]
        sums, counts = (np.moveaxis(since @ array, 1, 0) for array in (values, known.astype(np.float32)))
        total, count = sums[-1], counts[-1]
        with np.errstate(invalid="ignore"):
            mean = total / np.where(count > 0, count, np.nan)
        squares = np.ones(values.shape[1], np.float32) @ np.square(values)
        variance = np.maximum(squares - total * np.nan_to_num(mean), 0)
        variance = (variance + PRIOR_STEPS * np.square(spec.deviation)) / (count + PRIOR_STEPS)
        return cls(boundaries, sums, counts, mean, np.maximum(np.sqrt(variance), SMALLEST_DEVIATION))

    def scaled(self, spec: RiskSpec) -> np.ndarray:
        """Levels and changes by scale, in deviations of the day: float32 [scale, server, metric]."""
        found = [self._mean(0, _steps(seconds, spec)) - self.mean for seconds in LEVEL_SECONDS]
        for seconds in CHANGE_SECONDS:
            steps = _steps(seconds, spec)
            found.append(self._mean(0, steps) - self._mean(steps, 2 * steps))
        return np.stack(found) / self.deviation

    def _mean(self, end: int, start: int) -> np.ndarray:
        """Mean from `start` to `end` steps before the origin, NaN without a measurement: [server, metric]."""
        index = self.boundaries.index(start)
        total, count = self.sums[index], self.counts[index]
        if end:
            later = self.boundaries.index(end)
            total, count = total - self.sums[later], count - self.counts[later]
        mean: np.ndarray = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        return mean


def _steps(seconds: int, spec: RiskSpec) -> int:
    return max(1, seconds // spec.step_seconds)


def _boundaries(spec: RiskSpec) -> tuple[int, ...]:
    steps = {_steps(seconds, spec) for seconds in (*LEVEL_SECONDS, *CHANGE_SECONDS)}
    steps |= {2 * _steps(seconds, spec) for seconds in CHANGE_SECONDS}
    return (*sorted(step for step in steps if step < spec.day_steps), spec.day_steps)


def _without_others(scaled: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """What the other metrics do not predict, [scale, server, metric]; unknown metrics predict nothing.

    NaN where the metric is unknown.
    """
    known = ~np.isnan(scaled)
    patterns = known @ (1 << np.arange(scaled.shape[2]))  # [scale, server]: the known metrics as bits
    found = np.full_like(scaled, np.nan)
    for scale, of_scale in enumerate(scaled):
        for pattern in set(patterns[scale].tolist()) - {0}:
            servers = np.flatnonzero(patterns[scale] == pattern)
            metrics = np.flatnonzero(known[scale, servers[0]])
            inverse = np.linalg.inv(covariance[scale][np.ix_(metrics, metrics)].astype(np.float64))
            weights = (inverse / np.diag(inverse)).astype(np.float32)  # [other, metric]; the inverse is symmetric
            found[scale, servers[:, None], metrics] = of_scale[servers[:, None], metrics] @ weights
    return found


def _of_servers(inputs: RiskInput, spec: RiskSpec, peers: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """The last columns: float32 [server, SERVER_FEATURES]."""
    code_of: dict[Any, float] = {profile: float(code) for code, profile in enumerate(spec.profiles)}
    when = business_time(np.asarray(inputs.origins), spec.calendar)
    columns = (
        [code_of.get(profile, np.nan) for profile in inputs.profiles],
        when.minute_of_day // 60,
        when.day_of_week,
        peers,
        measured * (spec.step_seconds / 3_600),
    )
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
