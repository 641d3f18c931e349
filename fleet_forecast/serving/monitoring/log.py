"""Machine-readable logs: one JSON object per line on stderr, so that text from outside cannot add a line.

Logging never blocks: a thread writes the lines from a bounded queue. Lines that find it full are dropped, and so are
lines of one kind that come too often; both are counted in DROPPED_LINES.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from collections import Counter

from fleet_forecast.iso_time import iso_milliseconds

QUEUE_LINES = 2_000
LINES_OF_ONE_KIND = 20  # in RATE_SECONDS
RATE_SECONDS = 10.0
MAX_KINDS = 1_000
FLUSH_SECONDS = 1.0  # at the end of the process
DROPPED_LINES: Counter[str] = Counter({"queue": 0, "rate": 0, "write": 0})  # of the process, by reason

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """time, level, logger and event, then the fields given with `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII JSON."""
        fields = {
            "time": iso_milliseconds(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class RateLimit:
    """At most LINES_OF_ONE_KIND lines of a kind in RATE_SECONDS; a kind is a logger and the beginning of its message.

    Used by one thread at a time.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._lines: Counter[tuple[str, str]] = Counter()

    def allows(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._since >= RATE_SECONDS or len(self._lines) > MAX_KINDS:
            self._since = now
            self._lines.clear()
        kind = (record.name, str(record.msg)[:40])
        self._lines[kind] += 1
        return self._lines[kind] <= LINES_OF_ONE_KIND


class BackgroundHandler(logging.Handler):
    """Writes the lines to a file descriptor from a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._rate = RateLimit()
        self._lines: queue.Queue[bytes | None] = queue.Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if not self._rate.allows(record):
            DROPPED_LINES["rate"] += 1
            return
        try:
            self._lines.put_nowait(self.format(record).encode() + b"\n")
        except queue.Full:
            DROPPED_LINES["queue"] += 1

    def close(self) -> None:
        """Write what waits, for FLUSH_SECONDS at most: nobody may be reading."""
        try:
            self._lines.put_nowait(None)
            self._thread.join(FLUSH_SECONDS)
        except queue.Full:
            DROPPED_LINES["queue"] += self._lines.qsize()
        super().close()

    def _write_all(self) -> None:
        # os.write, not sys.stderr: a thread that is blocked in it holds no lock that the interpreter needs at its end.
        while (line := self._lines.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:  # the reader is gone, or the disk is full
                DROPPED_LINES["write"] += 1


def log_as_json(level: int = logging.INFO) -> None:
    """Send every log record of the process to stderr as JSON."""
    handler = BackgroundHandler(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
