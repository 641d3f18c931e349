"""Speed of ingest by protocol, durable, with the daemon on one core: remote write and OTLP beside JSON.

    python benchmarks/serving/protocols.py
    python benchmarks/serving/protocols.py --seconds 10 --rounds 5

A sample is one metric of one server at one time (JSON, remote write), or one data point (OTLP). Each request is
answered after its fsync. The daemon runs on one core without a model, the client on the others. Protocols take turns,
and the ratios to JSON are those of the same turn. Requests:

    json                1,000 records of six metrics
    remote_write        2,000 samples of 333 servers, all six metrics of each
    remote_write_split  2,000 samples of two metrics of 1,000 servers, as a Prometheus cuts requests of a large fleet
    otlp                7,600 data points of 100 servers: processor time by core and state, memory, disks, links

Prints one JSON line. The upper limit is SQLite's rate of rows, one of six samples for JSON and remote_write, one of two
for remote_write_split, one of 76 for OTLP.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cramjam
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.daemon import DaemonProcess, server_names  # noqa: E402
from data_contract import METRICS  # noqa: E402
from fleet_forecast.iso_time import iso  # noqa: E402
from fleet_forecast.sources.protocols.messages import Label, WriteRequest  # noqa: E402

CONNECTIONS = 2
PROTOBUF = "application/x-protobuf"
STATES = ("user", "system", "idle", "interrupt", "nice", "softirq", "steal", "wait")
CORES = 8
CUMULATIVE = 2


class Load(NamedTuple):
    """Requests of one kind. body_at: the body with the samples of a second since 1970."""

    path: str
    headers: dict[str, str]
    samples: int
    protocol: str  # as it is counted on /metrics
    stored: int  # samples of a request that are stored
    body_at: Callable[[int], bytes]
    stored_of_first: int | None = None  # of each connection's first request, if fewer


def json_load(first: int) -> Load:
    """1,000 records of six metrics."""
    fields = ",".join(f'"{metric}":{value}' for metric, value in zip(METRICS, (31.5, 62.25, 7, 8, 9, 1.5), strict=True))
    records = [f'{{"timestamp":"{iso(first)}","server_name":"{name}",{fields}}}' for name in server_names(1_000)]
    template, old = f'{{"records":[{",".join(records)}]}}'.encode(), iso(first).encode()

    def body_at(second: int) -> bytes:
        return template.replace(old, iso(second).encode())

    count = len(records) * len(METRICS)
    return Load("/api/v1/metrics", {"content-type": "application/json"}, count, "json", count, body_at)


def write_load(first: int, servers: int, metrics: Sequence[str]) -> Load:
    """Some metrics of some servers, metric by metric, as recording rules make them."""
    request = WriteRequest()
    for metric in metrics:
        for number, name in enumerate(server_names(servers)):
            series = request.timeseries.add()
            labels = {"__name__": f"fleet:{metric}", "cluster": "eu-1", "instance": f"{name}:9100", "prometheus": "a"}
            for key, value in labels.items():
                series.labels.append(Label(name=key, value=value).SerializeToString())
            series.samples.add(timestamp=first * 1000, value=number % 97 + 0.25)
    template, old = request.SerializeToString(), _varint(first * 1000)

    def body_at(second: int) -> bytes:
        return bytes(cramjam.snappy.compress_raw(template.replace(old, _varint(second * 1000))))

    headers = {"content-type": PROTOBUF, "content-encoding": "snappy"}
    count = servers * len(metrics)
    return Load("/api/v1/write", headers, count, "remote_write", count, body_at)


def otlp_load(first: int, servers: int = 100) -> Load:
    """Host metrics as the Collector sends them: cumulative counters, which do not change here.

    Each connection has servers of its own, whose requests arrive in their order.
    """
    time_ns, names = first * 10**9, server_names(servers * CONNECTIONS)
    templates = [_otlp_request(names[n::CONNECTIONS], time_ns).SerializeToString() for n in range(CONNECTIONS)]
    old = time_ns.to_bytes(8, "little")

    def body_at(second: int) -> bytes:
        return templates[second % CONNECTIONS].replace(old, (second * 10**9).to_bytes(8, "little"))

    count = servers * (CORES * len(STATES) + 12)
    stored = servers * (CORES + 12)  # the idle time of each core; memory, disks, links
    return Load("/v1/metrics", {"content-type": PROTOBUF}, count, "otlp", stored, body_at, servers * 4)


def _otlp_request(names: Sequence[str], time_ns: int) -> Any:
    request = ExportMetricsServiceRequest()
    for name in names:
        resource = request.resource_metrics.add()
        for key, text in {"host.name": name, "os.type": "linux"}.items():
            resource.resource.attributes.add(key=key).value.string_value = text
        scope = resource.scope_metrics.add()
        cpu = [{"cpu": f"cpu{core}", "state": state} for core in range(CORES) for state in STATES]
        _add_sum(scope, "system.cpu.time", cpu, time_ns)
        _add_sum(scope, "system.memory.usage", [{"state": s} for s in ("used", "free", "cached", "buffered")], time_ns)
        for metric, directions in (("disk", ("read", "write")), ("network", ("receive", "transmit"))):
            points = [{"device": f"dev{n}", "direction": each} for n in range(2) for each in directions]
            _add_sum(scope, f"system.{metric}.io", points, time_ns)
    return request


def _add_sum(scope: Any, name: str, points: Sequence[dict[str, str]], time_ns: int) -> None:
    data = scope.metrics.add(name=name).sum
    data.aggregation_temporality = CUMULATIVE
    for number, attributes in enumerate(points):
        point = data.data_points.add(time_unix_nano=time_ns, start_time_unix_nano=10**18, as_double=1e5 + number)
        for key, text in attributes.items():
            point.attributes.add(key=key).value.string_value = text


LOADS: dict[str, Callable[[int], Load]] = {
    "json": json_load,
    "remote_write": lambda first: write_load(first, 333, METRICS),
    "remote_write_split": lambda first: write_load(first, 1_000, METRICS[:2]),
    "otlp": otlp_load,
}


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


class Turn(NamedTuple):
    """One turn of a protocol: samples sent, and how long it took: by the clock, and of the daemon's processor time."""

    samples: int
    seconds: float
    cpu_seconds: float


class OneCore(DaemonProcess):
    """The daemon on the last core; no model, so that nothing is forecast."""

    def _start(self) -> subprocess.Popen[bytes]:
        process = super()._start()
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        return process

    def cpu_seconds(self) -> float:
        """Processor time of all threads since the start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def take_turn(daemon: OneCore, load: Load, seconds: Iterator[int], bodies: int) -> Turn:
    """Send prepared bodies over CONNECTIONS connections. Raises RuntimeError if one is not accepted."""
    waiting = [load.body_at(next(seconds)) for _ in range(bodies)]
    problems: list[str] = []
    cpu_before, started = daemon.cpu_seconds(), time.perf_counter()

    def send(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        for body in waiting[number::CONNECTIONS]:
            connection.request("POST", load.path, body, load.headers)
            response = connection.getresponse()
            text = response.read()
            if response.status not in (200, 204) or b'"index"' in text:
                problems.append(f"{response.status} {text[:300]!r}")
        connection.close()

    senders = [threading.Thread(target=send, args=(number,)) for number in range(CONNECTIONS)]
    for each in senders:
        each.start()
    for each in senders:
        each.join()
    if problems:
        raise RuntimeError(problems[0])
    took = time.perf_counter() - started
    return Turn(load.samples * bodies, took, daemon.cpu_seconds() - cpu_before)


def stored_samples(daemon: OneCore) -> dict[str, int]:
    """What the daemon counts as stored, by protocol."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    prefix = 'fleet_stored_samples_total{protocol="'
    found = [line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix)]
    return {protocol: int(float(count)) for protocol, count in found}


def measure(daemon: OneCore, seconds: float, rounds: int) -> dict[str, Any]:
    """Turns of all protocols; each sends about as long as `seconds` by its first, short turn."""
    newest = int(time.time()) - 60
    second_of = {}
    loads: dict[str, Load] = {}
    for number, (name, make) in enumerate(LOADS.items()):
        first = newest - (number + 1) * 100_000  # a day of its own for each
        second_of[name] = iter(range(first, first + 100_000))
        loads[name] = make(first)
    turns: dict[str, list[Turn]] = {name: [] for name in loads}
    bodies, sent = {}, dict.fromkeys(loads, 0)
    for name, load in loads.items():
        first_turn = take_turn(daemon, load, second_of[name], 10)
        bodies[name] = max(10, 2 * round(5 * seconds / first_turn.seconds))
        sent[name] += 10
    for number in range(rounds):
        for name, load in loads.items():
            print(f"round {number + 1}: {name}", file=sys.stderr)
            turns[name].append(take_turn(daemon, load, second_of[name], bodies[name]))
            sent[name] += bodies[name]
    _check_stored(daemon, loads, sent)
    return figures(turns)


def _check_stored(daemon: OneCore, loads: dict[str, Load], sent: dict[str, int]) -> None:
    """Raise RuntimeError if the daemon has not stored what was sent."""
    counted = stored_samples(daemon)
    expected = dict.fromkeys(counted, 0)
    for name, load in loads.items():
        expected[load.protocol] += load.stored * sent[name]
        if load.stored_of_first is not None:
            expected[load.protocol] -= (load.stored - load.stored_of_first) * CONNECTIONS
    if counted != expected:
        raise RuntimeError(f"sent: {expected}; stored: {counted}")


def figures(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Medians over the turns, and the median of the ratios to JSON by turn."""
    result: dict[str, Any] = {}
    for name, own in turns.items():
        by_cpu = [turn.samples / turn.cpu_seconds for turn in own]
        json_by_cpu = [turn.samples / turn.cpu_seconds for turn in turns["json"]]
        ratios = [one / other for one, other in zip(by_cpu, json_by_cpu, strict=True)]
        result[name] = {
            "samples_per_second": round(statistics.median(turn.samples / turn.seconds for turn in own)),
            "samples_per_cpu_second": round(statistics.median(by_cpu)),
            "to_json": round(statistics.median(ratios), 2),
        }
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each protocol")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "no-model"
        model.mkdir()
        daemon = OneCore(model, Path(folder))
        try:
            daemon.wait_until(lambda client: client.get("/healthz").status_code == 200)
            print(json.dumps({"cores": 1, **measure(daemon, arguments.seconds, arguments.rounds)}))
        finally:
            daemon.process.kill()
            daemon.process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
