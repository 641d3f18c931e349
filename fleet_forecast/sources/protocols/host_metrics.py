"""OpenTelemetry's host metrics as metrics of the contract.

Source: https://opentelemetry.io/docs/specs/semconv/system/system-metrics/, with the attribute names of earlier
versions, which the Collector and the SDKs still send. Values mean what the built-in queries of Prometheus compute: CPU
in use is the time that was not idle, disks and links without those that repeat the traffic of others.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.sources.devices import OTHER_DISKS, OTHER_LINKS, PARTITIONS
from fleet_forecast.sources.protocols.counter_rates import RESET, CounterRates, CounterValue
from fleet_forecast.sources.protocols.received import ReceivedSamples, RefusedSamples

CPU_TIME, CPU_UTILIZATION = "system.cpu.time", "system.cpu.utilization"
MEMORY_USAGE, MEMORY_UTILIZATION = "system.memory.usage", "system.memory.utilization"
DISK_IO, NETWORK_IO = "system.disk.io", "system.network.io"
INSTEAD_OF = {CPU_UTILIZATION: CPU_TIME, MEMORY_USAGE: MEMORY_UTILIZATION}  # not used where the other one is sent
DELTA, CUMULATIVE = 1, 2  # AggregationTemporality
_NO_VALUE = 1  # flag of a data point
_STATE = frozenset({"state", "cpu.mode", "system.memory.state"})
_CPU = frozenset({"cpu", "cpu.logical_number", "system.cpu.logical_number"})
_DIRECTION = frozenset({"direction", "disk.io.direction", "network.io.direction"})
_DEVICE = frozenset({"device", "system.device", "network.interface.name", "system.network.interface.name"})
_WHOLE_MEMORY = frozenset({"used", "free", "cached", "buffered", "buffers"})
_CPU_PCT, _MEM_PCT = METRICS.index("cpu_pct"), METRICS.index("mem_pct")
_LEVELS = frozenset({CPU_UTILIZATION, MEMORY_USAGE, MEMORY_UTILIZATION})
# The resolution of the counters is 10 ms: an idle processor may seem to be idle for longer than the interval.
_MORE_THAN_IDLE = 0.05
_BYTES_PER_MB = 1e6
_NS_PER_MS = 1_000_000


class HostMetric(NamedTuple):
    """One metric of one server in a request. data: its Gauge or Sum."""

    server: str
    name: str
    data: Any


class OwnMetric(NamedTuple):
    """A metric that the fleet file maps to a name: its position in METRICS, and whether its kind is rate."""

    place: int
    is_rate: bool


class _Flow(NamedTuple):
    """A counter of bytes by device and direction."""

    metric_of: dict[str, int]  # direction -> position in METRICS
    other_devices: re.Pattern[str]


_FLOWS = {
    DISK_IO: _Flow(
        dict.fromkeys(("read", "write"), METRICS.index("disk_io_mb_s")), re.compile(f"{OTHER_DISKS}|{PARTITIONS}")
    ),
    NETWORK_IO: _Flow(
        {"receive": METRICS.index("net_in_mb_s"), "transmit": METRICS.index("net_out_mb_s")}, re.compile(OTHER_LINKS)
    ),
}


def add_host_metric(metric: HostMetric, found: ReceivedSamples, rates: CounterRates) -> None:
    """Add the values of a metric of HOST_METRICS to the rows; data points that give none are counted as notices."""
    if metric.name in _LEVELS and getattr(metric.data, "aggregation_temporality", None) == DELTA:
        found.notices["change_of_level"] += len(metric.data.data_points)  # not the level itself
    else:
        HOST_METRICS[metric.name](metric, found, rates)


def add_own_metric(metric: HostMetric, own: OwnMetric, found: ReceivedSamples, rates: CounterRates) -> None:
    """Add the values of a metric of the fleet file to the rows.

    Those of a gauge and of a sum that can fall are the metric's; a counter gives its increase per second to a metric of
    the kind rate, summed over its data points of a time, and nothing to another one.
    """
    if getattr(metric.data, "is_monotonic", False):
        if own.is_rate:
            _add_counter(metric, own.place, found, rates)
        else:
            found.left_out[metric.name] += len(metric.data.data_points)
        return
    if getattr(metric.data, "aggregation_temporality", None) == DELTA:
        found.notices["change_of_level"] += len(metric.data.data_points)
        return
    for point in metric.data.data_points:
        value = _value(point, found)
        if value is not None:
            _put(found, (metric.server, point.time_unix_nano), own.place, value, 1)


def _add_counter(metric: HostMetric, index: int, found: ReceivedSamples, rates: CounterRates) -> None:
    sums: dict[int, list[float]] = defaultdict(list)  # time -> rate of each data point, NaN: unknown
    for point in metric.data.data_points:
        attributes = sorted((each.key, each.value.SerializeToString()) for each in point.attributes)
        rate = _rate(metric, (metric.name, *attributes), point, found, rates)
        if rate is not None:
            sums[point.time_unix_nano].append(rate)
    for time_ns, parts in sums.items():
        if not math.isnan(total := sum(parts)):
            _put(found, (metric.server, time_ns), index, total, len(parts))


def _add_flow(metric: HostMetric, found: ReceivedSamples, rates: CounterRates) -> None:
    flow = _FLOWS[metric.name]
    sums: dict[tuple[int, int], list[float]] = defaultdict(list)  # (time, position in METRICS) -> rates, NaN: unknown
    for point in metric.data.data_points:
        device, direction = _attributes(point, _DEVICE, _DIRECTION)
        index = flow.metric_of.get(direction)
        if index is None:
            found.notices["no_direction"] += 1
        elif flow.other_devices.fullmatch(device):
            found.notices["other_device"] += 1
        else:
            rate = _rate(metric, (metric.name, device, direction), point, found, rates)
            if rate is not None:
                sums[point.time_unix_nano, index].append(rate / _BYTES_PER_MB)
    for (time_ns, index), parts in sums.items():
        if not math.isnan(total := sum(parts)):
            _put(found, (metric.server, time_ns), index, total, len(parts))


def _add_cpu_time(metric: HostMetric, found: ReceivedSamples, rates: CounterRates) -> None:
    idle: dict[int, list[float]] = defaultdict(list)  # time -> idle share of each processor
    for point in metric.data.data_points:
        cpu, state = _attributes(point, _CPU, _STATE)
        if state != "idle":
            found.notices["other_state"] += 1
        elif not cpu:
            found.notices["no_cpu"] += 1
        else:
            rate = _rate(metric, (metric.name, cpu), point, found, rates)
            if rate is not None:
                idle[point.time_unix_nano].append(rate)
    for time_ns, shares in idle.items():
        if math.isnan(sum(shares)):
            continue
        busy = 1 - sum(shares) / len(shares)
        if -_MORE_THAN_IDLE <= busy < 0:
            busy = 0.0
        _put(found, (metric.server, time_ns), _CPU_PCT, 100 * busy, len(shares))


def _add_cpu_utilization(metric: HostMetric, found: ReceivedSamples, _rates: CounterRates) -> None:
    busy: dict[int, list[float]] = defaultdict(list)
    for point in metric.data.data_points:
        _, state = _attributes(point, _CPU, _STATE)
        value = _value(point, found)
        if state not in ("idle", ""):
            found.notices["other_state"] += 1
        elif value is not None:
            busy[point.time_unix_nano].append(1 - value if state else value)
    for time_ns, shares in busy.items():
        _put(found, (metric.server, time_ns), _CPU_PCT, 100 * sum(shares) / len(shares), len(shares))


def _add_memory_utilization(metric: HostMetric, found: ReceivedSamples, _rates: CounterRates) -> None:
    for point in metric.data.data_points:
        _, state = _attributes(point, _DEVICE, _STATE)
        value = _value(point, found)
        if state not in ("used", ""):
            found.notices["other_state"] += 1
        elif value is not None:
            _put(found, (metric.server, point.time_unix_nano), _MEM_PCT, 100 * value, 1)


def _add_memory_usage(metric: HostMetric, found: ReceivedSamples, _rates: CounterRates) -> None:
    """Used bytes as a share of all; used, free, cached and buffered are all of the memory."""
    states: dict[int, dict[str, float]] = defaultdict(dict)
    for point in metric.data.data_points:
        _, state = _attributes(point, _DEVICE, _STATE)
        value = _value(point, found)
        if state not in _WHOLE_MEMORY:
            found.notices["other_state"] += 1
        elif value is not None:
            states[point.time_unix_nano][state] = value
    for time_ns, values in states.items():
        total = sum(values.values())
        if not {"used", "free"} <= values.keys() or total <= 0:
            found.notices["incomplete_states"] += len(values)
        else:
            _put(found, (metric.server, time_ns), _MEM_PCT, 100 * values["used"] / total, len(values))


HOST_METRICS: dict[str, Callable[[HostMetric, ReceivedSamples, CounterRates], None]] = {
    CPU_TIME: _add_cpu_time,
    CPU_UTILIZATION: _add_cpu_utilization,
    MEMORY_USAGE: _add_memory_usage,
    MEMORY_UTILIZATION: _add_memory_utilization,
    DISK_IO: _add_flow,
    NETWORK_IO: _add_flow,
}


def _attributes(point: Any, first: frozenset[str], second: frozenset[str]) -> tuple[str, str]:
    """The values of the attributes with a key of the first and of the second set; "" where there is none."""
    one = two = ""
    for attribute in point.attributes:
        key = attribute.key
        if key in first:
            value = attribute.value
            one = value.string_value or str(value.int_value)
        elif key in second:
            two = attribute.value.string_value
    return one, two


def _value(point: Any, found: ReceivedSamples) -> float | None:
    """The value of a point; None, counted, where it has none."""
    kind = None if point.flags & _NO_VALUE else point.WhichOneof("value")
    value = math.nan if kind is None else float(getattr(point, kind))
    if math.isfinite(value):
        return value
    found.not_measured += 1
    return None


def _rate(
    metric: HostMetric, key: tuple[Hashable, ...], point: Any, found: ReceivedSamples, rates: CounterRates
) -> float | None:
    """The increase per second that a point of a sum shows; None, counted, where it shows none; NaN at a reset.

    A sum with a counter that was reset is not measured. One without a counter that is new is, as in Prometheus.
    """
    value = _value(point, found)
    if value is None:
        return None
    time_ns = point.time_unix_nano
    temporality = getattr(metric.data, "aggregation_temporality", None)
    if temporality == CUMULATIVE:
        rate = rates.per_second(metric.server, key, CounterValue(time_ns, value))
        if isinstance(rate, float):
            return rate
        found.notices[rate] += 1
        found.row(metric.server, _milliseconds(time_ns))  # its server is checked as those with values are
        return math.nan if rate == RESET else None
    if temporality == DELTA and 0 < point.start_time_unix_nano < time_ns:
        return value / ((time_ns - point.start_time_unix_nano) / 1e9)
    found.notices["no_interval"] += 1
    return None


def _put(found: ReceivedSamples, place: tuple[str, int], index: int, value: float, points: int) -> None:
    """Put a value and the number of data points behind it into the row of a server and time (ns)."""
    server, time_ns = place
    instant = _milliseconds(time_ns)
    row = found.row(server, instant)
    if row[index] is not None and row[index] != value:
        reason = f"a second value besides {row[index]}, of {server} at one time; give each resource its own host.name"
        found.refused.append(RefusedSamples(METRICS[index], value, reason, points))
        return
    row[index] = value
    found.samples.setdefault((server, instant), [0] * found.width)[index] = points


def _milliseconds(time_ns: int) -> int:
    return (time_ns + _NS_PER_MS // 2) // _NS_PER_MS
