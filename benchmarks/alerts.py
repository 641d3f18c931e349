"""Precision and recall of alerts on simulated weeks with labelled incidents.

    python benchmarks/alerts.py --model models/current                  # JSON is the last line
    python benchmarks/alerts.py --seeds 301,302 --hours 336 --servers 45
    python benchmarks/alerts.py --choose --seeds 101,201                # how the defaults were chosen

The model is one trained on a simulated fleet; each seed is another fleet. A fleet runs eight days to fill the history.
Then the daemon's code forecasts every step and evaluates its default rules (fleet_forecast/serving/replay). An alarm is
a period in which any alert of a severity fires on a server. It is a true alarm if it begins between the onset of an
incident's precursor and half an hour after the end of the incident on that server; several alarms of one incident count
once. All other alarms are false. An incident is detected if it has an alarm, and detected ahead if the alarm begins
before the harm; incidents that are cut off by the beginning or the end of the evaluated time only explain alarms.
Precision depends on the rate of incidents: it is given at the rate of the replay (--incident-rate, high enough for a
week to have many) and at the simulator's usual rate of one incident per server and month, with the measured false
alarms.

Two methods without a model are compared, with the same thresholds and persistence: the current value, and a straight
line through the last hour extended over the look-ahead (predict_linear). The current value is also evaluated with its
own thresholds from --choose: those with the highest recall at a precision of at least 0.8 at the usual rate. The
straight line reaches that precision with none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_contract import METRIC_SPECS, METRICS  # noqa: E402 - in the parent folder
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import ModelError  # noqa: E402
from fleet_forecast.risk.alarms import AFTER_SECONDS, Matched, hysteresis, match  # noqa: E402
from fleet_forecast.risk.departures import t2_contributions, t_statistic  # noqa: E402
from fleet_forecast.serving.alerting.bounds import NO_BOUNDS  # noqa: E402
from fleet_forecast.serving.alerting.exceedance import exceedance_probability  # noqa: E402
from fleet_forecast.serving.alerting.past_forecasts import PastForecasts  # noqa: E402
from fleet_forecast.serving.alerting.rules import AlertRules  # noqa: E402
from fleet_forecast.serving.alerting.severity import SEVERITIES  # noqa: E402
from fleet_forecast.serving.forecasts.snapshot import ModelView  # noqa: E402
from fleet_forecast.serving.replay.cycles import replay_cycles  # noqa: E402
from fleet_forecast.serving.replay.past_alerts import PastAlerts, past_alerts  # noqa: E402
from fleet_forecast.simulation.fleet import Fleet  # noqa: E402
from fleet_forecast.simulation.metric_model import simulated  # noqa: E402
from fleet_forecast.simulation.scenario import Scenario, World  # noqa: E402
from fleet_forecast.simulation.simulator import Simulator, portions  # noqa: E402
from fleet_forecast.training.risk.departures import statistics_of  # noqa: E402
from server_profiles import DEFAULT_SERVERS, PROFILES, ServerProfile  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

START = np.datetime64("2026-09-14T00:00:00", "s")  # a Monday
HISTORY_HOURS = 192  # the model reads the same time of day of the last week
LINE_STEPS = 12  # the straight line goes through the last hour of 5-minute steps
LONG_PRECURSOR_SECONDS = 3_600  # incidents with a precursor of this length can be predicted
USUAL_RATE = 1.0
TARGET_PRECISION = 0.8
STRICTNESS = (4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 32)  # standard deviations above the mean, tried for the baselines
CURRENT_VALUE_SPREADS = 18  # result of --choose
FIRE_PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CALM_MINUTES_AFTER = 120  # after an incident; only later scores of its server count as normal operation


@dataclass(frozen=True)
class Incident:
    """One labelled incident; seconds since 1970.

    server: row. onset: of the precursor. start, end: of the harm. is_whole: whether all of it is in the evaluated time.
    """

    server: int
    onset: float
    start: float
    end: float
    is_whole: bool = True

    @property
    def has_long_precursor(self) -> bool:
        """Whether its precursor lasts LONG_PRECURSOR_SECONDS or more."""
        return self.start - self.onset >= LONG_PRECURSOR_SECONDS


@dataclass(frozen=True)
class Weeks:
    """A simulated fleet: values float32 [server, step, metric of the model], NaN = not measured; times [step], seconds.

    Steps before `first` are history only.
    """

    names: tuple[str, ...]
    profiles: tuple[str, ...]
    times: np.ndarray
    values: np.ndarray
    incidents: tuple[Incident, ...]
    first: int

    @property
    def server_weeks(self) -> float:
        """Evaluated time of all servers."""
        step_seconds = float(self.times[1] - self.times[0])
        return len(self.names) * (len(self.times) - self.first) * step_seconds / (7 * 86_400)


def simulate(engine: Engine, seed: int, servers: int, hours: float, rate: float) -> Weeks:
    """Simulate a fleet for HISTORY_HOURS and then for `hours`."""
    step_seconds = engine.config.step_seconds
    first = HISTORY_HOURS * 3600 // step_seconds
    steps = first + int(hours * 3600 / step_seconds)
    fleet = Fleet.of(_counts(servers), seed)
    world = World.of(Scenario(fleet, START, steps, step_seconds, engine.config.calendar, incident_rate=rate))
    simulator = Simulator(world)
    metrics = np.concatenate([simulator.advance(n).metrics for n in portions(steps, len(fleet))], axis=2)
    chosen = [simulated().positions[name] for name in engine.config.targets]
    began, events = float(START.astype(np.int64)), world.events
    incidents = tuple(
        Incident(int(server), began + float(onset), began + float(start), began + float(end), bool(whole))
        for server, onset, start, end, whole in zip(
            events.server,
            events.onset,
            events.start,
            events.end,
            (first * step_seconds <= events.onset) & (events.end <= steps * step_seconds),
            strict=True,
        )
        if end > first * step_seconds
    )
    times = world.scenario.timestamps().astype(np.int64)
    profiles = tuple(str(fleet.profile(server)) for server in range(len(fleet)))
    return Weeks(fleet.names, profiles, times, metrics[chosen].transpose(1, 2, 0), incidents, first)


def _counts(servers: int) -> dict[str, int]:
    """Servers by profile in the shares of the generator's default fleet, by largest remainder."""
    exact = {
        str(profile): servers * share / sum(DEFAULT_SERVERS.values()) for profile, share in DEFAULT_SERVERS.items()
    }
    counts: dict[str, int] = {profile: int(value) for profile, value in exact.items()}
    for profile in sorted(exact, key=lambda each: counts[each] - exact[each])[: servers - sum(counts.values())]:
        counts[profile] += 1
    return counts


def grid_of(weeks: Weeks, metrics: Sequence[str]) -> FleetGrid:
    """The fleet as the replay reads it."""
    start, step_seconds = np.datetime64(int(weeks.times[0]), "s"), int(weeks.times[1] - weeks.times[0])
    return FleetGrid(weeks.names, weeks.profiles, tuple(metrics), start, step_seconds, weeks.values)


def evaluated_steps(weeks: Weeks) -> range:
    """Steps after those that are history only."""
    return range(weeks.first, len(weeks.times))


def forecast_alerts(engine: Engine, weeks: Weeks, rules: AlertRules) -> PastAlerts:
    """Alerts by the daemon's code."""
    return past_alerts(engine, grid_of(weeks, engine.config.targets), evaluated_steps(weeks), rules)


def straight_line(values: np.ndarray, ahead_steps: int) -> np.ndarray:
    """A least-squares line through the last hour, extrapolated: [server, step, metric]; NaN where a step is missing."""
    offsets = np.arange(LINE_STEPS) - (LINE_STEPS - 1) / 2
    windows = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), LINE_STEPS, axis=1)
    slope = windows @ offsets / (offsets @ offsets)
    level = windows.mean(axis=-1) + slope * (LINE_STEPS - 1) / 2
    line = np.full(values.shape, np.nan)
    line[:, LINE_STEPS - 1 :] = level + slope * ahead_steps
    return line


def thresholds_of(weeks: Weeks, metrics: Sequence[str], rules: AlertRules) -> np.ndarray:
    """The rules' upper bounds, [server, metric], NaN where there is none."""
    found = np.full((len(weeks.names), len(metrics)), np.nan)
    for row, (name, profile) in enumerate(zip(weeks.names, weeks.profiles, strict=True)):
        own = rules.thresholds_of(name, profile)
        above = [own.get(metric, NO_BOUNDS).above for metric in metrics]
        found[row] = [np.nan if bound is None else bound for bound in above]
    return found


def strict_thresholds(weeks: Weeks, metrics: Sequence[str], deviations: float) -> np.ndarray:
    """Thresholds some standard deviations above the profile's mean, [server, metric]; percentages as log odds."""

    def one(profile: str, metric: str) -> float:
        baseline = PROFILES[ServerProfile(profile)].baselines[metric]
        if not METRIC_SPECS[metric].is_percent:
            return baseline.mean + deviations * baseline.spread
        share = baseline.mean / 100
        odds = np.log(share / (1 - share)) + deviations * baseline.spread / 100 / (share * (1 - share))
        return float(100 / (1 + np.exp(-odds)))

    return np.array([[one(profile, metric) for metric in metrics] for profile in weeks.profiles])


def over(values: np.ndarray, thresholds: np.ndarray, weeks: Weeks, rules: AlertRules) -> np.ndarray:
    """When a value [server, step, metric] is persistently above its threshold in any metric: bool [server, step]."""
    evaluated = values[:, weeks.first :]
    above = evaluated > thresholds[:, None]
    below, streaks = ~above & ~np.isnan(evaluated), (rules.fire_forecasts, rules.resolve_forecasts)
    return np.asarray(hysteresis(above, below, *streaks).any(axis=2))


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(firing: Sequence[np.ndarray], fleets: Sequence[Weeks], rate: float) -> dict[str, Any]:
    """Precision, recall and lead time over all fleets. firing: bool [server, evaluated step] per fleet."""
    false, leads = 0, []
    found: dict[bool, list[bool]] = {True: [], False: []}  # by whether the precursor is long
    ahead: dict[bool, list[bool]] = {True: [], False: []}
    for on, weeks in zip(firing, fleets, strict=True):
        complete = weeks.times[weeks.first :] + float(weeks.times[1] - weeks.times[0])  # a step is evaluated then
        matched = matched_alarms(on, complete, weeks)
        false += int(matched.false.sum())
        for incident, alarm in zip(weeks.incidents, matched.hits.tolist(), strict=True):
            if incident.is_whole:
                found[incident.has_long_precursor].append(not np.isnan(alarm))
                ahead[incident.has_long_precursor].append(alarm < incident.start)
                if not np.isnan(alarm) and incident.has_long_precursor:
                    leads.append((incident.start - alarm) / 60)
    right = sum(found[True]) + sum(found[False])
    months = sum(weeks.server_weeks for weeks in fleets) / (30 / 7)

    def share(part: float, whole: float) -> float | None:
        return round(float(part / whole), 3) if whole else None

    usual = right * USUAL_RATE / rate
    return {
        "false_alarms": false,
        "false_alarms_per_server_month": round(false / months, 3),
        "precision": share(right, right + false),
        "precision_at_usual_rate": share(usual, usual + false),
        "recall_long_precursor": share(sum(found[True]), len(found[True])),
        "ahead_long_precursor": share(sum(ahead[True]), len(ahead[True])),
        "recall_other": share(sum(found[False]), len(found[False])),
        "lead_minutes_long_precursor": [round(float(x), 1) for x in np.percentile(leads, (25, 50, 75))]
        if leads
        else None,
    }


def matched_alarms(on: np.ndarray, seconds: np.ndarray, weeks: Weeks) -> Matched:
    """Alarms [server, step] that are on, by incident. seconds: [step], when each step was evaluated."""
    windows = ((incident.server, incident.onset, incident.end + AFTER_SECONDS) for incident in weeks.incidents)
    return match(on, seconds, windows)


def compare(engine: Engine, fleets: Sequence[Weeks], rate: float) -> dict[str, dict[str, Any]]:
    """All methods on the same fleets."""
    rules, metrics = AlertRules(), engine.config.targets
    shipped = [thresholds_of(weeks, metrics, rules) for weeks in fleets]
    ahead_steps = rules.lookahead_seconds // engine.config.step_seconds
    lines = [straight_line(weeks.values, ahead_steps) for weeks in fleets]
    made = [forecast_alerts(engine, weeks, rules) for weeks in fleets]
    results = {severity: evaluate([past.firing[severity] for past in made], fleets, rate) for severity in SEVERITIES}
    for severity in SEVERITIES:
        results[severity] |= false_alarms(made, fleets, severity)

    def simple(values: Sequence[np.ndarray], thresholds: Sequence[np.ndarray]) -> dict[str, Any]:
        return evaluate([over(*case, rules) for case in zip(values, thresholds, fleets, strict=True)], fleets, rate)

    measured = [weeks.values for weeks in fleets]
    results["current_value"] = simple(measured, shipped)
    results["predict_linear"] = simple(lines, shipped)
    strict = [strict_thresholds(weeks, metrics, CURRENT_VALUE_SPREADS) for weeks in fleets]
    results["current_value_tuned"] = simple(measured, strict)
    return results


def false_alarms(made: Sequence[PastAlerts], fleets: Sequence[Weeks], severity: str) -> dict[str, Any]:
    """False alarms by the reasons of the alerts that fire then, and how many of them follow an incident."""
    reasons: Counter[str] = Counter()
    after = 0
    for past, weeks in zip(made, fleets, strict=True):
        matched = matched_alarms(past.firing[severity], past.seconds, weeks)
        for row, step in np.argwhere(matched.false).tolist():
            moment = past.seconds[step]
            firing = [
                alert.reason
                for alert in past.alerts
                if alert.server_name == weeks.names[row]
                and alert.started_seconds <= moment
                and (alert.ended_seconds is None or alert.ended_seconds > moment)
            ]
            reasons[" and ".join(sorted(set(firing)))] += 1
            ends = [incident.end for incident in weeks.incidents if incident.server == row]
            after += any(0 < moment - end <= 60 * CALM_MINUTES_AFTER for end in ends)
    return {"false_by_reason": dict(reasons), f"false_within_{CALM_MINUTES_AFTER}_min_after_an_incident": after}


# --- choosing the defaults ------------------------------------------------------------------------------------------


def choose(engine: Engine, fleets: Sequence[Weeks], rate: float) -> dict[str, Any]:
    """Constants of risk/departures.py, the level of AlertRules, and the best thresholds of the baselines."""
    rules, metrics = AlertRules(), engine.config.targets
    parts = [_scored(engine, weeks, rules) for weeks in fleets]
    averages = np.concatenate([scored.reshape(-1, len(metrics)) for scored, _ in parts])
    harm = np.concatenate([_harm(weeks).ravel() for weeks in fleets])
    known = ~np.isnan(averages).any(axis=1)
    healthy = statistics_of(metrics, averages[known & (harm == 0)])
    if healthy is None:
        raise ValueError("too few healthy servers to estimate a covariance; give more --servers or --hours")
    covariance = np.array(healthy.covariance)
    t = [t_statistic(t2_contributions(scored.reshape(-1, len(metrics)), covariance)) for scored, _ in parts]
    service = averages[:, metrics.index("latency_ms")] > 0
    use = known & service & (harm >= 0)
    weight = np.where(harm == 1, USUAL_RATE / rate, 1.0)
    intercept, slope = _logistic(np.concatenate(t)[use], harm[use] == 1, weight[use])
    print(f"SIMULATED = {healthy}\nINTERCEPT, SLOPE = {intercept:.2f}, {slope:.2f}")
    results: dict[str, Any] = {**asdict(healthy), "intercept": intercept, "slope": slope}
    for level in FIRE_PROBABILITIES:
        firing = []
        for (scored, breaches), distances in zip(parts, t, strict=True):
            probability = 1 / (1 + np.exp(-(intercept + slope * distances.reshape(scored.shape[:2]))))
            probability[~(scored[..., metrics.index("latency_ms")] > 0)] = 0.0
            both = np.maximum(np.nan_to_num(probability), breaches)[..., None]
            streaks = rules.fire_forecasts, rules.resolve_forecasts
            firing.append(hysteresis(both >= level, both < level / 2, *streaks)[..., 0])
        results[f"fire_probability {level}"] = evaluate(firing, fleets, rate)
    ahead_steps = rules.lookahead_seconds // engine.config.step_seconds
    values = {
        "current_value": [weeks.values for weeks in fleets],
        "predict_linear": [straight_line(weeks.values, ahead_steps) for weeks in fleets],
    }
    for name, series in values.items():
        tried = {}
        for deviations in STRICTNESS:
            limits = [strict_thresholds(weeks, metrics, deviations) for weeks in fleets]
            firing = [over(*case, rules) for case in zip(series, limits, fleets, strict=True)]
            tried[deviations] = results[f"{name} {deviations} standard deviations"] = evaluate(firing, fleets, rate)
        precise = [n for n, result in tried.items() if (result["precision_at_usual_rate"] or 0) >= TARGET_PRECISION]
        best = max(precise, key=lambda deviations: tried[deviations]["recall_long_precursor"] or 0, default=None)
        results[f"{name}: standard deviations with the highest recall at the target precision"] = best
    return results


def _scored(engine: Engine, weeks: Weeks, rules: AlertRules) -> tuple[np.ndarray, np.ndarray]:
    """Average scores [server, step, metric] and the highest exceedance probability [server, step]."""
    metrics = engine.config.targets
    row_of = {name: row for row, name in enumerate(weeks.names)}
    thresholds, model = thresholds_of(weeks, metrics, rules), ModelView.of(engine)
    past_forecasts = PastForecasts(model)
    shape = (len(weeks.names), len(weeks.times) - weeks.first)
    scored, breaches = np.full((*shape, len(metrics)), np.nan), np.zeros(shape)
    ahead = rules.lookahead_seconds // model.step_seconds
    for step, forecasts in replay_cycles(engine, grid_of(weeks, metrics), evaluated_steps(weeks)):
        rows = [row_of[forecast.server_name] for forecast in forecasts]
        scored[rows, step - weeks.first], _ = past_forecasts.update(forecasts)
        quantiles = np.stack([forecast.quantiles[..., :ahead] for forecast in forecasts])
        by_step = exceedance_probability(quantiles, model.quantiles, thresholds[rows])  # (server, metric, step)
        breaches[rows, step - weeks.first] = by_step.max(axis=(1, 2))
    return scored, breaches


def _harm(weeks: Weeks) -> np.ndarray:
    """[server, evaluated step]: 1 from the start of harm to its end, 0 in normal operation, else -1."""
    times = weeks.times[weeks.first :]
    found = np.zeros((len(weeks.names), len(times)), dtype=int)
    for incident in weeks.incidents:
        excluded = (times >= incident.onset) & (times <= incident.end + 60 * CALM_MINUTES_AFTER)
        found[incident.server, excluded] = -1
        found[incident.server, (times >= incident.start) & (times <= incident.end)] = 1
    return found


def _logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted logistic regression on one variable by Newton's method: intercept and slope."""
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    beta = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ beta))
        curvature = (design * (weight * p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, design.T @ (weight * (y - p)))
        beta += np.clip(step, -2, 2)
    return float(beta[0] - beta[1] * x.mean()), float(beta[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, replay, evaluate, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=Path("models/current"), help="model directory (%(default)s)")
    add("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[202], help="fleets (202)")
    add("--servers", type=int, default=90, help="servers of each fleet (%(default)s)")
    add("--hours", type=float, default=168.0, help="evaluated hours of each fleet (%(default)s)")
    add(
        "--incident-rate",
        "--incident_rate",
        type=float,
        default=4.0,
        help="per server and month (%(default)s)",
    )
    add("--choose", action="store_true", help="fit the default parameters on these fleets instead of evaluating them")
    add("--threads", type=int, help="threads of a forecast (default: one per core)")
    arguments = parser.parse_args(argv)
    try:
        engine = Engine.load(arguments.model, threads=arguments.threads)
    except ModelError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    if arguments.choose and set(engine.config.targets) != set(METRICS):
        print(f"error: --choose needs a model of all metrics: {', '.join(METRICS)}", file=sys.stderr)
        return 1
    rate = arguments.incident_rate
    fleets = [simulate(engine, seed, arguments.servers, arguments.hours, rate) for seed in arguments.seeds]
    methods = (choose if arguments.choose else compare)(engine, fleets, rate)
    for name, result in methods.items():
        if isinstance(result, dict):
            print(f"{name:>26}  " + "  ".join(f"{key} {value}" for key, value in result.items()), file=sys.stderr)
    incidents = [incident for weeks in fleets for incident in weeks.incidents if incident.is_whole]
    summary = {
        "model": engine.model_id,
        "seeds": arguments.seeds,
        "servers": arguments.servers,
        "hours": arguments.hours,
        "incident_rate": rate,
        "incidents": len(incidents),
        "with_long_precursor": sum(incident.has_long_precursor for incident in incidents),
        "methods": methods,
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
