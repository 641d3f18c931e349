"""Alarms on real incidents: 148 operator labels of 46 servers, compared with methods without a risk model.

    python benchmarks/risk/real.py --data ../shared/data/fleets_public.parquet      # JSON is the last line

Servers are held out in turn, a quarter of each profile. The first 20 days have no labels. Every method's level is the
one with the best F1 on the days 21 to 30 of the held-out servers of all folds; days 31 to 45 are evaluated. Labels of
one profile whose onsets are within an hour are one event; an alarm on any of its servers from the onset to half an hour
after the end is a hit, and one hit counts. Other alarms are false. Onsets are weak and half of the labels last longer
than 9 hours, so the delay is from the first onset of the event. The interval is that of a bootstrap over events.

    labels               risk model trained on the labels of the other servers, days 21 to 30
    simulator            risk model trained on simulated fleets of the same metrics; no label is used besides the level
    current_value        the largest z-value of a metric against the server's own first 20 days
    straight_line        the same of a line through the last hour, an hour ahead
    residual_yesterday   the largest z-value of the difference to the same time of the day before
    isolation_forest     anomaly score (scikit-learn), fitted to each server's first 20 days
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.ensemble import IsolationForest  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fleet_forecast.contract.calendar import BusinessCalendar  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.inference.risk_model import LABELS  # noqa: E402
from fleet_forecast.intervals.incidents_file import read_incidents  # noqa: E402 - in the parent folder
from fleet_forecast.risk.alarms import AFTER_SECONDS, Incidents, persistent  # noqa: E402
from fleet_forecast.training.risk.fit import RiskSettings, risks, train, train_on_simulator  # noqa: E402
from fleet_forecast.training.risk.fleets import LabelledFleet, labelled_fleet  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

DATA = ROOT / "../shared/data/fleets_public.parquet"
FOLDS = 4
DAY_STEPS = 288
TUNE, EVALUATE = range(20 * DAY_STEPS, 30 * DAY_STEPS), range(30 * DAY_STEPS, 45 * DAY_STEPS)
EVENT_SECONDS = 3_600
LEVELS = 50  # quantiles of the scores that are tried
LINE_STEPS = 12
TREE_STEPS_APART = 3
BOOTSTRAPS = 1_000
WEEK_SECONDS = 7 * 86_400
SIMULATED = RiskSettings(training_fleets=4, held_out_servers=80)
OF_LABELS = RiskSettings(rounds=100)


class Event(NamedTuple):
    """Labels of one profile with one onset: (server, start, end) in seconds, and the first start."""

    start: float
    labels: tuple[tuple[int, float, float], ...]


class Result(NamedTuple):
    """Hits of alarms: the delay in seconds by event, NaN if it was not found; false alarms."""

    delays: np.ndarray
    false_alarms: int


def events_of(fleet: LabelledFleet) -> list[Event]:
    """Labels grouped by profile and onset."""
    events: list[Event] = []
    rows = sorted(
        zip(*fleet.incidents[:1], fleet.incidents.start, fleet.incidents.end, strict=True), key=lambda r: r[1]
    )
    for profile in sorted({profile or "" for profile in fleet.grid.profiles}):
        group: list[tuple[int, float, float]] = []
        for server, start, end in rows:
            if fleet.grid.profiles[server] != profile:
                continue
            if group and start - group[-1][1] > EVENT_SECONDS:
                events.append(Event(group[0][1], tuple(group)))
                group = []
            group.append((int(server), float(start), float(end)))
        if group:
            events.append(Event(group[0][1], tuple(group)))
    return events


def evaluate_alarms(score: np.ndarray, level: float, fleet: LabelledFleet, steps: range) -> Result:
    """Alarms of a score [server, step of the grid] at one level within some steps."""
    on = persistent(score[:, steps.start : steps.stop], level)
    begins = on & ~np.concatenate([np.zeros((len(on), 1), dtype=bool), on[:, :-1]], axis=1)
    seconds = fleet.grid.timestamps().astype(np.int64)[steps.start : steps.stop] + fleet.grid.step_seconds
    explained = np.zeros(on.shape, dtype=bool)
    delays = []
    for event in events_of(fleet):
        hits = []
        for server, start, end in event.labels:
            during = (seconds >= start) & (seconds <= end + AFTER_SECONDS)
            explained[server] |= during
            hits += seconds[during & begins[server]].tolist()
        if seconds[0] <= event.start <= seconds[-1]:
            delays.append(min(hits) - event.start if hits else np.nan)
    return Result(np.array(delays, dtype=np.float64), int((begins & ~explained).sum()))


def f1(result: Result) -> float:
    """Harmonic mean of precision and recall, events as hits."""
    found = float((~np.isnan(result.delays)).sum())
    return 2 * found / (found + result.false_alarms + len(result.delays)) if found else 0.0


def tuned_level(score: np.ndarray, fleet: LabelledFleet) -> float:
    """The level with the best F1 on the days to tune on."""
    known = score[:, TUNE.start : TUNE.stop]
    levels = np.unique(np.nanquantile(known, 1 - np.geomspace(1e-5, 0.3, LEVELS)))
    return float(max(levels, key=lambda level: f1(evaluate_alarms(score, level, fleet, TUNE))))


def summary(score: np.ndarray, fleet: LabelledFleet) -> dict[str, Any]:
    """One line of the table."""
    level = tuned_level(score, fleet)
    result = evaluate_alarms(score, level, fleet, EVALUATE)
    found = ~np.isnan(result.delays)
    random = np.random.default_rng(0)
    recalls, precisions = [], []
    for _ in range(BOOTSTRAPS):
        drawn = found[random.integers(len(found), size=len(found))].sum()
        recalls.append(drawn / len(found))
        precisions.append(drawn / max(drawn + result.false_alarms, 1))
    weeks = len(fleet.grid.servers) * len(EVALUATE) * fleet.grid.step_seconds / WEEK_SECONDS
    hits = int(found.sum())
    return {
        "level": round(level, 4),
        "events": len(found),
        "found": hits,
        "recall": round(hits / len(found), 3),
        "recall_95": [round(float(x), 3) for x in np.percentile(recalls, (2.5, 97.5))],
        "precision": round(hits / max(hits + result.false_alarms, 1), 3),
        "precision_95": [round(float(x), 3) for x in np.percentile(precisions, (2.5, 97.5))],
        "false_alarms_per_server_week": round(result.false_alarms / weeks, 3),
        "median_delay_minutes": round(float(np.nanmedian(result.delays)) / 60, 1) if hits else None,
    }


# --- methods --------------------------------------------------------------------------------------------------------


def z_values(values: np.ndarray) -> np.ndarray:
    """The largest of the metrics' z-values [server, step], against each server's own first 20 days."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # steps without a value
        own = values[:, : TUNE.start]
        mean, deviation = np.nanmean(own, axis=1), np.nanstd(own, axis=1) + 1e-6
        return np.asarray(np.nanmax(np.abs(values - mean[:, None]) / deviation[:, None], axis=2))


def simple_methods(grid: FleetGrid) -> dict[str, np.ndarray]:
    """Scores of the methods without a risk model."""
    values = grid.values.astype(np.float64)
    yesterday = np.full_like(values, np.nan)
    yesterday[:, DAY_STEPS:] = values[:, DAY_STEPS:] - values[:, :-DAY_STEPS]
    offsets = np.arange(LINE_STEPS) - (LINE_STEPS - 1) / 2
    windows = np.lib.stride_tricks.sliding_window_view(values, LINE_STEPS, axis=1)
    slope = windows @ offsets / (offsets @ offsets)
    line = np.full_like(values, np.nan)
    line[:, LINE_STEPS - 1 :] = windows.mean(axis=-1) + slope * ((LINE_STEPS - 1) / 2 + LINE_STEPS)
    forest = np.full(values.shape[:2], np.nan)
    for row, own in enumerate(values):
        fitted = IsolationForest(random_state=0).fit(own[: TUNE.start : TREE_STEPS_APART])
        forest[row, TUNE.start :] = -fitted.score_samples(own[TUNE.start :])
    return {
        "current_value": z_values(values),
        "straight_line": z_values(line),
        "residual_yesterday": z_values(yesterday),
        "isolation_forest": forest,
    }


def risk_scores(fleet: LabelledFleet) -> dict[str, np.ndarray]:
    """Scores of the risk models; each server's from a model that did not see it."""
    grid = fleet.grid
    by_labels = np.full(grid.values.shape[:2], np.nan, dtype=np.float32)
    fold_of = np.empty(len(grid.servers), dtype=int)
    for profile in set(grid.profiles):
        own = [row for row, of_server in enumerate(grid.profiles) if of_server == profile]
        fold_of[own] = np.arange(len(own)) % FOLDS
    for fold in range(FOLDS):
        rest, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        tuning = part(fleet, rest, TUNE)
        print(f"fold {fold + 1}: {len(tuning.incidents.server)} labels of {len(rest)} servers", file=sys.stderr)
        model = train([tuning], [tuning], OF_LABELS, LABELS)
        scores = risks(part(fleet, held_out, range(TUNE.start, EVALUATE.stop)), model.description.spec, model.scores)
        by_labels[held_out, EVALUATE.stop - scores.shape[1] :] = scores
    simulated, _ = train_on_simulator(grid.metrics, grid.step_seconds, fleet.calendar, SIMULATED)
    by_simulator = np.full_like(by_labels, np.nan)
    scores = risks(
        part(fleet, np.arange(len(grid.servers)), range(TUNE.start, EVALUATE.stop)),
        simulated.description.spec,
        simulated.scores,
    )
    by_simulator[:, EVALUATE.stop - scores.shape[1] :] = scores
    return {"labels": as_shares(by_labels), "simulator": as_shares(by_simulator)}


def as_shares(scores: np.ndarray) -> np.ndarray:
    """Log odds as probabilities: the alarms' persistence needs positive values."""
    return np.asarray(1 / (1 + np.exp(-scores)))


def part(fleet: LabelledFleet, rows: np.ndarray, steps: range) -> LabelledFleet:
    """Some servers and steps, with a day before them; peers are all servers, as in a running fleet."""
    grid, first = fleet.grid, max(0, steps.start - DAY_STEPS)
    start = grid.timestamps()[first]
    chosen = replace(grid, start=start, values=grid.values[:, first : steps.stop]).select(rows)
    position = {int(row): index for index, row in enumerate(rows)}
    seconds = grid.timestamps().astype(np.int64)
    inside = (fleet.incidents.start >= seconds[first]) & (
        fleet.incidents.end <= seconds[steps.stop - 1] + grid.step_seconds
    )
    own = fleet.incidents.where(np.isin(fleet.incidents.server, rows) & inside)
    incidents = Incidents(np.array([position[int(server)] for server in own.server], dtype=int), *own[1:])
    peers = fleet.peers._replace(members=fleet.peers.members[rows])
    return replace(fleet, grid=chosen, incidents=incidents, peers=peers)


def load(path: Path) -> LabelledFleet:
    """The fleet and its labels."""
    frame = pd.read_parquet(path)
    metrics = [name for name in frame.columns if name not in ("timestamp", "server_name", "profile")]
    grid = FleetGrid.from_frame(frame, metrics, 300)
    records = read_incidents(path.with_name("fleets_incidents_public.parquet"), grid.servers)
    return labelled_fleet(grid, grid.peers(), records, BusinessCalendar("UTC"))


def table(methods: Mapping[str, np.ndarray], fleet: LabelledFleet) -> dict[str, Any]:
    """All methods."""
    results = {}
    for name, score in methods.items():
        results[name] = summary(score, fleet)
        print(name, results[name], file=sys.stderr)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Read, train, evaluate, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="fleets_public.parquet, its incidents beside it")
    arguments = parser.parse_args(argv)
    fleet = load(arguments.data)
    results = table({**simple_methods(fleet.grid), **risk_scores(fleet)}, fleet)
    print(json.dumps({"servers": len(fleet.grid.servers), "labels": len(fleet.incidents.server), "methods": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
