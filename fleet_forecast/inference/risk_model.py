"""The risk model of a model directory: the probability that an incident begins soon or is under way, and why.

risk_model.txt     gradient-boosted trees in LightGBM's text format: features -> one score
risk_model.json    features, calibration of the score to probabilities, curve of false alarms, scores, canary

Both are missing in directories that were trained without a risk model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.forecast_spec import REPORT_HORIZONS
from fleet_forecast.features.peers import OrderStatistics, Peers, PeerTable
from fleet_forecast.inference.canary import read_canary
from fleet_forecast.inference.model_config import RETRAIN, ModelError
from fleet_forecast.inference.model_directory import CANARY_FILE, read_regular
from fleet_forecast.risk.alarms import CurvePoint
from fleet_forecast.risk.calibration import Calibration
from fleet_forecast.risk.features import FEATURES_VERSION, RiskInput, RiskSpec, feature_names, risk_features
from fleet_forecast.risk.lightgbm_library import LightgbmMissingError, load_lightgbm

if TYPE_CHECKING:
    from lightgbm import Booster

TREES_FILE, RISK_FILE = "risk_model.txt", "risk_model.json"
MAX_BYTES = 64 * 1024 * 1024  # of each file
RISK_HORIZONS = {label: seconds for label, seconds in REPORT_HORIZONS.items() if seconds >= 3_600}
ALERT_HORIZON = "4h"  # the curve's levels are risks within it
SIMULATOR, LABELS = "simulator", "labels"  # what a risk model was trained on
CANARY_TOLERANCE = 1e-3  # absolute
COPY = "copy the model directory again or train again"


class Driver(NamedTuple):
    """A metric and a time scale that contribute to the risk; None for features without a metric or without a scale."""

    metric: str | None
    seconds: int | None


@dataclass(frozen=True)
class RiskDescription:
    """Content of risk_model.json besides the canary.

    trained_on: SIMULATOR or LABELS. curve: alarms by level of the risk within ALERT_HORIZON. scores: how the curve was
    measured, and the reliability diagram.
    """

    trained_on: str
    spec: RiskSpec
    calibration: Calibration
    curve: tuple[CurvePoint, ...]
    scores: dict[str, Any]

    def to_json(self, canary: np.ndarray) -> str:
        """The file's content; canary: probabilities of the model's canary."""
        spec = {name: _plain(value) for name, value in asdict(self.spec).items()}
        spec["calendar"] = self.spec.calendar.as_document()
        fields = {
            "features_version": FEATURES_VERSION,
            "trained_on": self.trained_on,
            "features": [str(name) for name in feature_names(self.spec.metrics)],
            "horizon_seconds": list(RISK_HORIZONS.values()),
            "spec": spec,
            "calibration": {name: _plain(value) for name, value in self.calibration._asdict().items()},
            "curve": [point._asdict() for point in self.curve],
            "scores": self.scores,
            "canary": canary.tolist(),
        }
        return json.dumps(fields, indent=2)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> RiskDescription:
        """The content of a file. Raises KeyError, TypeError or ValueError for other content."""
        spec = dict(fields["spec"])
        for name in ("metrics", "percent", "profiles"):
            spec[name] = tuple(spec[name])
        for name in ("deviation", "covariance"):
            spec[name] = np.array(spec[name], dtype=np.float32)
        spec["calendar"] = BusinessCalendar.of_record(spec)
        spec.pop("timezone", None)  # of earlier versions
        calibration = Calibration(*(np.array(fields["calibration"][name], np.float64) for name in Calibration._fields))
        curve = tuple(CurvePoint(**point) for point in fields["curve"])
        found = cls(str(fields["trained_on"]), RiskSpec(**spec), calibration, curve, dict(fields["scores"]))
        found._check(fields)
        return found

    def _check(self, fields: dict[str, Any]) -> None:
        """Raises ValueError if fields do not fit together."""
        size = len(self.spec.metrics)
        shape = len(RISK_HORIZONS), len(self.calibration.scores)
        checks = {
            "trained_on": self.trained_on in (SIMULATOR, LABELS),
            "features": fields["features"] == [str(name) for name in feature_names(self.spec.metrics)],
            "horizon_seconds": fields["horizon_seconds"] == list(RISK_HORIZONS.values()),
            "spec": self.spec.deviation.shape == (size,) and self.spec.covariance.shape[1:] == (size, size),
            "calibration": self.calibration.log_odds.shape == shape
            and bool(np.isfinite(self.calibration.log_odds).all() and (np.diff(self.calibration.scores) > 0).all()),
        }
        for name, holds in checks.items():
            if not holds:
                raise ValueError(f"{name} is not what this software reads")


class RiskModel:
    """Risks of servers. Thread-safe.

    model_metrics: those of the model's history and peers; the risk model uses some of them or all.
    """

    def __init__(self, booster: Booster, description: RiskDescription, model_metrics: Sequence[str]) -> None:
        self.description = description
        self.history_steps = description.spec.day_steps  # of the history that is used
        self.threads = 1
        self._booster = booster
        self._columns = [list(model_metrics).index(metric) for metric in description.spec.metrics]
        self._all_metrics = self._columns == list(range(len(model_metrics)))

    @classmethod
    def load(cls, model_dir: Path, model_metrics: Sequence[str], threads: int = 1) -> RiskModel | None:
        """The risk model of a verified model directory, None if it has none.

        Raises ModelError naming the file if it is damaged, of another version, or does not reproduce its canary.
        """
        if not (model_dir / RISK_FILE).exists() and not (model_dir / TREES_FILE).exists():
            return None
        description, canary = _read_description(model_dir / RISK_FILE)
        lacking = [metric for metric in description.spec.metrics if metric not in model_metrics]
        if lacking:
            raise ModelError(
                f"{model_dir / RISK_FILE}: it uses {', '.join(lacking)}, which the model does not have; {COPY}"
            )
        model = cls(_read_trees(model_dir / TREES_FILE, description.spec), description, model_metrics)
        model._check_canary(model_dir, canary)
        model.threads = threads
        return model

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """Alarms by level, measured on fleets that the trees were not trained on."""
        return self.description.curve

    @property
    def trained_on(self) -> str:
        """SIMULATOR or LABELS."""
        return self.description.trained_on

    def summary(self) -> dict[str, Any]:
        """Description of the model: training data, horizons, metrics and curve."""
        return {
            "trained_on": self.trained_on,
            "horizons": list(RISK_HORIZONS),
            "metrics": list(self.description.spec.metrics),
            "alert_horizon": ALERT_HORIZON,
            "curve": [point._asdict() for point in self.curve],
        }

    def features(self, inputs: RiskInput) -> np.ndarray:
        """float32 [server, feature]; history and peers have the model's metrics."""
        if not self._all_metrics:
            peers = None if inputs.peers is None else _of_columns(inputs.peers, self._columns)
            inputs = inputs._replace(history=inputs.history[..., self._columns], peers=peers)
        return risk_features(inputs, self.description.spec)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """That an incident begins within each of RISK_HORIZONS or is under way: float32 [server, horizon]."""
        if not len(features):
            return np.empty((0, len(RISK_HORIZONS)), dtype=np.float32)
        return self.description.calibration.probabilities(self.scores(features))

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Sums of the trees, before the calibration: float64 [server]."""
        return np.asarray(self._booster.predict(features, raw_score=True, num_threads=self.threads))

    def contributions(self, features: np.ndarray) -> np.ndarray:
        """Log odds that each of `drivers` adds to the score: float32 [server, driver].

        They are the sums of the features' SHAP values (Lundberg et al. 2020), which LightGBM computes.
        """
        by_feature = np.asarray(self._booster.predict(features, pred_contrib=True, num_threads=self.threads))[:, :-1]
        return (by_feature @ self._driver_of_feature).astype(np.float32)

    @property
    def drivers(self) -> tuple[Driver, ...]:
        """The columns of `contributions`."""
        names = feature_names(self.description.spec.metrics)
        return tuple(dict.fromkeys(Driver(name.metric, name.seconds) for name in names))

    @cached_property
    def _driver_of_feature(self) -> np.ndarray:
        """float32 [feature, driver], 1 where the feature belongs to the driver."""
        names = feature_names(self.description.spec.metrics)
        return np.array(
            [[Driver(name.metric, name.seconds) == driver for driver in self.drivers] for name in names], np.float32
        )

    def _check_canary(self, model_dir: Path, expected: np.ndarray) -> None:
        made = canary_risk(self, model_dir)
        if made.shape != expected.shape or not np.allclose(made, expected, rtol=0, atol=CANARY_TOLERANCE):
            raise ModelError(
                f"{model_dir / RISK_FILE}: the risk model does not reproduce its canary; use the package versions of "
                "requirements.txt or train again"
            )


def canary_risk(model: RiskModel, model_dir: Path) -> np.ndarray:
    """Risks of the servers of the model's canary: float32 [server, horizon]."""
    canary = read_canary(model_dir / CANARY_FILE)
    inputs = RiskInput(
        canary.history, canary.profiles, canary.origins, canary.peers(model.description.spec.step_seconds)
    )
    return model.probabilities(model.features(inputs))


def write_risk_model(model_dir: Path, model: RiskModel) -> None:
    """Write both files into a model directory that has its canary already."""
    (model_dir / TREES_FILE).write_text(model._booster.model_to_string(), encoding="utf-8")
    content = model.description.to_json(canary_risk(model, model_dir))
    (model_dir / RISK_FILE).write_text(content, encoding="utf-8")


def _read_description(path: Path) -> tuple[RiskDescription, np.ndarray]:
    try:
        fields = json.loads(read_regular(path, MAX_BYTES))
        version = fields["features_version"]
        if version == FEATURES_VERSION:
            return RiskDescription.from_fields(fields), np.array(fields["canary"], dtype=np.float32)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not a risk model ({error}); {COPY}") from error
    raise ModelError(f"{path}: features_version is {version!r}, this software reads {FEATURES_VERSION}; {RETRAIN}")


def _read_trees(path: Path, spec: RiskSpec) -> Booster:
    try:
        lightgbm = load_lightgbm()
    except LightgbmMissingError as error:
        raise ModelError(f"{path}: {error}") from error
    try:
        booster: Booster = lightgbm.Booster(model_str=read_regular(path, MAX_BYTES).decode())
        features = booster.num_feature()
    except (OSError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise ModelError(f"{path}: not trees of LightGBM ({str(error)[:200]}); {COPY}") from error
    expected = len(feature_names(spec.metrics))
    if features != expected:
        raise ModelError(f"{path}: the trees have {features} features, not {expected}; {COPY}")
    return booster


def _of_columns(peers: Peers, columns: list[int]) -> Peers:
    """Peers with some of the metrics."""
    statistics = OrderStatistics(*(field[..., columns] for field in peers.table.statistics))
    table = PeerTable(peers.table.profiles, peers.table.first_step, statistics)
    values = None if peers.values is None else peers.values[..., columns]
    return Peers(table, peers.members, values)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
