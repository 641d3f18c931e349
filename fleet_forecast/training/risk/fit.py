"""Trains the risk model: trees on sampled features, calibration and curve on held-out fleets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.inference.risk_model import ALERT_HORIZON, RISK_HORIZONS, SIMULATOR, RiskDescription, RiskModel
from fleet_forecast.risk.alarms import CURVE_LEVELS, USUAL_RATE, begins_within, curve, near_incident
from fleet_forecast.risk.calibration import Calibration, Outcomes, fit_calibration, reliability
from fleet_forecast.risk.features import RiskSpec, feature_names, risk_features
from fleet_forecast.risk.lightgbm_library import load_lightgbm
from fleet_forecast.training.risk.fleets import EVEN_FLEETS, LabelledFleet, SimulatedFleets
from fleet_forecast.training.risk.samples import fit_statistics, sample

if TYPE_CHECKING:
    from lightgbm import Booster

TREES = {
    "objective": "binary",
    "num_leaves": 31,
    "learning_rate": 0.06,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "verbose": -1,
}
ROUNDS = 200
NEAR_SECONDS, AFTER_SECONDS = 8 * 3_600, 7_200  # time around an incident whose weight follows the incident rate
STATISTICS_FLEETS = 2
FIRST_TRAINING_SEED, FIRST_HELD_OUT_SEED = 5_001, 6_001  # of simulated fleets; benchmarks use others
NO_CALIBRATION = Calibration(np.zeros(1), np.zeros((len(RISK_HORIZONS), 1)))


@dataclass(frozen=True)
class RiskSettings:
    """How much is simulated.

    training_rate, held_out_rate: incidents per server and month. held_out_servers: at least so many, in all held-out
    fleets together. held_out_counts: servers by profile of each held-out fleet; false alarms differ by profile, so they
    are best those of the fleet that the model is for.
    """

    training_fleets: int = 15
    held_out_servers: int = 360
    held_out_counts: Mapping[str, int] = field(default_factory=lambda: EVEN_FLEETS[0])
    days: float = 14.0
    training_rate: float = 12.0
    held_out_rate: float = 4.0
    rounds: int = ROUNDS
    threads: int = 1
    seed: int = 0
    without: tuple[str, ...] = ()


def train_on_simulator(
    metrics: Sequence[str], step_seconds: int, calendar: BusinessCalendar, settings: RiskSettings
) -> tuple[RiskModel, list[LabelledFleet]]:
    """A risk model trained on simulated fleets with many times the usual rate of incidents, and the held-out fleets.

    metrics: of the model, among those that are simulated.
    """
    fleets = SimulatedFleets(tuple(metrics), step_seconds, calendar, settings.days, settings.training_rate)
    fleets = replace(fleets, without=settings.without)
    seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + settings.training_fleets)
    training = list(fleets.fleets(seeds))
    number = -(-settings.held_out_servers // sum(settings.held_out_counts.values()))
    others = replace(fleets, rate=settings.held_out_rate, without=(), counts=(settings.held_out_counts,))
    held_out = list(others.fleets(range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + number)))
    return train(training, held_out, settings, SIMULATOR), held_out


def train(
    training: Sequence[LabelledFleet], held_out: Sequence[LabelledFleet], settings: RiskSettings, trained_on: str
) -> RiskModel:
    """A risk model of the metrics of the fleets."""
    grid = training[0].grid
    profiles = sorted({profile for fleet in training for profile in fleet.grid.profiles if profile is not None})
    spec = RiskSpec.empty(grid.metrics, grid.step_seconds, training[0].calendar, profiles)
    spec = fit_statistics(training[:STATISTICS_FLEETS], spec)
    booster, incidents = fit_trees(training, spec, settings)
    description = RiskDescription(trained_on, spec, NO_CALIBRATION, (), {})
    model = RiskModel(booster, description, grid.metrics)
    model.threads = settings.threads
    scored = [risks(fleet, spec, model.scores) for fleet in held_out]
    outcomes = outcomes_of(held_out, scored)
    calibration = fit_calibration(outcomes)
    by_horizon = [calibration.probabilities(scores.ravel()).reshape(*scores.shape, -1) for scores in scored]
    alert = list(RISK_HORIZONS).index(ALERT_HORIZON)
    scenes = [fleet.scene() for fleet in held_out]
    points = tuple(curve([risk[..., alert] for risk in by_horizon], scenes, CURVE_LEVELS))
    scores: dict[str, Any] = {
        "training_incidents": incidents,
        "held_out_incidents": sum(len(fleet.incidents.server) for fleet in held_out),
        "held_out_server_months": round(sum(scene.server_months for scene in scenes), 1),
        "alert_horizon": ALERT_HORIZON,
        "reliability": {
            label: reliability(calibration.probabilities(outcomes.scores), outcomes, position)
            for position, label in enumerate(RISK_HORIZONS)
        },
    }
    described = RiskDescription(trained_on, spec, calibration, points, scores)
    return RiskModel(booster, described, grid.metrics)


def fit_trees(training: Sequence[LabelledFleet], spec: RiskSpec, settings: RiskSettings) -> tuple[Booster, int]:
    """The trees, and the number of incidents that they were trained on."""
    random = np.random.default_rng(settings.seed)
    parts = []
    for position, fleet in enumerate(training, start=1):
        print(f"risk model: features of fleet {position} of {len(training)}", file=sys.stderr)
        parts.append(sample(fleet, spec, random))
    features, target, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    names = [str(name) for name in feature_names(spec.metrics)]
    lightgbm = load_lightgbm()
    data = lightgbm.Dataset(features, target.astype(np.int8), weight=weight, feature_name=names)
    print(f"risk model: {settings.rounds} trees on {len(features):,} samples", file=sys.stderr)
    parameters = {**TREES, "num_threads": settings.threads, "seed": settings.seed}
    return lightgbm.train(parameters, data, settings.rounds), sum(len(fleet.incidents.server) for fleet in training)


def risks(fleet: LabelledFleet, spec: RiskSpec, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Predictions at every step: float32 [server, step from first_step on], NaN where a server was not measured."""
    values = fleet.grid.values
    found = np.full((values.shape[0], values.shape[1] - fleet.first_step), np.nan, dtype=np.float32)
    for column in range(found.shape[1]):
        step = fleet.first_step + column
        rows = np.flatnonzero(~np.isnan(values[:, step]).all(axis=1))
        if rows.size:
            found[rows, column] = predict(risk_features(fleet.risk_input(spec, step, rows), spec))
    return found


def outcomes_of(fleets: Sequence[LabelledFleet], scored: Sequence[np.ndarray]) -> Outcomes:
    """What happened after the scores [server, step], weighted to the usual rate of incidents."""
    parts = []
    for fleet, scores in zip(fleets, scored, strict=True):
        scene, known = fleet.scene(), ~np.isnan(scores)
        happened = np.stack([begins_within(scene, seconds)[known] for seconds in RISK_HORIZONS.values()], axis=1)
        near = near_incident(scene, NEAR_SECONDS, AFTER_SECONDS)[known]
        parts.append((scores[known], happened, np.where(near, USUAL_RATE / fleet.rate, 1.0)))
    return Outcomes(*(np.concatenate(column) for column in zip(*parts, strict=True)))
