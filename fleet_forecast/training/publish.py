"""Publishes a trained model: the model directory with weights, ONNX files, canary, scores and report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.torch import save

from fleet_forecast.evaluation.against_champion.champion import Comparison
from fleet_forecast.evaluation.report import ModelReport, report_pictures, write_report
from fleet_forecast.evaluation.report_pictures import write_pictures
from fleet_forecast.evaluation.tables import Evaluation, scores_as_json
from fleet_forecast.evaluation.weight_tables import UNKNOWN_PROFILE, WeightTables
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.canary import write_canary
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import CONFIG_FILE, ModelConfig
from fleet_forecast.inference.model_directory import (
    CANARY_FILE,
    DEPARTURES_FILE,
    EVALUATED_WEIGHTS_FILE,
    EVALUATION_FILE,
    EXPLAIN_FILE,
    ONNX_FILE,
    TRAINING_INFO_FILE,
    WEIGHTS_FILE,
    new_model_directory,
)
from fleet_forecast.inference.risk_model import RiskModel, write_risk_model
from fleet_forecast.inference.torch_backend import torch_run
from fleet_forecast.network.export import export_explanation, export_onnx
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.risk.departures import DepartureStatistics
from fleet_forecast.training.ablation import cost
from fleet_forecast.training.batches.source import WindowSelection
from fleet_forecast.training.final_fit import final_fit_cost
from fleet_forecast.training.job import Job
from fleet_forecast.training.split import step_time
from fleet_forecast.training.trainer_state import TrainerState


class RunResult(NamedTuple):
    """The outcome of a run.

    training, evaluation: the evaluated model and its scores. ablation, final_fit, risk_model, departures: None if there
    is none. risk_source: what the risk model was trained on, or why there is none. champion: the comparison with the
    model in use; None if there is none.
    """

    training: TrainerState
    ablation: TrainerState | None
    evaluation: Evaluation
    final_fit: TrainerState | None = None
    risk_model: RiskModel | None = None
    risk_source: str = "no risk model"
    champion: Comparison | None = None
    departures: DepartureStatistics | None = None

    @property
    def published(self) -> TrainerState:
        return self.final_fit or self.training


def publish(job: Job, result: RunResult, models_dir: Path, flags: Mapping[str, Any]) -> Path:
    """Write the model directory atomically and check that it loads; returns its path.

    flags: those of the trainer script, recorded in training_info.json. Raises ModelError if ONNX Runtime does not
    reproduce the canary forecast of torch.
    """
    model = result.published.model.to("cpu").eval()
    config = job.config(free_model_id(models_dir))
    info = training_info(job, result, flags)
    if result.risk_model is not None:
        info["risk_model"] |= result.risk_model.summary() | result.risk_model.description.scores
    with new_model_directory(models_dir, config.model_id) as directory:
        _write_network(directory, job, model, config)
        if result.final_fit is not None:
            (directory / EVALUATED_WEIGHTS_FILE).write_bytes(_weights(result.training.model))
        if result.risk_model is not None:
            write_risk_model(directory, result.risk_model)
        if result.departures is not None:
            (directory / DEPARTURES_FILE).write_text(result.departures.to_json(), encoding="utf-8")
        (directory / TRAINING_INFO_FILE).write_text(json.dumps(info, indent=2), encoding="utf-8")
        weights = job.mean_weights(model)
        _write_tables(directory, result.evaluation, weights)
        (directory / EVALUATION_FILE).write_text(json.dumps(result.evaluation.as_document()), encoding="utf-8")
        report = ModelReport(config.model_id, info, result.evaluation, weights, data_summary(job.grid))
        write_report(directory, report)
        if flags.get("report_pictures") and (problem := write_pictures(directory, report_pictures(report))):
            print(f"note: {problem}", file=sys.stderr)
    Engine.load(models_dir / config.model_id, device="cpu")
    return models_dir / config.model_id


def free_model_id(models_dir: Path) -> str:
    """tft_model_<UTC time>, followed by a number if a model of the same second exists."""
    name = datetime.now(UTC).strftime("tft_model_%Y%m%d_%H%M%S")
    taken = sum(1 for path in models_dir.glob(f"{name}*"))
    return f"{name}_{taken + 1}" if taken else name


def _write_network(directory: Path, job: Job, model: ForecastModel, config: ModelConfig) -> None:
    (directory / WEIGHTS_FILE).write_bytes(_weights(model))
    rows, origins = np.zeros(2, np.int64), np.full(2, config.context_steps)
    known_steps = np.full(2, config.history_steps)
    example = job.source.batch(WindowSelection(rows, origins, config.context_steps, known_steps))
    export_onnx(model, example.windows, directory / ONNX_FILE)
    export_explanation(model, example.windows, directory / EXPLAIN_FILE)
    (directory / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    write_canary(directory / CANARY_FILE, config, Engine(config, torch_run(model)).forecast)


def _weights(model: ForecastModel) -> bytes:
    """Content of a weights file. safetensors' save_file would make the file unreadable to others."""
    # Cloned, as the stock class has some weights under two names and safetensors rejects shared memory.
    return save({name: value.clone() for name, value in model.network.state_dict().items()})


def _write_tables(directory: Path, evaluation: Evaluation, weights: WeightTables) -> None:
    for servers, table in evaluation.scores.items():
        table.to_parquet(directory / f"scores_{servers}.parquet", index=False)
    if len(evaluation.cold_start):
        evaluation.cold_start.to_parquet(directory / "cold_start.parquet", index=False)
    weights.variables.to_parquet(directory / "variable_weights.parquet", index=False)
    weights.attention.to_parquet(directory / "attention.parquet", index=False)


def data_summary(grid: FleetGrid) -> pd.DataFrame:
    """The data by profile: servers, steps without a measurement in percent, longest such time in hours."""
    silent = np.stack([np.isnan(of_server).all(axis=1) for of_server in grid.values])  # [server, step]
    longest = np.array([_longest_run(of_server) for of_server in silent]) * grid.step_seconds / 3600
    frame = pd.DataFrame(
        {
            "profile": [profile or UNKNOWN_PROFILE for profile in grid.profiles],
            "servers": 1,
            "silent_pct": 100 * silent.mean(axis=1),
            "longest_silence_hours": longest,
        }
    )
    how = {"servers": "sum", "silent_pct": "mean", "longest_silence_hours": "max"}
    return frame.groupby("profile", as_index=False).agg(how)


def _longest_run(flags: np.ndarray) -> int:
    """Length of the longest run of True in a boolean array."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def training_info(job: Job, result: RunResult, flags: Mapping[str, Any]) -> dict[str, Any]:
    """training_info.json: data, split, flags, loss history, cost and scores of the run."""
    grid, split = job.grid, job.split
    return {
        "data": str(flags.get("from_history") or flags["training_dir"]),
        "servers": len(grid.servers),
        "unseen_servers": [grid.servers[row] for row in split.unseen_servers],
        "validation_servers": [grid.servers[row] for row in split.validation_servers],
        "first_timestamp": step_time(grid, 0),
        "train_end": step_time(grid, split.train_end),
        "test_start": step_time(grid, split.test_start),
        "last_timestamp": step_time(grid, grid.steps - 1),
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()},
        "loss_history": result.training.loss_history,
        **run_summary(result),
    }


def run_summary(result: RunResult) -> dict[str, Any]:
    """Cost, losses and scores of the run.

    "risk_model": what it was trained on. "departures": how far healthy servers deviate, null if too few were measured.
    "comparison", "final_fit": cost of the ablation and of the final fit, null if
    there was none. "scored_model": which model cost, losses and scores are of: the published one, or that before the
    final fit. "champion": the comparison with the model that was in use, null if there was none.
    """
    training, ablation, evaluation, final_fit, risk_model, risk_source, champion, departures = result
    return {
        **cost(training),
        "epochs": round(training.epochs, 3),
        "stopped_by": training.stopped_by,
        "first_validation_loss": training.first_validation_loss,
        "best_validation_loss": training.best_validation_loss,
        "comparison": cost(ablation) if ablation else None,
        "final_fit": final_fit_cost(final_fit) if final_fit else None,
        "scored_model": "before the final fit" if final_fit else "published",
        "scores": scores_as_json(evaluation.scores),
        "risk_model": {"trained_on": risk_model.trained_on if risk_model else None, "source": risk_source},
        "departures": asdict(departures) if departures else None,
        "champion": champion.as_document() if champion else None,
    }
