"""The promises of docs/operations.md, in its order, each with the experiments that test it in full size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.reliability import connections, costly, durability, ending, framing, hostile, models, strain, upstream
from tests.reliability.finding import Finding

Experiment = Callable[[Path, Path], Finding]  # an empty folder, a model directory


@dataclass(frozen=True)
class Promise:
    """A promise in the words of docs/operations.md, and its experiments by name."""

    text: str
    experiments: dict[str, Experiment]


def _in(folder_only: Callable[[Path], Finding]) -> Experiment:
    return lambda folder, _model: folder_only(folder)


PROMISES = (
    Promise(
        "Acknowledged samples survive kill -9",
        {
            "200 kills": _in(durability.kills),
            "failing writes": _in(durability.failing_system_calls),
            "clock steps": _in(strain.clock_steps),
        },
    ),
    Promise("Samples are acknowledged after fsync", {"strace": _in(durability.acknowledged_after_sync)}),
    Promise("A damaged history never blocks the start", {"damaged files": _in(durability.damaged_history)}),
    Promise("A history is set aside only if it is damaged", {"read errors": _in(upstream.passing_read_errors)}),
    Promise("Disk full degrades and recovers", {"small tmpfs": _in(durability.full_disk)}),
    Promise(
        "A bad model never replaces a good one",
        {"damaged models": models.bad_models, "swaps": models.swaps},
    ),
    Promise("A model that hangs or is not complete delays nothing", {"pipes": upstream.hanging_and_partial_models}),
    Promise("Ready means it can forecast", {"readiness": models.readiness}),
    Promise(
        "Hostile input gets 4xx, never 5xx",
        {
            "mutated bodies": _in(hostile.mutated_bodies),
            "HTTP framing": _in(framing.http_framing),
            "OpenAPI": _in(hostile.openapi_answers),
        },
    ),
    Promise(
        "Bounded queue, time, memory",
        {
            "ten times the load": _in(hostile.ten_times_the_load),
            "huge body": _in(hostile.huge_body),
            "soak": _in(strain.soak),
        },
    ),
    Promise("Responses of other services are bounded", {"gzip bomb": _in(upstream.compressed_bomb)}),
    Promise("Slow clients don't starve others", {"slow clients": _in(hostile.slow_clients)}),
    Promise("Every connection has a deadline in every state", {"failed upgrades": _in(connections.failed_upgrades)}),
    Promise(
        "A new client is served at the connection limit",
        {
            "1,100 connections": _in(connections.connection_limit),
            "64 open files": _in(lambda folder: connections.connection_limit(folder, 200, 64)),
        },
    ),
    Promise("Pipelined requests are bounded", {"pipelining": _in(connections.pipelining)}),
    Promise("Incomplete uploads do not block complete ones", {"stalled uploads": _in(connections.stalled_uploads)}),
    Promise("Logging never blocks", {"unread log": _in(connections.unread_log)}),
    Promise(
        "SIGTERM ends cleanly within 10 s",
        {"situations": _in(ending.endings), "start": _in(ending.endings_while_starting)},
    ),
    Promise("A model file can't run code", {"import ban": lambda _folder, _model: models.no_code_from_files()}),
    Promise("Responses are bounded", {"raw history": _in(costly.raw_history), "date span": costly.date_span}),
    Promise("A token that only writes cannot change stored values", {"forged samples": _in(hostile.forged_samples)}),
    Promise("Names cannot fill the memory", {"20,000 names": _in(costly.many_names)}),
    Promise("A name pattern cannot freeze the daemon", {"careless pattern": _in(costly.careless_pattern)}),
    Promise("No forecast request can starve ingest", {"10,000 servers": strain.large_cycle}),
)
