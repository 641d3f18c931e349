"""Sends samples of other shards' servers to these, and waits until they are on disk there.

A forwarded sample is never forwarded again: the receiving route rejects samples of other shards. So a wrong list of
addresses gives an error, not a loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.iso_time import iso_milliseconds
from fleet_forecast.serving.clients import Right
from fleet_forecast.serving.shards.neighbours import Neighbour, ShardError
from fleet_forecast.serving.storage.errors import HistoryBusyError, PartlyStoredError
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.shard import owner_of

SAMPLES_PATH = "/api/v1/shard/samples"
CELLS_PER_REQUEST = 30_000  # about 1.5 MB: 5,000 records of six metrics

Why = tuple[str, Any, str]  # of a rejection: field, value, reason


class Forwarded(NamedTuple):
    """The result for forwarded samples: reasons of rejections, by position; and notices."""

    rejected: dict[int, Why]
    notices: list[str]


class Forwarder:
    """Forwards samples within a bounded time and memory. Used on the event loop."""

    def __init__(self, neighbours: Mapping[int, Neighbour], most_waiting: int, seconds: float) -> None:
        """most_waiting: samples that wait for other shards. seconds: for one request."""
        self.waiting = 0
        self.records: Counter[tuple[int, str]] = Counter()  # by shard and "accepted", "rejected" or "failed"
        self._neighbours, self._most_waiting, self._seconds = neighbours, most_waiting, seconds

    async def send(self, samples: Sequence[Sample], rights: frozenset[Right]) -> Forwarded:
        """Send samples to the shards that have their servers; returns when they are on disk there.

        rights: of the client that sent them. Raises HistoryBusyError if too many wait, PartlyStoredError if a shard did
        not store its part.
        """
        if self.waiting and self.waiting + len(samples) > self._most_waiting:
            raise HistoryBusyError(f"{self.waiting} records wait for other shards")
        count = next(iter(self._neighbours.values())).shard.count
        parts: dict[int, list[int]] = {}
        for place, sample in enumerate(samples):
            parts.setdefault(owner_of(sample.server_name, count), []).append(place)
        self.waiting += len(samples)
        try:
            sent = [self._send_part(owner, places, samples, rights) for owner, places in parts.items()]
            responses = await asyncio.gather(*sent, return_exceptions=True)
        finally:
            self.waiting -= len(samples)
        found = Forwarded({}, [])
        for response in responses:
            if isinstance(response, BaseException):
                raise response
            found.rejected.update(response.rejected)
            found.notices.extend(response.notices)
        return found

    async def _send_part(
        self, owner: int, places: Sequence[int], samples: Sequence[Sample], rights: frozenset[Right]
    ) -> Forwarded:
        neighbour, found = self._neighbours[owner], Forwarded({}, [])
        query = {str(right): "true" for right in (Right.CORRECT, Right.PROFILE) if right in rights}
        most = records_per_request()
        for first in range(0, len(places), most):
            part = places[first : first + most]
            document = {"records": [record_of(samples[place]) for place in part]}
            try:
                response = parse_response(neighbour, await neighbour.post(SAMPLES_PATH, document, self._seconds, query))
            except ShardError as problem:
                self.records[owner, "failed"] += len(places) - first
                raise PartlyStoredError(str(problem)) from None
            rejected = {part[index]: why for index, why in response.rejected.items() if index < len(part)}
            self.records[owner, "rejected"] += len(rejected)
            self.records[owner, "accepted"] += len(part) - len(rejected)
            found.rejected.update(rejected)
            found.notices.extend(response.notices)
        return found


def records_per_request() -> int:
    """Records of the fleet's metrics that one request may have."""
    return max(1, CELLS_PER_REQUEST // len(METRICS))


def record_of(sample: Sample) -> dict[str, Any]:
    """A sample as a record of the data contract."""
    return {
        "timestamp": iso_milliseconds(sample.timestamp_ms / 1000),
        "server_name": sample.server_name,
        "profile": sample.profile,
        "state": sample.state,
        **dict(zip(METRICS, sample.values, strict=True)),
    }


def parse_response(neighbour: Neighbour, body: bytes) -> Forwarded:
    """The rejections by index, and the notices, of a response. Raises ShardError if it is not one."""
    try:
        document = orjson.loads(body)
        rejected = {
            int(each["index"]): (str(each["field"]), each.get("value"), str(each["reason"]))
            for each in document["rejected"]
        }
        return Forwarded(rejected, [str(notice) for notice in document.get("notices", ())])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as problem:
        raise neighbour.failed(f"not a response of a shard ({problem!r})") from None
