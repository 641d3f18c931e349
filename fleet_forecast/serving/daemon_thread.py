"""Blocking work that may hang, on a thread that does not keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


async def on_daemon_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """asyncio.to_thread on a daemon thread: a disk or a service that does not respond does not delay the end."""
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()  # not cancellable: only the thread sets its result

    def run() -> None:
        try:
            done.set_result(work(*arguments))
        except BaseException as problem:
            done.set_exception(problem)

    threading.Thread(target=run, name=getattr(work, "__name__", "work"), daemon=True).start()
    return await asyncio.wrap_future(done)
