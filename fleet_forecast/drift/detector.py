"""A sequential test of whether daily losses have become larger, with a bounded rate of false alarms.

Input is one number for each day and stream (profile and metric): the logarithm of the model's loss divided by that of a
simple baseline. Days are the unit because the losses within a day are not independent; dividing by the baseline's loss
removes the effect of days that are hard for every method.

Three kinds of series are tested: the mean of the standardised streams (fleet), their means by profile, and the streams
themselves. For each day on which a change may have begun there are two kinds of evidence:

- ranks: whether the days since then are among the highest so far. It assumes that days without a change are
  exchangeable, whatever the distribution of the losses. It is slow, because no rank among n days is less likely than
  1/n.
- sizes (drift/shift.py): how much higher than all days before they are, in standard deviations. It assumes normal
  losses with some dependence from day to day. It is bounded, so that one unusual day is not enough; two days far
  outside the range of the days before are.

Ranks: the rank of a new day among all days so far is uniform and independent of the ranks before under the null
hypothesis (conformal p-values: Vovk, Gammerman & Shafer 2005). Each beginning makes bets: on the k-th day since, that
the new day is among the share * k largest so far. A bet returns 1 - STAKE + STAKE / level if the p-value is at most the
level, otherwise 1 - STAKE, which has mean 1 at most. The returns since each beginning are multiplied. The largest of
the profiles and the largest of the streams are ranked, beside the fleet.

Either evidence of a beginning has mean 1 at most as long as nothing changes. So has their weighted mean, and the sum
over the beginnings after t days (Shiryaev-Roberts; e-detector of Shin, Ramdas & Rinaldo 2022) has mean t at most. By
Doob's inequality it reaches THRESHOLD within a quarter with probability QUARTER_DAYS / THRESHOLD at most. This is
FALSE_ALARMS_PER_QUARTER; the other constants affect only the delay. benchmarks/life/drift.py measures it also
where the assumptions do not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.drift.shift import rise

FALSE_ALARMS_PER_QUARTER = 0.01  # probability of at least one, without any change
QUARTER_DAYS = 91.25
THRESHOLD = QUARTER_DAYS / FALSE_ALARMS_PER_QUARTER
STAKE = 0.95  # of each bet
SHARES = np.array([1.0, 2.0, 4.0])
LARGEST_LEVEL = 0.5
BEGINNINGS = 90  # possible beginnings of a change, the latest ones; older ones are left out of the sum
STATISTICS = ("fleet", "profile", "metric")
RISES_WEIGHT = 0.75  # of the evidence from sizes; the ranks are for changes that last
KIND_WEIGHTS = np.array([1 / 6, 2 / 3, 1 / 6])  # of fleet, profiles and streams: most changes are of a profile
LONGEST_DAYS = 366  # older days are forgotten
EARLIER = 12  # models before whose days are kept
FEWEST_DAYS = 3  # of a stream that is tested
ROUNDING = 1e-9


class Stream(NamedTuple):
    """What a loss is of."""

    profile: str
    metric: str


class Day(NamedTuple):
    """One day.

    number: days since 1970, UTC. losses: log(model loss / baseline loss) by stream. off: whether it is a day off.
    """

    number: int
    losses: Mapping[Stream, float]
    off: bool = False


@dataclass
class ChangeDetector:
    """The days so far, and the evidence of a change.

    reference: days at the beginning of `days` that were before the model was in use. earlier: days of the models
    before, for each model; they show how much the losses vary, not on which level. products: returns of the bets since
    each beginning, the latest one last: float64 [statistic, share, beginning]. rises: evidence from sizes, of the same
    beginnings: float64 [beginning].
    """

    days: list[Day] = field(default_factory=list)
    reference: int = 0
    earlier: list[list[Day]] = field(default_factory=list)
    products: np.ndarray = field(default_factory=lambda: np.empty((len(STATISTICS), len(SHARES), 0)))
    rises: np.ndarray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def after(cls, reference: Sequence[Day], before: ChangeDetector | None = None) -> ChangeDetector:
        """A new detector; reference: days of the model's held-out test period. before: that of the model before."""
        eras = [] if before is None else [*before.earlier, before.days]
        first = min((day.number for day in reference), default=0)  # the same days of two models are not independent
        kept = [[day for day in era if day.number < first] for era in eras]
        return cls(list(reference), len(reference), [era[-LONGEST_DAYS:] for era in kept if len(era) > 1][-EARLIER:])

    def add(self, day: Day) -> None:
        """Count one more day; one without a loss counts as none."""
        if not day.losses:
            return
        self.days.append(day)
        if len(self.days) > LONGEST_DAYS:
            del self.days[0]
            self.reference = max(0, self.reference - 1)
        beginnings = np.concatenate([self.products, np.ones((*self.products.shape[:2], 1))], axis=2)[..., -BEGINNINGS:]
        days_since = np.arange(beginnings.shape[2], 0, -1)
        levels = np.minimum(SHARES[:, None] * days_since / len(self.days), LARGEST_LEVEL)  # [share, beginning]
        won = p_values(self.days)[:, None, None] <= levels + ROUNDING
        self.products = beginnings * (1 - STAKE + np.where(won, STAKE / levels, 0.0))
        self.rises = rises(self.earlier, self.days, beginnings.shape[2])

    @property
    def by_beginning(self) -> np.ndarray:
        """Evidence of a change since each of the last days, the latest one last: float64 [beginning]."""
        return np.asarray((1 - RISES_WEIGHT) * self.products.mean(axis=(0, 1)) + RISES_WEIGHT * self.rises)

    @property
    def evidence(self) -> float:
        """Sum over the beginnings; THRESHOLD or more means that the losses have become larger."""
        return float(self.by_beginning.sum())

    @property
    def days_since_change(self) -> int:
        """Number of days since the most probable beginning of a change; 0 before the first day."""
        since_each = self.by_beginning
        return int(len(since_each) - np.argmax(since_each)) if len(since_each) else 0

    @property
    def changed(self) -> bool:
        """Whether the losses have become larger."""
        return self.evidence >= THRESHOLD

    def as_fields(self) -> dict[str, Any]:
        """For `restore`, in JSON types."""
        eras = [[_as_fields(day) for day in era] for era in (*self.earlier, self.days)]
        return {"eras": eras, "reference": self.reference, "products": self.products.tolist()}

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> ChangeDetector:
        """What `as_fields` returned. Raises KeyError, TypeError or ValueError for something else."""
        *earlier, days = [[_restored(day) for day in era] for era in fields["eras"]]
        shape = len(STATISTICS), len(SHARES), -1
        products = np.array(fields["products"], dtype=np.float64).reshape(shape)
        return cls(days, int(fields["reference"]), earlier, products, rises(earlier, days, products.shape[2]))


def _as_fields(day: Day) -> list[Any]:
    return [day.number, day.off, [[*stream, value] for stream, value in day.losses.items()]]


def _restored(fields: Sequence[Any]) -> Day:
    number, off, losses = fields
    by_stream = {Stream(str(profile), str(metric)): float(value) for profile, metric, value in losses}
    return Day(int(number), by_stream, bool(off))


def p_values(days: Sequence[Day]) -> np.ndarray:
    """Share of the days on which each of STATISTICS is at least that of the last day: float64 [statistic]."""
    found = statistics(days)  # [day, statistic]
    known = ~np.isnan(found).any(axis=1)
    if not known[-1]:
        return np.ones(len(STATISTICS))
    return np.asarray((found[known] >= found[-1]).mean(axis=0))


def as_table(days: Sequence[Day]) -> tuple[list[Stream], np.ndarray]:
    """The streams, sorted, and the losses: float64 [day, stream], NaN where there is none."""
    streams = sorted(set().union(*(day.losses for day in days)))
    table = [list(map(day.losses.get, streams)) for day in days]  # None where there is none
    return streams, np.array(table, dtype=np.float64).reshape(len(days), len(streams))


def rises(earlier: Sequence[Sequence[Day]], days: Sequence[Day], beginnings: int) -> np.ndarray:
    """Evidence from sizes of a change since each of the last days: float64 [beginning], the latest one last.

    The mean over the kinds of series by KIND_WEIGHTS, and over the series of each. earlier: as in ChangeDetector.
    """
    whole = [day for era in earlier for day in era] + list(days)
    if not whole:
        return np.zeros(beginnings)
    found, kinds = np.zeros(beginnings), _series(whole)
    table = np.concatenate(kinds, axis=1)
    sizes = [each.shape[1] for each in kinds]
    weights = np.repeat(np.divide(KIND_WEIGHTS, np.maximum(sizes, 1)), sizes)
    known, regressors = ~np.isnan(table), _regressors(earlier, days)
    first = len(whole) - beginnings
    for pattern in np.unique(known[:, known[-1]], axis=1).T:  # series with values on the same days
        at = np.flatnonzero(pattern)
        since = np.arange(max(FEWEST_DAYS, int(pattern[:first].sum())), len(at))
        alike = (known == pattern[:, None]).all(axis=0)
        found[at[since] - first] += rise(table[at][:, alike], regressors[at], since) @ weights[alike]
    return found


def _regressors(earlier: Sequence[Sequence[Day]], days: Sequence[Day]) -> np.ndarray:
    """The level of each model, and the days off: float64 [day, regressor]."""
    eras = [*earlier, days]
    model = np.repeat(np.eye(len(eras)), [len(era) for era in eras], axis=0)
    off = np.array([day.off for era in eras for day in era], dtype=np.float64)
    return np.concatenate([model, off[:, None]], axis=1)


def statistics(days: Sequence[Day]) -> np.ndarray:
    """STATISTICS of each day: float64 [day, statistic], NaN for a day without a stream that is looked at."""
    fleet, by_profile, streams = _series(days)
    if not streams.shape[1]:
        return np.full((len(days), len(STATISTICS)), np.nan)
    return np.stack([fleet[:, 0], _largest(_standardised(by_profile)), _largest(streams)], axis=1)


def _series(days: Sequence[Day]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of all streams, means by profile, and the streams, standardised: float64 [day, series], NaN without a value.

    They treat all days alike, which keeps the days exchangeable. Streams of fewer than FEWEST_DAYS are left out.
    """
    streams, table = as_table(days)
    used = (~np.isnan(table)).sum(axis=0) >= FEWEST_DAYS
    scores = _standardised(table[:, used])
    if not used.any():
        return scores, scores, scores
    owners = np.array([stream.profile for stream in streams])[used]
    by_profile = np.stack([_mean(scores[:, owners == owner]) for owner in np.unique(owners)], axis=1)
    return _mean(scores)[:, None], by_profile, scores


def _standardised(table: np.ndarray) -> np.ndarray:
    """Each column less its median, divided by its median absolute deviation: [day, column].

    Days after a change move these less than mean and standard deviation.
    """
    centred = table - _median(table)
    deviation = _median(np.abs(centred))
    deviation = np.where(deviation > 0, deviation, np.nanstd(table, axis=0))  # most days are equal
    return np.divide(centred, deviation, out=np.where(np.isnan(table), np.nan, 0.0), where=deviation > 0)


def _median(table: np.ndarray) -> np.ndarray:
    """Of each column with a value, NaN ignored; a tenth of the time of numpy.nanmedian."""
    ordered, count = np.sort(table, axis=0), (~np.isnan(table)).sum(axis=0)  # NaN last
    low, high = (np.take_along_axis(ordered, at[None], axis=0)[0] for at in ((count - 1) // 2, count // 2))
    return np.asarray((low + high) / 2)


def _mean(table: np.ndarray) -> np.ndarray:
    known = ~np.isnan(table)
    count = known.sum(axis=1)
    total = np.where(known, table, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(table), np.nan), where=count > 0)


def _largest(table: np.ndarray) -> np.ndarray:
    largest = np.where(np.isnan(table), -np.inf, table).max(axis=1)
    return np.where(np.isneginf(largest), np.nan, largest)
