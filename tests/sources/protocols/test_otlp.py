"""OTLP: host metrics to rows of the contract."""

import contextlib
import math
from dataclasses import replace

import orjson
import pytest
from google.protobuf import json_format

from data_contract import METRICS
from fleet_forecast.contract.definitions import BUILT_IN_FLEET, MetricSpec, use_fleet
from fleet_forecast.sources.protocols.counter_rates import CounterMemory
from fleet_forecast.sources.protocols.otlp import OtlpDecoder
from fleet_forecast.sources.protocols.received import MalformedBodyError
from tests.sources.protocols.otlp_bodies import CUMULATIVE, DELTA, add_host, cpu_time, disk_io, metric, request

T = 1_800_000_000  # seconds
MB = 1_000_000


@pytest.fixture
def decoder():
    return OtlpDecoder(CounterMemory(100), max_points=1_000)


def rows_of(decoder, *made, stored=True, refused=()):
    """Rows of some requests: the measured values by metric, by server and seconds."""
    found = {}
    for each in made:
        received = decoder.decode(each.SerializeToString(), is_json=False)
        if stored:
            received.on_stored(refused)
        for (server, instant), values in received.rows.items():
            measured = {name: value for name, value in zip(METRICS, values, strict=True) if value is not None}
            if measured:
                found[server, instant / 1000] = pytest.approx(measured)
    return found


def gauge(name, **states):
    return metric(name, [({"state": state}, T, value) for state, value in states.items()])


# --- gauges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "measured"),
    [
        (metric("system.cpu.utilization", [({"cpu": c, "state": "idle"}, T, i) for c, i in ((1, 0.9), (2, 0.5))]),
         {"cpu_pct": 30.0}),
        (metric("system.cpu.utilization", [({"cpu.logical_number": 0, "cpu.mode": "idle"}, T, 0.75)]),
         {"cpu_pct": 25.0}),
        (metric("system.cpu.utilization", [({"cpu": "cpu0"}, T, 0.2), ({"cpu": "cpu1"}, T, 0.4)]), {"cpu_pct": 30.0}),
        (gauge("system.cpu.utilization", user=0.4, system=0.1), {}),
        (gauge("system.memory.utilization", used=0.62, free=0.38), {"mem_pct": 62.0}),
        (metric("system.memory.utilization", [({"system.memory.state": "used"}, T, 0.5)]), {"mem_pct": 50.0}),
        (gauge("system.memory.usage", used=6 * MB, free=2 * MB, cached=1 * MB, buffered=1 * MB, slab_reclaimable=5),
         {"mem_pct": 60.0}),
        (gauge("system.memory.usage", used=6 * MB), {}),
        (gauge("system.memory.usage", used=0, free=0), {}),
        (gauge("system.load", x=1.0), {}),
        (metric("system.memory.utilization", [({"state": "used"}, T, math.nan)]), {}),
        (metric("system.memory.utilization", [({"state": "used"}, T, None)]), {}),
    ],
)  # fmt: skip
def test_gauges_by_the_conventions_of_now_and_before(decoder, made, measured):
    assert rows_of(decoder, request("a", made)) == ({("a", T): measured} if measured else {})


def test_a_metric_of_the_fleet_file_comes_by_the_name_that_it_gives():
    queue = MetricSpec("queue_depth", "jobs", "rate", "jobs", otlp="app.queue")
    with use_fleet(replace(BUILT_IN_FLEET, metrics=(*BUILT_IN_FLEET.metrics, queue))):
        decoder = OtlpDecoder(CounterMemory(100), max_points=1_000)
        made = request("a", metric("app.queue", [({}, T, 7.0)]), gauge("system.memory.utilization", used=0.5))
        assert rows_of(decoder, made) == {("a", T): {"mem_pct": 50.0, "queue_depth": 7.0}}


class OwnCounters:
    """Requests of a counter that is a metric of the fleet file, by status of the answers."""

    def __init__(self, kind):
        spec = MetricSpec("answers", "1/s", kind, "answers", otlp="app.answers")
        self.fleet = replace(BUILT_IN_FLEET, metrics=(*BUILT_IN_FLEET.metrics, spec))
        with use_fleet(self.fleet):
            self.decoder = OtlpDecoder(CounterMemory(100), max_points=1_000)
        self.place = len(METRICS)

    def received(self, seconds, ok, failed, temporality=CUMULATIVE, **options):
        points = [({"status": "200", "verb": 1}, seconds, ok), ({"status": "500", "verb": 1}, seconds, failed)]
        made = request("a", metric("app.answers", points, temporality, **options))
        with use_fleet(
            replace(BUILT_IN_FLEET, metrics=(*BUILT_IN_FLEET.metrics, MetricSpec("answers", "", "rate", "")))
        ):
            received = self.decoder.decode(made.SerializeToString(), is_json=False)
        received.on_stored(())
        return received

    def rate(self, *values, **options):
        row = self.received(*values, **options).rows.get(("a", values[0] * 1000))
        return None if row is None else row[self.place]


def test_a_counter_of_the_fleet_file_gives_the_increase_per_second_of_all_its_points():
    counters = OwnCounters("rate")
    found = [
        counters.rate(T + at, ok, failed) for at, ok, failed in ((0, 100, 7), (10, 150, 8), (20, 30, 8), (30, 60, 8))
    ]
    assert found == [None, pytest.approx(5.1), None, pytest.approx(3.0)], "the interval of a reset is not measured"
    assert counters.rate(T + 40, 90.0, 10.0, DELTA, start_seconds=T + 30) == pytest.approx(10.0)
    assert counters.received(T + 50, 90.0, 10.0, DELTA).notices == {"no_interval": 2}


def test_a_counter_is_not_a_value_of_a_metric_of_another_kind():
    assert OwnCounters("value").received(T, 1.0, 2.0).left_out == {"app.answers": 2}


def test_time_and_utilization_go_before_the_figures_that_are_less_exact(decoder):
    memory = gauge("system.memory.usage", used=1, free=1), gauge("system.memory.utilization", used=0.25)
    cpu = cpu_time(T, 100), metric("system.cpu.utilization", [({"state": "idle"}, T, 0.0)])
    assert rows_of(decoder, request("a", *memory, *cpu)) == {("a", T): {"mem_pct": 25.0}}


# --- counters -------------------------------------------------------------------------------------------------------


def test_cumulative_counters_give_rates_from_their_second_value_on(decoder):
    first = request("a", cpu_time(T, 1000), disk_io(T, 5 * MB, 1 * MB, ("sda", "sdb")))
    second = request("a", cpu_time(T + 10, 1007.5), disk_io(T + 10, 15 * MB, 21 * MB, ("sda", "sdb")))
    assert rows_of(decoder, first) == {}
    assert rows_of(decoder, second) == {("a", T + 10): {"cpu_pct": 25.0, "disk_io_mb_s": 2 * 3.0}}


@pytest.mark.parametrize(("idle_seconds", "cpu_pct"), [(10.4, 0.0), (11.0, -10.0), (0.0, 100.0)])
def test_a_processor_may_be_idle_for_a_little_longer_than_the_interval(decoder, idle_seconds, cpu_pct):
    """A value that is far out is not hidden: the validation rejects it."""
    first, second = request("a", cpu_time(T, 1000)), request("a", cpu_time(T + 10, 1000 + idle_seconds))
    assert rows_of(decoder, first, second) == {("a", T + 10): {"cpu_pct": cpu_pct}}


def test_changes_of_a_level_are_not_taken_for_the_level(decoder):
    made = request("a", metric("system.memory.usage", [({"state": s}, T, 5) for s in ("used", "free")], DELTA))
    assert decoder.decode(made.SerializeToString(), is_json=False).notices == {"change_of_level": 2}


def test_a_second_value_for_a_server_and_time_is_refused_and_an_equal_one_is_not(decoder):
    made = request("a", gauge("system.memory.utilization", used=0.5))
    for used in (0.25, 0.5):
        add_host(made, "a", gauge("system.memory.utilization", used=used))
    received = decoder.decode(made.SerializeToString(), is_json=False)
    assert [values[1] for values in received.rows.values()] == [50.0]
    assert [(refused.field, refused.value) for refused in received.refused] == [("mem_pct", 25.0)]


def test_network_traffic_by_direction_without_interfaces_that_repeat_it(decoder):
    def traffic(key, direction_key, seconds, received, sent):
        points = [
            ({key: device, direction_key: direction}, seconds, value)
            for device in ("eth0", "lo", "docker0", "veth12")
            for direction, value in (("receive", received), ("transmit", sent))
        ]
        return metric("system.network.io", points, CUMULATIVE)

    for keys in (("device", "direction"), ("network.interface.name", "network.io.direction")):
        values = traffic(*keys, T, 0, 0), traffic(*keys, T + 2, 4 * MB, 1 * MB)
        rows = rows_of(decoder, *(request(keys[0], each) for each in values))
        assert rows == {(keys[0], T + 2): {"net_in_mb_s": 2.0, "net_out_mb_s": 0.5}}


def test_partitions_and_devices_that_repeat_others_are_not_added(decoder):
    devices = ("sda", "sda1", "nvme0n1", "nvme0n1p2", "dm-0", "loop3", "md0", "mmcblk0p1", "vda15")
    first, second = disk_io(T, 0, 0, devices), disk_io(T + 1, MB, 0, devices)
    assert rows_of(decoder, request("a", first), request("a", second)) == {("a", T + 1): {"disk_io_mb_s": 2.0}}


def test_deltas_are_rates_over_their_own_interval(decoder):
    delta = disk_io(T + 10, 30 * MB, 10 * MB, temporality=DELTA, start_seconds=T)
    assert rows_of(decoder, request("a", delta)) == {("a", T + 10): {"disk_io_mb_s": 4.0}}
    without_start = disk_io(T + 10, MB, MB, temporality=DELTA)
    assert rows_of(decoder, request("a", without_start)) == {}


def test_the_interval_of_a_reset_is_not_measured(decoder):
    values = [(T, 50 * MB), (T + 10, 60 * MB), (T + 20, 1 * MB), (T + 30, 11 * MB)]
    rows = rows_of(decoder, *(request("a", disk_io(at, value, 0)) for at, value in values))
    assert rows == {("a", T + 10): {"disk_io_mb_s": 1.0}, ("a", T + 30): {"disk_io_mb_s": 1.0}}


def test_a_start_time_alone_is_not_a_reset(decoder):
    """The SDK counts from the start of its process and sends the kernel's counters since boot."""
    first, second = (disk_io(at, value, 0, start_seconds=at - 1) for at, value in ((T, 50 * MB), (T + 10, 60 * MB)))
    assert rows_of(decoder, request("a", first), request("a", second)) == {("a", T + 10): {"disk_io_mb_s": 1.0}}


def test_several_times_in_one_request_are_read_in_their_order(decoder):
    made = request("a", *(disk_io(T + 10 * n, n * n * 10 * MB, 0) for n in range(3)))
    assert rows_of(decoder, made) == {
        ("a", T + 10): {"disk_io_mb_s": 1.0}, ("a", T + 20): {"disk_io_mb_s": 3.0}
    }  # fmt: skip


def test_a_request_that_was_not_stored_gives_the_same_rates_again(decoder):
    first, second = request("a", disk_io(T, 0, 0)), request("a", disk_io(T + 10, 10 * MB, 0))
    rows_of(decoder, first)
    for stored in (False, True):
        assert rows_of(decoder, second, stored=stored) == {("a", T + 10): {"disk_io_mb_s": 1.0}}
    assert rows_of(decoder, second) == {}, "repeated after it was stored"
    assert decoder.decode(second.SerializeToString(), False).notices["repeated"] == 2


def test_the_counters_of_a_refused_server_are_not_kept(decoder):
    rows_of(decoder, request("a", disk_io(T, 0, 0)), refused={"a"})
    assert rows_of(decoder, request("a", disk_io(T + 1, MB, 0))) == {}


def test_beyond_the_limit_the_longest_silent_server_is_forgotten():
    decoder = OtlpDecoder(memory := CounterMemory(5), 100)
    for second, server in enumerate("aba"):
        rows_of(decoder, request(server, disk_io(T + second, second * MB, 0)))
    assert memory.counters == 4
    rows_of(decoder, request("c", disk_io(T + 3, 0, 0)))
    assert memory.counters == 4
    assert rows_of(decoder, request("b", disk_io(T + 4, MB, 0))) == {}, "forgotten"
    rows_of(decoder, request("b", disk_io(T + 5, MB, 0)))


def test_counters_of_one_server_are_bounded(decoder):
    points = [({"device": f"sd{n}x", "direction": "read"}, T, 1) for n in range(1_001)]
    decoder = OtlpDecoder(memory := CounterMemory(10_000), 2_000)
    received = decoder.decode(request("a", metric("system.disk.io", points, CUMULATIVE)).SerializeToString(), False)
    received.on_stored(())
    assert (memory.counters, received.notices["too_many_counters"]) == (1_000, 1)


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_resource_without_a_host_name_is_refused_and_the_others_are_read(decoder):
    made = request(None, gauge("system.memory.utilization", used=0.5), gauge("other", x=1.0))
    add_host(made, "b", gauge("system.memory.utilization", used=0.25))
    received = decoder.decode(made.SerializeToString(), is_json=False)
    assert [(each.field, each.samples) for each in received.refused] == [("server_name", 1)]
    assert list(received.rows) == [("b", T * 1000)]
    assert received.left_out == {"other": 1}


def test_json_gives_the_same_rows(decoder):
    made = request("a", disk_io(T, 5, 6), gauge("system.memory.utilization", used=0.5))
    document = json_format.MessageToDict(made)
    assert "timeUnixNano" in str(document)
    document["resourceMetrics"][0]["a_field_of_later_versions"] = 1
    received = decoder.decode(orjson.dumps(document), is_json=True)
    assert received.rows == decoder.decode(made.SerializeToString(), is_json=False).rows


def test_the_json_of_the_specification_is_read(decoder):
    """Numbers of 64 bits are text or numbers, keys are lowerCamelCase, enums are numbers."""
    point = {"attributes": [{"key": "state", "value": {"stringValue": "used"}}], "timeUnixNano": str(T * 10**9)}
    points = [point | {"asDouble": 0.5}, point | {"timeUnixNano": (T + 1) * 10**9, "asInt": "1"}]
    body = {"resourceMetrics": [{
        "resource": {"attributes": [{"key": "host.name", "value": {"stringValue": "a"}}]},
        "scopeMetrics": [{"metrics": [{"name": "system.memory.utilization", "unit": "1",
                                       "sum": {"aggregationTemporality": 2, "dataPoints": points}}]}],
    }]}  # fmt: skip
    received = decoder.decode(orjson.dumps(body), is_json=True)
    assert [values[1] for values in received.rows.values()] == [50.0, 100.0]


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05\x0a", b"{}x"])
def test_a_body_that_is_not_a_request_is_malformed(decoder, body):
    with pytest.raises(MalformedBodyError, match="ExportMetricsServiceRequest"):
        decoder.decode(body, is_json=False)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"1", b'"a"', b"null", b"{", b"NaN", b'{"resourceMetrics": 1}', b'{"resourceMetrics": [1]}',
     b'{"resourceMetrics": {"a": 1}}', b'{"resourceMetrics": [{"resource": []}]}',
     b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": 1}]}]}]}',
     b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"sum": {"dataPoints": [{"asDouble": "x"}]}}]}]}]}',
     b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"sum": {"dataPoints": [{"timeUnixNano": -1}]}}]}]}]}',
     b'{"a": ' * 300 + b"1" + b"}" * 300],
)  # fmt: skip
def test_json_of_wrong_types_is_malformed_or_empty(decoder, body):
    with contextlib.suppress(MalformedBodyError):
        assert decoder.decode(body, is_json=True).rows == {}


def test_too_many_points_and_structures_are_malformed(decoder):
    points = [({"state": "used"}, T + n, 0.5) for n in range(1_001)]
    with pytest.raises(MalformedBodyError, match="at most 1000"):
        decoder.decode(request("a", metric("system.memory.utilization", points)).SerializeToString(), is_json=False)
    with pytest.raises(MalformedBodyError, match="far too many"):
        decoder.decode(b"\x0a\x00" * 30_000, is_json=False)
    with pytest.raises(MalformedBodyError, match="too many objects and values"):
        decoder.decode(b'{"resourceMetrics": [' + b"{}," * 60_000 + b"{}]}", is_json=True)
    with pytest.raises(MalformedBodyError, match="too many objects and values"):
        decoder.decode(b'{"x": [' + b"1," * 120_000 + b"1]}", is_json=True)


@pytest.mark.parametrize("part", ["resources", "scopes", "metrics"])
def test_too_many_empty_parts_are_malformed(decoder, part):
    made = request("a")
    if part == "resources":
        made.resource_metrics.extend([made.resource_metrics[0]] * 1_000)
    elif part == "scopes":
        made.resource_metrics[0].scope_metrics.extend([made.resource_metrics[0].scope_metrics[0]] * 1_000)
    else:
        made.resource_metrics[0].scope_metrics[0].metrics.extend([metric("other", [])] * 1_001)
    with pytest.raises(MalformedBodyError, match="at most 1000"):
        decoder.decode(made.SerializeToString(), is_json=False)
