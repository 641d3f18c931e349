"""A sequential test of whether daily losses have become larger, with a bounded rate of false alarms.

Input is one number for each day and stream (profile and metric): the logarithm of the model's loss divided by that of a
simple baseline. Days are the unit because the losses within a day are not independent; dividing by the baseline's loss
takes out days that are hard for every method.

Null hypothesis: the days are exchangeable, that is, their order has no meaning. Then the rank of a new day among all
days so far is uniform and independent of the ranks before (conformal p-values: Vovk, Gammerman & Shafer 2005), whatever
the distribution of the losses. No variance is estimated and no threshold on the loss is set. One odd day among n has no
p-value below 1/n, so it cannot raise an alarm alone.

Each day that the change may have begun on makes bets of its own: on the k-th day since, that the new day is among the
share * k largest so far. A bet returns 1 - STAKE + STAKE / level if the p-value is at most the level, otherwise
1 - STAKE, which has mean 1 at most under the null hypothesis. The returns since each beginning are multiplied, and the
products are added (Shiryaev-Roberts; e-detector of Shin, Ramdas & Rinaldo 2022). After t days the sum has mean t at
most, so by Doob's inequality it reaches THRESHOLD within a quarter with probability QUARTER_DAYS / THRESHOLD at most.
This is FALSE_ALARMS_PER_QUARTER, the only number that is chosen. Means of such sums have the same property, hence
several shares and three statistics can be watched at no further cost:

- fleet: mean of the standardised streams,
- profile: largest of the profiles' means,
- metric: largest of all streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

FALSE_ALARMS_PER_QUARTER = 0.01  # probability of at least one, without any change
QUARTER_DAYS = 91.25
THRESHOLD = QUARTER_DAYS / FALSE_ALARMS_PER_QUARTER
STAKE = 0.95  # of each bet; this and the next two have an effect on the delay only
SHARES = np.array([1.0, 2.0, 4.0])
LARGEST_LEVEL = 0.5
BEGINNINGS = 90  # possible beginnings of a change, the latest ones; older ones are left out of the sum
STATISTICS = ("fleet", "profile", "metric")
LONGEST_DAYS = 366  # older days are forgotten
FEWEST_DAYS = 3  # of a stream that is looked at
ROUNDING = 1e-9


class Stream(NamedTuple):
    """What a loss is of."""

    profile: str
    metric: str


class Day(NamedTuple):
    """One day. number: days since 1970, UTC. losses: log(model loss / baseline loss) by stream."""

    number: int
    losses: Mapping[Stream, float]


@dataclass
class ChangeDetector:
    """The days so far, and the evidence of a change.

    reference: days at the beginning of `days` that were before the model was in use. products: returns of the bets
    since each beginning, the latest one last: float64 [statistic, share, beginning].
    """

    days: list[Day] = field(default_factory=list)
    reference: int = 0
    products: np.ndarray = field(default_factory=lambda: np.empty((len(STATISTICS), len(SHARES), 0)))

    @classmethod
    def after(cls, reference: Sequence[Day]) -> ChangeDetector:
        """A new detector; reference: days of the model's held-out test period."""
        return cls(list(reference), len(reference))

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

    @property
    def evidence(self) -> float:
        """Mean of the sums; THRESHOLD or more means that the losses have become larger."""
        return float(self.products.sum(axis=2).mean())

    @property
    def days_since_change(self) -> int:
        """Number of days since the most probable beginning of a change; 0 before the first day."""
        since_each = self.products.sum(axis=(0, 1))
        return int(len(since_each) - np.argmax(since_each)) if len(since_each) else 0

    @property
    def changed(self) -> bool:
        """Whether the losses have become larger."""
        return self.evidence >= THRESHOLD

    def as_fields(self) -> dict[str, Any]:
        """For `restore`, in JSON types."""
        days = [[day.number, [[*stream, value] for stream, value in day.losses.items()]] for day in self.days]
        return {"days": days, "reference": self.reference, "products": self.products.tolist()}

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> ChangeDetector:
        """What `as_fields` returned. Raises KeyError, TypeError or ValueError for something else."""
        days = [
            Day(int(number), {Stream(str(profile), str(metric)): float(value) for profile, metric, value in losses})
            for number, losses in fields["days"]
        ]
        shape = len(STATISTICS), len(SHARES), -1
        return cls(days, int(fields["reference"]), np.array(fields["products"], dtype=np.float64).reshape(shape))


def p_values(days: Sequence[Day]) -> np.ndarray:
    """Share of the days on which each of STATISTICS is at least that of the last day: float64 [statistic]."""
    found = statistics(days)  # [day, statistic]
    known = ~np.isnan(found).any(axis=1)
    if not known[-1]:
        return np.ones(len(STATISTICS))
    return np.asarray((found[known] >= found[-1]).mean(axis=0))


def as_table(days: Sequence[Day]) -> tuple[list[Stream], np.ndarray]:
    """The streams, sorted, and the losses: float64 [day, stream], NaN where there is none."""
    streams = sorted({stream for day in days for stream in day.losses})
    table = [[day.losses.get(stream, np.nan) for stream in streams] for day in days]
    return streams, np.array(table, dtype=np.float64).reshape(len(days), len(streams))


def statistics(days: Sequence[Day]) -> np.ndarray:
    """STATISTICS of each day: float64 [day, statistic], NaN for a day without a stream that is looked at.

    They treat all days alike, which keeps the days exchangeable.
    """
    streams, table = as_table(days)
    used = (~np.isnan(table)).sum(axis=0) >= FEWEST_DAYS
    if not used.any():
        return np.full((len(days), len(STATISTICS)), np.nan)
    scores = _standardised(table[:, used])
    owners = np.array([stream.profile for stream in streams])[used]
    by_profile = np.stack([_mean(scores[:, owners == owner]) for owner in np.unique(owners)], axis=1)
    return np.stack([_mean(scores), _largest(_standardised(by_profile)), _largest(scores)], axis=1)


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
