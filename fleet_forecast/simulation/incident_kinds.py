"""The types of incident: their phases and their effects on the metrics.

Effects are changes on the scale on which a metric is simulated: for rates the logarithm of a factor (0.7 doubles), for
percentages a change of log odds (2.2 turns 50 % into 90 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet_forecast.contract.definitions import BUILT_IN_FLEET
from server_profiles import PROFILES

Minutes = tuple[float, float]
Effects = Mapping[str, float]


@dataclass(frozen=True)
class IncidentKind:
    """Phases and effects of one type of incident; a phase lasts between two numbers of minutes.

    warning: from onset to start; (0, 0) is sudden. climb: from the start to the peak. peak: at the worst. recovery:
    from the end of the peak to normal. signs: symptoms during the warning. before: effects at the start. worst:
    effects at the peak. after: effects at the beginning of the recovery, if they are not a fading peak (a restart
    empties memory).
    """

    warning: Minutes
    climb: Minutes
    peak: Minutes
    recovery: Minutes
    signs: str
    before: Effects
    worst: Effects
    after: Effects = field(default_factory=dict)


_SHORT_NAMES = {
    "cpu": "cpu_pct",
    "mem": "mem_pct",
    "disk": "disk_io_mb_s",
    "net_in": "net_in_mb_s",
    "net_out": "net_out_mb_s",
    "latency": "latency_ms",
}


def _effects(**by_metric: float) -> Effects:
    """Effects by metric; metrics have their short name or the contract's name."""
    effects = {_SHORT_NAMES.get(metric, metric): effect for metric, effect in by_metric.items()}
    if unknown := sorted(effects.keys() - set(BUILT_IN_FLEET.names)):
        known = ", ".join(BUILT_IN_FLEET.names)
        raise ValueError(f"{__name__}: effect on {unknown[0]}, which is not a built-in metric; use one of {known}")
    return effects


E = _effects
KINDS: Mapping[str, IncidentKind] = {
    # ml_compute
    "oom": IncidentKind(
        (180, 480), (2, 6), (5, 20), (30, 60), "memory leaks upward for hours, swapping begins on the disk",
        E(mem=2.2, disk=0.3, latency=0.25), E(mem=3.6, cpu=-0.8, disk=1.0, latency=1.5),
        E(mem=-1.6, cpu=-1.6, disk=0.6, latency=0.3),
    ),
    "cuda_oom": IncidentKind(
        (20, 60), (1, 4), (5, 15), (20, 40), "host memory and disk rise as batches spill from the GPU",
        E(mem=0.8, disk=0.5, latency=0.2), E(mem=1.2, cpu=-1.8, disk=0.7, latency=0.9), E(cpu=-1.2, mem=-0.6),
    ),
    "thermal_throttling": IncidentKind(
        (30, 90), (10, 25), (30, 120), (20, 45), "CPU runs hot near its limit while latency creeps up",
        E(cpu=1.2, latency=0.3), E(cpu=2.0, latency=1.1, disk=-0.5, net_in=-0.4, net_out=-0.5),
    ),
    "disk_cache_exhaustion": IncidentKind(
        (60, 180), (5, 15), (20, 60), (20, 40), "disk reads climb as the cache misses more and more",
        E(disk=0.7, latency=0.3), E(disk=1.4, latency=1.2, cpu=-0.7),
    ),
    # database
    "lock_contention": IncidentKind(
        (10, 40), (3, 10), (10, 45), (10, 25), "latency rises while CPU and disk fall: work is waiting",
        E(latency=0.6, cpu=-0.2), E(latency=2.1, cpu=-0.9, disk=-0.9, net_out=-0.8),
    ),
    "disk_io_saturation": IncidentKind(
        (60, 150), (5, 15), (20, 60), (20, 40), "disk traffic climbs to the device's limit, latency follows",
        E(disk=0.6, latency=0.4), E(disk=1.1, latency=1.8, cpu=-0.4),
    ),
    "connection_pool_exhaustion": IncidentKind(
        (20, 60), (2, 6), (10, 30), (10, 20), "connections pile up: memory and latency rise, traffic does not",
        E(mem=0.5, latency=0.5), E(mem=0.9, latency=1.9, net_in=-0.7, net_out=-1.0, cpu=-0.6),
    ),
    "slow_query_storm": IncidentKind(
        (15, 45), (5, 15), (20, 60), (15, 30), "CPU and disk reads rise together with latency",
        E(cpu=0.6, disk=0.3, latency=0.4), E(cpu=2.4, disk=0.8, latency=1.6, mem=0.4),
    ),
    # web_api
    "http_503": IncidentKind(
        (5, 20), (1, 4), (5, 25), (8, 20), "latency and CPU rise as workers run out",
        E(cpu=0.8, latency=0.7), E(cpu=1.8, latency=1.9, net_out=-1.4),
    ),
    "connection_timeouts": IncidentKind(
        (10, 40), (2, 8), (10, 40), (10, 20), "latency grows while traffic slowly falls",
        E(latency=0.6, net_out=-0.2), E(latency=2.3, net_in=-0.6, net_out=-1.1, cpu=-0.5),
    ),
    "ssl_expiry": IncidentKind(
        (0, 0), (0, 1), (20, 90), (5, 10), "none: a certificate expires from one second to the next",
        E(), E(net_in=-1.2, net_out=-2.6, cpu=-1.2, disk=-0.8, latency=0.5),
    ),
    "ddos": IncidentKind(
        (2, 8), (3, 10), (15, 60), (10, 20), "inbound traffic climbs within minutes",
        E(net_in=0.5, cpu=0.3), E(net_in=2.1, cpu=2.8, latency=2.0, net_out=0.5, mem=0.6),
    ),
    # conductor_mgmt
    "job_queue_overflow": IncidentKind(
        (60, 180), (5, 15), (20, 60), (20, 45), "the queue grows: memory, disk and latency rise for hours",
        E(mem=0.7, disk=0.4, latency=0.5), E(mem=1.4, disk=0.9, latency=1.7, cpu=1.5),
    ),
    "scheduler_deadlock": IncidentKind(
        (3, 10), (1, 2), (10, 40), (10, 20), "a few slow dispatches, then nothing moves",
        E(latency=0.4), E(cpu=-2.2, net_in=-1.0, net_out=-1.6, disk=-1.5, latency=2.2),
    ),
    "resource_allocation_failure": IncidentKind(
        (20, 60), (3, 8), (15, 40), (15, 30), "repeated attempts raise CPU and network",
        E(cpu=0.6, net_out=0.3, latency=0.3), E(cpu=1.6, net_out=0.8, net_in=0.6, latency=1.3),
    ),
    "metadata_corruption": IncidentKind(
        (0, 0), (1, 3), (20, 60), (20, 40), "none: corruption shows when it is read",
        E(), E(disk=1.5, cpu=1.2, latency=1.4, net_out=-0.7),
    ),
    # data_ingest
    "kafka_consumer_lag": IncidentKind(
        (60, 240), (10, 20), (20, 90), (30, 60), "lag grows: memory and disk rise while output falls behind input",
        E(mem=0.7, disk=0.3, latency=0.5, net_out=-0.2), E(mem=1.3, disk=0.7, latency=1.7, net_out=-0.8),
        E(net_out=0.5, cpu=1.0),
    ),
    "disk_queue_saturation": IncidentKind(
        (45, 120), (5, 15), (20, 60), (20, 40), "disk traffic nears its limit, latency follows",
        E(disk=0.5, latency=0.4), E(disk=0.9, latency=1.7, cpu=-0.5, net_out=-0.4),
    ),
    "network_congestion": IncidentKind(
        (15, 45), (3, 10), (15, 60), (10, 25), "latency rises with traffic, then throughput collapses",
        E(net_in=0.35, latency=0.5), E(net_in=-0.8, net_out=-0.9, latency=1.8, disk=-0.5),
    ),
    "backpressure_cascade": IncidentKind(
        (30, 90), (5, 15), (20, 60), (20, 45), "buffers fill: memory rises, input falls; then it spreads",
        E(mem=0.8, latency=0.4, net_in=-0.15), E(mem=1.7, latency=1.6, net_in=-0.9, net_out=-0.7, cpu=-0.6),
        E(net_in=0.4, disk=0.3),
    ),
    # risk_analytics
    "calculation_timeout": IncidentKind(
        (30, 90), (5, 10), (15, 60), (15, 30), "CPU stays near its limit while latency climbs",
        E(cpu=0.8, latency=0.5), E(cpu=2.2, latency=1.6, net_out=-0.6),
    ),
    "matrix_operation_failure": IncidentKind(
        (5, 15), (1, 3), (5, 20), (15, 30), "memory jumps as the operation is allocated",
        E(mem=0.8, latency=0.2), E(mem=1.4, cpu=-2.0, latency=1.0, disk=0.5), E(mem=-0.9, cpu=-1.0),
    ),
    "resource_starvation": IncidentKind(
        (60, 180), (10, 20), (30, 90), (20, 45), "CPU and memory climb together for hours",
        E(cpu=0.9, mem=0.9, latency=0.4), E(cpu=2.4, mem=1.8, latency=1.5, disk=0.5),
    ),
    "numerical_instability": IncidentKind(
        (0, 5), (1, 4), (10, 40), (10, 25), "hardly any: iterations stop converging",
        E(cpu=0.3), E(cpu=1.8, mem=0.4, latency=1.0, net_out=-0.9),
    ),
}  # fmt: skip
del E


def _require_known_incidents() -> None:
    for profile, spec in PROFILES.items():
        if unknown := [label for label in spec.incidents if label not in KINDS]:
            raise ValueError(
                f"server_profiles.py: incident {unknown[0]} of {profile} is unknown; add it to KINDS in {__name__}"
            )


_require_known_incidents()
LABELS = tuple(KINDS)  # the code of an incident is its position here


def incident_table() -> str:
    """Markdown table of all incidents, as in docs/incidents.md."""

    def span(minutes: Minutes) -> str:
        low, high = minutes
        return "none" if high == 0 else f"{low:g}-{high:g} min" if high < 120 else f"{low / 60:g}-{high / 60:g} h"

    lines = [
        "| profile | incident | warning | at its worst | recovery | signs before it |",
        "|---|---|---|---|---|---|",
    ]
    for profile, spec in PROFILES.items():
        for label in spec.incidents:
            kind = KINDS[label]
            spans = " | ".join(span(phase) for phase in (kind.warning, kind.peak, kind.recovery))
            lines.append(f"| {profile} | `{label}` | {spans} | {kind.signs} |")
    return "\n".join(lines)
