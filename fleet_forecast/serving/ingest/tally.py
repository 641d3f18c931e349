"""Counts of samples by protocol, and the names that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

MAX_NAMES = 100  # of refused servers, and of other names, for each protocol
MAX_NAME_CHARACTERS = 200
NOT_USED = "not a metric of the data contract"


class Protocol(StrEnum):
    """The ways in which samples are received."""

    JSON = "json"
    PROMETHEUS = "prometheus"  # pulled
    REMOTE_WRITE = "remote_write"
    OTLP = "otlp"
    SHARD = "shard"  # forwarded or handed over by another shard of the fleet


_Names = dict[Protocol, dict[str, str]]  # name -> reason


class IngestTally:
    """Counts since the start. Changed by the event loop only."""

    def __init__(self) -> None:
        self.stored: Counter[str] = Counter()  # samples: one metric of one server at one time
        self.not_stored: Counter[tuple[str, str]] = Counter()  # by reason: the field at fault, or what it was
        self._unused: _Names = {protocol: {} for protocol in Protocol}
        self._refused: _Names = {protocol: {} for protocol in Protocol}

    def note_unused(self, protocol: Protocol, names: Iterable[str]) -> None:
        """Keep names of metrics and fields that the contract does not have; the first MAX_NAMES."""
        for name in names:
            _keep(self._unused[protocol], name, NOT_USED)

    def note_refused(self, protocol: Protocol, name: str, reason: str) -> None:
        """Keep the name of a server that was refused; the first MAX_NAMES."""
        _keep(self._refused[protocol], name, reason)

    def left_out(self) -> list[dict[str, str]]:
        """Protocol, name and reason of each kept name; servers first. May be called by any thread."""
        return [
            {"protocol": protocol, "name": name, "reason": reason}
            for names in (self._refused, self._unused)
            for protocol, kept in names.items()
            for name, reason in list(kept.items())
        ]


def _keep(kept: dict[str, str], name: str, reason: str) -> None:
    shown = name[:MAX_NAME_CHARACTERS]
    if shown not in kept and len(kept) < MAX_NAMES:
        kept[shown] = reason
