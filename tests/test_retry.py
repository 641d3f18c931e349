"""Retries: pauses double up to a bound, and a requested pause is kept."""

from __future__ import annotations

import httpx
import pytest
from tenacity import Retrying

from fleet_forecast.retry import TransientError, back_off, retry_after_seconds


def call(*failures: Exception, attempts: int | None = None) -> list[float]:
    """Pauses in seconds of a call that fails so often and then succeeds."""
    pauses: list[float] = []
    left = list(failures)

    def work() -> None:
        if left:
            raise left.pop(0)

    Retrying(**back_off(TransientError, 4.0, attempts, 0.5), sleep=pauses.append)(work)
    return pauses


def test_pauses_double_up_to_the_longest_and_a_requested_pause_is_kept() -> None:
    failures = [TransientError("busy")] * 5 + [TransientError("busy", 3.0), TransientError("busy", 99.0)]
    assert call(*failures) == [0.5, 1, 2, 4, 4, 3, 4]


def test_the_last_error_is_raised_after_the_attempts_and_other_errors_at_once() -> None:
    with pytest.raises(TransientError, match="second"):
        call(TransientError("first"), TransientError("second"), attempts=2)
    with pytest.raises(KeyError):
        call(KeyError("x"))


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("-1", 0.0), ("Mon, 01 Jan 2026", None), (None, None)])
def test_the_requested_pause_is_read_from_the_header(header: str | None, seconds: float | None) -> None:
    headers = {} if header is None else {"retry-after": header}
    assert retry_after_seconds(httpx.Response(503, headers=headers)) == seconds
