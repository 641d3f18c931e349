"""Data for other shards: this shard's servers that may be in the fleet's table of peers, and changes of their means.

Every change has a number. A shard sends the number of the last change that it has, and gets the later ones, page by
page. Used on the forecast worker.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from fleet_forecast.serving.shards.peer_page import MAX_CELLS, Cells, Offered, PeerPage, Position
from fleet_forecast.serving.storage.ring_buffer import NEVER, RingBuffer


class Candidates(NamedTuple):
    """The servers of one profile that may be in its table, by member_order; at most MAX_MEMBERS."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


class _Member(NamedTuple):
    """A server with cells: indices of its profile and within it, and its id."""

    profile: int
    member: int
    server_id: int


_Event = tuple[int, int, _Member | None]  # number; a step that changed, or NEVER and a server that joined


class PeerOffer:
    """The changes since the start, or since `reset`."""

    def __init__(self) -> None:
        self.last_step = NEVER  # completed
        self.reset((), 0)

    def reset(self, metrics: Sequence[str], step_seconds: int) -> None:
        """Restart the numbering, with these metrics: every shard gets everything again."""
        self._metrics, self._step_seconds = tuple(metrics), step_seconds
        self._boot, self._sequence = secrets.token_hex(8), 0
        self._steps: dict[int, int] = {}  # step -> number of its last change
        self._joined: dict[int, int] = {}  # server id -> number
        self._listed: dict[str, int] = {}  # profile -> number of the last change of `_offered`
        self._offered: dict[str, Offered] = {}
        self._members: list[_Member] = []

    def update(
        self, candidates: Mapping[str, Candidates], counts: Mapping[str, int], changed: Iterable[int], steps: range
    ) -> None:
        """Set the current offer.

        counts: by profile, how many candidates have cells. changed: steps whose means changed. steps: those in memory.
        """
        for step in sorted(changed):
            self._steps[step] = self._next()
        self._steps = {step: number for step, number in self._steps.items() if step in steps}
        self._members = []
        for index, (profile, (names, ids)) in enumerate(candidates.items()):
            offered = Offered(names, counts[profile])
            if offered != self._offered.get(profile, Offered((), 0)):
                self._listed[profile] = self._next()
            self._offered[profile] = offered
            self._members += [_Member(index, place, each) for place, each in enumerate(ids[: offered.with_cells])]
        self._joined = {each.server_id: self._joined.get(each.server_id) or self._next() for each in self._members}
        self.last_step = steps[-1]

    def page(self, buffer: RingBuffer, after: Position | None, last_step: int) -> PeerPage:
        """What changed after a position, in steps up to `last_step`. buffer: the means of all servers."""
        seen = after.sequence if after is not None and after.boot == self._boot else 0
        old = [each for each in self._members if self._joined[each.server_id] <= seen]
        events: list[_Event] = [(number, step, None) for step, number in self._steps.items()]
        events += [(self._joined[each.server_id], NEVER, each) for each in self._members]
        found, position, more = _Found(buffer, len(self._metrics)), seen, False
        for number, step, member in sorted((event for event in events if event[0] > seen), key=itemgetter(0)):
            if step > last_step:
                break
            if found.count and found.count >= MAX_CELLS - max(len(old), buffer.steps):
                more = True
                break
            if member is None:
                found.add_step(old, step)
            else:
                found.add_member(member, min(last_step, self.last_step))
            position = number
        else:
            position = self._sequence
        return PeerPage(
            Position(self._boot, position),
            more,
            self.last_step,
            self._step_seconds,
            self._metrics,
            tuple(self._offered),
            {profile: each for profile, each in self._offered.items() if self._listed.get(profile, 0) > seen},
            found.cells(),
        )

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence


class _Found:
    """The cells of a page."""

    def __init__(self, buffer: RingBuffer, metrics: int) -> None:
        self.count = 0
        self._buffer = buffer
        none = np.zeros(0, np.int64)
        self._parts = [Cells(none, none, none, np.zeros((0, metrics), np.float32))]

    def add_step(self, members: Sequence[_Member], step: int) -> None:
        if not members:
            return
        ids = [each.server_id for each in members]
        values = self._buffer.history(ids, np.full(len(ids), step), 1)[:, 0]
        places = np.array([each[:2] for each in members])
        self._add(Cells(places[:, 0], places[:, 1], np.full(len(ids), step), values))

    def add_member(self, member: _Member, last_step: int) -> None:
        values = self._buffer.history([member.server_id], np.array([last_step]), self._buffer.steps)[0]
        steps = np.arange(last_step + 1 - len(values), last_step + 1)
        profiles, members = np.full(len(values), member.profile), np.full(len(values), member.member)
        self._add(Cells(profiles, members, steps, values))

    def _add(self, cells: Cells) -> None:
        measured = ~np.isnan(cells.values).all(axis=1)
        self._parts.append(Cells(*(field[measured] for field in cells)))
        self.count += int(measured.sum())

    def cells(self) -> Cells:
        return Cells(*(np.concatenate(fields) for fields in zip(*self._parts, strict=True)))
