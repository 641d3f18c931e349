"""From quantiles to alerts: how likely each server crosses a threshold, and when that is worth waking someone.

Two things raise an alert. A breach: the probability of crossing a threshold at a step is read off the forecast's
quantiles, and the highest one within the look-ahead counts. A departure: the server left what was forecast for it an
hour ago (departures.py); it is told under the metric that departs most. An alert fires when its probability stays above
a level for several forecasts in a row, and resolves when it stayed below a lower level for several (hysteresis).
Thresholds belong to profiles, because 87 % of memory is a database's normal day; a TOML file overrules them per profile
and per server.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fleet_forecast.contract.specs import METRIC_SPECS, METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.anomaly import Departure, Departures
from fleet_forecast.serving.alerting.exceedance import breach_probability
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from server_profiles import PROFILES, ServerProfile

BREACH, DEPARTURE = "breach", "departure"
HORIZON_SECONDS = (900, 3_600, 14_400, 28_800)
PERCENT_SPREADS, RATE_SPREADS = 4.5, 16.0
_SERVERS_AT_ONCE = 256
TELLING_SHARE = 0.15  # of the distance: a metric with less is not named beside the one that departs most
_WORDS = {
    "cpu_pct": "CPU",
    "mem_pct": "memory",
    "disk_io_mb_s": "disk traffic",
    "net_in_mb_s": "incoming traffic",
    "net_out_mb_s": "outgoing traffic",
    "latency_ms": "latency",
}
Thresholds = Mapping[str, float | None]  # per metric; None: no alert


class AlertFileError(ValueError):
    """A file of alert rules is wrong; the message names the file, the key and the remedy."""


def default_thresholds(profile: ServerProfile) -> Thresholds:
    """From the profile's documented baseline: beyond what a healthy server of it reaches at daily peaks and in bursts.

    Percentages: four and a half spreads above the mean on the scale of log odds, within 90 and 99.5. Others: mean and
    sixteen spreads. benchmarks/alerts.py judges them.
    """
    thresholds: dict[str, float | None] = {}
    for metric, baseline in PROFILES[profile].baselines.items():
        if METRIC_SPECS[metric].is_percent:
            share = baseline.mean / 100
            log_odds = math.log(share / (1 - share)) + PERCENT_SPREADS * baseline.spread / 100 / (share * (1 - share))
            thresholds[metric] = round(min(99.5, max(90.0, 100 / (1 + math.exp(-log_odds)))), 1)
        else:
            thresholds[metric] = baseline.mean + RATE_SPREADS * baseline.spread
    return thresholds


@dataclass(frozen=True)
class AlertRules:
    """When to alert.

    fire_probability, fire_forecasts: fires when the probability is at least that for so many forecasts in a row.
    resolve_probability, resolve_forecasts: resolves when it is below that for so many. lookahead_seconds: breaches
    later than this raise no alert. departures: whether a departure from the forecast raises an alert.
    """

    fire_probability: float = 0.5
    fire_forecasts: int = 2
    resolve_probability: float = 0.25
    resolve_forecasts: int = 3
    lookahead_seconds: int = 14_400
    departures: bool = True
    profiles: Mapping[str, Thresholds] = field(
        default_factory=lambda: MappingProxyType({str(p): default_thresholds(p) for p in ServerProfile})
    )
    servers: Mapping[str, Thresholds] = field(default_factory=lambda: MappingProxyType({}))

    def thresholds_of(self, server_name: str, profile: str) -> Thresholds:
        """Thresholds of one server; one of another profile than the seven has those of generic."""
        of_profile = self.profiles.get(profile, self.profiles[ServerProfile.GENERIC])
        return {**of_profile, **self.servers.get(server_name, {})}


def load_alert_rules(path: Path) -> AlertRules:
    """Rules of a TOML file: levels at the top, [profiles.database] and [servers.NAME] with metric = threshold or false.

    Raises AlertFileError.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise AlertFileError(f"alert rules {path}: {problem.strerror}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise AlertFileError(f"alert rules {path} is not TOML: {problem}") from None
    rules = AlertRules()
    levels: dict[str, Any] = {}
    for key, value in document.items():
        if key not in ("profiles", "servers"):
            levels[key] = _level(path, key, value)
    profiles = dict(rules.profiles)
    for profile, changes in _table(path, document, "profiles").items():
        if profile not in profiles:
            raise AlertFileError(f"alert rules {path}: unknown profile {profile!r}; use {', '.join(ServerProfile)}")
        profiles[profile] = {**profiles[profile], **_thresholds(path, profile, changes)}
    servers = {name: _thresholds(path, name, changes) for name, changes in _table(path, document, "servers").items()}
    rules = replace(rules, **levels, profiles=MappingProxyType(profiles), servers=MappingProxyType(servers))
    if rules.resolve_probability >= rules.fire_probability:
        raise AlertFileError(f"alert rules {path}: resolve_probability must be below fire_probability")
    return rules


def _level(path: Path, key: str, value: object) -> float | int:
    if key == "departures" and isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in ("fire_probability", "resolve_probability") and number and 0 < value < 1:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    if key in ("fire_forecasts", "resolve_forecasts", "lookahead_seconds") and isinstance(value, int) and number:
        if value >= 1:
            return value
    elif key not in AlertRules.__dataclass_fields__:
        known = ", ".join(each for each in AlertRules.__dataclass_fields__ if each not in ("profiles", "servers"))
        raise AlertFileError(f"alert rules {path}: unknown key {key!r}; use {known}, [profiles.NAME], [servers.NAME]")
    raise AlertFileError(
        f"alert rules {path}: {key} is {value!r}; probabilities are between 0 and 1, counts whole from 1, "
        "departures is true or false"
    )


def _table(path: Path, document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise AlertFileError(f"alert rules {path}: {key} is {table!r}; write [{key}.NAME] on a line of its own")
    return table


def _thresholds(path: Path, name: str, changes: object) -> Thresholds:
    if not isinstance(changes, dict):
        raise AlertFileError(f"alert rules {path}: {name} is {changes!r}; write metric = threshold below its heading")
    thresholds: dict[str, float | None] = {}
    for metric, value in changes.items():
        if metric not in METRICS:
            raise AlertFileError(f"alert rules {path}: {name}: unknown metric {metric!r}; use {', '.join(METRICS)}")
        if value is False:
            thresholds[metric] = None
        elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            thresholds[metric] = float(value)
        else:
            raise AlertFileError(f"alert rules {path}: {name}: {metric} is {value!r}; give a number, or false for none")
    return thresholds


@dataclass(frozen=True)
class Breach:
    """When a forecast crosses a threshold, in seconds after its origin; None where it does not within its horizon.

    expected: the median crosses; earliest, latest: the quantiles 0.9 and 0.1 do.
    """

    expected_seconds: int | None
    earliest_seconds: int | None
    latest_seconds: int | None


def time_to_breach(forecast: ServerForecast, metric: str, threshold: float) -> Breach:
    """The first steps at which the median and the two quantiles of the band lie above the threshold."""
    rows = forecast.quantiles[forecast.model.metrics.index(metric)]

    def first(quantile: float) -> int | None:
        above = rows[forecast.model.quantiles.index(quantile)] > threshold
        return (int(np.argmax(above)) + 1) * forecast.model.step_seconds if above.any() else None

    return Breach(first(0.5), first(0.9), first(0.1))


@dataclass(frozen=True)
class Alert:
    """One alert; times are seconds since 1970, UTC. ended_seconds is None while it fires.

    probability: of a breach of the threshold, or of trouble, as `reason` says: breach or departure.
    """

    server_name: str
    profile: str
    metric: str
    threshold: float
    probability: float
    current: float | None
    started_seconds: float
    ended_seconds: float | None
    expected_seconds: float | None
    earliest_seconds: float | None
    latest_seconds: float | None
    sentence: str
    reason: str = BREACH

    @property
    def key(self) -> tuple[str, str]:
        """What it is about: server and metric."""
        return self.server_name, self.metric


@dataclass
class _Streak:
    """How the last forecasts of a server and metric judged."""

    origin_seconds: int = 0
    above: int = 0
    below: int = 0


class AlertBook:
    """Firing alerts and the breach probabilities behind them. Fed with forecasts, from one thread at a time."""

    def __init__(self, rules: AlertRules) -> None:
        self.rules = rules
        self.firing: dict[tuple[str, str], Alert] = {}
        self.probabilities: dict[str, np.ndarray] = {}  # server -> float32 [metric of the model, HORIZON_SECONDS]
        self._streaks: dict[tuple[str, str], _Streak] = {}
        self._departures: Departures | None = None
        self._leading: dict[str, str] = {}  # server -> metric its departure is told under, while it lasts

    def judge(self, forecasts: Iterable[ServerForecast], now_seconds: float) -> list[Alert]:
        """Take in forecasts, each origin once; gives the alerts that changed (began or ended)."""
        changed: list[Alert] = []
        fresh = [f for f in forecasts if self._is_fresh(f, now_seconds)]
        for model in {forecast.model for forecast in fresh}:  # two while the fleet passes from one to the next
            of_model = [forecast for forecast in fresh if forecast.model == model]
            departures = self._depart(of_model)
            for start in range(0, len(of_model), _SERVERS_AT_ONCE):
                part = slice(start, start + _SERVERS_AT_ONCE)
                by_step = self._by_step(of_model[part])
                for case in zip(of_model[part], by_step, departures[part], strict=True):
                    changed += self._judge_server(*case, now_seconds)
        return changed

    def keep_only(self, server_names: Iterable[str], now_seconds: float) -> list[Alert]:
        """Forget servers that left the fleet's view; their alerts end."""
        kept = set(server_names)
        gone = self.probabilities.keys() - kept
        if self._departures is not None:
            self._departures.keep_only(kept)
        ended = []
        for key in [key for key in self._streaks if key[0] in gone]:
            del self._streaks[key]
        for key in [key for key in self.firing if key[0] in gone]:
            alert = self.firing.pop(key)
            sentence = f"{alert.server_name} ({alert.profile}) fell silent; the alert on {_WORDS[alert.metric]} ends."
            ended.append(replace(alert, ended_seconds=now_seconds, sentence=sentence))
        for name in gone:
            del self.probabilities[name]
            self._leading.pop(name, None)
        return ended

    def restore(self, alerts: Iterable[Mapping[str, Any]]) -> None:
        """Take over the alerts that fired before a restart."""
        for fields in alerts:
            alert = Alert(**fields)
            self.firing[alert.key] = alert
            self.probabilities.setdefault(alert.server_name, np.zeros((0, len(HORIZON_SECONDS)), np.float32))
            if alert.reason == DEPARTURE:
                self._leading[alert.server_name] = alert.metric

    def as_documents(self) -> list[dict[str, Any]]:
        """Firing alerts as plain fields, for `restore`."""
        return [asdict(alert) for alert in self.firing.values()]

    def _is_fresh(self, forecast: ServerForecast, now_seconds: float) -> bool:
        """Whether the forecast is later than the last one judged; any other is where that lies in the future.

        Then the clock was ahead for a while: to wait until that time comes would be to judge nothing till then.
        """
        streak = self._streaks.get((forecast.server_name, forecast.model.metrics[0]))
        judged = streak.origin_seconds if streak else -1
        return forecast.origin_seconds > judged or forecast.origin_seconds != judged > now_seconds

    def _by_step(self, forecasts: Sequence[ServerForecast]) -> np.ndarray:
        """Probability of a breach, float [server, metric, step], for forecasts of one model.

        What is not measured is forecast from the profile and the other metrics: a guess is no risk, and wakes nobody.
        """
        model = forecasts[0].model
        thresholds = np.full((len(forecasts), len(model.metrics)), np.nan)
        for row, forecast in enumerate(forecasts):
            own = self.rules.thresholds_of(forecast.server_name, forecast.profile)
            for column, metric in enumerate(model.metrics):
                threshold = own.get(metric)
                if threshold is not None and forecast.current[column] is not None:
                    thresholds[row, column] = threshold
        quantiles = np.stack([forecast.quantiles for forecast in forecasts])  # (server, metric, quantile, step)
        return breach_probability(quantiles, model.quantiles, thresholds)

    def _depart(self, forecasts: Sequence[ServerForecast]) -> Sequence[Departure | None]:
        """Departures of forecasts of one model; None where unknown."""
        if not self.rules.departures:
            return [None] * len(forecasts)
        if self._departures is None or not self._departures.fits(forecasts[0].model):
            self._departures = Departures(forecasts[0].model)
        return self._departures.take(forecasts)

    def _judge_server(
        self, forecast: ServerForecast, by_step: np.ndarray, departure: Departure | None, now_seconds: float
    ) -> list[Alert]:
        steps = [min(seconds // forecast.model.step_seconds, by_step.shape[1]) for seconds in HORIZON_SECONDS]
        highest = np.maximum.accumulate(by_step, axis=1)  # (metric, step): highest up to and with each step
        self.probabilities[forecast.server_name] = highest[:, [max(step, 1) - 1 for step in steps]].astype(np.float32)
        last = max(1, min(self.rules.lookahead_seconds // forecast.model.step_seconds, by_step.shape[1])) - 1
        leading = self._leading_metric(forecast, departure)
        changed = []
        for index, metric in enumerate(forecast.model.metrics):
            own = departure if metric == leading else None
            alert = self._judge_metric(forecast, metric, float(highest[index, last]), own, now_seconds)
            if alert is not None:
                changed.append(alert)
        return changed

    def _leading_metric(self, forecast: ServerForecast, departure: Departure | None) -> str | None:
        """The metric a departure is told under: the one that departs most when it begins, the same until it ends."""
        name = forecast.server_name
        if departure is None:
            return None
        leading = self._leading.get(name)
        if departure.probability >= self.rules.resolve_probability:
            thresholds = self.rules.thresholds_of(name, forecast.profile)
            open_to = [
                (share, metric)
                for share, metric in zip(departure.shares.tolist(), forecast.model.metrics, strict=True)
                if not np.isnan(share) and thresholds[metric] is not None
            ]
            if leading is None and open_to:
                leading = self._leading[name] = max(open_to)[1]
        elif leading is not None and (name, leading) not in self.firing:
            del self._leading[name]
        return leading

    def _judge_metric(
        self, forecast: ServerForecast, metric: str, breach: float, departure: Departure | None, now_seconds: float
    ) -> Alert | None:
        rules, key = self.rules, (forecast.server_name, metric)
        streak = self._streaks.setdefault(key, _Streak())
        streak.origin_seconds = forecast.origin_seconds
        probability = breach if departure is None else max(breach, departure.probability)
        streak.above = streak.above + 1 if probability >= rules.fire_probability else 0
        firing = self.firing.get(key)
        if firing is not None and firing.reason == DEPARTURE and departure is None and rules.departures:
            return None  # what was forecast an hour ago is not known, after a restart say: no reason to think it ended
        streak.below = streak.below + 1 if probability < rules.resolve_probability else 0
        if firing is None and streak.above < rules.fire_forecasts:
            return None
        threshold = rules.thresholds_of(forecast.server_name, forecast.profile)[metric]
        if firing is not None and (threshold is None or streak.below >= rules.resolve_forecasts):
            del self.firing[key]
            over = "no longer threatens its threshold" if firing.reason == BREACH else "is back at what was forecast"
            words = f"{forecast.server_name} ({forecast.profile}): {_WORDS[metric]} {over}."
            return replace(firing, probability=probability, ended_seconds=now_seconds, sentence=words)
        if threshold is None:
            return None
        started = now_seconds if firing is None else firing.started_seconds
        self.firing[key] = describe(forecast, metric, threshold, breach, departure, started)
        return self.firing[key] if firing is None else None


def describe(
    forecast: ServerForecast,
    metric: str,
    threshold: float,
    breach: float,
    departure: Departure | None,
    started_seconds: float,
) -> Alert:
    """The alert in numbers and in a sentence; `breach` is the probability of one."""
    when = time_to_breach(forecast, metric, threshold)
    departed = departure is not None and departure.probability > breach

    def moment(seconds: int | None) -> float | None:
        return None if seconds is None else float(forecast.origin_seconds + seconds)

    return Alert(
        server_name=forecast.server_name,
        profile=forecast.profile,
        metric=metric,
        threshold=threshold,
        probability=departure.probability if departure is not None and departed else breach,
        current=forecast.current[forecast.model.metrics.index(metric)],
        started_seconds=started_seconds,
        ended_seconds=None,
        expected_seconds=moment(when.expected_seconds),
        earliest_seconds=moment(when.earliest_seconds),
        latest_seconds=moment(when.latest_seconds),
        sentence=(
            _departure_sentence(forecast, metric, departure)
            if departure is not None and departed
            else _breach_sentence(forecast, metric, threshold, breach, when)
        ),
        reason=DEPARTURE if departed else BREACH,
    )


def _now(forecast: ServerForecast, metric: str) -> str:
    current = forecast.current[forecast.model.metrics.index(metric)]
    now = "was not measured lately" if current is None else f"is at {current:.0f} {METRIC_SPECS[metric].unit}"
    return f"{forecast.server_name} ({forecast.profile}): {_WORDS[metric]} {now}"


def _breach_sentence(forecast: ServerForecast, metric: str, threshold: float, probability: float, when: Breach) -> str:
    text = f"{_now(forecast, metric)} and exceeds {threshold:.0f} {METRIC_SPECS[metric].unit}"
    text += f" with a probability of {100 * probability:.0f} %"
    if when.expected_seconds is not None:
        text += f", expected at {iso(forecast.origin_seconds + when.expected_seconds)}"
    if when.earliest_seconds is not None:
        text += f", at the earliest {iso(forecast.origin_seconds + when.earliest_seconds)}"
    if when.latest_seconds is not None:
        text += f", almost surely by {iso(forecast.origin_seconds + when.latest_seconds)}"
    return text + "."


def _departure_sentence(forecast: ServerForecast, metric: str, departure: Departure) -> str:
    index = forecast.model.metrics.index(metric)
    text = _now(forecast, metric)
    if not np.isnan(departure.low[index]):
        text += f" where {departure.low[index]:.0f} to {departure.high[index]:.0f} {METRIC_SPECS[metric].unit} "
        text += "was forecast an hour ago"
    total = float(np.nansum(departure.shares))
    others = [
        _WORDS[other]
        for other, share in zip(forecast.model.metrics, departure.shares.tolist(), strict=True)
        if other != metric and share >= TELLING_SHARE * total
    ]
    if others:
        text += f", {' and '.join(others)} depart{'s' if len(others) == 1 else ''} with it"
    return text + f"; with a probability of {100 * departure.probability:.0f} % the server is in trouble."
