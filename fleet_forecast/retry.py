"""Retries with back-off towards other services, on tenacity."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tenacity import RetryCallState, retry_if_exception_type, stop_after_attempt, stop_never, wait_exponential

LOG = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS = 1.0


def back_off(
    errors: type[Exception] | tuple[type[Exception], ...],
    longest_pause_seconds: float,
    attempts: int | None = None,
    first_pause_seconds: float = FIRST_PAUSE_SECONDS,
) -> dict[str, Any]:
    """Arguments of tenacity.Retrying and AsyncRetrying: try again on `errors`, with pauses that double.

    longest_pause_seconds: upper bound of a pause. attempts: the last error is raised after so many; None: never.
    """
    return {
        "retry": retry_if_exception_type(errors),
        "wait": wait_exponential(multiplier=first_pause_seconds, max=longest_pause_seconds),
        "stop": stop_never if attempts is None else stop_after_attempt(attempts),
        "reraise": True,
    }


def logged(event: str) -> Callable[[RetryCallState], None]:
    """A `before_sleep` callback that logs the event, the reason and the pause."""

    def log(state: RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        LOG.warning(event, extra={"reason": str(problem), "pause_seconds": state.upcoming_sleep})

    return log
