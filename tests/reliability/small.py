"""Small versions of the experiments, for `make test`; they mostly wait, so two files of tests share them.

Two limits are response times of /healthz: at ten times the load (200 ms) and during a cycle of 10,000 servers (50 ms).
They depend on other load of the machine, so the tests allow ten times as much. `make reliability` uses the limits.
"""

import pytest

from tests.reliability import connections, costly, durability, ending, framing, hostile, models, strain, upstream

SMALL = {
    "kills": lambda folder, _model: durability.kills(folder, 2),
    "failing writes": lambda folder, _model: durability.failing_system_calls(folder, ("fdatasync gives EIO",)),
    "acknowledged after fdatasync": lambda folder, _model: durability.acknowledged_after_sync(folder, 30),
    "damaged history": lambda folder, _model: durability.damaged_history(folder, 20_000, durability.DAMAGES[:2]),
    "read errors": lambda folder, _model: upstream.passing_read_errors(folder),
    "pipes and copies": upstream.hanging_and_partial_models,
    "gzip bomb": lambda folder, _model: upstream.compressed_bomb(folder, 4.0, 256),
    "full disk": lambda folder, _model: durability.full_disk(folder),
    "bad models": lambda folder, model: models.bad_models(folder, model, flips=1),
    "readiness": models.readiness,
    "swaps": lambda folder, model: models.swaps(folder, model, 6),
    "no code from files": lambda _folder, _model: models.no_code_from_files(),
    "mutated bodies": lambda folder, _model: hostile.mutated_bodies(folder, 300),
    "HTTP framing": lambda folder, _model: framing.http_framing(folder, 0.1, limit_ms=2_000),
    "OpenAPI": lambda folder, _model: hostile.openapi_answers(folder, 15),
    "huge body": lambda folder, _model: hostile.huge_body(folder),
    "slow clients": lambda folder, _model: hostile.slow_clients(folder, 200, 1.0),
    "ten times the load": lambda folder, _model: hostile.ten_times_the_load(folder, 3.0, limit_ms=2_000),
    "failed upgrades": lambda folder, _model: connections.failed_upgrades(folder, 1.0, 3),
    "connection limit": lambda folder, _model: connections.connection_limit(folder, 200, 64),
    "pipelining": lambda folder, _model: connections.pipelining(folder, 10),
    "stalled uploads": lambda folder, _model: connections.stalled_uploads(folder, 1.0),
    "unread log": lambda folder, _model: connections.unread_log(folder, 100),
    "raw history": lambda folder, _model: costly.raw_history(folder, 30_000, 2, limit_ms=2_000),
    "forged samples": lambda folder, _model: hostile.forged_samples(folder, 200),
    "names": lambda folder, _model: costly.many_names(folder, 1_000),
    "careless pattern": lambda folder, _model: costly.careless_pattern(folder),
    "date span": costly.date_span,
    "endings": lambda folder, _model: ending.endings(folder, ("a forecast", "64 event streams")),
    "endings while starting": lambda folder, _model: ending.endings_while_starting(folder, 2),
    "soak": lambda folder, _model: strain.soak(folder, 0.05),
    "clock steps": lambda folder, _model: strain.clock_steps(folder, 1),
}


def check(finding):
    if finding.kept is None:
        pytest.skip(finding.shown)
    assert finding.kept, (finding.shown, finding.figures)
