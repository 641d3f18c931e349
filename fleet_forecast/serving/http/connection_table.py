"""The open connections, and which of them is closed when there are too many."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv6Address, ip_address
from types import MappingProxyType

from fleet_forecast.serving.monitoring.http_counters import HttpCounters

IPV6_CLIENT_BYTES = 8  # a client owns at least a /64


class State(IntEnum):
    """State of a connection, in the order in which connections are closed for new ones."""

    AWAITING_HEADERS = 0
    IDLE = 1  # all requests are answered
    RECEIVING_BODY = 2
    BUSY = 3  # a complete request is being answered; never closed for a new connection


@dataclass
class ConnectionTable:
    """Counts connections by address. Beyond a limit, the oldest incomplete connection is closed for the new one."""

    max_connections: int
    max_per_address: int
    counters: HttpCounters
    _addresses: dict[asyncio.Transport, str] = field(default_factory=dict)
    _states: dict[asyncio.Transport, State] = field(default_factory=dict)
    _by_address: Counter[str] = field(default_factory=Counter)
    _by_state: Mapping[State, dict[asyncio.Transport, None]] = field(
        default_factory=lambda: MappingProxyType({state: {} for state in State})
    )

    def add(self, transport: asyncio.Transport, host: str) -> bool:
        """Add a connection that awaits its headers; False if it was closed, because no other one can be."""
        address = client_address(host)
        too_many = self._by_address[address] >= self.max_per_address
        limit = "address" if too_many else "total"
        if too_many or len(self._addresses) >= self.max_connections:
            oldest = self._oldest(address if too_many else None)
            self.counters.closed[limit] += 1
            if oldest is None:
                transport.abort()
                return False
            self.remove(oldest)
            oldest.abort()
        self._addresses[transport] = address
        self._by_address[address] += 1
        self._states[transport] = State.AWAITING_HEADERS
        self._by_state[State.AWAITING_HEADERS][transport] = None
        return True

    def set_state(self, transport: asyncio.Transport, state: State) -> None:
        """Enter a state; no effect for a connection that was removed."""
        before = self._states.get(transport)
        if before is not None and before != state:
            del self._by_state[before][transport]
            self._by_state[state][transport] = None
            self._states[transport] = state

    def remove(self, transport: asyncio.Transport) -> None:
        """Forget a connection; no effect for one that was removed."""
        state = self._states.pop(transport, None)
        if state is None:
            return
        del self._by_state[state][transport]
        address = self._addresses.pop(transport)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _oldest(self, address: str | None) -> asyncio.Transport | None:
        """The connection that has been longest in the first state with any; of one address, or of all (None)."""
        for state in (State.AWAITING_HEADERS, State.IDLE, State.RECEIVING_BODY):
            for transport in self._by_state[state]:
                if address is None or self._addresses[transport] == address:
                    return transport
        return None


def client_address(host: str) -> str:
    """The address whose connections are counted together: an IPv4 address, or the network of an IPv6 client."""
    if ":" not in host:
        return host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return address.packed[:IPV6_CLIENT_BYTES].hex() if isinstance(address, IPv6Address) else host
