"""Forecasts are written by remote write: to a scripted database, and to the real VictoriaMetrics."""

import asyncio
import contextlib
import json
import time
from dataclasses import replace
from datetime import datetime

import cramjam
import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

import tft_inference
from data_contract import METRICS
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.export import writer as export
from fleet_forecast.serving.export.writer import ForecastWriter
from fleet_forecast.serving.forecasts.model_manager import ModelLoading
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.referenced_files import ForecastTarget, ReferencedFiles
from fleet_forecast.serving.settings import Settings
from fleet_forecast.sources.connection import read_access
from fleet_forecast.sources.connections_file import ForecastsTable
from fleet_forecast.sources.protocols.messages import Label, WriteRequest
from tests.serving.daemon_client import forecast_of, post, record, wait_for
from tests.serving.fake_engine import FakeEngine
from tests.serving.monitoring.fixed_daemon import ORIGIN, VIEW, fixed_forecast
from tests.sources.programs import running_victoria_metrics


def target(url="http://db/api/v1/write", **fields):
    table = ForecastsTable(url=url, **fields)
    return ForecastTarget(table, read_access(table, {}))


def decoded(body):
    """(labels, value, ms) of the one sample of each series of a request."""
    for series in WriteRequest.FromString(bytes(cramjam.snappy.decompress_raw(body))).timeseries:
        labels = {label.name: label.value for label in map(Label.FromString, series.labels)}
        (sample,) = series.samples
        yield labels, sample.value, sample.timestamp


class Database:
    """Answers with the given statuses, then with 204; keeps what it accepted."""

    def __init__(self, *statuses):
        self.statuses, self.requests, self.samples = list(statuses), [], []

    def __call__(self, request):
        self.requests.append(request)
        status = self.statuses.pop(0) if self.statuses else 204
        if status == 204:
            self.samples += decoded(request.content)
        return httpx.Response(status, text="because")


def snapshot_of(*forecasts):
    return FleetSnapshot({each.server_name: each for each in forecasts}, ORIGIN, ORIGIN + 301.0, VIEW)


def written(database, *snapshots, **fields):
    """The writer after it has written the snapshots one after the other."""

    async def run():
        writer = ForecastWriter(target(**fields), httpx.MockTransport(database))
        work = [asyncio.create_task(each()) for each in (writer.queue_cycles, writer.send_queue)]
        for snapshot in snapshots:
            writer.on_cycle(snapshot)
            for _ in range(500):
                await asyncio.sleep(0.002)
                if not writer.waiting and not writer._new_cycle.is_set():
                    break
        await asyncio.sleep(0.05)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await writer.close()
        return writer

    return asyncio.run(run())


def test_a_metric_that_a_server_does_not_have_is_neither_written_nor_counted():
    quantiles = A.quantiles.copy()
    quantiles[METRICS.index("mem_pct")] = np.nan
    without, database = replace(A, quantiles=quantiles, not_measured=("mem_pct",)), Database()
    chosen = {"horizons": ("1h",), "quantiles": (0.5,)}
    writer = written(database, snapshot_of(without, B), metrics=("cpu_pct", "mem_pct"), **chosen)
    assert (writer.written, writer.problem) == (3, None)
    assert [(labels["server"], labels["__name__"].partition(":")[2]) for labels, _, _ in database.samples] == [
        ("ppdb001", "cpu_pct"),
        ("ppml0001", "cpu_pct"),
        ("ppml0001", "mem_pct"),
    ]
    none = Database()
    writer = written(none, snapshot_of(without), metrics=("mem_pct",), **chosen)
    assert (writer.written, none.requests) == (0, [])


A, B = fixed_forecast("ppdb001", "database", "pin", 20.0), fixed_forecast("ppml0001", "ml_compute", "ppml", 40.0)


def test_a_sample_of_each_chosen_series_is_at_the_time_that_is_forecast():
    database = Database()
    chosen = {"horizons": ("15m", "8h"), "quantiles": (0.02, 0.5), "metrics": ("mem_pct",), "servers": "ppdb.*"}
    writer = written(database, snapshot_of(A, B), **chosen)
    assert (writer.written, writer.series_per_server, writer.problem) == (4, 4, None)
    rows = A.quantiles[METRICS.index("mem_pct")]
    assert [
        (labels["horizon"], labels["quantile"], value, (ms // 1000 - ORIGIN) // 300)
        for labels, value, ms in database.samples
    ] == [
        (
            horizon,
            quantile,
            float(str(rows[VIEW.quantiles.index(level), step - 1])),
            step,
        )
        for quantile, level in (("0.02", 0.02), ("0.5", 0.5))
        for horizon, step in (("15m", 3), ("8h", 96))
    ]
    assert {labels["__name__"] for labels, _, _ in database.samples} == {"fleet_forecast:mem_pct"}
    assert {labels["server"] for labels, _, _ in database.samples} == {"ppdb001"}
    headers = database.requests[0].headers
    assert (headers["content-encoding"], headers["x-prometheus-remote-write-version"]) == ("snappy", "0.1.0")


def test_by_default_the_levels_and_horizons_of_the_metrics_page_are_written():
    database = Database()
    assert written(database, snapshot_of(A)).series_per_server == 6 * 3 * 4
    assert {labels["horizon"] for labels, _, _ in database.samples} == {"15m", "1h", "4h", "8h"}


def test_an_origin_is_written_once_and_a_later_one_again():
    late, later = replace(A, quantiles=A.quantiles + 1), replace(A, origin_seconds=ORIGIN + 300)
    provisional = replace(B, provisional=True)
    database = Database()
    one = {"horizons": ("1h",), "quantiles": (0.5,), "metrics": ("cpu_pct",)}
    writer = written(database, snapshot_of(A, provisional), snapshot_of(late, B), snapshot_of(later, B), **one)
    assert [(labels["server"], ms // 1000 - ORIGIN - 3600) for labels, _, ms in database.samples] == [
        ("ppdb001", 0),
        ("ppml0001", 0),
        ("ppdb001", 300),
    ]
    assert writer.written == 3


def test_what_the_model_does_not_forecast_is_named_and_the_rest_is_written():
    database, view = Database(), replace(VIEW, metrics=METRICS[:2])
    narrow = fixed_forecast("ppdb001", "database", "pin", 20.0, view=view)
    snapshot = FleetSnapshot({"ppdb001": narrow}, ORIGIN, ORIGIN + 301.0, view)
    chosen = {"horizons": ("1h", "24h"), "quantiles": (0.5, 0.6), "metrics": ("cpu_pct", "latency_ms")}
    writer = written(database, snapshot, **chosen)
    assert writer.problem == "tft_model_fixed does not forecast horizon 24h, quantile 0.6, metric latency_ms"
    assert writer.written == len(database.samples) == 1


def test_a_failed_request_is_repeated_and_a_refused_one_is_counted(monkeypatch):
    monkeypatch.setattr(export, "SAMPLES_PER_REQUEST", 72)  # one server
    monkeypatch.setattr(export, "LONGEST_PAUSE_SECONDS", 0.0)
    database = Database(503, 429, 204, 400)
    writer = written(database, snapshot_of(A, B))
    assert (writer.written, writer.failures, dict(writer.not_written)) == (72, 2, {"queue_full": 0, "refused": 72})
    assert writer.problem == "status 400: because"
    assert {labels["server"] for labels, _, _ in database.samples} == {"ppdb001"}


def test_a_full_queue_drops_the_oldest_and_keeps_the_rest_while_the_database_is_away(monkeypatch):
    monkeypatch.setattr(export, "SAMPLES_PER_REQUEST", 72)
    monkeypatch.setattr(export, "MAX_QUEUED_BYTES", 8_000)
    fleet = [replace(A, server_name=f"s{n:03d}") for n in range(40)]

    def away(_request):
        raise httpx.ConnectError("away")

    async def run():
        writer = ForecastWriter(target(), httpx.MockTransport(away))
        work = [asyncio.create_task(each()) for each in (writer.queue_cycles, writer.send_queue)]
        writer.on_cycle(snapshot_of(*fleet))
        while "s039" not in writer._last_origins:
            await asyncio.sleep(0.01)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await writer.close()
        return writer

    writer = asyncio.run(run())
    assert writer.waiting + writer.not_written["queue_full"] == 40 * 72
    assert 0 < writer.waiting < 40 * 72
    assert writer._queued_bytes <= 8_000
    assert writer.problem == "ConnectError: away"


@contextlib.contextmanager
def serving(folder, writes):
    chosen = Settings(
        model=folder,
        history=folder / "h.sqlite",
        grace_seconds=0.0,
        recheck_seconds=0.05,
        allowed_hosts=("testserver",),
    )
    loading = ModelLoading(folder, lambda _path: FakeEngine())
    app = create_app(chosen, ReferencedFiles(forecasts=writes), loading)
    with TestClient(app) as client:
        yield client


def test_the_real_victoria_metrics_returns_what_the_api_answers(tmp_path):
    (tmp_path / "vm").mkdir()
    with running_victoria_metrics(tmp_path / "vm") as address:
        url, horizons = f"{address}/api/v1/write", ("15m", "1h", "8h")
        with serving(tmp_path, target(url, horizons=horizons, quantiles=(0.1, 0.5, 0.9), servers="pp.*")) as client:
            post(client, record("ppml0001", cpu_pct=31.32, latency_ms=7.1), record("ppdb001"), record("other"))
            for name in ("ppml0001", "ppdb001", "other"):
                wait_for(lambda name=name: not forecast_of(client, name)["provisional"])
            series = 2 * 6 * 3 * 3
            status = wait_for(
                lambda: (now := client.get("/status").json()["forecast_export"])["written"] >= series and now
            )
            answers = {name: forecast_of(client, name, horizon=horizons) for name in ("ppml0001", "ppdb001")}
            assert f"fleet_exported_samples_total {series}" in client.get("/metrics").text
        assert (status["written"], status["waiting"], status["problem"]) == (series, 0, None)
        assert status["series_per_server"] == series // 2
        httpx.get(f"{address}/internal/force_flush").raise_for_status()
        match = {"match[]": '{__name__=~"fleet_forecast:.+"}', "end": str(time.time() + 86_400)}
        lines = httpx.get(f"{address}/api/v1/export", params=match).text.splitlines()
    stored = {}
    for line in map(json.loads, lines):
        labels = line["metric"]
        (value,), (ms,) = line["values"], line["timestamps"]
        metric = labels["__name__"].removeprefix("fleet_forecast:")
        stored[labels["server"], metric, f"q{labels['quantile']}", ms / 1000] = value
    expected = {
        (name, metric, level, datetime.fromisoformat(text).timestamp()): value
        for name, answer in answers.items()
        for metric, levels in answer["metrics"].items()
        for level in ("q0.1", "q0.5", "q0.9")
        for text, value in zip(answer["timestamps"], levels[level], strict=True)
    }
    assert len(expected) == series
    assert stored == expected


@pytest.mark.parametrize("horizon", ["0m", "1y", "soon"])
def test_a_horizon_that_is_none_is_refused(horizon):
    with pytest.raises(ValueError, match="is not a duration; write 15m, 1h or 8h"):
        ForecastsTable(url="http://db", horizons=(horizon,))


def test_values_have_the_digits_of_the_api():
    database = Database()
    third = replace(A, quantiles=np.full_like(A.quantiles, 1 / 3))
    written(database, snapshot_of(third), horizons=("1h",), quantiles=(0.5,), metrics=("cpu_pct",))
    assert [value for _, value, _ in database.samples] == [0.33333334]


def test_the_check_of_the_settings_prints_the_number_of_series(tmp_path, capsys, tiny_model_dir):
    (tmp_path / "c.toml").write_text('[forecasts]\nurl = "http://db/write"\nhorizons = ["15m", "8h"]\n')
    flags = ["--check-config", "--connections", str(tmp_path / "c.toml"), "--max-servers", "1000"]
    assert tft_inference.main([*flags, "--model", str(tiny_model_dir)]) == 0
    err = capsys.readouterr().err
    assert "3 metrics, 1 horizons and 3 quantiles are 9 series a server, at most 9,000 of max_servers = 1,000" in err
    assert f"; {tiny_model_dir.name} does not forecast horizon 8h" in err
    assert tft_inference.main([*flags, "--model", str(tmp_path / "none")]) == 0
    assert "forecasts to http://db/write: model" in capsys.readouterr().err
