"""Sends samples to POST /api/v1/metrics of a daemon, with retries."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying

from fleet_forecast.retry import TransientError, back_off, retry_after_seconds

RECORDS_IN_ONE_REQUEST = 10_000
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
PATIENCE_AT_FIRST_SECONDS = 10.0  # before the first response: the address may be wrong
PATIENCE_SECONDS = 3600.0  # longest outage of a daemon that has responded before
TIMEOUT_SECONDS = 30.0
REPORT_EVERY_SECONDS = 60.0  # during an outage
SHOWN_CHARACTERS = 300  # of a response
Report = Callable[[str], None]


class FeedError(RuntimeError):
    """The daemon cannot be reached or refuses the samples; the message names the address and the reason."""


@dataclass
class Feed:
    """POST /api/v1/metrics of one daemon, with retries and back-off.

    report: called with messages for the user. stopped: ends sending and waiting when it is set. transport: replaces
    the network in tests.
    """

    url: str
    report: Report
    stopped: threading.Event
    token: str | None = None
    transport: httpx.BaseTransport | None = None
    patience_at_first_seconds: float = PATIENCE_AT_FIRST_SECONDS
    accepted: int = 0
    rejected: int = 0
    retries: int = 0
    _client: httpx.Client = field(init=False, repr=False)
    _answered: bool = False
    _reported_seconds: float = 0.0  # into the outage

    def __post_init__(self) -> None:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS, transport=self.transport)

    def send(self, records: list[dict[str, Any]]) -> bool:
        """Send samples until they are acknowledged; False if `stopped` was set before that. Raises FeedError."""
        for first in range(0, len(records), RECORDS_IN_ONE_REQUEST):
            if not self._send_until_acknowledged(records[first : first + RECORDS_IN_ONE_REQUEST]):
                return False
        return True

    def close(self) -> None:
        self._client.close()

    def _send_until_acknowledged(self, records: list[dict[str, Any]]) -> bool:
        policy = back_off(TransientError, LONGEST_PAUSE_SECONDS, first_pause_seconds=FIRST_PAUSE_SECONDS)
        policy |= {"stop": self._gives_up, "sleep": self.stopped.wait, "before_sleep": self._report_retry}
        try:
            Retrying(**policy)(self._post, records)
        except TransientError as problem:
            if self.stopped.is_set():
                return False
            raise FeedError(
                f"{self.url} does not accept samples: {problem}; start the daemon, or correct the address"
            ) from None
        return True

    def _gives_up(self, state: RetryCallState) -> bool:
        patience = PATIENCE_SECONDS if self._answered else self.patience_at_first_seconds
        return self.stopped.is_set() or (state.seconds_since_start or 0.0) > patience

    def _report_retry(self, state: RetryCallState) -> None:
        self.retries += 1
        elapsed = state.seconds_since_start or 0.0
        if state.attempt_number > 1 and elapsed - self._reported_seconds < REPORT_EVERY_SECONDS:
            return
        self._reported_seconds = elapsed
        problem = state.outcome.exception() if state.outcome else None
        since = f" for {elapsed:.0f} s" if state.attempt_number > 1 else ""
        self.report(f"{self.url}: {problem}{since}; trying again until it accepts the samples")

    def _post(self, records: list[dict[str, Any]]) -> None:
        """Raises TransientError if another attempt may succeed, FeedError if not."""
        if self.stopped.is_set():
            raise TransientError("stopped")
        address = self.url.rstrip("/") + "/api/v1/metrics"
        try:
            response = self._client.post(address, json={"records": records})
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as problem:
            raise FeedError(f"{self.url!r} is not an address ({problem}); write http://host:port") from None
        except httpx.TransportError as problem:
            raise TransientError(f"{type(problem).__name__}: {problem}") from None
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            reason = f"status {status} {response.text[:SHOWN_CHARACTERS]}".strip()
            raise TransientError(reason, retry_after_seconds(response))
        if status != httpx.codes.OK:
            reason = f"status {status}: {response.text[:SHOWN_CHARACTERS]}"
            raise FeedError(f"{address} refuses the samples with {reason}; check the token and the daemon's log")
        self._answered = True
        self._count(address, response)

    def _count(self, address: str, response: httpx.Response) -> None:
        try:
            document = response.json()
            accepted, rejected = int(document["accepted"]), list(document["rejected"])
        except (ValueError, KeyError, TypeError):
            msg = f"{address} does not respond like this project's daemon: {response.text[:100]!r}; correct the address"
            raise FeedError(msg) from None
        self.accepted += accepted
        self.rejected += len(rejected)
        if rejected:
            self.report(f"{len(rejected)} samples rejected, the first one: {rejected[0]}")
