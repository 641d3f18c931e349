"""The forecast of a server, and the snapshot of the fleet's forecasts after a cycle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import served_metrics
from fleet_forecast.inference.model_config import ModelConfig
from fleet_forecast.inference.model_directory import is_starter
from fleet_forecast.inference.risk_model import RiskModel
from fleet_forecast.risk.departures import SIMULATED, DepartureStatistics


@dataclass(frozen=True)
class ModelView:
    """The axes of a forecast: the model's name, metrics, quantile levels and step.

    departures: how far healthy servers deviate from its forecasts.
    """

    model_id: str
    metrics: tuple[str, ...]
    quantiles: tuple[float, ...]
    step_seconds: int
    departures: DepartureStatistics = field(default=SIMULATED, hash=False)  # views are hashed for each forecast

    @property
    def starter(self) -> bool:
        """Whether it is the starter model."""
        return is_starter(self.model_id)

    @classmethod
    def of(cls, engine: Engine) -> ModelView:
        """The view of a loaded model."""
        return replace(cls.of_config(engine.model_id, engine.config), departures=engine.departures)

    @classmethod
    def of_config(cls, model_id: str, config: ModelConfig) -> ModelView:
        """The view of a model: of its metrics, those that the fleet has too."""
        return cls(model_id, served_metrics(config), tuple(config.quantiles), config.step_seconds)


@dataclass(frozen=True)
class PeerSummary:
    """Number of peers that a forecast uses.

    weights: by metric of the model view, of the peers' level against the server's own, 0 to 1; empty without peers.
    """

    count: int
    weights: tuple[float, ...] = ()

    @property
    def weight(self) -> float:
        """The mean over the metrics."""
        return round(sum(self.weights) / len(self.weights), 3) if self.weights else 0.0

    def as_document(self) -> dict[str, float]:
        """For JSON."""
        return {"count": self.count, "weight": self.weight}


NO_PEERS = PeerSummary(0)


class ServerRisk(NamedTuple):
    """The risk of an incident on a server.

    probabilities: float32 [horizon] of RISK_HORIZONS, that an incident begins within it or is under way. features:
    float32 [feature], from which the model explains the risk.
    """

    model: RiskModel
    probabilities: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class ServerForecast:
    """Forecast of one server.

    origin_seconds: UTC time of the last step used; quantiles: float32 [metric, quantile, horizon step].
    history_steps: measured steps in the model's input; rule: the source of the profile, None if nothing matched.
    not_measured: metrics of the model that are not forecast, because neither the server nor its profile measures them;
    their quantiles are NaN. provisional: the step of the origin was not complete. risk: None without a risk model,
    before the first complete step, and for a provisional forecast.
    """

    server_name: str
    model: ModelView
    origin_seconds: int
    made_at_seconds: float
    profile: str
    rule: str | None
    history_steps: int
    quantiles: np.ndarray
    warnings: tuple[str, ...]
    current: tuple[float | None, ...]  # step mean at the origin, per metric of the model
    peers: PeerSummary = NO_PEERS
    provisional: bool = False
    risk: ServerRisk | None = None
    not_measured: tuple[str, ...] = ()

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are forecast for this server."""
        return tuple(metric for metric in self.model.metrics if metric not in self.not_measured)

    @property
    def has_complete_step(self) -> bool:
        """Whether a complete step was measured: `history_steps` counts the running one of a provisional forecast."""
        return self.history_steps > self.provisional

    @property
    def horizon_steps(self) -> int:
        """Length of the forecast."""
        return int(self.quantiles.shape[2])


@dataclass(frozen=True)
class FleetSnapshot:
    """Forecasts by server name after a cycle. Replaced as a whole, never changed.

    Counts over the fleet are computed on first use.
    """

    forecasts: Mapping[str, ServerForecast] = field(default_factory=lambda: MappingProxyType({}))
    origin_seconds: int | None = None  # last complete step at the cycle
    made_at_seconds: float | None = None
    model: ModelView | None = None

    @cached_property
    def origins(self) -> Counter[tuple[int, int]]:
        """Number of servers by (origin, step of the model), in seconds."""
        return Counter((forecast.origin_seconds, forecast.model.step_seconds) for forecast in self.forecasts.values())

    @cached_property
    def profiles(self) -> Counter[str]:
        """Number of servers by profile."""
        return Counter(forecast.profile for forecast in self.forecasts.values())

    @cached_property
    def unmatched(self) -> list[str]:
        """Sorted names that no rule matches."""
        return sorted(name for name, forecast in self.forecasts.items() if forecast.rule is None)
