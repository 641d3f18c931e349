"""Work beside the requests: nobody would miss a task that ended by an exception nobody foresaw, so it begins anew."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

LOG = logging.getLogger(__name__)
RESTART_SECONDS = 5.0


async def keep_running(name: str, work: Callable[[], Coroutine[Any, Any, None]], failures: Counter[str]) -> None:
    """Run work that is for ever; what ends it is logged, counted under its name, and it is begun again after a pause.

    Cancelling this ends it.
    """
    while True:
        try:
            await work()
        except Exception:
            failures[name] += 1
            LOG.exception("background work failed", extra={"work": name, "again_in_seconds": RESTART_SECONDS})
        await asyncio.sleep(RESTART_SECONDS)
