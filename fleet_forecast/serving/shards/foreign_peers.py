"""The other shards' servers that are in the fleet's table of peers, and their means of the steps in memory.

Memory is bounded by the members of the table, MAX_MEMBERS of a profile, whatever the other shards send.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.peers import MAX_MEMBERS, member_order
from fleet_forecast.serving.shards.peer_page import Offered, PeerPage, Position
from fleet_forecast.serving.storage.ring_buffer import NEVER


class Chosen(NamedTuple):
    """The members of a profile's table: how many of the own candidates, the first ones; and names of other shards."""

    own: int
    others: tuple[str, ...]


class ForeignPeers:
    """Changed by the event loop during an exchange, read by the forecast worker after it; never at once."""

    def __init__(self) -> None:
        self.present: frozenset[int] = frozenset()  # numbers of the shards whose servers count
        self.positions: dict[int, Position] = {}  # of the last page, by number; absent: everything is needed
        self._offered: dict[int, dict[str, Offered]] = {}  # by number of the shard and profile
        self._own: dict[str, tuple[str, ...]] = {}  # own candidates by profile
        self._metrics: tuple[str, ...] = ()
        self._steps, self._newest = 0, NEVER
        self._rows: dict[str, np.ndarray] = {}  # server -> float32 [step modulo steps, metric]
        self._not_kept: set[str] = set()  # servers whose cells were not kept, as they were not in a table
        self._changed: set[int] = set()

    def reset(self, steps: int, metrics: Sequence[str]) -> None:
        """Begin anew with so many steps of these metrics."""
        self._steps, self._metrics, self._newest = steps, tuple(metrics), NEVER
        self._offered, self._rows, self._not_kept, self._changed, self.positions = {}, {}, set(), set(), {}

    def advance(self, last_step: int, own: dict[str, tuple[str, ...]]) -> None:
        """Move the end of the steps to `last_step`; own: names of the own candidates by profile, in their order."""
        self._own = own
        entering = np.arange(max(self._newest + 1, last_step - self._steps + 1), last_step + 1)
        if self._newest != NEVER and len(entering):
            for row in self._rows.values():
                row[entering % self._steps] = np.nan
        self._newest = max(self._newest, last_step)

    def take(self, number: int, page: PeerPage) -> None:
        """Keep what a shard sent of members of the table. Raises ValueError if cells are of no known server."""
        known = self._offered.setdefault(number, {})
        gone = [profile for profile in known if profile not in page.profiles]
        for profile in gone:
            del known[profile]
        known.update({profile: each for profile, each in page.offered.items() if profile in self._own})
        self._keep_members_only()
        columns = [page.metrics.index(metric) if metric in page.metrics else -1 for metric in self._metrics]
        values = np.concatenate([page.cells.values, np.full((len(page.cells.steps), 1), np.nan, np.float32)], axis=1)
        inside = (page.cells.steps > self._newest - self._steps) & (page.cells.steps <= self._newest)
        for cells in _by_member(page, inside):
            of_profile = page.profiles[int(page.cells.profiles[cells[0]])]
            name = _name(known, of_profile, int(page.cells.members[cells[0]]))
            if name is None or name in self._not_kept:
                continue
            steps = page.cells.steps[cells]
            self._row(name)[steps % self._steps] = values[cells][:, columns]
            self._changed.update(steps.tolist())
        self.positions[number] = page.position

    def counts(self, own: dict[str, tuple[str, ...]]) -> dict[str, int]:
        """By profile, how many of the own candidates may be in the table of all shards, as far as these are known."""
        found = {}
        for profile, names in own.items():
            others = (offered[profile].names for offered in self._present() if profile in offered)
            found[profile] = _first(names, (name for each in others for name in each)).own
        return found

    def choose(self, profile: str) -> Chosen:
        """The members of a profile's table: the first of all shards' that are present."""
        others = (offered[profile] for offered in self._present() if profile in offered)
        return _first(self._own[profile], (name for each in others for name in each.names[: each.with_cells]))

    def take_changed(self) -> set[int]:
        """Steps in which values of other shards changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def need_again(self) -> None:
        """Ask a shard for everything again if a server is in the table now whose cells were not kept before."""
        for number, offered in self._offered.items():
            members = {name for profile in offered for name in self.choose(profile).others}
            own = {name for each in offered.values() for name in each.names}
            if again := members & own & self._not_kept:
                self._not_kept -= again
                self.positions.pop(number, None)

    def values(self, names: Sequence[str], last_step: int, length: int) -> np.ndarray:
        """float32 [name, length, metric] of the steps up to `last_step`, NaN = not measured or not known."""
        steps = np.arange(last_step - length + 1, last_step + 1)
        known = (steps > self._newest - self._steps) & (steps <= self._newest)
        found = np.full((len(names), length, len(self._metrics)), np.nan, dtype=np.float32)
        for place, name in enumerate(names):
            if (row := self._rows.get(name)) is not None:
                found[place, known] = row[steps[known] % self._steps]
        return found

    def count_of(self, number: int) -> int:
        """Number of servers of a shard that are in a table."""
        offered = self._offered.get(number, {})
        return sum(name in self._rows for each in offered.values() for name in each.names[: each.with_cells])

    def _present(self) -> Iterable[dict[str, Offered]]:
        return (offered for number, offered in self._offered.items() if number in self.present)

    def _keep_members_only(self) -> None:
        """Drop the rows of servers that are in no table, so that memory stays bounded."""
        members: set[str] = set()
        offered: set[str] = set()
        for profile, own in self._own.items():
            lists = [each[profile] for each in self._offered.values() if profile in each]
            names = [name for each in lists for name in each.names[: each.with_cells]]
            offered.update(names)
            members.update(_first(own, names).others)
        self._not_kept = (self._not_kept & offered) | (offered - members)
        self._rows = {name: row for name, row in self._rows.items() if name in members}

    def _row(self, name: str) -> np.ndarray:
        if name not in self._rows:
            self._rows[name] = np.full((self._steps, len(self._metrics)), np.nan, dtype=np.float32)
        return self._rows[name]


def _by_member(page: PeerPage, chosen: np.ndarray) -> list[np.ndarray]:
    """The chosen cells of each member: lists of int64, positions in the page."""
    keys = page.cells.profiles * MAX_MEMBERS + page.cells.members
    order = np.flatnonzero(chosen)
    order = order[np.argsort(keys[order], kind="stable")]
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    return [cells for cells in np.split(order, ends) if len(cells)]


def _name(known: dict[str, Offered], profile: str, member: int) -> str | None:
    """The server of a cell; None for a profile that the own model does not have."""
    if profile not in known:
        return None
    if member >= known[profile].with_cells:
        raise ValueError("a cell of a server that is not offered")
    return known[profile].names[member]


def _first(own: Sequence[str], others: Iterable[str]) -> Chosen:
    """The first MAX_MEMBERS by member_order of the own names, which are in this order, and others."""
    own = own[:MAX_MEMBERS]
    merged = sorted([*((member_order(name), True) for name in own), *((member_order(name), False) for name in others)])
    members = merged[:MAX_MEMBERS]
    return Chosen(sum(is_own for _, is_own in members), tuple(name for (_, name), is_own in members if not is_own))
