"""Restarts background tasks that fail."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

LOG = logging.getLogger(__name__)
RESTART_SECONDS = 5.0


async def keep_running(name: str, work: Callable[[], Coroutine[Any, Any, None]], failures: Counter[str]) -> None:
    """Run endless work until cancelled; after a failure, which is logged and counted by name, the work restarts.

    It restarts after RESTART_SECONDS.
    """
    while True:
        try:
            await work()
        except Exception:
            failures[name] += 1
            LOG.exception("background work failed", extra={"work": name, "again_in_seconds": RESTART_SECONDS})
        await asyncio.sleep(RESTART_SECONDS)
