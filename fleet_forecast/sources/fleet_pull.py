"""Pulls one fleet from several Prometheus servers. A server of the fleet is taken from one of them at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from fleet_forecast.sources.prometheus import Progress, PrometheusServer, TimeRange, pull_range


class Owners:
    """Which Prometheus each server of the fleet is taken from: the first one in `names` that has it.

    If a Prometheus no longer has a server, or fails, the server is taken from the next one that has it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.conflicts: Counter[str] = Counter()  # servers that a pull left out for this reason, by Prometheus
        self._rank = {name: rank for rank, name in enumerate(names)}
        self._owner: dict[str, str] = {}

    def claim(self, prometheus: str, servers: Iterable[str]) -> dict[str, str]:
        """Note the servers that a Prometheus has; returns those that are taken from another one, and from which."""
        found = set(servers)
        self.release(prometheus, found)
        taken: dict[str, str] = {}
        for server in sorted(found):
            owner = self._owner.get(server, prometheus)
            if self._rank[owner] < self._rank[prometheus]:
                taken[server] = owner
            else:
                self._owner[server] = prometheus
        self.conflicts[prometheus] += len(taken)
        return taken

    def release(self, prometheus: str, kept: Container[str] = ()) -> None:
        """Take from a Prometheus all servers but `kept`."""
        gone = [server for server, owner in self._owner.items() if owner == prometheus and server not in kept]
        for server in gone:
            del self._owner[server]

    def count(self, prometheus: str) -> int:
        """Number of servers that are taken from a Prometheus."""
        return sum(owner == prometheus for owner in list(self._owner.values()))

    def of_server(self, server: str) -> str | None:
        """The Prometheus that a server is taken from, None if it is from none."""
        return self._owner.get(server)


class LeftOut(NamedTuple):
    """A server of the fleet that a Prometheus has and that is not taken from it."""

    prometheus: str
    server: str
    reason: str

    @property
    def sentence(self) -> str:
        """For the user."""
        return f"{self.server} of prometheus {self.prometheus} is left out: {self.reason}"


class PulledFleet(NamedTuple):
    """Rows of the contract by server and time, where they are from, and what was left out."""

    frame: pd.DataFrame
    owners: Owners
    left_out: tuple[LeftOut, ...]


def taken_elsewhere(owner: str) -> str:
    """Why a server is left out of a Prometheus."""
    return f"it is taken from prometheus {owner}, which has this name too; tell them apart with `matchers`"


def own_part(owners: Owners, prometheus: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[LeftOut]]:
    """The rows of the servers that are taken from this Prometheus, and the servers that are not."""
    taken = owners.claim(prometheus, frame["server_name"].unique())
    left_out = [LeftOut(prometheus, server, taken_elsewhere(owner)) for server, owner in taken.items()]
    return (frame[~frame["server_name"].isin(list(taken))] if taken else frame), left_out


def pull_fleet(
    servers: Sequence[PrometheusServer],
    time_range: TimeRange,
    step_seconds: int,
    progress: Progress = lambda _done, _total: None,
) -> PulledFleet:
    """Rows of all servers; one name that two of them have is taken from the first. Raises as pull_range."""
    owners = Owners([server.name for server in servers])
    frames, left_out = [], []
    for number, server in enumerate(servers):

        def of_all(done: int, total: int, number: int = number) -> None:
            progress(number * total + done, len(servers) * total)

        frame, refused = pull_range(server, time_range, step_seconds, of_all)
        left_out += [LeftOut(server.name, name, reason) for name, reason in refused.items()]
        frame, elsewhere = own_part(owners, server.name, frame)
        frames.append(frame)
        left_out += elsewhere
    if len(frames) == 1:
        return PulledFleet(frames[0], owners, tuple(left_out))
    rows = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    ordered = rows.sort_values(["server_name", "timestamp"], kind="stable", ignore_index=True)
    return PulledFleet(ordered, owners, tuple(left_out))
