"""Rates of cumulative counters: the last value of each counter is kept, for a bounded number of them.

A new value is kept only when the rate computed from it is stored: a request that is sent again, because it was not
stored or its response was lost, gives the same rates.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable
from typing import NamedTuple

MAX_COUNTERS_PER_SERVER = 1_000
FIRST, RESET, REPEATED, TOO_MANY = "first_of_counter", "counter_reset", "repeated", "too_many_counters"
_NS_PER_SECOND = 1e9


class CounterValue(NamedTuple):
    """The value of a counter at a time (ns since 1970)."""

    time_ns: int
    value: float


class CounterMemory:
    """The last value of each counter, by server. Beyond the limit the server silent longest is dropped.

    Values are read by one thread and replaced by another.
    """

    def __init__(self, max_counters: int) -> None:
        self.counters = 0
        self._max_counters = max_counters
        self._servers: OrderedDict[str, dict[Hashable, CounterValue]] = OrderedDict()  # the longest silent first
        self._lock = threading.Lock()

    def values_of(self, server: str) -> dict[Hashable, CounterValue]:
        """The remembered values of one server; not to be changed."""
        with self._lock:
            return self._servers.get(server, {})

    def remember(self, rates: CounterRates, refused: Collection[str]) -> None:
        """Take over the new values of a request, without those of refused servers."""
        with self._lock:
            for server, new in rates.new_values.items():
                if server in refused:
                    continue
                known = self._servers.pop(server, {})
                newer = {key: each for key, each in new.items() if key not in known or each > known[key]}
                self._servers[server] = known | newer
                self.counters += len(self._servers[server]) - len(known)
            while self.counters > self._max_counters:
                self.counters -= len(self._servers.popitem(last=False)[1])


class CounterRates:
    """The rates of one request's counters."""

    def __init__(self, memory: CounterMemory) -> None:
        self.new_values: dict[str, dict[Hashable, CounterValue]] = {}
        self._memory = memory
        self._known: dict[str, dict[Hashable, CounterValue]] = {}

    def per_second(self, server: str, key: Hashable, now: CounterValue) -> float | str:
        """The increase per second since the counter's value before, or why there is none.

        A counter that is smaller than before was reset: what it counted in between is not known.
        """
        new = self.new_values.setdefault(server, {})
        before = new.get(key)
        if before is None:
            if server not in self._known:
                self._known[server] = self._memory.values_of(server)
            before = self._known[server].get(key)
            if before is None and len(new) >= MAX_COUNTERS_PER_SERVER:
                return TOO_MANY
        if before is not None and now.time_ns <= before.time_ns:
            return REPEATED
        new[key] = now
        if before is None:
            return FIRST
        if now.value < before.value:
            return RESET
        return (now.value - before.value) / ((now.time_ns - before.time_ns) / _NS_PER_SECOND)
