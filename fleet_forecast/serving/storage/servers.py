"""The servers of the store: names, ids, profiles, and the newest step that each sent a measurement for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet_forecast.serving.storage.samples import KnownServer


class ServerRegistry:
    """All servers in memory. Names may be reserved from any thread; the other changes are the store thread's.

    A server is added when its first samples are committed. Until then its name is reserved by the batches that wait.
    """

    def __init__(self, max_servers: int, servers: Iterable[KnownServer], next_id: int) -> None:
        self.by_name = {server.name: server for server in servers}
        self.last_steps: dict[int, int] = {}  # server id -> newest step it sent a measurement for
        self._by_id = {server.server_id: server for server in self.by_name.values()}
        self._unsaved: dict[int, KnownServer] = {}  # servers that a new file does not contain yet
        self._reserved: Counter[str] = Counter()  # new name -> number of batches that wait with it
        self._max_servers, self._next_id = max_servers, next_id
        self._lock = threading.Lock()

    def reserve(self, name: str) -> bool:
        """Reserve a new name for one batch; False if the limit allows no further server."""
        with self._lock:
            further = name not in self.by_name and name not in self._reserved
            if further and len(self.by_name) + len(self._reserved) >= self._max_servers:
                return False
            self._reserved[name] += 1
            return True

    def release(self, names: Iterable[str]) -> None:
        """End the reservations of one batch, which was committed or refused."""
        with self._lock:
            for name in names:
                if self._reserved[name] > 1:
                    self._reserved[name] -= 1
                else:
                    del self._reserved[name]

    def draft(self) -> ServerDraft:
        """New servers and changed profiles of one transaction."""
        return ServerDraft(self.by_name, self._next_id)

    def commit(self, draft: ServerDraft) -> None:
        """Take over the changes of a transaction that was committed."""
        with self._lock:
            for server in draft.changed.values():
                self.by_name[server.name] = self._by_id[server.server_id] = server
                self._unsaved.pop(server.server_id, None)
                self._next_id = max(self._next_id, server.server_id + 1)

    def unsaved(self) -> list[KnownServer]:
        """Servers that a new file does not contain yet."""
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


class ServerDraft:
    """New servers and changed profiles of one transaction; `changed` is written with its samples."""

    def __init__(self, known: Mapping[str, KnownServer], next_id: int) -> None:
        self.changed: dict[str, KnownServer] = {}
        self._known, self._next_id = known, next_id

    def of_sample(self, name: str, profile: str | None) -> KnownServer:
        """The server of a sample: a new name gets an id, a changed profile is taken over."""
        server = self.changed.get(name) or self._known.get(name)
        if server is None or (profile is not None and profile != server.profile):
            server = KnownServer(server.server_id if server else self._new_id(), name, profile)
            self.changed[name] = server
        return server

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1


class NewNames:
    """The new names of one batch, reserved until `release`."""

    def __init__(self, registry: ServerRegistry) -> None:
        self._registry = registry
        self._names: set[str] = set()

    def may_add(self, name: str) -> bool:
        """Whether samples of this server can be stored: it is known, or the limit allows one more."""
        if name in self._registry.by_name or name in self._names:
            return True
        if not self._registry.reserve(name):
            return False
        self._names.add(name)
        return True

    def release(self) -> None:
        """End the reservations, after the batch was committed or refused."""
        self._registry.release(self._names)
