"""The query files of deploy/queries against what each exporter exposes, in real databases."""

from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from data_contract import METRICS
from fleet_forecast.sources.connection import Access
from fleet_forecast.sources.connections_file import load_query_set
from fleet_forecast.sources.prometheus import (
    NODE_EXPORTER,
    PrometheusClient,
    PrometheusServer,
    TimeRange,
    pull_range,
)
from tests.sources.exporters import COUNTERS, GAUGES, open_metrics, samples, with_milliseconds
from tests.sources.programs import running_prometheus, running_victoria_metrics

QUERIES = Path(__file__).parents[2] / "deploy" / "queries"
STEP, STEPS = 300, 6
BEGIN = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp())
USUAL = dict(zip(METRICS, (25.0, 60.0, 3.0, 2.0, 1.0, 4.0), strict=True))
EXPECTED = {
    "node_exporter": {"ppml0001": USUAL},
    "windows_exporter": {"win01": USUAL, "win02": {"mem_pct": 60.0}},
    "kubelet": {
        "ppweb-7f9c.shop": {metric: value for metric, value in USUAL.items() if metric != "latency_ms"},
        "batch-1.shop": {"cpu_pct": 25.0, "mem_pct": 60.0},
    },
    "telegraf": {"ppdb001": USUAL},
}


def history():
    times = range(BEGIN - 600, BEGIN + STEP * STEPS + 1, 15)
    return list(samples(COUNTERS, GAUGES, times, lambda _second: BEGIN - 10_000))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), open_metrics(history())) as address:
        yield address


@pytest.fixture(scope="module")
def victoria_metrics(tmp_path_factory):
    with running_victoria_metrics(tmp_path_factory.mktemp("victoria")) as address:
        httpx.post(f"{address}/api/v1/import/prometheus", content=with_milliseconds(history())).raise_for_status()
        httpx.get(f"{address}/internal/force_flush").raise_for_status()
        yield address


@pytest.mark.parametrize("database", ["prometheus", "victoria_metrics"])
@pytest.mark.parametrize("name", EXPECTED)
def test_each_query_file_gives_what_the_exporter_measured(request, database, name):
    client = PrometheusClient(Access(request.getfixturevalue(database)))
    everything = 'cluster="",tenant!="x"'  # matchers that all series have, in every selector
    server = PrometheusServer("p", client, load_query_set(QUERIES / f"{name}.toml"), everything)
    begin, end = (datetime.fromtimestamp(second, UTC) for second in (BEGIN, BEGIN + STEPS * STEP))
    frame, left_out = pull_range(server, TimeRange(begin, end), STEP)
    assert left_out == {}
    found = {
        str(server): rows.drop(columns=["timestamp", "server_name"]).dropna(axis=1, how="all")
        for server, rows in frame.groupby("server_name")
    }
    assert found.keys() == EXPECTED[name].keys()
    for server, metrics in EXPECTED[name].items():
        assert set(found[server]) == set(metrics)
        for metric, value in metrics.items():
            assert found[server][metric].tolist() == pytest.approx([value] * STEPS, rel=0.01), (server, metric)


def test_the_file_of_node_exporter_has_the_built_in_queries():
    assert load_query_set(QUERIES / "node_exporter.toml") == NODE_EXPORTER


def test_every_query_file_is_tested():
    assert {path.stem for path in QUERIES.iterdir()} == EXPECTED.keys()
