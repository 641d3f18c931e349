"""Forecasts of some servers, made from the engine's one array."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import measured_metrics
from fleet_forecast.risk.features import RiskInput
from fleet_forecast.serving.forecasts.snapshot import ModelView, PeerSummary, ServerForecast, ServerRisk


class ServersToForecast(NamedTuple):
    """Servers and their history.

    profiles: (profile, rule) per server. history: float32 [server, step, metric of the model], NaN = not measured, the
    last step is the origin. origin_seconds: int64 [server]. peers: None without any. provisional: boolean [server],
    whether the step of the origin was not complete; None: all were. notes: warnings of all forecasts.
    """

    names: Sequence[str]
    profiles: Sequence[tuple[str, str | None]]
    history: np.ndarray
    origin_seconds: np.ndarray
    peers: Peers | None = None
    provisional: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def forecast_servers(engine: Engine, servers: ServersToForecast) -> list[ServerForecast | None]:
    """Forecast servers; None in place of a forecast that is not finite."""
    names, profiles, history, origin_seconds = servers[:4]
    model = ModelView.of(engine)
    chosen = [profile for profile, _ in profiles]
    origins = origin_seconds.astype("datetime64[s]")
    quantiles, support = engine.forecast_with_support(history, chosen, origins, servers.peers)
    provisional = np.zeros(len(names), dtype=bool) if servers.provisional is None else servers.provisional
    served = [engine.config.targets.index(metric) for metric in model.metrics]
    weights = support.weights[:, served].tolist()
    summaries = [PeerSummary(*each) for each in zip(support.counts.tolist(), map(tuple, weights), strict=True)]
    if len(served) < len(engine.config.targets):
        quantiles = quantiles[:, :, served]
    arranged = np.ascontiguousarray(quantiles.transpose(0, 2, 3, 1))  # (server, metric, quantile, step)
    finite = np.isfinite(arranged).all(axis=(1, 2, 3))
    makes_sense = measured_metrics(engine.config, history, chosen, servers.peers)[:, served]
    arranged[~makes_sense] = np.nan
    measured_steps = reduce(np.logical_or, np.moveaxis(~np.isnan(history), 2, 0)).sum(axis=1)
    untrained = set(engine.unknown_profiles(chosen))
    risks = _risks(engine, servers, (measured_steps > 0) & ~provisional)
    made_at = time.time()
    forecasts: list[ServerForecast | None] = []
    for row, (name, (profile, rule)) in enumerate(zip(names, profiles, strict=True)):
        if not finite[row]:
            forecasts.append(None)
            continue
        measured, matched = int(measured_steps[row]), (profile, rule)
        last = history[row, -1, served] if history.shape[1] else np.full(len(model.metrics), np.nan)
        forecasts.append(
            ServerForecast(
                server_name=name,
                model=model,
                origin_seconds=int(origin_seconds[row]),
                made_at_seconds=made_at,
                profile=profile,
                rule=rule,
                history_steps=measured,
                quantiles=arranged[row],
                warnings=servers.notes + _warnings(name, matched, profile in untrained, summaries[row], measured),
                current=tuple(_shortest(value) for value in last),
                peers=summaries[row],
                provisional=bool(provisional[row]),
                risk=risks[row],
                not_measured=tuple(m for m, kept in zip(model.metrics, makes_sense[row], strict=True) if not kept),
            )
        )
    return forecasts


def _risks(engine: Engine, servers: ServersToForecast, assessed: np.ndarray) -> list[ServerRisk | None]:
    """The risk of each server; assessed: boolean [server], which of them have one."""
    model, rows = engine.risk_model, np.flatnonzero(assessed).tolist()
    found: list[ServerRisk | None] = [None] * len(assessed)
    if model is None or not rows:
        return found
    peers = servers.peers
    if peers is not None:
        values = None if peers.values is None else peers.values[rows]
        peers = peers._replace(members=peers.members[rows], values=values)
    origins = servers.origin_seconds[rows].astype("datetime64[s]")
    profiles = [servers.profiles[row][0] for row in rows]
    features = model.features(RiskInput(servers.history[rows, -model.history_steps :], profiles, origins, peers))
    for row, probabilities, own in zip(rows, model.probabilities(features), features, strict=True):
        found[row] = ServerRisk(model, probabilities, own)
    return found


def _shortest(value: np.float32) -> float | None:
    """A single-precision number with its shortest digits: 31.32, not 31.31999969; None if not measured."""
    return None if math.isnan(value) else float(str(value))


def _warnings(
    name: str, matched: tuple[str, str | None], untrained: bool, peers: PeerSummary, history_steps: int
) -> tuple[str, ...]:
    (profile, rule), warnings = matched, []
    if rule is None:
        warnings.append(
            f"no rule matches the name {name!r}: forecast as generic; "
            "send a profile with the samples, or add a pattern or pin to the fleet file"
        )
    if untrained:
        warnings.append(
            f"the model was not trained on profile {profile!r}: forecast as a server with an unknown profile"
        )
    if history_steps == 0:
        source = f"the profile and {peers.count} peers" if peers.count else "the profile alone"
        warnings.append(f"no complete step was measured yet: forecast from {source}")
    return tuple(warnings)
