"""Warnings of the risk model on simulated fleets that it has not seen: found, ahead of the harm, false alarms.

    python benchmarks/risk/simulated.py --model models/current                      # JSON is the last line
    python benchmarks/risk/simulated.py --model models/current --seeds 801,802 --days 7
    python benchmarks/risk/simulated.py --leave-out                                 # kinds that it was not trained on

The levels are those that the model's own curve, measured on its held-out fleets, gives for the budgets of false alarms.
The fleets here are the generator's default fleet of 90 servers, with seeds that nothing was chosen on. Alarms have the
persistence of the daemon's rules and are evaluated at every step (fleet_forecast/risk/alarms.py); alarms at the first
forecast above the level are shown beside them. --leave-out trains a small risk model for each group of incident kinds
without them, one kind of each profile at a time, and shows the recall of these kinds beside that of a small model that
was trained on all.

The trees are trained with the onset times of the simulator's noise-free signal as targets: no better labels exist.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fleet_forecast.inference.model_config import ModelError  # noqa: E402 - in the parent folder
from fleet_forecast.inference.model_directory import read_config, verify  # noqa: E402
from fleet_forecast.inference.risk_model import ALERT_HORIZON, RISK_HORIZONS, RiskModel  # noqa: E402
from fleet_forecast.risk.alarms import AlarmResults, Scene, evaluate_alarms, persistent, summary  # noqa: E402
from fleet_forecast.risk.calibration import reliability  # noqa: E402
from fleet_forecast.serving.alerting.severity import level_for_budget  # noqa: E402
from fleet_forecast.training.risk.fit import RiskSettings, outcomes_of, risks, train_on_simulator  # noqa: E402
from fleet_forecast.training.risk.fleets import LabelledFleet, SimulatedFleets  # noqa: E402
from server_profiles import DEFAULT_SERVERS, PROFILES  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

SEEDS = (8_101, 8_102, 8_103, 8_104, 8_105, 8_106)  # nothing was chosen on these
BUDGETS = {"page": 0.2, "watch": 2.0}  # false alarms per server and month
RATE = 4.0  # incidents per server and month
LEAK_LIKE = ("oom", "kafka_consumer_lag", "job_queue_overflow", "resource_starvation")
LEAK_PREFIX = "disk_"
ALERT_COLUMN = list(RISK_HORIZONS).index(ALERT_HORIZON)
SMALL = RiskSettings(training_fleets=4, held_out_servers=80, days=7.0, rounds=100)  # for --leave-out


def row(results: Sequence[AlarmResults], scenes: Sequence[Scene], level: float) -> dict[str, Any]:
    """One line of the table."""
    kinds, leads = (np.concatenate([getattr(each, name) for each in results]) for name in ("kinds", "lead_seconds"))
    leak = np.array([kind in LEAK_LIKE or kind.startswith(LEAK_PREFIX) for kind in kinds])
    found = ~np.isnan(leads)
    return {
        "level": level,
        **{key: None if value is None else round(value, 3) for key, value in summary(results, scenes).items()},
        "leak_like": int(leak.sum()),
        "ahead_leak_like": round(float((leads[leak] > 0).mean()), 3),
        "median_lead_minutes_leak_like": round(float(np.median(leads[leak & found]) / 60), 1),
    }


def by_kind(results: Sequence[AlarmResults]) -> dict[str, dict[str, Any]]:
    """Found, ahead and median lead by kind of incident."""
    kinds, leads = (np.concatenate([getattr(each, name) for each in results]) for name in ("kinds", "lead_seconds"))
    table = {}
    for kind in sorted(set(kinds)):
        own = leads[kinds == kind]
        found = own[~np.isnan(own)]
        table[kind] = {
            "incidents": len(own),
            "found": round(len(found) / len(own), 2),
            "ahead": round(float((own > 0).mean()), 2),
            "median_lead_minutes": round(float(np.median(found)) / 60, 1) if len(found) else None,
        }
    return table


def evaluate(model: RiskModel, fleets: Sequence[LabelledFleet]) -> dict[str, Any]:
    """Rows for both budgets, and the reliability of the probabilities."""
    spec, scenes = model.description.spec, [fleet.scene() for fleet in fleets]
    scored = []
    for position, fleet in enumerate(fleets, start=1):
        print(f"fleet {position} of {len(fleets)}", file=sys.stderr)
        scored.append(risks(fleet, spec, model.scores))
    calibration = model.description.calibration
    by_horizon = [calibration.probabilities(scores.ravel()).reshape(*scores.shape, -1) for scores in scored]
    alert = [risk[..., ALERT_COLUMN] for risk in by_horizon]
    results: dict[str, Any] = {}
    for name, budget in BUDGETS.items():
        level = level_for_budget(model.curve, budget)
        if level is None:
            results[name] = None
            continue
        alarms = [evaluate_alarms(persistent(risk, level), scene) for risk, scene in zip(alert, scenes, strict=True)]
        results[name] = row(alarms, scenes, level) | {"kinds": by_kind(alarms)}
        at_once = [
            evaluate_alarms(persistent(risk, level, 1), scene) for risk, scene in zip(alert, scenes, strict=True)
        ]
        results[f"{name}, after one forecast"] = row(at_once, scenes, level)
    outcomes = outcomes_of(fleets, scored)
    results["reliability"] = reliability(calibration.probabilities(outcomes.scores), outcomes, ALERT_COLUMN)
    results["server_months"] = round(sum(scene.server_months for scene in scenes), 1)
    return results


def leave_out(fleets: SimulatedFleets, seeds: Sequence[int]) -> dict[str, Any]:
    """By kind and budget: found and ahead by a small risk model that was not trained on it, and by one that was."""
    of_profiles = [spec.incidents for spec in PROFILES.values() if spec.incidents]
    groups = [
        tuple(incidents[position] for incidents in of_profiles if position < len(incidents))
        for position in range(max(map(len, of_profiles)))
    ]
    held_out = list(fleets.fleets(seeds))
    known = small_model(fleets, (), held_out)
    table: dict[str, Any] = {}
    for kinds in groups:
        unknown = small_model(fleets, kinds, held_out)
        for kind in kinds:
            table[kind] = {
                name: {"left out": unknown[name].get(kind), "known": known[name].get(kind)} for name in BUDGETS
            }
    return table


def small_model(
    fleets: SimulatedFleets, without: tuple[str, ...], held_out: Sequence[LabelledFleet]
) -> dict[str, dict[str, Any]]:
    """Results by budget and kind of a small risk model that was trained without some; none where a level is missing."""
    print(f"without {', '.join(without) or 'none left out'}", file=sys.stderr)
    settings = replace(SMALL, without=without)
    model, _ = train_on_simulator(fleets.metrics, fleets.step_seconds, fleets.calendar, settings)
    results = evaluate(model, held_out)
    return {name: results[name]["kinds"] if results[name] else {} for name in BUDGETS}


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, evaluate, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=Path("models/current"), help="model directory (%(default)s)")
    add("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=SEEDS, help="fleets")
    add("--days", type=float, default=14.0, help="evaluated days of each fleet (%(default)s)")
    add("--leave-out", action="store_true", help="train small models without some kinds, and show the recall of these")
    arguments = parser.parse_args(argv)
    try:
        model_dir = verify(arguments.model)
        config = read_config(model_dir)
        model = RiskModel.load(model_dir, config.targets)
    except ModelError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    if model is None:
        print(f"error: {arguments.model} has no risk model; train one without --no-risk-model", file=sys.stderr)
        return 1
    spec = model.description.spec
    fleets = SimulatedFleets(spec.metrics, spec.step_seconds, spec.calendar, arguments.days, RATE)
    fleets = replace(fleets, counts=({str(profile): servers for profile, servers in DEFAULT_SERVERS.items()},))
    if arguments.leave_out:
        results = leave_out(fleets, arguments.seeds)
    else:
        results = evaluate(model, list(fleets.fleets(arguments.seeds)))
    for name, result in results.items():
        print(name, result, file=sys.stderr)
    shown = {"model": config.model_id, "trained_on": model.trained_on, "seeds": arguments.seeds, "days": arguments.days}
    print(json.dumps({**shown, "leave_out": arguments.leave_out, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
