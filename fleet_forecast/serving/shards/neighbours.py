"""The other shards of the fleet: one request at a time, with a bounded response and time."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.shard import Shard
from fleet_forecast.sources.address import without_secrets
from fleet_forecast.sources.bounded_http import BoundedClient, ResponseLimits

SHARD_HEADER = "x-fleet-shard"  # of requests: which shard is meant; of responses: which shard responds
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
PAUSE_SECONDS = 1.0  # after a failure: requests in between fail at once, and nothing piles up
LONGEST_SECONDS = 120.0
SHOWN_CHARACTERS = 200  # of a response


class ShardError(RuntimeError):
    """Another shard did not respond as it should; the message names it and the reason."""


class Neighbour:
    """Another shard. problem: why the last request failed, None if it did not. Used on the event loop."""

    def __init__(self, shard: Shard, address: str, client: BoundedClient, token: Callable[[], bytes | None]) -> None:
        """token: the one that shards send each other, as it is now."""
        self.shard, self.address = shard, without_secrets(address)
        self.problem: str | None = None
        self.requests = self.failures = 0
        self._url, self._client, self._token = address.rstrip("/"), client, token
        self._failed_monotonic: float | None = None

    async def post(self, path: str, document: Any, seconds: float, query: Mapping[str, str] | None = None) -> bytes:
        """The body of a 200 response to a JSON document. Raises ShardError."""
        failed = self._failed_monotonic
        if failed is not None and time.monotonic() < failed + PAUSE_SECONDS:
            raise ShardError(self._worded(self.problem or "it failed a moment ago"))
        self.requests += 1
        try:
            async with asyncio.timeout(seconds):
                response = await self._client.post(
                    self._url + path, content=to_json(document), headers=self._headers(), params=dict(query or {})
                )
        except TimeoutError:
            raise self.failed(f"no complete response within {seconds:g} s") from None
        except (httpx.HTTPError, OSError, ValueError) as problem:
            raise self.failed(f"{type(problem).__name__}: {problem}") from None
        if response.status_code != httpx.codes.OK:
            raise self.failed(f"status {response.status_code}: {response.text[:SHOWN_CHARACTERS]}")
        self.problem = self._failed_monotonic = None
        return response.content

    def failed(self, reason: str) -> ShardError:
        """Record why a response cannot be used; returns the error to raise."""
        self.failures += 1
        self.problem, self._failed_monotonic = reason, time.monotonic()
        return ShardError(self._worded(reason))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _worded(self, reason: str) -> str:
        return f"shard {self.shard} ({self.address}) does not respond: {reason}"

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json", SHARD_HEADER: str(self.shard)}
        token = self._token()
        return headers if token is None else {**headers, "authorization": f"Bearer {token.decode('latin-1')}"}


def neighbours_of(
    own: Shard,
    addresses: Mapping[int, str],
    token: Callable[[], bytes | None],
    certificates: ssl.SSLContext | None = None,
) -> dict[int, Neighbour]:
    """The other shards by number. certificates: to trust in their addresses, None: the usual ones."""
    limits = ResponseLimits(MAX_RESPONSE_BYTES, LONGEST_SECONDS)
    return {
        number: Neighbour(Shard(number, own.count), url, BoundedClient(limits, certificates=certificates), token)
        for number, url in addresses.items()
    }
