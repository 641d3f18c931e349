"""The servers of the store: names, ids, profiles, and the newest step that each sent a measurement for."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from fleet_forecast.serving.storage.samples import KnownServer


class ServerRegistry:
    """All servers in memory. Names may be added from any thread; the other changes are the store thread's."""

    def __init__(self, max_servers: int, servers: Iterable[KnownServer], next_id: int) -> None:
        self.by_name = {server.name: server for server in servers}
        self.last_steps: dict[int, int] = {}  # server id -> newest step it sent a measurement for
        self._by_id = {server.server_id: server for server in self.by_name.values()}
        self._unsaved: dict[int, KnownServer] = {}  # new names and changed profiles, not yet committed
        self._max_servers, self._next_id = max_servers, next_id
        self._lock = threading.Lock()

    def may_add(self, name: str) -> bool:
        """Whether samples of this server can be stored: it is known, or the limit allows one more, which is added."""
        if name in self.by_name:
            return True
        with self._lock:
            if name not in self.by_name:
                if len(self.by_name) >= self._max_servers:
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
                self.last_steps[server_id] = max(step, self.last_steps.get(server_id, step))

    def silent_since(self, first_step: int) -> list[int]:
        """Ids of the servers without a sample from this step on."""
        return [server_id for server_id, step in self.last_steps.items() if step < first_step]

    def remove(self, server_ids: Iterable[int]) -> None:
        """Remove servers that were deleted from the file."""
        with self._lock:
            for server_id in server_ids:
                del self.last_steps[server_id]
                if server := self._by_id.pop(server_id, None):
                    del self.by_name[server.name]

    def _add(self, server: KnownServer) -> None:
        """Add or replace a server. The caller holds the lock."""
        self.by_name[server.name] = self._by_id[server.server_id] = self._unsaved[server.server_id] = server
        self._next_id = max(self._next_id, server.server_id + 1)
