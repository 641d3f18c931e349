"""Compares the champion, the model in use, with a challenger on the newest days of the challenger's data.

Both are evaluated with the weights before their final fit, which trains on all days; the champion's directory contains
them for this. A directory without them is evaluated with its published weights. Only forecasts after the champion's
training and validation time count. If there are none, all count, and a remark states that this favours the champion.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.evaluation.against_champion.comparison import (
    Forecasts,
    GroupComparison,
    compare_group,
    risk_is_worse,
)
from fleet_forecast.evaluation.backtest import BacktestPlan, Forecaster, model_forecasts
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import ModelConfig, ModelError
from fleet_forecast.inference.model_directory import (
    EVALUATED_WEIGHTS_FILE,
    TRAINING_INFO_FILE,
    WEIGHTS_FILE,
    is_starter,
    read_config,
    verify,
)
from fleet_forecast.inference.risk_model import RiskModel
from fleet_forecast.inference.torch_backend import load_model, torch_run
from fleet_forecast.iso_time import iso, utc_seconds
from fleet_forecast.wording import counted

WITHOUT_A_RISK_MODEL = "it has no risk model, the champion has one"


@dataclass(frozen=True)
class Champion:
    """A model directory to compare with.

    seen_until_seconds: end of its training and validation time. final_fit: its weights were also trained on later data.
    """

    config: ModelConfig
    forecaster: Forecaster
    seen_until_seconds: float
    final_fit: bool
    risk_model: RiskModel | None

    @classmethod
    def load(cls, model_dir: Path) -> Champion:
        """Raises ModelError if the directory cannot be used."""
        resolved = verify(model_dir)
        config = read_config(resolved)
        try:
            info = json.loads((resolved / TRAINING_INFO_FILE).read_text(encoding="utf-8"))
            whole = bool(info.get("final_fit")) and not (resolved / EVALUATED_WEIGHTS_FILE).exists()
            # The starter model was not trained on the user's fleet; the dates of its own data have no meaning here.
            seen_until = (
                0 if is_starter(resolved.name) else utc_seconds(info["last_timestamp" if whole else "test_start"])
            )
            kept = (resolved / EVALUATED_WEIGHTS_FILE).exists()
            model = load_model(resolved, config, EVALUATED_WEIGHTS_FILE if kept else WEIGHTS_FILE)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{resolved}: cannot be compared with ({error})") from error
        risk = RiskModel.load(resolved, config.targets)
        return cls(config, Engine(config, torch_run(model)).forecast, seen_until, whole, risk)


class Challenger(NamedTuple):
    """The evaluated model of a run, and its risk model."""

    config: ModelConfig
    forecaster: Forecaster
    risk_model: RiskModel | None


@dataclass(frozen=True)
class Comparison:
    """The outcome. problems: why the challenger is worse; empty if it is not. remark: what limits the comparison."""

    champion: str
    groups: tuple[GroupComparison, ...] = ()
    first_seconds: int | None = None
    last_seconds: int | None = None
    problems: tuple[str, ...] = ()
    remark: str = ""

    def as_document(self) -> dict[str, Any]:
        """The entry `champion` of training_info.json."""
        times = [None if seconds is None else iso(seconds) for seconds in (self.first_seconds, self.last_seconds)]
        return {
            "model": self.champion,
            "first_origin": times[0],
            "last_origin": times[1],
            "groups": [group.as_document() for group in self.groups],
            "worse": list(self.problems),
            "remark": self.remark,
        }


def compare_with_champion(
    model_dir: Path, challenger: Challenger, plans: Mapping[str, BacktestPlan], observed: np.ndarray
) -> Comparison:
    """Compare the challenger with the model in a directory, on the test period of each group of servers.

    plans: by group. observed: int64, rows of the grid that may be peers. A champion that cannot be used is replaced.
    """
    name = model_dir.resolve().name
    try:
        champion = Champion.load(model_dir)
    except ModelError as error:
        return Comparison(name, remark=f"the champion cannot be used: {error}")
    if problems := _lacks(champion, challenger):
        return Comparison(name, problems=tuple(problems), remark="not the same task, so the errors were not compared")
    ground = _Ground.of(next(iter(plans.values())), champion, observed)
    found = []
    for group, plan in plans.items():
        print(f"comparing with {name} on {counted(len(plan.rows), f'{group} server')}", file=sys.stderr)
        compared = ground.compare(group, plan, champion, challenger)
        found += [compared] if compared else []
    if not found:
        return Comparison(name, remark="no point of the test period has a measurement and both forecasts")
    problems = [problem for group in found for problem in group.problems()]
    if champion.risk_model is not None and challenger.risk_model is not None:
        worse = risk_is_worse(champion.risk_model.curve, challenger.risk_model.curve)
        problems += [worse] if worse else []
    times = ground.grid.timestamps()[ground.origins[[0, -1]]].astype(np.int64).tolist()
    return Comparison(name, tuple(found), times[0], times[1], tuple(problems), ground.remark)


def _lacks(champion: Champion, challenger: Challenger) -> list[str]:
    """Abilities of the champion that the challenger lacks."""
    before, after = champion.config, challenger.config
    found = []
    if lost := [metric for metric in before.targets if metric not in after.targets]:
        found.append(f"it does not forecast {', '.join(lost)}, which the champion does")
    if before.step_seconds != after.step_seconds:
        found.append(f"its step is {after.step_seconds} s, that of the champion {before.step_seconds} s")
    elif after.horizon_steps < before.horizon_steps:
        hours = [each.horizon_steps * each.step_seconds / 3600 for each in (after, before)]
        found.append(f"it forecasts {hours[0]:g} h, the champion {hours[1]:g} h")
    if champion.risk_model is not None and challenger.risk_model is None:
        found.append(WITHOUT_A_RISK_MODEL)
    return found


@dataclass(frozen=True)
class _Ground:
    """What both models are compared on.

    grid: with the champion's metrics. columns: where they are among the challenger's. peers: of the grid, None if the
    champion has none. origins: those after the champion's training, or all of them, with the remark.
    """

    grid: FleetGrid
    columns: list[int]
    peers: Peers | None
    origins: np.ndarray
    remark: str

    @classmethod
    def of(cls, plan: BacktestPlan, champion: Champion, observed: np.ndarray) -> _Ground:
        config = champion.config
        columns = [plan.grid.metrics.index(metric) for metric in config.targets]
        grid = replace(plan.grid, metrics=config.targets, values=plan.grid.values[..., columns])
        peers = grid.peers(observed) if config.scaling.peer_prior is not None else None
        first_target_seconds = grid.timestamps()[plan.origins].astype(np.int64) + grid.step_seconds
        later = plan.origins[first_target_seconds >= champion.seen_until_seconds]
        remark = "" if len(later) else "the champion was trained on these days, which favours it"
        return cls(grid, columns, peers, later if len(later) else plan.origins, remark)

    def compare(
        self, group: str, plan: BacktestPlan, champion: Champion, challenger: Challenger
    ) -> GroupComparison | None:
        """The comparison on the servers of a plan; None without a common point."""
        horizon = champion.config.horizon_steps
        own = replace(plan, origins=self.origins)
        of_champion = replace(own, grid=self.grid, peers=self.peers, horizon_steps=horizon)
        rows, origins, actual = of_champion.windows()
        if not len(rows):
            return None
        before = model_forecasts(of_champion, champion.forecaster, champion.config.history_steps)
        after = model_forecasts(own, challenger.forecaster, challenger.config.history_steps)
        after = after[_positions(own, rows, origins), :horizon][:, :, self.columns]
        levels = champion.config.quantiles, challenger.config.quantiles
        return compare_group(group, rows, actual, Forecasts(before, levels[0]), Forecasts(after, levels[1]))


def _positions(plan: BacktestPlan, rows: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Where the windows with these rows and origins are among those of the plan, which has all of them."""
    own_rows, own_origins, _ = plan.windows()
    place = {window: index for index, window in enumerate(zip(own_rows.tolist(), own_origins.tolist(), strict=True))}
    return np.array([place[window] for window in zip(rows.tolist(), origins.tolist(), strict=True)])
