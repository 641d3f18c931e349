"""Which metrics of a model are served, and the differences between the model and the fleet in use.

A metric is served if both define it with the same unit and kind, for the servers of `measured_metrics`. A model is
served with its own calendar, except the starter model, which has the calendar of the fleet in use: the hours that it
was trained on are those of a business day.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fleet_forecast.contract.definitions import BUILT_IN_FLEET, METRIC_SPECS, METRICS, fleet_in_use
from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import ModelConfig, ModelError
from fleet_forecast.inference.model_directory import is_starter


def load_for_fleet(model_dir: Path, device: str, threads: int | None) -> Engine:
    """Engine.load, with the calendar of the fleet in use if it is the starter model."""
    engine = Engine.load(model_dir, device=device, threads=threads)
    return engine.with_calendar(fleet_in_use().calendar) if is_starter(engine.model_id) else engine


def served_metrics(config: ModelConfig) -> tuple[str, ...]:
    """The model's metrics that the fleet defines as the model does, in the model's order."""
    return tuple(metric for metric in config.targets if _difference(config, metric) is None)


def measured_metrics(
    config: ModelConfig, history: np.ndarray, profiles: Sequence[str | None], peers: Peers | None
) -> np.ndarray:
    """Which metrics are forecast for each server: boolean [server, metric of the model].

    Those that the server itself measured, that servers of its profile had in the training data, or that its profile
    measures now. A server without any measurement whose profile is unknown has all of them. A model of an earlier
    version, which has not recorded what its profiles measured, forecasts all of them for every server.
    history: float32 [server, step, metric], NaN = not measured. profiles, peers: as for Engine.forecast.
    """
    shape = len(history), len(config.targets)
    if not config.measured_by_profile:
        return np.ones(shape, dtype=bool)
    measured: np.ndarray = np.logical_not(np.isnan(history).all(axis=1))  # no step: none
    without_any = ~measured.any(axis=1)
    for profile in set(profiles):
        rows = np.array([each == profile for each in profiles])
        trained = config.measured_by_profile.get(profile) if profile is not None else None
        if trained is None:
            measured[rows & without_any] = True
        else:
            measured[rows] |= np.isin(config.targets, list(trained))
    if peers is not None and peers.table.profiles:
        counts = peers.table.statistics.counts.max(axis=1, initial=0)  # [profile, metric]
        rows = peers.table.rows_of(profiles)
        measured |= (counts[rows] > 0) & (rows >= 0)[:, None]
    return measured


def check_served(config: ModelConfig, where: object) -> None:
    """Raises ModelError if no metric of the model is served. where: the model directory, for the message."""
    if not served_metrics(config):
        raise ModelError(
            f"{where}: it forecasts {', '.join(config.targets)}, which the fleet does not have; add them to the fleet "
            f"file, or train a model on {', '.join(METRICS)}"
        )


def contradictions(config: ModelConfig) -> list[str]:
    """Sentences, with the remedy, on what the model and the fleet define differently."""
    found = [text for metric in config.targets if (text := _difference(config, metric)) is not None]
    fleet = fleet_in_use()
    found += [
        f"metric {metric} of the fleet file is not forecast: the model was not trained on it; train on data with it"
        for metric in fleet.names
        if metric not in {*config.targets, *BUILT_IN_FLEET.names}
    ]
    if fleet.names_calendar and fleet.calendar != config.calendar:
        found.append(
            f"the calendar of {fleet.source} is not that of the model, which is used; train again to use the file's"
        )
    return found


def _difference(config: ModelConfig, metric: str) -> str | None:
    """Why a metric of the model is not served; None if it is."""
    own, trained = METRIC_SPECS.get(metric), config.definition_of(metric)
    if own is None:
        return f"metric {metric} of the model is not served: it is not in the fleet file; add [metrics.{metric}] there"
    if trained is None or (own.unit, own.kind) == (trained.unit, trained.kind):
        return None
    return (
        f"metric {metric} of the model is not served: it is a {trained.kind} in {trained.unit}, in the fleet file a "
        f"{own.kind} in {own.unit}; correct the file, or train again"
    )
