"""OTLP over HTTP: answers, rights, hostile bodies, and the real SDK with its system metrics."""

import contextlib
import gzip
import time

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from fleet_forecast.serving.clients import Client, Right, digest_of
from fleet_forecast.serving.storage.errors import HistoryBusyError
from fleet_forecast.sources.protocols.messages import Status
from tests.reliability.mutations import mutations
from tests.serving.daemon_client import TOKEN, daemon, wait_for
from tests.serving.fake_daemon import FakeDaemon
from tests.sources.protocols.otlp_bodies import add_host, cpu_time, disk_io, metric, request

PROTOBUF, JSON = "application/x-protobuf", "application/json"
MUTATIONS = 2_000


def memory(used=0.5, ago=0.0):
    return metric("system.memory.utilization", [({"state": "used"}, time.time() - ago, used)])


def send(client, made, kind=PROTOBUF, packed=False, **headers):
    body = made.SerializeToString() if kind == PROTOBUF else json_format.MessageToJson(made).encode()
    if packed:
        body, headers = gzip.compress(body), {"content-encoding": "gzip", **headers}
    return client.post("/v1/metrics", content=body, headers={"content-type": kind, **headers})


def partial_success(answer):
    assert answer.headers["content-type"] == PROTOBUF
    return ExportMetricsServiceResponse.FromString(answer.content).partial_success


def stored(client, name="ppdb001"):
    return client.get(f"/api/v1/servers/{name}/history", params={"raw": "true", "hours": 1}).json()["metrics"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("kind", "empty"), [(PROTOBUF, b""), (JSON, b"{}")])
def test_what_is_answered_with_200_is_stored(client, kind, empty, packed):
    answer = send(client, request("ppdb001", memory(0.62)), kind, packed)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, empty, kind)
    assert stored(client)["mem_pct"] == [62.0]


def test_rejected_points_are_a_partial_success_and_the_others_are_stored(client):
    made = request("ppdb001", memory(7.0), memory(0.5, ago=1), memory(0.5, ago=200 * 3600))
    add_host(made, "no\nname", memory())
    add_host(made, None, memory())
    answer = send(client, made)
    assert answer.status_code == 200
    partial = partial_success(answer)
    assert partial.rejected_data_points == 4
    assert "mem_pct 700.0: mem_pct of ppdb001 is a number from 0 to 100" in partial.error_message
    assert stored(client)["mem_pct"] == [50.0]
    answer = send(client, made, JSON)
    assert answer.json()["partialSuccess"]["rejectedDataPoints"] == "4"


def test_a_value_that_rounding_took_beyond_its_range_is_stored_as_the_limit_and_named(client):
    partial = partial_success(send(client, request("ppdb001", memory(1.002))))
    assert partial.rejected_data_points == 0
    assert partial.error_message.startswith("mem_pct: 1 value just beyond the range, by rounding, such as 100.2")
    assert stored(client)["mem_pct"] == [100.0]


def test_counters_are_remembered_between_requests_and_points_are_counted(client):
    now = time.time()
    for n in range(2):
        assert send(
            client, request("ppdb001", cpu_time(now + n, 100 + n / 2), disk_io(now + n, n * 10**6, 0))
        ).is_success
    assert (stored(client)["cpu_pct"], stored(client)["disk_io_mb_s"]) == ([50.0], [1.0])
    text = client.get("/metrics").text
    assert 'fleet_stored_samples_total{protocol="otlp"} 4' in text
    assert 'fleet_samples_not_stored_total{protocol="otlp",reason="first_of_counter"} 4' in text
    assert 'fleet_samples_not_stored_total{protocol="otlp",reason="other_state"} 8' in text


def test_other_metrics_are_listed_and_no_error(client):
    answer = send(client, request("ppdb001", memory(), metric("process.uptime", [({}, 1, 5.0)])))
    assert (answer.status_code, answer.content) == (200, b"")
    assert {"protocol": "otlp", "name": "process.uptime", "reason": "not a metric of the data contract"} in client.get(
        "/status"
    ).json()["left_out"]


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_a_refused_body_is_answered_with_a_status_message(client, kind):
    answer = client.post("/v1/metrics", content=b"\xff\xff", headers={"content-type": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (400, kind)
    message = Status.FromString(answer.content).message if kind == PROTOBUF else answer.json()["message"]
    assert "the body is not an ExportMetricsServiceRequest" in message


def test_a_busy_store_is_503_and_the_same_request_later_gives_the_rates(client, monkeypatch):
    def full(*_arguments):
        raise HistoryBusyError("5 records wait for the disk")

    now = time.time()
    assert send(client, request("ppdb001", disk_io(now, 0, 0))).is_success
    with monkeypatch.context() as patch:
        patch.setattr(client.app.state.daemon.store, "append", full)
        answer = send(client, later := request("ppdb001", disk_io(now + 1, 10**6, 0)))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "wait for the disk" in Status.FromString(answer.content).message
    assert send(client, later).is_success
    assert stored(client)["disk_io_mb_s"] == [1.0]


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": PROTOBUF, "content-encoding": "br"}]
)
def test_other_content_is_415(client, headers):
    assert client.post("/v1/metrics", content=b"", headers=headers).status_code == 415


def test_a_gzip_bomb_is_refused_when_it_exceeds_the_limit(client):
    bomb = gzip.compress(b"\x00" * (64 << 20))
    assert len(bomb) < 100_000
    answer = client.post("/v1/metrics", content=bomb, headers={"content-type": PROTOBUF, "content-encoding": "gzip"})
    assert answer.status_code == 413
    assert "the decompressed body is larger than" in Status.FromString(answer.content).message


@pytest.mark.parametrize("cut", [slice(0, -3), slice(0, 5), slice(3, None)])
def test_a_damaged_gzip_body_is_refused(client, cut):
    headers = {"content-type": PROTOBUF, "content-encoding": "gzip"}
    body = gzip.compress(request("ppdb001", memory()).SerializeToString())[cut]
    assert client.post("/v1/metrics", content=body, headers=headers).status_code == 400


def test_a_token_may_write_the_servers_of_its_patterns_only(tmp_path):
    from fleet_forecast.name_patterns import compile_pattern

    writer = Client("agents", frozenset({Right.WRITE}), (compile_pattern("(?:ber-.*)$"),))
    with daemon(tmp_path, token=TOKEN, clients={digest_of(b"w" * 20): writer}) as client:
        now, token = time.time(), {"authorization": "Bearer " + "w" * 20}
        made = request("ber-1", memory())
        add_host(made, "par-1", memory(), disk_io(now, 0, 0))
        assert send(client, made).status_code == 401
        partial = partial_success(send(client, made, **token))
        assert partial.rejected_data_points == 1
        assert "the token of agents may not write this server" in partial.error_message
        running = client.app.state.daemon
        assert list(running.store.servers) == ["ber-1"]
        assert send(client, request("ber-1", disk_io(now, 0, 0)), **token).is_success
        assert running.otlp.memory.counters == 2, "none of the refused server"


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_mutated_requests_are_never_a_server_error(client, kind):
    now = time.time()
    made = [request(f"ppdb{n}", memory(), cpu_time(now + n, 5.0), disk_io(now + n, 5, 6)) for n in range(3)]
    good = [
        each.SerializeToString() if kind == PROTOBUF else json_format.MessageToJson(each, indent=None).encode()
        for each in made
    ]
    headers = {"content-type": kind}
    seen = {client.post("/v1/metrics", content=b, headers=headers).status_code for b in mutations(good, MUTATIONS // 2)}
    assert seen == {200, 400}
    packed = [gzip.compress(each) for each in good]
    headers["content-encoding"] = "gzip"
    seen = {client.post("/v1/metrics", content=b, headers=headers).status_code for b in mutations(packed, 200)}
    assert seen <= {200, 400}


# --- the SDK --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def system_metrics(url, seconds=0.5):
    """The SDK's system metrics, sent by its exporter at an interval."""
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource

    exporter = OTLPMetricExporter(endpoint=f"{url}/v1/metrics", compression=Compression.Gzip)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=seconds * 1000)
    resource = Resource.create({"host.name": "ppml0001", "service.name": "agent"})
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    instrumentor = SystemMetricsInstrumentor()
    instrumentor.instrument(meter_provider=provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()
        provider.shutdown()


def test_the_sdks_system_metrics_are_those_of_the_machine(tmp_path):
    import httpx
    import psutil

    def samples():
        path = f"{running.url}/api/v1/servers/ppml0001/history"
        return httpx.get(path, params={"raw": "true", "hours": 1}).json().get("metrics", {})

    with FakeDaemon(tmp_path) as running:
        before, started = psutil.cpu_times(), time.time()
        with system_metrics(running.url):
            wait_for(lambda: len([value for value in samples().get("cpu_pct", ()) if value is not None]) >= 4, 30)
        after, seconds = psutil.cpu_times(), time.time() - started
        found = samples()
    busy = 100 * (1 - (after.idle - before.idle) / seconds / psutil.cpu_count())
    cpu = [value for value in found["cpu_pct"] if value is not None]
    assert sum(cpu) / len(cpu) == pytest.approx(busy, abs=25)
    assert found["mem_pct"][-1] == pytest.approx(
        100 * psutil.virtual_memory().used / psutil.virtual_memory().total, abs=5
    )
    assert {"disk_io_mb_s", "net_in_mb_s", "net_out_mb_s"} <= {
        name for name in found if any(v is not None for v in found[name])
    }
    assert all(value is None for value in found["latency_ms"])
