"""Retries with back-off for requests to other services, with tenacity."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import httpx
from tenacity import RetryCallState, retry_if_exception_type, stop_after_attempt, stop_never, wait_exponential

LOG = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS = 1.0


class TransientError(Exception):
    """A request failed in a way that may pass; retry_after_seconds: the pause that the other service asked for."""

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(reason)


def back_off(
    errors: type[Exception] | tuple[type[Exception], ...],
    longest_pause_seconds: float,
    attempts: int | None = None,
    first_pause_seconds: float = FIRST_PAUSE_SECONDS,
) -> dict[str, Any]:
    """Arguments of tenacity.Retrying and AsyncRetrying: try again on `errors`, with pauses that double.

    longest_pause_seconds: upper bound of a pause. attempts: the last error is raised after so many; None: never.
    The pause that a TransientError asks for replaces the doubled one.
    """
    doubled = wait_exponential(multiplier=first_pause_seconds, max=longest_pause_seconds)

    def pause(state: RetryCallState) -> float:
        problem = state.outcome.exception() if state.outcome else None
        asked = problem.retry_after_seconds if isinstance(problem, TransientError) else None
        return doubled(state) if asked is None else min(asked, longest_pause_seconds)

    return {
        "retry": retry_if_exception_type(errors),
        "wait": pause,
        "stop": stop_never if attempts is None else stop_after_attempt(attempts),
        "reraise": True,
    }


def retry_after_seconds(response: httpx.Response) -> float | None:
    """The pause in a Retry-After header; None if there is none, or a date."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def logged(event: str) -> Callable[[RetryCallState], None]:
    """A `before_sleep` callback that logs the event, the reason and the pause."""

    def log(state: RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        LOG.warning(event, extra={"reason": str(problem), "pause_seconds": state.upcoming_sleep})

    return log
