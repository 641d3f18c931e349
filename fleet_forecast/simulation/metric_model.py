"""The metrics that are simulated, and the constants of their noise.

A metric of the contract is simulated if the profiles have baselines for it; without constants below it gets the
default ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fleet_forecast.contract.specs import METRIC_SPECS, METRICS
from server_profiles import PROFILES


@dataclass(frozen=True)
class MetricModel:
    """Noise of one metric.

    load_weight: correlation with the server's load. correlation_minutes: correlation time of the metric's own noise.
    sampling_noise: share of the own noise's variance that is independent from sample to sample. between_share: share
    of the total variance that lies between the servers of a profile; the rest is in time. follows_demand: the servers
    of a profile have a part of the own noise in common (ProfileSpec.shared_demand).
    """

    load_weight: float = 0.6
    correlation_minutes: float = 15.0
    sampling_noise: float = 0.15
    between_share: float = 0.2
    follows_demand: bool = True


_MODELS: Mapping[str, MetricModel] = {
    "cpu_pct": MetricModel(0.75, 12, 0.12),
    # Memory depends on the data that a server holds: it differs from server to server and changes slowly.
    "mem_pct": MetricModel(0.3, 1440, 0.01, 0.35, follows_demand=False),
    "disk_io_mb_s": MetricModel(0.6, 15, 0.2),
    "net_in_mb_s": MetricModel(0.65, 12, 0.15),
    "net_out_mb_s": MetricModel(0.65, 12, 0.15),
    "latency_ms": MetricModel(0.55, 15, 0.15),
}


def _simulated_metrics() -> tuple[str, ...]:
    """Metrics with a baseline, in the contract's order. Raises ValueError where server_profiles.py is incomplete."""
    with_baseline = {metric for spec in PROFILES.values() for metric in spec.baselines}
    for profile, spec in PROFILES.items():
        if missing := sorted(with_baseline - spec.baselines.keys()):
            raise ValueError(
                f"server_profiles.py: profile {profile} has no baseline for {missing[0]}, which other profiles have; "
                "add one to its ProfileSpec"
            )
    if unknown := sorted(with_baseline - set(METRICS)):
        raise ValueError(
            f"server_profiles.py: baseline for {unknown[0]}, which is not a metric of the contract; "
            "add it to METRIC_SPECS in fleet_forecast/contract/specs.py"
        )
    return tuple(metric for metric in METRICS if metric in with_baseline)


SIMULATED_METRICS = _simulated_metrics()
METRIC_COUNT = len(SIMULATED_METRICS)
METRIC_POSITIONS = {metric: position for position, metric in enumerate(SIMULATED_METRICS)}
METRIC_MODELS = tuple(_MODELS.get(metric, MetricModel()) for metric in SIMULATED_METRICS)
IS_PERCENT = tuple(METRIC_SPECS[metric].is_percent for metric in SIMULATED_METRICS)
MEMORY = METRIC_POSITIONS["mem_pct"]  # the one metric that follows demand slowly
