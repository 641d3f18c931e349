"""Peers of the daemon's servers: one table of the stored values, updated in each cycle.

The table covers the steps in memory. A cycle of the whole fleet computes the steps that are new or have changed, and
the profiles whose servers have changed. Between two cycles the table stays: an explanation repeats its forecast. A
fleet that doubles in between, as after its first samples, gets a cycle of its own.

In a fleet in shards the table has servers of all shards. A cycle observes its own ones first, which other shards then
ask for; asks the other shards for theirs; and computes the table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.peers import (
    OrderStatistics,
    Peers,
    PeerTable,
    ProfileMembers,
    member_order,
    order_statistics,
)
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.forecasts.history_window import HistoryWindow
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.shards.foreign_peers import ForeignPeers
from fleet_forecast.serving.shards.peer_offer import Candidates, PeerOffer
from fleet_forecast.serving.shards.peer_page import PeerPage, Position
from fleet_forecast.serving.storage.samples import KnownServer
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import ProfileRules, profile_of

MOST_JOINED = 8  # servers that join a profile at once; with more, all its steps are computed
NOT_STORED = -1  # the id of a server that the store does not have
MOST_STEPS = 200  # steps computed one by one; more are computed with all others


class _Layout(NamedTuple):
    """What the rows and columns of a table are."""

    profiles: tuple[str, ...]
    metrics: tuple[str, ...]
    step_seconds: int
    steps: int


class PeerContext:
    """The peer table of the fleet. Used on the forecast worker; `counts` may be read by any thread."""

    def __init__(self, store: HistoryStore, rules: ProfileRules, foreign: ForeignPeers | None = None) -> None:
        """foreign: servers of other shards."""
        self.counts: Mapping[str, int] = {}  # observed servers in the table, by profile
        self.offer = PeerOffer()
        self._store, self._rules = store, rules
        self._foreign = foreign or ForeignPeers()
        self._candidates: dict[str, Candidates] = {}  # of the store, by profile
        self._others: dict[str, tuple[str, ...]] = {}  # profile -> servers of other shards
        self._window: HistoryWindow | None = None  # of the last update
        self._layout: _Layout | None = None
        self._table: PeerTable | None = None
        self._members: dict[str, list[int]] = {}  # profile -> server ids
        self._profile_of_member: dict[int, str] = {}
        self._changed: set[int] = set()  # steps whose means changed since the table was computed
        self._profiles: dict[int, tuple[KnownServer, str]] = {}  # by server id, of the last update
        self._new: set[int] = set()  # servers that were not observed in the last update

    def note_changed(self, step: int) -> None:
        """Record that the means of a step changed."""
        self._changed.add(step)

    def is_outgrown(self, changed: set[int], last_step: int) -> bool:
        """Whether at least as many servers joined as the last update observed. changed: servers with new samples."""
        if self._window is None:
            return False
        silent_since = last_step - self._window.engine.config.context_steps
        self._new |= {
            server_id
            for server_id in changed.difference(self._profiles)
            if (self._store.last_step(server_id) or 0) > silent_since
        }
        return len(self._new) >= max(1, len(self._profiles))

    def observe(self, window: HistoryWindow, last_step: int) -> None:
        """Note the servers of the store and the steps in memory up to `last_step`, and offer them to other shards."""
        config, steps = window.engine.config, window.buffer.steps
        layout = _Layout(tuple(sorted(config.profiles)), tuple(config.targets), config.step_seconds, steps)
        first_step = last_step + 1 - steps
        before = self._table if layout == self._layout else None
        if before is None or not 0 <= first_step - before.first_step < steps:
            before, self._members, self._others = _empty_table(layout, first_step), {}, {}
            self.offer.reset(window.metrics, config.step_seconds)
            self._foreign.reset(steps, window.metrics)
        self._window, self._layout, self._table = window, layout, before
        self._changed |= set(range(before.first_step + steps, last_step + 1))
        self._candidates = self._observed(layout.profiles, last_step - config.context_steps)
        names = {profile: each.names for profile, each in self._candidates.items()}
        self._foreign.advance(last_step, names)
        self.offer.update(
            self._candidates, self._foreign.counts(names), self._changed, range(first_step, last_step + 1)
        )

    def offered_page(self, after: Position | None, last_step: int) -> PeerPage | None:
        """What other shards are told of the servers of the store; None before the first cycle."""
        window = self._window
        return None if window is None else self.offer.page(window.buffer, after, last_step)

    def update(self, window: HistoryWindow, last_step: int) -> None:
        """Bring the table to what was observed, and to what other shards sent."""
        before, layout = self._table, self._layout
        if before is None or layout is None:
            raise RuntimeError("observe the servers before the table is computed")
        first_step = last_step + 1 - layout.steps
        table = _moved(before, first_step)
        changed = self._changed | self._foreign.take_changed()
        members, others = {}, {}
        for row, profile in enumerate(layout.profiles):
            chosen = self._foreign.choose(profile)
            members[profile] = list(self._candidates[profile].ids[: chosen.own])
            others[profile] = chosen.others
            joined = self._joined(window, profile, members[profile], last_step)
            if chosen.others != self._others.get(profile, ()):
                joined = None
            computed = None if joined is None else sorted(step for step in changed | joined if step >= first_step)
            source = _Source(window, members[profile], chosen.others, self._foreign)
            _compute(table, row, source, last_step, computed)
        self._table, self._members, self._others = table, members, others
        self._changed.clear()
        self._profile_of_member = {server_id: profile for profile, ids in members.items() for server_id in ids}
        counts = {profile: len(ids) + len(others[profile]) for profile, ids in members.items()}
        self.counts = {profile: count for profile, count in counts.items() if count}

    def forget(self) -> None:
        """The history is read again: compute all steps in the next cycle."""
        self._layout = None

    def of_servers(self, engine: Engine, server_ids: Sequence[int], profiles: Sequence[str]) -> Peers | None:
        """Peers of servers of the store with their profiles; None if the table has other metrics or steps."""
        config, layout = engine.config, self._layout
        if self._table is None or layout is None:
            return None
        if (layout.metrics, layout.step_seconds) != (tuple(config.targets), config.step_seconds):
            return None
        servers = zip(server_ids, profiles, strict=True)
        members = [self._profile_of_member.get(server_id) == profile for server_id, profile in servers]
        return Peers(self._table, np.array(members, dtype=bool))

    def of_posted(
        self, window: HistoryWindow, names: Sequence[str], profiles: Sequence[str], last_steps: np.ndarray
    ) -> Peers | None:
        """Peers of servers whose history came with a request: a stored server of the name is not a peer."""
        known = [self._store.servers.get(name) for name in names]
        ids = [NOT_STORED if server is None else server.server_id for server in known]
        peers = self.of_servers(window.engine, ids, profiles)
        if peers is None or not peers.members.any():
            return peers
        rows = np.flatnonzero(peers.members)
        stored = window.history([ids[row] for row in rows], last_steps[rows])
        values = np.full((len(names), *stored.shape[1:]), np.nan, dtype=np.float32)
        values[rows] = stored
        return peers._replace(values=values)

    def values_of_others(self, forecast: ServerForecast, last_step: int, length: int) -> np.ndarray:
        """What the other servers of a forecast's profile measured: float32 [server, length, metric], up to a step.

        Without servers before the first cycle, and for a forecast of other metrics.
        """
        window, server = self._window, self._store.servers.get(forecast.server_name)
        targets = () if window is None else tuple(window.engine.config.targets)
        if window is None or not set(forecast.model.metrics) <= set(targets):
            return np.zeros((0, length, len(forecast.model.metrics)), dtype=np.float32)
        own = NOT_STORED if server is None else server.server_id
        ids = [server_id for server_id in self._members.get(forecast.profile, ()) if server_id != own]
        source = _Source(window, ids, self._others.get(forecast.profile, ()), self._foreign)
        return source.values(last_step, length)[:, :, [targets.index(metric) for metric in forecast.model.metrics]]

    def _observed(self, profiles: Collection[str], silent_since: int) -> dict[str, Candidates]:
        """The servers that may be peers, by profile: those with a sample after `silent_since`, in the table's order."""
        names: list[str] = []
        ids: list[int] = []
        of_server: list[str | None] = []
        found: dict[int, tuple[KnownServer, str]] = {}
        for server in list(self._store.servers.values()):  # a copy: other threads add servers meanwhile
            if (self._store.last_step(server.server_id) or 0) > silent_since:
                profile = self._profile(server)
                found[server.server_id] = server, profile
                names.append(server.name)
                ids.append(server.server_id)
                of_server.append(profile if profile in profiles else None)
        self._profiles = found
        self._new.clear()
        chosen = ProfileMembers.of(names, of_server)
        by_profile = dict(zip(*chosen, strict=True))
        found_rows = {profile: by_profile.get(profile, ()) for profile in profiles}
        ordered = {
            profile: sorted(map(int, rows), key=lambda row: member_order(names[row]))
            for profile, rows in found_rows.items()
        }
        return {
            profile: Candidates(tuple(names[row] for row in rows), tuple(ids[row] for row in rows))
            for profile, rows in ordered.items()
        }

    def _profile(self, server: KnownServer) -> str:
        known = self._profiles.get(server.server_id)
        same = known is not None and known[0] is server
        return known[1] if known and same else profile_of(server.name, server.profile, self._rules)[0]

    def _joined(self, window: HistoryWindow, profile: str, ids: list[int], last_step: int) -> set[int] | None:
        """The steps in which the servers that joined a profile were measured; None if all steps must be computed."""
        before = set(self._members.get(profile, ()))
        joined = [server_id for server_id in ids if server_id not in before]
        if len(joined) > MOST_JOINED or before.difference(ids):
            return None
        measured = ~np.isnan(window.steps(joined, last_step, window.buffer.steps)).all(axis=(0, 2))
        first_step = last_step + 1 - window.buffer.steps
        return {first_step + int(column) for column in np.flatnonzero(measured)} if joined else set()


class _Source(NamedTuple):
    """The servers of a profile's table: of the store, and names of other shards'."""

    window: HistoryWindow
    server_ids: list[int]
    others: tuple[str, ...]
    foreign: ForeignPeers

    def values(self, last_step: int, length: int) -> np.ndarray:
        """float32 [server, length, metric of the model]: the `length` steps up to the last step."""
        own = self.window.steps(self.server_ids, last_step, length)
        if not self.others:
            return own
        return np.concatenate([own, self.window.of_model(self.foreign.values(self.others, last_step, length))])


def _compute(table: PeerTable, row: int, source: _Source, last_step: int, steps: Sequence[int] | None) -> None:
    """Compute some steps of a profile, or all of them (None), in place."""
    columns: np.ndarray | slice = slice(None)
    if not source.server_ids and not source.others:
        for field in table.statistics:
            field[row] = 0 if field.dtype == np.int16 else np.nan
        return
    if steps is None or len(steps) > MOST_STEPS:
        values = source.values(last_step, table.steps)
    elif steps:
        values = np.concatenate([source.values(step, 1) for step in steps], axis=1)
        columns = np.array(steps) - table.first_step
    else:
        return
    for field, computed in zip(table.statistics, order_statistics(values), strict=True):
        field[row, columns] = computed


def _empty_table(layout: _Layout, first_step: int) -> PeerTable:
    shape = len(layout.profiles), layout.steps, len(layout.metrics)
    low, middle, high = (np.full(shape, np.nan, dtype=np.float32) for _ in range(3))
    return PeerTable(layout.profiles, first_step, OrderStatistics(low, middle, high, np.zeros(shape, dtype=np.int16)))


def _moved(table: PeerTable, first_step: int) -> PeerTable:
    """A copy of the table with as many steps, from `first_step` on; the new steps are still to be computed."""
    by = first_step - table.first_step
    return PeerTable(table.profiles, first_step, OrderStatistics(*(np.roll(f, -by, axis=1) for f in table.statistics)))
