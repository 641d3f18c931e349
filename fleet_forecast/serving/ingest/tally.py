"""Counts of what each protocol brought, and the names that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

MAX_NAMES = 100  # of what was left out, for each protocol
MAX_NAME_CHARACTERS = 200
NOT_USED = "not a metric of the data contract"


class Protocol(StrEnum):
    """How samples come in."""

    JSON = "json"
    PROMETHEUS = "prometheus"  # pulled
    REMOTE_WRITE = "remote_write"
    OTLP = "otlp"


class IngestTally:
    """Counts since the start. Changed by the event loop only."""

    def __init__(self) -> None:
        self.stored: Counter[str] = Counter()  # samples: one metric of one server at one time
        self.not_stored: Counter[tuple[str, str]] = Counter()  # by reason: the field at fault, or what it was
        self.left_out: dict[Protocol, dict[str, str]] = {protocol: {} for protocol in Protocol}  # name -> reason

    def leave_out(self, protocol: Protocol, names: Iterable[str], reason: str) -> None:
        """Keep names of metrics, fields or servers that were not used; the first MAX_NAMES."""
        kept = self.left_out[protocol]
        for name in names:
            shown = name[:MAX_NAME_CHARACTERS]
            if shown not in kept and len(kept) < MAX_NAMES:
                kept[shown] = reason
