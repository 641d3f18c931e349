"""The servers of the store: names, ids, profiles, and the newest step that each sent a measurement for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fleet_forecast.serving.storage.samples import KnownServer

FEW_STEPS = 12  # a server measured in fewer steps expires early
NEW_STEPS = 2  # at the limit, a server measured in at most so many steps is replaced by a new one


class ServerRegistry:
    """All servers in memory. Names may be reserved from any thread; the other changes are the store thread's.

    A server is added when its first samples are committed. Until then its name is reserved by the batches that wait.
    """

    def __init__(self, max_servers: int, servers: Iterable[KnownServer], next_id: int) -> None:
        self.by_name = {server.name: server for server in servers}
        self.leaving: dict[str, KnownServer] = {}  # of other shards: in the file until these have their samples
        self.last_steps: dict[int, int] = {}  # server id -> newest step it sent a measurement for
        self.measured_steps: dict[int, int] = {}  # server id -> number of steps it sent a measurement for, about
        self._replaced: set[int] = set()  # ids of replaced servers, to be deleted from the file
        self._by_id = {server.server_id: server for server in self.by_name.values()}
        self._unsaved: dict[int, KnownServer] = {}  # servers that a new file does not contain yet
        self._reserved: Counter[str] = Counter()  # new name -> number of batches that wait with it
        self._max_servers, self._next_id = max_servers, next_id
        self._replaceable: list[int] = []  # candidates of _replace_one, the next one last
        self._newest_step = self._searched_step = 0
        self._lock = threading.Lock()

    def set_apart(self, is_own: Callable[[str], bool]) -> None:
        """Take the servers of other shards out of `by_name` into `leaving`."""
        with self._lock:
            self.leaving = {name: server for name, server in self.by_name.items() if not is_own(name)}
            for name in self.leaving:
                del self.by_name[name]

    def reserve(self, name: str) -> bool:
        """Reserve a new name for one batch; False if the limit allows no further server.

        At the limit, a server with at most NEW_STEPS measured steps is replaced if others sent a step since.
        """
        with self._lock:
            further = name not in self.by_name and name not in self._reserved
            full = len(self.by_name) + len(self._reserved) >= self._max_servers
            if further and full and not self._replace_one():
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
        """Ids of replaced servers that are not yet deleted from the file."""
        with self._lock:
            return set(self._replaced)

    def mark_deleted(self, server_ids: set[int]) -> None:
        """Record that these servers are deleted from the file."""
        with self._lock:
            self._replaced -= server_ids

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
            self.by_name.pop(server.name, None)
            self.leaving.pop(server.name, None)


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
