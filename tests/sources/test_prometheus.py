"""Pulling a fleet from Prometheus: against a scripted one, and against the real program with made-up history."""

import json
import math
from datetime import UTC, datetime
from urllib.parse import parse_qs

import httpx
import numpy as np
import pytest

from data_contract import METRICS
from fleet_forecast.contract.definitions import use_fleet
from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.sources import prometheus
from fleet_forecast.sources.connection import Access
from fleet_forecast.sources.prometheus import (
    NODE_EXPORTER,
    PrometheusClient,
    PrometheusError,
    PrometheusServer,
    QuerySet,
    TimeRange,
    pull_range,
    query_set_of,
)
from tests.sources.exporters import NODE, NODE_GAUGES, open_metrics, samples
from tests.sources.programs import running_prometheus

STEP = 300
START = datetime(2026, 11, 20, tzinfo=UTC)
CPU = QuerySet(queries={"cpu_pct": "cpu[$window]"})


def at(steps):
    return datetime.fromtimestamp(START.timestamp() + steps * STEP, UTC)


def scripted(answer):
    """A client whose server answers with `answer(form) -> list of series` or an httpx.Response."""

    def handle(request):
        form = {key: values[0] for key, values in parse_qs(request.content.decode()).items()}
        found = answer(form)
        return found if isinstance(found, httpx.Response) else httpx.Response(200, json={"data": {"result": found}})

    return PrometheusClient(Access("http://p:9090"), transport=httpx.MockTransport(handle), pause_seconds=0.0)


def pulled(client, queries, *request):
    return pull_range(PrometheusServer("p", client, queries), *request)


def series(name, values, first=1):
    points = [[START.timestamp() + (first + n) * STEP, value] for n, value in enumerate(values)]
    return {"metric": {"instance": name}, "values": points}


def test_a_value_belongs_to_the_step_before_it():
    asked = []
    client = scripted(lambda form: asked.append(form) or [series("a:9100", ["1", "2"])])
    frame, _ = pulled(client, CPU, TimeRange(at(0), at(2)), STEP)
    assert (asked[0]["start"], asked[0]["end"]) == (str(int(at(1).timestamp())), str(int(at(2).timestamp())))
    assert asked[0]["query"] == "cpu[300s]"
    assert list(frame.columns) == ["timestamp", "server_name", "cpu_pct"]
    assert list(frame["timestamp"]) == [at(0), at(1)]
    assert list(frame["server_name"]) == ["a", "a"]
    assert list(frame["cpu_pct"]) == [1.0, 2.0]


def test_gaps_nan_and_inf_are_not_measured():
    client = scripted(lambda _form: [series("a", ["1", "NaN", "+Inf", "4"]), series("b", ["5"], first=3)])
    frame, _ = pulled(client, CPU, TimeRange(at(0), at(4)), STEP)
    assert [(row.server_name, row.timestamp, row.cpu_pct) for row in frame.itertuples()] == [
        ("a", at(0), 1.0),
        ("a", at(3), 4.0),
        ("b", at(2), 5.0),
    ]


def test_a_metric_that_one_server_lacks_is_missing_for_it_only():
    queries = QuerySet(queries={"cpu_pct": "cpu", "mem_pct": "mem"})
    client = scripted(
        lambda form: [series("a", ["1"])] if form["query"] == "mem" else [series("a", ["2"]), series("b", ["3"])]
    )
    frame, _ = pulled(client, queries, TimeRange(at(0), at(1)), STEP)
    assert frame["cpu_pct"].tolist() == [2.0, 3.0]
    assert frame["mem_pct"].tolist()[0] == 1.0
    assert math.isnan(frame["mem_pct"].tolist()[1])


def test_long_ranges_are_cut_into_queries_and_progress_is_reported(monkeypatch):
    monkeypatch.setattr(prometheus, "STEPS_PER_QUERY", 4)

    def answer(form):
        begin, end = int(form["start"]), int(form["end"])
        return [{"metric": {"instance": "a"}, "values": [[t, str(t % 97)] for t in range(begin, end + 1, STEP)]}]

    reported = []
    frame, _ = pulled(
        scripted(answer), CPU, TimeRange(at(0), at(10)), STEP, lambda done, total: reported.append((done, total))
    )
    assert reported == [(1, 3), (2, 3), (3, 3)]
    assert list(frame["timestamp"]) == [at(n) for n in range(10)]
    assert frame["cpu_pct"].tolist() == [int(at(n + 1).timestamp()) % 97 for n in range(10)]


def test_a_range_whose_response_is_too_large_is_queried_in_parts(monkeypatch):
    monkeypatch.setattr(prometheus, "MAX_RESPONSE_BYTES", 4_000)
    asked = []

    def answer(form):
        start, end = int(form["start"]), int(form["end"])
        asked.append((end - start) // STEP + 1)
        points = [[second, "5"] for second in range(start, end + 1, STEP)]
        return [{"metric": {"instance": "a"}, "values": points}]

    frame, _ = pulled(scripted(answer), CPU, TimeRange(at(0), at(500)), STEP)
    assert frame["cpu_pct"].tolist() == [5.0] * 500
    assert asked == [500, 250, 125, 125, 250, 125, 125]


def test_one_step_whose_response_is_too_large_names_the_query_and_the_remedy(monkeypatch):
    monkeypatch.setattr(prometheus, "MAX_RESPONSE_BYTES", 10)
    client = scripted(lambda _form: httpx.Response(200, json={"data": [1] * 100}))
    with pytest.raises(PrometheusError, match=r"cpu\[300s\]': the response is larger than 10 bytes; ask for fewer"):
        pulled(client, CPU, TimeRange(at(0), at(8)), STEP)


def test_a_password_in_the_address_is_sent_and_never_shown():
    seen = []

    def handle(request):
        seen.append(request.headers["authorization"])
        return httpx.Response(400, json={"error": "no"})

    client = PrometheusClient(Access("http://me:hunter2@p:9090"), transport=httpx.MockTransport(handle))
    with pytest.raises(PrometheusError) as caught:
        client.query_range("up", 0, 300, 300)
    assert "hunter2" not in f"{caught.value} {client!r}"
    assert "http://***@p:9090" in str(caught.value)
    assert seen[0].startswith("Basic")


def test_no_series_is_an_empty_frame_with_the_columns():
    frame, _ = pulled(scripted(lambda _form: []), CPU, TimeRange(at(0), at(2)), STEP)
    assert list(frame.columns) == ["timestamp", "server_name", "cpu_pct"]
    assert frame.empty


def test_transient_failures_are_tried_again():
    answers = iter([httpx.Response(503), httpx.Response(429), [series("a", ["1"])]])
    assert len(pulled(scripted(lambda _form: next(answers)), CPU, TimeRange(at(0), at(1)), STEP).frame) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(400, json={"error": "parse error: unexpected end"}), "parse error"),
        (httpx.Response(503, text="starting"), "does not respond after 4 attempts: status 503"),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), "status 302"),
        (httpx.Response(200, text="<html>"), "not JSON"),
        (httpx.Response(200, json=[1]), "not a response of Prometheus"),
        ([{"metric": {"job": "x"}, "values": [[START.timestamp() + STEP, "1"]]}], "without the label 'instance'"),
        ([{"metric": "a", "values": []}], "not a response of Prometheus"),
        ([series("a", ["1"], first=2)], "values of server 'a' outside the requested range"),
        ([series("a", ["1"], first=0)], "values of server 'a' outside the requested range"),
    ],
)
def test_failures_are_named(answer, message):
    with pytest.raises(PrometheusError, match=message):
        pulled(scripted(lambda _form: answer), CPU, TimeRange(at(0), at(1)), STEP)


def test_a_server_with_two_series_or_no_usable_name_is_left_out_by_name_and_the_others_are_pulled():
    found = [series("a:1", ["1"]), series("a:2", ["2"]), series("b:1", ["3"]), series(" c", ["4"])]
    frame, left_out = pulled(scripted(lambda _form: found), CPU, TimeRange(at(0), at(1)), STEP)
    assert frame["server_name"].tolist() == ["b"]
    assert left_out.keys() == {"a", " c"}
    assert "'a:1' and 'a:2'" in left_out["a"]
    assert "strip_port = false" in left_out["a"]


@pytest.mark.parametrize(("instance", "name"), [("web1:9100", "web1"), ("[2001:db8::10]:9100", "2001:db8::10")])
def test_a_port_is_not_part_of_the_name(instance, name):
    frame, _ = pulled(scripted(lambda _form: [series(instance, ["1"])]), CPU, TimeRange(at(0), at(1)), STEP)
    assert frame["server_name"].tolist() == [name]


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    "reason",
    [
        "query processing would load too many samples into memory in query execution",
        "exceeded maximum resolution of 11,000 points per timeseries",
        "the query exceeded the maximum number of chunks (limit: 2000000 chunks)",
    ],
)
def test_a_query_that_is_too_large_is_cut_smaller(status, reason):
    asked = []

    def answer(form):
        steps = (int(form["end"]) - int(form["start"])) // STEP + 1
        asked.append(steps)
        if steps > 40:
            return httpx.Response(status, json={"error": reason})
        return [{"metric": {"instance": "a"}, "values": [[int(form["start"]) + n * STEP, "5"] for n in range(steps)]}]

    frame, _ = pulled(scripted(answer), CPU, TimeRange(at(0), at(100)), STEP)
    assert frame["cpu_pct"].tolist() == [5.0] * 100
    assert asked == [100, 50, 25, 25, 50, 25, 25]


def test_headers_are_sent_with_every_query_and_not_shown():
    seen = []

    def handle(request):
        seen.append(request.headers["x-scope-orgid"])
        return httpx.Response(400, json={"error": "no"})

    client = PrometheusClient(Access("http://p:9090", {"X-Scope-OrgID": "t-1"}), transport=httpx.MockTransport(handle))
    with pytest.raises(PrometheusError) as refused:
        client.query_range("up", 0, 1, 1)
    assert seen == ["t-1"]
    assert "t-1" not in f"{refused.value}{client!r}"


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_told_from_a_wrong_query(status):
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text="Unauthorized\n"))
    with pytest.raises(PrometheusError) as refused:
        PrometheusClient(Access("http://p:9090", {}), transport=transport).query_range("up", 0, 1, 1)
    reason = f"status {status}: Unauthorized; correct user and password, or the token"
    assert str(refused.value).endswith(f"refused the credentials: {reason}")


def test_a_compressed_response_is_retried_and_reported():
    asked = []

    def answer(_form):
        asked.append(1)
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"not gzip"))

    with pytest.raises(
        PrometheusError, match="does not respond after 4 attempts: ResponseError: the response is compressed"
    ):
        pulled(scripted(answer), CPU, TimeRange(at(0), at(1)), STEP)
    assert len(asked) == 4


def test_an_unreachable_server_is_named():
    client = PrometheusClient(Access("http://127.0.0.1:1"), pause_seconds=0.0)
    with pytest.raises(PrometheusError, match=r"127.0.0.1:1.*does not respond"):
        client.query_range("up", 0, 1, 1)


def fleet_of_text(folder, text):
    (folder / "fleet.toml").write_text(text)
    return read_fleet(folder / "fleet.toml")


def test_a_fleet_file_replaces_adds_and_drops_queries(tmp_path):
    own = "[metrics.gpu_pct]\nunit = '%'\nkind = 'percent'\nquery = 'gpu'\n"
    text = f"[metrics.cpu_pct]\nquery = 'cpu'\n[metrics.latency_ms]\nquery = ''\n{own}"
    with use_fleet(fleet_of_text(tmp_path, text)) as fleet:
        queries = query_set_of(fleet).queries
    others = {name: query for name, query in NODE_EXPORTER.queries.items() if name not in ("cpu_pct", "latency_ms")}
    assert queries == {**others, "cpu_pct": "cpu", "gpu_pct": "gpu"}


def test_another_server_label_has_the_queries_of_the_file_only(tmp_path):
    label = "[prometheus]\nserver_label = 'node'\nstrip_port = false\n"
    found = query_set_of(fleet_of_text(tmp_path, f"{label}[metrics.latency_ms]\nquery = 'p50[$window]'\n"))
    assert found == QuerySet(queries={"latency_ms": "p50[$window]"}, server_label="node", strip_port=False)
    with pytest.raises(TomlFileError, match=r"no metric has a query; write \[metrics.cpu_pct\] query = "):
        query_set_of(fleet_of_text(tmp_path, label))


# --- the real program -----------------------------------------------------------------------------------------------

SCRAPE = 15
BOOT_AT = 30  # in this step the server was restarted: its counters begin again at 0
SILENT = range(50, 54)  # in these steps nothing was scraped


def node_exporter_history(steps):
    """OpenMetrics text of one server that was restarted."""
    begin, boot = int(START.timestamp()), int(at(BOOT_AT).timestamp()) + 100
    times = [t for t in range(begin + 7, begin + steps * STEP + 1, SCRAPE) if (t - begin) // STEP not in SILENT]
    rows = samples(NODE, NODE_GAUGES, times, lambda second: boot if second >= boot else begin - 10_000)
    return open_metrics(rows)


@pytest.fixture(scope="module")
def real_prometheus(tmp_path_factory):
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), node_exporter_history(100)) as address:
        yield address


def test_the_real_prometheus_returns_the_fleet_over_a_reset_and_a_gap(real_prometheus):
    frame, _ = pulled(PrometheusClient(Access(real_prometheus)), NODE_EXPORTER, TimeRange(at(0), at(100)), STEP)
    assert set(frame["server_name"]) == {"ppml0001"}
    steps = ((frame["timestamp"].astype("int64") // 10**9 - int(START.timestamp())) // STEP).tolist()
    assert not set(steps) & set(SILENT)
    assert {1, BOOT_AT, BOOT_AT + 1, 49, 54, 99} <= set(steps)
    whole = frame[[step != BOOT_AT for step in steps]]
    for metric, value in dict(zip(METRICS, (25, 60, 3, 2, 1, 4), strict=True)).items():
        np.testing.assert_allclose(whole[metric], value, rtol=0.02, err_msg=metric)
    boot = frame[[step == BOOT_AT for step in steps]]
    assert 0 < boot["net_in_mb_s"].item() < 2.2  # a reset is not a negative rate and no spike


def test_the_real_prometheus_names_a_bad_query(real_prometheus):
    with pytest.raises(PrometheusError, match="parse error"):
        pulled(
            PrometheusClient(Access(real_prometheus)),
            QuerySet(queries={"cpu_pct": "rate("}),
            TimeRange(at(0), at(2)),
            STEP,
        )


def test_query_ranges_survive_json_of_the_real_one(real_prometheus):
    (found,) = PrometheusClient(Access(real_prometheus)).query_range("vector(1)", 0, 600, 300)
    assert json.dumps(dict(found.labels)) == "{}"
    assert found.values.tolist() == [1.0, 1.0, 1.0]
