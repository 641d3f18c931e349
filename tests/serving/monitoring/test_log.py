"""Logs: JSON lines that never block their writer and never flood."""

import json
import logging
import os
import threading

import pytest

from fleet_forecast.serving.monitoring import log
from tests.serving.daemon_client import wait_for


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def logger_to(descriptor):
    handler = log.BackgroundHandler(descriptor)
    handler.setFormatter(log.JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, handler


def lines(descriptor):
    return [json.loads(line) for line in os.read(descriptor, 1 << 20).splitlines()]


def test_lines_are_written_in_order_with_their_fields(pipe):
    logger, handler = logger_to(pipe[1])
    logger.warning("first", extra={"path": 'a"\n{"event": "forged"}'})
    logger.warning("second")
    handler.close()
    first, second = lines(pipe[0])
    assert (first["event"], first["path"], second["event"]) == ("first", 'a"\n{"event": "forged"}', "second")


def test_logging_to_a_pipe_that_nobody_reads_does_not_block_and_dropped_lines_are_counted(monkeypatch):
    monkeypatch.setattr(log, "LINES_OF_ONE_KIND", 1_000_000)
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.1)
    reading, writing = os.pipe()
    logger, handler = logger_to(writing)
    before = log.DROPPED_LINES["queue"]
    done = threading.Event()

    def write():
        for _ in range(log.QUEUE_LINES + 1_000):
            logger.warning("x" * 1_000)
        handler.close()
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(10.0)
    assert log.DROPPED_LINES["queue"] - before > 500
    os.close(reading)  # the thread's writes fail from here on
    wait_for(lambda: not handler._lines.qsize())
    monkeypatch.undo()
    handler.close()
    os.close(writing)


def test_lines_of_one_kind_are_limited_and_other_kinds_are_not(pipe):
    logger, handler = logger_to(pipe[1])
    before = log.DROPPED_LINES["rate"]
    for number in range(500):
        logger.warning("Invalid HTTP request received.", extra={"number": number})
    logger.warning("another kind")
    handler.close()
    written = [line["event"] for line in lines(pipe[0])]
    assert written == ["Invalid HTTP request received."] * log.LINES_OF_ONE_KIND + ["another kind"]
    assert log.DROPPED_LINES["rate"] - before == 500 - log.LINES_OF_ONE_KIND


def test_the_limit_of_one_kind_ends_with_its_time(monkeypatch):
    moment = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: moment[0])
    limit, record = log.RateLimit(), logging.makeLogRecord({"msg": "x"})
    assert [limit.allows(record) for _ in range(log.LINES_OF_ONE_KIND + 1)][-2:] == [True, False]
    moment[0] = log.RATE_SECONDS
    assert limit.allows(record)
