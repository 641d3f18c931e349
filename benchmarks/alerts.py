"""How good the alerts are: simulated weeks with labelled incidents are replayed, and every alarm is judged.

    python metrics_generator.py --hours 336 --seed 7 --out_dir weeks --incident_rate 3
    python benchmarks/alerts.py --model models/current --data weeks
    python benchmarks/alerts.py --model models/current --data weeks --every-steps 1   # every step, as the daemon

Three ways to raise an alarm stand side by side, with the same thresholds and the same persistence: the forecast's
breach probability, the current value over the threshold, and a straight line through the last hour (predict_linear).
An alarm is a stretch of time in which anything fires on a server. It is right if an incident of that server is under
way between its begin and its end, or begins within the look-ahead. Prints a table to stderr and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_contract import METRICS, ContractError, DataFileError, read_metrics  # noqa: E402 - found beside this folder
from forecasting.artifact import ModelError  # noqa: E402
from forecasting.engine import Engine  # noqa: E402
from forecasting.grid import FleetGrid  # noqa: E402
from serving.alerts import AlertBook, AlertRules  # noqa: E402
from serving.cycle import forecast_servers  # noqa: E402

LINE_STEPS = 12  # the straight line goes through the last hour of 5-minute steps
LONG_PRECURSOR_SECONDS = 3_600  # incidents that announce themselves this long before can be foreseen
SERVERS_AT_ONCE = 128


@dataclass(frozen=True)
class Incident:
    """One labelled incident; seconds since 1970."""

    server: int
    onset: float
    start: float
    end: float


@dataclass(frozen=True)
class Alarm:
    """One stretch of time in which something fires on a server; seconds since 1970."""

    server: int
    begin: float
    end: float


def read_incidents(documents: Iterable[dict[str, Any]], grid: FleetGrid) -> list[Incident]:
    """Incidents of the metadata that lie within the data."""

    def seconds(text: str) -> float:
        return float(np.datetime64(text.rstrip("Z"), "s").astype(np.int64))

    row_of = {name: row for row, name in enumerate(grid.servers)}
    return [
        Incident(row_of[d["server_name"]], seconds(d["onset"]), seconds(d["start"]), seconds(d["end"]))
        for d in documents
        if d["server_name"] in row_of
    ]


def thresholds_of(grid: FleetGrid, rules: AlertRules) -> np.ndarray:
    """[server, metric], NaN where there is none."""
    found = np.full((len(grid.servers), len(grid.metrics)), np.nan)
    for row, (name, profile) in enumerate(zip(grid.servers, grid.profiles, strict=True)):
        own = rules.thresholds_of(name, profile or "generic")
        found[row] = [np.nan if own.get(metric) is None else own[metric] for metric in grid.metrics]
    return found


def merged(begun: dict[tuple[int, str], float], spans: list[Alarm], last: float) -> list[Alarm]:
    """Alarms per server from spans per metric; what still fires ends with the data."""
    spans = spans + [Alarm(server, begin, last) for (server, _), begin in begun.items()]
    joined: list[Alarm] = []
    for span in sorted(spans, key=lambda each: (each.server, each.begin)):
        if joined and joined[-1].server == span.server and span.begin <= joined[-1].end:
            joined[-1] = Alarm(span.server, joined[-1].begin, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


def forecast_alarms(engine: Engine, grid: FleetGrid, rules: AlertRules, steps: range) -> list[Alarm]:
    """Replay the daemon's cycle."""
    book, row_of = AlertBook(rules), {name: row for row, name in enumerate(grid.servers)}
    times = grid.timestamps().astype(np.int64)
    begun: dict[tuple[int, str], float] = {}
    spans: list[Alarm] = []
    profiles = [(profile or "generic", "data") for profile in grid.profiles]
    for step in tqdm(steps, desc="forecast", unit="step", file=sys.stderr, disable=None):
        first = max(0, step + 1 - engine.config.history_steps)
        history = grid.values[:, first : step + 1]
        present = np.flatnonzero(~np.isnan(history[:, -1]).all(axis=1))
        now = float(times[step] + grid.step_seconds)
        for start in range(0, len(present), SERVERS_AT_ONCE):
            rows = present[start : start + SERVERS_AT_ONCE]
            made = forecast_servers(
                engine,
                [grid.servers[row] for row in rows],
                [profiles[row] for row in rows],
                history[rows],
                np.full(len(rows), times[step]),
            )
            for alert in book.judge([forecast for forecast in made if forecast is not None], now):
                key = row_of[alert.server_name], alert.metric
                if alert.ended_seconds is None:
                    begun[key] = now
                else:
                    spans.append(Alarm(key[0], begun.pop(key), now))
    return merged(begun, spans, float(times[-1] + grid.step_seconds))


def simple_alarms(
    value: np.ndarray, thresholds: np.ndarray, grid: FleetGrid, rules: AlertRules, steps: range
) -> list[Alarm]:
    """Alarms where `value` [server, step, metric] is above its threshold, with the forecasts' persistence."""
    times = grid.timestamps().astype(np.int64)
    begun: dict[tuple[int, str], float] = {}
    spans: list[Alarm] = []
    above_count = np.zeros(thresholds.shape, dtype=int)
    below_count = np.zeros(thresholds.shape, dtype=int)
    for step in steps:
        now = float(times[step] + grid.step_seconds)
        above = value[:, step] > thresholds
        above_count = np.where(above, above_count + 1, 0)
        below_count = np.where(above, 0, below_count + 1)
        for server, metric in np.argwhere(above_count == rules.fire_forecasts):
            begun.setdefault((int(server), grid.metrics[metric]), now)
        for server, metric in np.argwhere(below_count == rules.resolve_forecasts):
            begin = begun.pop((int(server), grid.metrics[metric]), None)
            if begin is not None:
                spans.append(Alarm(int(server), begin, now))
    return merged(begun, spans, float(times[-1] + grid.step_seconds))


def straight_line(values: np.ndarray, ahead_steps: int) -> np.ndarray:
    """Where a least-squares line through the last hour leads, [server, step, metric]; NaN where a step is missing."""
    offsets = np.arange(LINE_STEPS) - (LINE_STEPS - 1) / 2
    windows = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), LINE_STEPS, axis=1)
    slope = windows @ offsets / (offsets @ offsets)
    level = windows.mean(axis=-1) + slope * (LINE_STEPS - 1) / 2
    line = np.full(values.shape, np.nan)
    line[:, LINE_STEPS - 1 :] = level + slope * ahead_steps
    return line


def judge(
    alarms: Sequence[Alarm], incidents: Sequence[Incident], lookahead_seconds: float, first: float
) -> dict[str, Any]:
    """Precision, recall and lead time."""
    incidents = [incident for incident in incidents if incident.start >= first]

    def about(alarm: Alarm, incident: Incident) -> bool:
        same = alarm.server == incident.server
        return (
            same and alarm.begin <= incident.end and incident.start <= max(alarm.end, alarm.begin + lookahead_seconds)
        )

    right = sum(any(about(alarm, incident) for incident in incidents) for alarm in alarms)
    leads: list[float] = []
    found: dict[bool, list[bool]] = {True: [], False: []}  # by whether the precursor is long
    for incident in incidents:
        hits = [alarm.begin for alarm in alarms if about(alarm, incident)]
        found[incident.start - incident.onset >= LONG_PRECURSOR_SECONDS].append(bool(hits))
        if hits:
            leads.append((incident.start - min(hits)) / 60)

    def share(hits: list[bool]) -> float | None:
        return round(sum(hits) / len(hits), 3) if hits else None

    return {
        "alarms": len(alarms),
        "precision": round(right / len(alarms), 3) if alarms else None,
        "recall_long_precursor": share(found[True]),
        "recall_other": share(found[False]),
        "median_lead_minutes": round(float(np.median(leads)), 1) if leads else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Replay, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/current"), help="model directory")
    parser.add_argument("--data", type=Path, default=Path("training"), help="folder of simulated metrics with metadata")
    parser.add_argument(
        "--every-steps", "--every_steps", type=int, default=3, help="forecast at every so many steps (3)"
    )
    parser.add_argument("--days", type=float, default=7.0, help="judge the last so many days of the data (7)")
    arguments = parser.parse_args(argv)
    try:
        engine = Engine.load(arguments.model)
        data = read_metrics(arguments.data)
    except (ModelError, ContractError, DataFileError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    if data.metadata is None or not data.metadata.incidents:
        print(f"error: {arguments.data} has no labelled incidents; simulate with metrics_generator.py", file=sys.stderr)
        return 1
    targets = [metric for metric in METRICS if metric in engine.config.targets]
    grid = FleetGrid.from_frame(data.frame, targets, engine.config.step_seconds)
    results = compare(engine, grid, read_incidents(data.metadata.incidents, grid), arguments)
    for name, result in results["methods"].items():
        print(f"{name:>14}  " + "  ".join(f"{key} {value}" for key, value in result.items()), file=sys.stderr)
    print(json.dumps(results))
    return 0


def compare(
    engine: Engine, grid: FleetGrid, incidents: list[Incident], arguments: argparse.Namespace
) -> dict[str, Any]:
    """All three methods over the same steps and incidents."""
    rules = AlertRules()
    day_steps = 86_400 // grid.step_seconds
    first = max(min(day_steps, grid.steps // 2), grid.steps - int(arguments.days * day_steps))
    steps = range(first, grid.steps, arguments.every_steps)
    first_second = float(grid.timestamps()[first].astype(np.int64))
    thresholds = thresholds_of(grid, rules)
    line = straight_line(grid.values, rules.lookahead_seconds // grid.step_seconds)
    alarms = {
        "forecast": forecast_alarms(engine, grid, rules, steps),
        "current_value": simple_alarms(grid.values, thresholds, grid, rules, steps),
        "predict_linear": simple_alarms(line, thresholds, grid, rules, steps),
    }
    counted = [incident for incident in incidents if incident.start >= first_second]
    return {
        "model": engine.model_id,
        "servers": len(grid.servers),
        "days": round(len(steps) * arguments.every_steps / day_steps, 1),
        "incidents": len(counted),
        "with_long_precursor": sum(i.start - i.onset >= LONG_PRECURSOR_SECONDS for i in counted),
        "methods": {
            name: judge(found, incidents, rules.lookahead_seconds, first_second) for name, found in alarms.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
