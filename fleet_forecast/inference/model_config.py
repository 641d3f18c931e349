"""config.json of a model directory: everything besides the weights that is needed to rebuild a model and to feed it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.definitions import BUILT_IN_FLEET, MetricSpec
from fleet_forecast.contract.specs import CONTRACT_VERSION, is_supported_version
from fleet_forecast.features.fewer_peers import PeerNoise, unknown_noise
from fleet_forecast.features.peer_prior import PeerPrior
from fleet_forecast.features.scaling import STATISTICS, FleetScaling
from fleet_forecast.features.windows import READABLE_WINDOWS_VERSIONS, WINDOWS_VERSION, WindowSpec

CONFIG_FILE = "config.json"
_RECORDED = ("name", "unit", "kind", "description", "label")  # of a metric; the rest is the fleet file's
RETRAIN = "train again with this version, or use the software version that the model was trained with"


class ModelError(RuntimeError):
    """A model directory cannot be used; the message names the file, the problem and the remedy."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture, features and scaling of a model.

    profiles: those the network was trained on; empty: it has no profile feature. definitions: of its metrics.
    measured_by_profile: the metrics that servers of each profile had in the training data. Models of earlier versions
    have neither. Raises ModelError if the contract has another major version than this software's, or the
    windows a version that it does not read.
    """

    model_id: str
    contract_version: str
    windows_version: int
    hidden_size: int
    quantiles: tuple[float, ...]
    profiles: tuple[str, ...]
    spec: WindowSpec
    scaling: FleetScaling
    definitions: tuple[MetricSpec, ...] = ()
    measured_by_profile: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_versions(self.contract_version, self.windows_version)

    @property
    def targets(self) -> tuple[str, ...]:
        """The metrics the model forecasts, in the order of its arrays."""
        return self.spec.metrics

    def definition_of(self, metric: str) -> MetricSpec | None:
        """The definition that a metric was trained with; None if the model did not record it and it is not built in."""
        recorded = {spec.name: spec for spec in self.definitions} or BUILT_IN_FLEET.specs
        return recorded.get(metric)

    @property
    def step_seconds(self) -> int:
        return self.spec.step_seconds

    @property
    def calendar(self) -> BusinessCalendar:
        """Business calendar of the calendar features."""
        return self.spec.calendar

    @property
    def context_steps(self) -> int:
        return self.spec.context_steps

    @property
    def horizon_steps(self) -> int:
        return self.spec.horizon_steps

    @property
    def history_steps(self) -> int:
        """Number of past steps the model can use; older ones are ignored."""
        return self.spec.history_steps

    def to_json(self) -> str:
        """The content of config.json."""
        scaling = {name: getattr(self.scaling, name) for name in FleetScaling.__dataclass_fields__}
        if scaling["peer_prior"] is not None:
            prior = scaling["peer_prior"]
            scaling["peer_prior"] = _as_json(prior._asdict()) | {"noise": _as_json(prior.noise._asdict())}
        fields = {**asdict(replace(self, scaling=replace(self.scaling, peer_prior=None))), "scaling": _as_json(scaling)}
        fields["spec"]["calendar"] = self.spec.calendar.as_document()
        fields["definitions"] = [{name: getattr(spec, name) for name in _RECORDED} for spec in self.definitions]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Parse config.json; raises ModelError if a version is not supported or a field is missing or invalid."""
        try:
            fields = json.loads(text)
            _check_versions(fields["contract_version"], fields["windows_version"])  # first: other fields may differ
            fields["spec"] = _spec_from_fields(fields["spec"])
            fields["scaling"] = _scaling_from_fields(fields["scaling"])
            fields["quantiles"] = tuple(fields["quantiles"])
            fields["profiles"] = tuple(fields["profiles"])
            fields["definitions"] = tuple(MetricSpec(**each) for each in fields.get("definitions", ()))
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"{CONFIG_FILE}: not a model configuration ({error}); train again") from error


def _check_versions(contract_version: object, windows_version: object) -> None:
    for name, version, own, supported in (
        ("contract_version", contract_version, CONTRACT_VERSION, is_supported_version(contract_version)),
        ("windows_version", windows_version, WINDOWS_VERSION, windows_version in READABLE_WINDOWS_VERSIONS),
    ):
        if not supported:
            raise ModelError(f"{CONFIG_FILE}: {name} is {version!r}, this software reads {own!r}; {RETRAIN}")


def _as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _as_list(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()}


def _as_list(values: np.ndarray) -> list[Any]:
    """Floats with the fewest digits that give them back; NaN, where a profile has no peers, as None."""
    if values.dtype.kind == "f":
        shortest = values.astype(np.float32).astype(str).astype(np.float64)
        nullable = shortest.astype(object)
        nullable[np.isnan(shortest)] = None
    else:
        nullable = values
    found: list[Any] = nullable.tolist()
    return found


def _spec_from_fields(fields: Mapping[str, Any]) -> WindowSpec:
    lengths = {name: int(fields[name]) for name in ("step_seconds", "context_steps", "horizon_steps")}
    return WindowSpec(metrics=tuple(fields["metrics"]), calendar=BusinessCalendar.of_record(fields), **lengths)


def _scaling_from_fields(fields: Mapping[str, Any]) -> FleetScaling:
    floats = {name: np.array(fields[name], dtype=np.float32) for name in ("bound_width", *STATISTICS)}
    return FleetScaling(
        metrics=tuple(fields["metrics"]),
        percent=np.array(fields["percent"], dtype=bool),
        profiles=tuple(fields["profiles"]),
        context_steps=int(fields["context_steps"]),
        peer_prior=None if fields["peer_prior"] is None else _peer_prior_from_fields(fields["peer_prior"]),
        **floats,
    )


def _peer_prior_from_fields(fields: Mapping[str, Any]) -> PeerPrior:
    """The peer prior; that of windows of version 6 lacks two fields, that of earlier models the noise."""
    noise = fields.get("noise")
    tables = {name: np.array(value, dtype=np.float32) for name, value in fields.items() if name != "noise"}
    unknown = np.isnan(tables["error_scale"])
    for name, value in (("usual_deviation", 1.0), ("peer_scale_weight", 0.0)):
        tables.setdefault(name, np.where(unknown, np.nan, value).astype(np.float32))
    shape = unknown.shape[:2]
    of_peers = (
        unknown_noise(shape)
        if noise is None
        else PeerNoise(**{name: np.array(value, dtype=np.float32) for name, value in noise.items()})
    )
    return PeerPrior(**tables, noise=of_peers)
