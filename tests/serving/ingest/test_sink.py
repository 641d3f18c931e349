"""The ingest sink: records are checked, stored and counted in one place."""

import asyncio
import json
import logging

import pytest

from data_contract import METRICS
from fleet_forecast.contract.specs import METRIC_SPECS, MetricSpec
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.ingest.bodies import BodyError, ReceivedBody
from fleet_forecast.serving.ingest.sink import IngestSink
from fleet_forecast.serving.ingest.validation import TimeLimits, check_records
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.errors import HistoryBusyError
from fleet_forecast.serving.storage.store import HistoryStore

STEP = 300
NOW = 1_800_000_000


def record(name="a", seconds_ago=0, **values):
    return {"timestamp": iso(NOW - seconds_ago), "server_name": name, **({"cpu_pct": 50} | values)}


@pytest.fixture
def sink(tmp_path):
    settings = Settings(retention_hours=2.0, future_minutes=10.0, max_records=10)
    store = HistoryStore(tmp_path / "h.sqlite", STEP, max_waiting_records=5)
    made = IngestSink(settings, store, clock=lambda: float(NOW))
    yield made
    made.worker.shutdown()
    store.close()


def take_body(sink, *records):
    return asyncio.run(sink.take_body(ReceivedBody(json.dumps({"records": records}).encode())))


def stored_count(sink):
    servers = sink.store.servers.values()
    return sum(len(sink.store.raw_samples(s.server_id, NOW // STEP - 50, NOW // STEP + 50).result(5)) for s in servers)


def test_accepted_records_are_stored_and_both_kinds_are_counted(sink):
    batch = take_body(sink, record("a"), record("b", cpu_pct=180), record("c", seconds_ago=60, rack=7), {})
    assert [sample.server_name for sample in batch.samples] == ["a", "c"]
    assert [(rejection.index, rejection.field) for rejection in batch.rejected] == [(1, "cpu_pct"), (3, "server_name")]
    assert batch.ignored_fields == {"rack"}
    assert (sink.accepted, sink.rejected) == (2, {"cpu_pct": 1, "server_name": 1})
    assert stored_count(sink) == 2


@pytest.mark.parametrize(
    ("seconds_ago", "reason"), [(2 * 3600, None), (2 * 3600 + 1, "too old"), (-600, None), (-601, "too far ahead")]
)
def test_a_body_may_hold_times_from_the_retention_to_some_minutes_ahead(sink, seconds_ago, reason):
    rejected = take_body(sink, record(seconds_ago=seconds_ago)).rejected
    assert [rejection.reason.split(";")[0] for rejection in rejected] == ([] if reason is None else [reason])


def test_pulled_records_may_be_of_any_age_and_not_from_the_future(sink, caplog):
    with caplog.at_level(logging.WARNING):
        batch = asyncio.run(sink.take_pulled([record(seconds_ago=30 * 86_400)] + [record(seconds_ago=-1)] * 5))
    assert (len(batch.samples), sink.accepted, sink.rejected["timestamp"]) == (1, 1, 5)
    assert [entry.message for entry in caplog.records] == ["pulled sample rejected"] * 3


def test_a_batch_that_is_not_stored_is_not_counted(sink, monkeypatch):
    def full(*_arguments):
        raise HistoryBusyError("5 records wait for the disk")

    monkeypatch.setattr(sink.store, "append", full)
    with pytest.raises(HistoryBusyError):
        take_body(sink, record(), record(cpu_pct=-1))
    assert (sink.accepted, sink.rejected.total()) == (0, 0)


@pytest.mark.parametrize("body", [b"{", b"1", b'{"records": 1}', b'{"records": [' + b"1," * 10 + b"1]}"])
def test_a_body_that_is_not_a_list_of_records_is_refused_as_a_whole(sink, body):
    with pytest.raises(BodyError):
        asyncio.run(sink.take_body(ReceivedBody(body)))
    assert (sink.accepted, sink.rejected.total()) == (0, 0)


def test_a_metric_added_to_the_contract_is_checked_and_takes_its_place_in_the_samples():
    specs = {"added_pct": MetricSpec("added_pct", "%", "percent", "added"), **METRIC_SPECS}
    batch = check_records(
        [record(added_pct=12.5), record(added_pct=101), record(added_pct=None), record(added_pct=20)],
        TimeLimits(0, NOW * 1000),
        specs=specs,
    )
    assert [sample.values[:2] for sample in batch.samples] == [(12.5, 50), (None, 50), (None, 50), (20, 50)]
    assert all(len(sample.values) == len(METRICS) + 1 for sample in batch.samples)
    assert [(cell.index, cell.field, cell.value) for cell in batch.left_out] == [(1, "added_pct", 101)]
    assert batch.rejected == []
    assert batch.ignored_fields == set()
