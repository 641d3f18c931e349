"""The metrics and profiles that are simulated, and the constants of the noise.

A metric of the contract is simulated if the profiles have baselines for it; without constants below it gets the
default ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fleet_forecast.contract.definitions import METRIC_SPECS, METRICS, PROFILES, Kind, per_fleet
from server_profiles import ServerProfile


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


@dataclass(frozen=True)
class SimulatedMetrics:
    """The metrics for which a profile has a baseline, in the contract's order; a profile without one has no values.

    positions: of the metrics, by name.
    """

    names: tuple[str, ...]
    models: tuple[MetricModel, ...]
    kinds: tuple[Kind, ...]
    positions: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def memory(self) -> int:
        """Position of the one metric that follows demand slowly."""
        return self.positions["mem_pct"]


@per_fleet
def simulated() -> SimulatedMetrics:
    """The metrics that are simulated. Raises ValueError for a built-in baseline of an unknown metric."""
    with_baseline = {metric for spec in PROFILES.values() for metric in spec.baselines}
    if unknown := sorted(with_baseline - set(METRICS)):
        raise ValueError(
            f"server_profiles.py: baseline for {unknown[0]}, which is not a metric of the contract; "
            "add it to BUILT_IN_METRICS in fleet_forecast/contract/definitions.py"
        )
    names = tuple(metric for metric in METRICS if metric in with_baseline)
    return SimulatedMetrics(
        names,
        tuple(_MODELS.get(metric, MetricModel()) for metric in names),
        tuple(METRIC_SPECS[metric].kind for metric in names),
        {metric: position for position, metric in enumerate(names)},
    )


@per_fleet
def profile_order() -> tuple[str, ...]:
    """The profiles: the built-in ones, then those of the fleet file."""
    return (*ServerProfile, *(name for name in PROFILES if name not in set(ServerProfile)))
