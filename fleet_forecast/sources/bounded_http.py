"""An HTTP client for other services that bounds the size and the total time of each response.

Responses are requested uncompressed, and a compressed one is not unpacked: its size in memory could not be bounded.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

UNCOMPRESSED = "identity"


class ResponseError(httpx.HTTPError):
    """The response is too large, takes too long, or is compressed; the message gives the limit."""


class ResponseTooLargeError(ResponseError):
    """The response is larger than the limit."""


@dataclass(frozen=True)
class ResponseLimits:
    """Limits of one response.

    seconds: from the request to the last byte. needs_content: whether a response whose content cannot be used raises
    ResponseError; otherwise its status counts and the content is cut.
    """

    max_bytes: int
    seconds: float
    needs_content: bool = True


class BoundedClient:
    """Posts to other services. Redirects are not followed."""

    def __init__(
        self,
        limits: ResponseLimits,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        certificates: ssl.SSLContext | None = None,
    ) -> None:
        """certificates: shared between clients, because they take 20 ms to load; transport: replaces the network."""
        self._limits = limits
        self._client = httpx.AsyncClient(
            headers={**(headers or {}), "accept-encoding": UNCOMPRESSED},
            timeout=limits.seconds,
            transport=transport,
            verify=certificates or True,
            follow_redirects=False,
        )

    async def post(self, url: str, **content: Any) -> httpx.Response:
        """The complete response to a POST; content: `json` or `data`, as for httpx.

        Raises httpx.HTTPError (ResponseError is one) and what httpx passes on from the system: OSError, ValueError.
        """
        try:
            async with asyncio.timeout(self._limits.seconds):
                async with self._client.stream("POST", url, **content) as response:
                    body = await self._body(response)
        except TimeoutError:
            raise ResponseError(f"no complete response within {self._limits.seconds:g} s") from None
        return httpx.Response(response.status_code, headers=_plain(response.headers), content=body)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _body(self, response: httpx.Response) -> bytes:
        encoding = response.headers.get("content-encoding", UNCOMPRESSED).strip().lower()
        if encoding not in ("", UNCOMPRESSED):
            problem = ResponseError(f"the response is compressed ({encoding[:50]}), which was not asked for")
            return self._unusable(b"", problem)
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk[: self._limits.max_bytes + 1 - len(body)]
            if len(body) > self._limits.max_bytes:
                too_large = ResponseTooLargeError(f"the response is larger than {self._limits.max_bytes:,} bytes")
                return self._unusable(bytes(body[: self._limits.max_bytes]), too_large)
        return bytes(body)

    def _unusable(self, body: bytes, problem: ResponseError) -> bytes:
        if self._limits.needs_content:
            raise problem
        return body


def _plain(headers: httpx.Headers) -> dict[str, str]:
    """The headers without those of the transfer, which do not fit the content that was read."""
    transfer = ("content-encoding", "content-length", "transfer-encoding")
    return {name: value for name, value in headers.items() if name not in transfer}
