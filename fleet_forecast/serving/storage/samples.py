"""One accepted sample, as the store takes it."""

from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """One accepted record; values are in the order of data_contract.METRICS, None where not measured."""

    server_name: str
    timestamp_ms: int  # UTC, since 1970
    profile: str | None
    state: str | None
    values: tuple[float | None, ...]
