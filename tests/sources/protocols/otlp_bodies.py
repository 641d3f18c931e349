"""Requests of OTLP metrics as a Collector sends them."""

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

NS = 1_000_000_000
CUMULATIVE, DELTA = 2, 1


def request(server, *metrics):
    """A request with the metrics of one server; server None: a resource without host.name."""
    made = ExportMetricsServiceRequest()
    add_host(made, server, *metrics)
    return made


def add_host(made, server, *metrics):
    resource = made.resource_metrics.add()
    attributes = {"service.name": "agent", **({} if server is None else {"host.name": server})}
    for key, value in attributes.items():
        resource.resource.attributes.add(key=key).value.string_value = value
    resource.scope_metrics.add().metrics.extend(metrics)


def metric(name, points, temporality=None, start_seconds=0):
    """One metric. points: (attributes, seconds, value); temporality None: a gauge."""
    made = ExportMetricsServiceRequest().resource_metrics.add().scope_metrics.add().metrics.add(name=name)
    if temporality is None:
        data = made.gauge
    else:
        data = made.sum
        data.aggregation_temporality, data.is_monotonic = temporality, True
    for attributes, seconds, value in points:
        point = data.data_points.add(time_unix_nano=round(seconds * NS), start_time_unix_nano=round(start_seconds * NS))
        for key, text in attributes.items():
            if isinstance(text, int):
                point.attributes.add(key=key).value.int_value = text
            else:
                point.attributes.add(key=key).value.string_value = text
        if isinstance(value, int):
            point.as_int = value
        elif value is not None:
            point.as_double = value
    return made


def cpu_time(seconds, idle_seconds, cpus=2, **options):
    """system.cpu.time of some processors with the same idle time; their other time is the rest."""
    points = [
        ({"cpu": f"cpu{n}", "state": state}, seconds, value)
        for n in range(cpus)
        for state, value in (("idle", float(idle_seconds)), ("user", float(seconds) - idle_seconds), ("wait", 0.5))
    ]
    return metric("system.cpu.time", points, CUMULATIVE, **options)


def disk_io(seconds, read, write, devices=("sda",), temporality=CUMULATIVE, **options):
    points = [
        ({"device": device, "direction": direction}, seconds, value)
        for device in devices
        for direction, value in (("read", read), ("write", write))
    ]
    return metric("system.disk.io", points, temporality, **options)
