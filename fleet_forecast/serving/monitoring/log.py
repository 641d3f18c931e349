"""Machine-readable logs: one JSON object per line on stderr, so that text from outside cannot add a line."""

from __future__ import annotations

import json
import logging
import sys

from fleet_forecast.iso_time import iso_milliseconds

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


def log_as_json(level: int = logging.INFO) -> None:
    """Send every log record of the process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
