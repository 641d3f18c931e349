"""Peers: the other observed servers of a server's profile, step by step.

The level of a server's peers at a step is the median over the observed servers of its profile, the server itself
excluded (leave-one-out). A median without one member follows from three order statistics around the middle, so one
table of these per profile serves every member. Order statistics commute with increasing functions: the transformed
table is the table of the transformed values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.bounded_transform import BoundedTransform
from fleet_forecast.features.masked_statistics import count_over_steps, repeat_over_steps, sum_over_steps

MAX_MEMBERS = 128  # servers of a profile in its table: a median over more of them hardly differs
STEPS_AT_ONCE = 4_096  # limits the memory of sorting


class ProfileMembers(NamedTuple):
    """Which servers of an array the table of each profile is built from.

    profiles: names, sorted. rows: for each profile, int64 [member], rows of the array.
    """

    profiles: tuple[str, ...]
    rows: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, names: Sequence[str], profiles: Sequence[str | None]) -> ProfileMembers:
        """All observed servers of each profile, or MAX_MEMBERS of them, chosen by a hash of the name."""
        by_profile: dict[str, list[int]] = {}
        for row, profile in enumerate(profiles):
            if profile is not None:
                by_profile.setdefault(profile, []).append(row)
        known = tuple(sorted(by_profile))
        return cls(known, tuple(_at_most(by_profile[profile], names) for profile in known))

    def mask(self, servers: int) -> np.ndarray:
        """Whether each server of the array is in a table: boolean [server]."""
        chosen = np.zeros(servers, dtype=bool)
        for rows in self.rows:
            chosen[rows] = True
        return chosen


class OrderStatistics(NamedTuple):
    """The sorted values around the middle, float32, NaN where there is no such rank; counts: of values, int16.

    Of n values, counted from 0: low has rank n // 2 - 1, middle n // 2, high n // 2 + 1.
    """

    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class PeerTable:
    """Order statistics of the observed servers of each profile.

    profiles: names of the rows. first_step: step number since the Unix epoch of column 0. statistics: arrays [profile,
    step, metric], in physical units or transformed.
    """

    profiles: tuple[str, ...]
    first_step: int
    statistics: OrderStatistics

    @classmethod
    def build(cls, values: np.ndarray, members: ProfileMembers, first_step: int) -> PeerTable:
        """The table of float32 [server, step, metric], NaN = not measured."""
        shape = (len(members.profiles), *values.shape[1:])
        statistics = _no_values(shape)
        for row, of_profile in enumerate(members.rows):
            for first in range(0, values.shape[1], STEPS_AT_ONCE):
                part = slice(first, first + STEPS_AT_ONCE)
                for table, found in zip(statistics, order_statistics(values[of_profile, part]), strict=True):
                    table[row, part] = found
        return cls(members.profiles, first_step, statistics)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.statistics.counts.shape[1])

    def transformed(self, bounds: BoundedTransform) -> PeerTable:
        """The table of the transformed values, from one in physical units."""
        low, middle, high, counts = self.statistics
        low, middle, high = (bounds.transform(field) if field.size else field for field in (low, middle, high))
        return PeerTable(self.profiles, self.first_step, OrderStatistics(low, middle, high, counts))

    def part(self, profiles: Sequence[str], first_step: int, end_step: int) -> PeerTable:
        """The table of some of its profiles, in this order, for first_step .. end_step (excluded)."""
        first = min(max(first_step - self.first_step, 0), self.steps)
        last = max(min(end_step - self.first_step, self.steps), first)
        rows = [self.profiles.index(profile) for profile in profiles]
        fields = (field[rows, first:last] for field in self.statistics)
        return PeerTable(tuple(profiles), self.first_step + first, OrderStatistics(*fields))

    def rows_of(self, profiles: Sequence[str | None]) -> np.ndarray:
        """Row of each profile, -1 where the table has none: int64 [server]."""
        row_of: dict[str | None, int] = {name: row for row, name in enumerate(self.profiles)}
        return np.array([row_of.get(name, -1) for name in profiles], dtype=np.int64)


class Peers(NamedTuple):
    """Peers of the servers of a forecast.

    table: in physical units. members: boolean [server], which of the servers to forecast are in the table; their own
    values are taken out of their peers' level as far as their history reaches. values: the members' values in the table
    where they differ from the history, float32 [server, step, metric] up to each origin; None: they are the history.
    """

    table: PeerTable
    members: np.ndarray
    values: np.ndarray | None = None

    def of_fleet(self, profiles: Sequence[str | None], bounds: BoundedTransform) -> FleetPeers:
        """The peers of servers of these profiles, transformed."""
        table = self.table
        medians = medians_without_one(table.transformed(bounds).statistics)
        values = None if self.values is None else bounds.transform(self.values)
        members = np.asarray(self.members, dtype=bool)
        return FleetPeers(table.first_step, medians, table.rows_of(profiles), members, values)


class LeaveOneOut(NamedTuple):
    """Medians without one member, by how its value compares with the median of all; float32, NaN without any other.

    whole: of all members. without_smaller, without_equal, without_larger: without a member whose value is smaller than
    `whole`, equal to it, or larger. counts: of all members, int16.
    """

    whole: np.ndarray
    without_smaller: np.ndarray
    without_equal: np.ndarray
    without_larger: np.ndarray
    counts: np.ndarray


class FleetPeers(NamedTuple):
    """Peers of the servers of an array, transformed.

    first_step: of the medians, since the epoch. medians: arrays [profile, step, metric]. rows: int64 [server], profile
    in the medians, -1 = none. members: boolean [server], as in Peers. values: as in Peers, transformed.
    """

    first_step: int
    medians: LeaveOneOut
    rows: np.ndarray
    members: np.ndarray
    values: np.ndarray | None = None

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.medians.counts.shape[1])

    def select(self, servers: np.ndarray) -> FleetPeers:
        """Peers of some servers, by row."""
        values = None if self.values is None else self.values[servers]
        return self._replace(rows=self.rows[servers], members=self.members[servers], values=values)


class Spliced(NamedTuple):
    """A window's own values, and its peers' where it has none.

    values: float32 [window, step, metric]. offset: mean difference of own and peers' values over the context, float32
    [window, metric], NaN where the two were never measured together.
    """

    values: np.ndarray
    offset: np.ndarray


def _no_values(shape: tuple[int, ...]) -> OrderStatistics:
    low, middle, high = (np.full(shape, np.nan, dtype=np.float32) for _ in range(3))
    return OrderStatistics(low, middle, high, np.zeros(shape, dtype=np.int16))


def order_statistics(values: np.ndarray) -> OrderStatistics:
    """Over axis 0 of [server, step, metric], NaN = not measured."""
    servers = len(values)
    ascending = np.sort(values, axis=0)  # NaN last
    count = (~np.isnan(values)).sum(axis=0)
    half = count // 2

    def ranked(rank: np.ndarray) -> np.ndarray:
        taken = np.take_along_axis(ascending, np.clip(rank, 0, servers - 1)[None], axis=0)[0]
        return np.where((rank >= 0) & (rank < count), taken, np.nan).astype(np.float32)

    return OrderStatistics(ranked(half - 1), ranked(half), ranked(half + 1), count.astype(np.int16))


def medians_without_one(statistics: OrderStatistics) -> LeaveOneOut:
    """The medians that remain: of an even number of values the other middle one, of an odd number a mean of two."""
    low, middle, high, counts = statistics
    odd = counts % 2 == 1
    whole = np.where(odd, middle, (low + middle) / 2)
    return LeaveOneOut(
        whole=whole,
        without_smaller=np.where(odd, (middle + high) / 2, middle),
        without_equal=np.where(odd, (low + high) / 2, whole),
        without_larger=np.where(odd, (low + middle) / 2, low),
        counts=counts,
    )


def leave_one_out(medians: LeaveOneOut, own: np.ndarray) -> np.ndarray:
    """Median of the other members: float32.

    own: float32, the value of one member, NaN where it is not among the count; all arrays have one shape. Chosen bit by
    bit: a choice by branches takes four times as long, since a value is above and below the median in turn.
    """
    bits = medians.without_equal.view(np.int32)
    for chosen, where in (
        (medians.without_smaller, own < medians.whole),
        (medians.without_larger, own > medians.whole),
        (medians.whole, np.isnan(own)),
    ):
        all_bits = -where.astype(np.int32)  # -1 has all bits set
        bits = bits ^ ((bits ^ chosen.view(np.int32)) & all_bits)
    return bits.view(np.float32)


def peer_levels(peers: FleetPeers, servers: np.ndarray, origin_steps: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Level of the peers of windows up to their origin: float32 [window, step, metric], NaN without peers.

    servers: int64 [window], row in `peers`, -1 = without peers. origin_steps: int64 [window], since the epoch. own:
    float32 [window, step, metric], transformed, what the servers measured up to the origin (also what the window may
    not use), NaN where not measured. Window by window: the arrays of one stay in the processor's cache.
    """
    level = np.empty_like(own)
    remaining = np.ones(len(own), dtype=bool)
    for window, row, target, source in _covered(peers, servers, origin_steps, own.shape[1]):
        remaining[window] = False
        level[window, : target.start] = np.nan
        level[window, target.stop :] = np.nan
        medians = LeaveOneOut(*(field[row, source] for field in peers.medians))
        member = _value_in_table(peers, int(servers[window]), own[window])
        if member is None:
            level[window, target] = medians.whole
        else:
            level[window, target] = leave_one_out(medians, member[target])
    level[remaining] = np.nan
    return level


class PeerCounts(NamedTuple):
    """Numbers of measured peers: largest at a step, int64 [window]; mean over steps with any, float32 [window, metric].

    Both are 0 without peers.
    """

    largest: np.ndarray
    mean: np.ndarray


def peer_counts(peers: FleetPeers, servers: np.ndarray, origin_steps: np.ndarray, own: np.ndarray) -> PeerCounts:
    """How many peers were measured; arguments as for peer_levels."""
    largest, mean = np.zeros(len(own), dtype=np.int64), np.zeros((len(own), own.shape[2]), dtype=np.float32)
    for window, row, target, source in _covered(peers, servers, origin_steps, own.shape[1]):
        counts = peers.medians.counts[row, source]
        member = _value_in_table(peers, int(servers[window]), own[window])
        if member is not None:
            counts = counts - ~np.isnan(member[target])
        largest[window] = max(counts.max(initial=0), 0)
        mean[window] = counts.sum(axis=0) / np.maximum((counts > 0).sum(axis=0), 1)
    return PeerCounts(largest, mean)


def _covered(
    peers: FleetPeers, servers: np.ndarray, origin_steps: np.ndarray, steps: int
) -> Iterator[tuple[int, int, slice, slice]]:
    """For windows that the medians cover in part: window, profile, and the part in the window and in the medians."""
    for window, (server, origin) in enumerate(zip(servers, origin_steps, strict=True)):
        row = int(peers.rows[server]) if server >= 0 else -1
        begin = int(origin) + 1 - steps - peers.first_step
        first, last = max(begin, 0), min(begin + steps, peers.steps)
        if row >= 0 and first < last:
            yield window, row, slice(first - begin, last - begin), slice(first, last)


def _value_in_table(peers: FleetPeers, server: int, own: np.ndarray) -> np.ndarray | None:
    """A server's values in the medians [step, metric], up to its origin; None if it is not a member."""
    if not peers.members[server]:
        return None
    return own if peers.values is None else last_steps(peers.values[server : server + 1], len(own))[0]


def splice(own: np.ndarray, level: np.ndarray, context_steps: int) -> Spliced:
    """Own values where measured, else the peers' level plus the server's offset to it (0 where that is unknown).

    own, level: float32 [window, step, metric], NaN = not measured. context_steps: the last steps, which give the
    offset.
    """
    difference = own[:, -context_steps:] - level[:, -context_steps:]
    together = ~np.isnan(difference)
    count = count_over_steps(together)
    np.copyto(difference, 0.0, where=~together)
    with np.errstate(invalid="ignore"):
        offset = sum_over_steps(difference) / count
    values = repeat_over_steps(np.nan_to_num(offset), level.shape[1])
    values += level
    np.copyto(values, own, where=~np.isnan(own))
    return Spliced(values, offset)


def last_steps(values: np.ndarray, steps: int) -> np.ndarray:
    """The last steps of [server, step, metric], with unmeasured ones in front if there are fewer."""
    lacking = max(steps - values.shape[1], 0)
    return np.pad(values[:, -steps:], ((0, 0), (lacking, 0), (0, 0)), constant_values=np.nan)


def member_order(name: str) -> tuple[int, str]:
    """The order in which the servers of a profile are taken into its table: by a hash of the name."""
    return zlib.crc32(name.encode()), name


def _at_most(rows: list[int], names: Sequence[str]) -> np.ndarray:
    if len(rows) > MAX_MEMBERS:
        rows = sorted(rows, key=lambda row: member_order(names[row]))[:MAX_MEMBERS]
    return np.array(sorted(rows), dtype=np.int64)
