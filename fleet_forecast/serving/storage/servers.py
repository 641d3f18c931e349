"""The servers of the store: names, ids, profiles, and the newest step that each sent a measurement for."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from fleet_forecast.serving.storage.samples import KnownServer

FEW_STEPS = 12  # a server measured in fewer steps expires early
NEW_STEPS = 2  # at the limit, a server measured in at most so many steps gives its place to a new one


class ServerRegistry:
    """All servers in memory. Names may be added from any thread; the other changes are the store thread's."""

    def __init__(self, max_servers: int, servers: Iterable[KnownServer], next_id: int) -> None:
        self.by_name = {server.name: server for server in servers}
        self.last_steps: dict[int, int] = {}  # server id -> newest step it sent a measurement for
        self.measured_steps: dict[int, int] = {}  # server id -> number of steps it sent a measurement for, about
        self._replaced: set[int] = set()  # ids of servers that gave their place, to be deleted from the file
        self._by_id = {server.server_id: server for server in self.by_name.values()}
        self._unsaved: dict[int, KnownServer] = {}  # new names and changed profiles, not yet committed
        self._max_servers, self._next_id = max_servers, next_id
        self._replaceable: list[int] = []  # candidates of _replace_one, the next one last
        self._newest_step = self._searched_step = 0
        self._lock = threading.Lock()

    def may_add(self, name: str) -> bool:
        """Whether samples of this server can be stored: it is known, or there is a place for one more, which is added.

        At the limit, a server with at most NEW_STEPS measured steps gives its place if others sent a step since.
        """
        if name in self.by_name:
            return True
        with self._lock:
            if name not in self.by_name:
                if len(self.by_name) >= self._max_servers and not self._replace_one():
                    return False
                self._add(KnownServer(self._next_id, name, None))
            return True

    def of_sample(self, name: str, profile: str | None) -> KnownServer:
        """The server of a sample; an unknown name is added, a changed profile is taken over."""
        server = self.by_name.get(name)
        if server is None or (profile is not None and profile != server.profile):
            with self._lock:
                known = self.by_name.get(name)
                server = KnownServer(known.server_id if known else self._next_id, name, profile)
                self._add(server)
        return server

    def _replace_one(self) -> bool:
        """Remove the server that sent nothing for the longest time among those with few steps; whether there is one.

        The caller holds the lock.
        """
        newest = self._newest_step or max(list(self.last_steps.values()), default=0)
        if not self._replaceable and newest != self._searched_step:
            self._searched_step = newest  # once a step: a batch may have thousands of new names
            new = (each for each, steps in list(self.measured_steps.items()) if steps <= NEW_STEPS)
            silent = [(self.last_steps[each], each) for each in new if self.last_steps.get(each, newest) < newest]
            self._replaceable = [each for _, each in sorted(silent, reverse=True)]
        while self._replaceable:
            server_id = self._replaceable.pop()
            if server_id in self._by_id and self.measured_steps.get(server_id, 0) <= NEW_STEPS:
                self._remove(server_id)
                self._replaced.add(server_id)
                return True
        return False

    def replaced(self) -> set[int]:
        """Ids of servers that gave their place and are not deleted from the file yet."""
        with self._lock:
            return set(self._replaced)

    def mark_deleted(self, server_ids: set[int]) -> None:
        """Record that these servers are deleted from the file."""
        with self._lock:
            self._replaced -= server_ids

    def unsaved(self) -> list[KnownServer]:
        """Servers that differ from the file."""
        with self._lock:
            return list(self._unsaved.values())

    def mark_saved(self, servers: Iterable[KnownServer]) -> None:
        """Record that these servers were committed."""
        with self._lock:
            for server in servers:
                if self._unsaved.get(server.server_id) == server:
                    del self._unsaved[server.server_id]

    def mark_all_unsaved(self) -> None:
        """Record that the file is a new one; the servers keep their ids."""
        with self._lock:
            self._unsaved = dict(self._by_id)

    def note_rows(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Keep the newest step of each server. rows: (step, server_id, timestamp_ms, state, *values), on disk."""
        for step, server_id, _, _, *values in rows:
            if values.count(None) < len(values) or server_id not in self.last_steps:
                last = self.last_steps.get(server_id)
                if step != last:
                    self.measured_steps[server_id] = self.measured_steps.get(server_id, 0) + 1
                self.last_steps[server_id] = step if last is None else max(step, last)
                self._newest_step = max(self._newest_step, step)

    def silent_since(self, first_step: int, first_step_of_new: int = 0) -> list[int]:
        """Ids of the servers without a sample from a step on.

        first_step_of_new: the step for servers that were measured in fewer than FEW_STEPS steps.
        """
        few = {each for each, steps in list(self.measured_steps.items()) if steps < FEW_STEPS}
        return [
            server_id
            for server_id, step in list(self.last_steps.items())
            if step < first_step or (step < first_step_of_new and server_id in few)
        ]

    def remove(self, server_ids: Iterable[int]) -> None:
        """Remove servers that were deleted from the file."""
        with self._lock:
            for server_id in server_ids:
                self._remove(server_id)

    def _remove(self, server_id: int) -> None:
        """Remove a server. The caller holds the lock."""
        for table in (self.last_steps, self.measured_steps, self._unsaved):
            table.pop(server_id, None)
        if server := self._by_id.pop(server_id, None):
            del self.by_name[server.name]

    def _add(self, server: KnownServer) -> None:
        """Add or replace a server. The caller holds the lock."""
        self.by_name[server.name] = self._by_id[server.server_id] = self._unsaved[server.server_id] = server
        self._next_id = max(self._next_id, server.server_id + 1)
