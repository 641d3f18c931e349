"""Samples to train the risk model on: features and targets of some servers and steps of labelled fleets.

Servers with an incident ahead or under way are sampled more often than others; weights make up for it. Some samples
have no peers, a short history or no profile, as new servers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fleet_forecast.risk.alarms import begins_within, signs_begun
from fleet_forecast.risk.features import Day, RiskSpec, differences_from_peers, risk_features
from fleet_forecast.training.risk.fleets import LabelledFleet

STEPS_APART = 2
CALM_SHARE = 0.1  # of the servers without an incident that are sampled
TARGET_SECONDS = 3_600  # an incident whose first signs are not known counts from so long before its start
WITHOUT_PEERS, WITHOUT_PROFILE, SHORT_HISTORY = 0.08, 0.15, 0.08  # shares of the samples
STATISTICS_STEPS_APART = 37  # no divisor of a day: all hours occur
FURTHEST_LEVEL = 6.0  # standard deviations; further ones do not count in the covariances


class Samples(NamedTuple):
    """features: float32 [sample, feature]. target: bool [sample]. weight: float32 [sample]."""

    features: np.ndarray
    target: np.ndarray
    weight: np.ndarray


def target_of(fleet: LabelledFleet) -> np.ndarray:
    """Whether the signs of an incident have begun or it is under way: bool [server, step from first_step on].

    Where no onset is known, from TARGET_SECONDS before the start.
    """
    scene = fleet.scene()
    known = bool((fleet.incidents.onset < fleet.incidents.start).any())
    return signs_begun(scene) if known else begins_within(scene, TARGET_SECONDS)


def sample(fleet: LabelledFleet, spec: RiskSpec, random: np.random.Generator) -> Samples:
    """Samples of every second step of a fleet."""
    target, first = target_of(fleet), fleet.first_step
    parts = []
    for step in range(int(random.integers(STEPS_APART)), target.shape[1], STEPS_APART):
        chance = np.where(target[:, step], 1.0, CALM_SHARE)
        measured = ~np.isnan(fleet.grid.values[:, first + step]).all(axis=1)
        rows = np.flatnonzero((random.random(len(chance)) < chance) & measured)
        if rows.size:
            features = _augmented_features(fleet, spec, first + step, rows, random)
            parts.append((features, target[rows, step], (1 / chance[rows]).astype(np.float32)))
    return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _augmented_features(
    fleet: LabelledFleet, spec: RiskSpec, step: int, rows: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    inputs = fleet.risk_input(spec, step, rows)
    if random.random() < WITHOUT_PEERS:
        inputs = inputs._replace(peers=None)
    if random.random() < SHORT_HISTORY:
        length = int(np.exp(random.uniform(0, np.log(spec.day_steps))))
        inputs = inputs._replace(history=inputs.history[:, -length:])
    masked = random.random(len(rows)) < WITHOUT_PROFILE
    features = risk_features(inputs, spec)
    features[masked, spec.profile_column] = np.nan
    return features


def fit_statistics(fleets: Sequence[LabelledFleet], spec: RiskSpec) -> RiskSpec:
    """The spec with typical deviations and covariances of servers without an incident."""
    days: list[Day] = []
    for fleet in fleets:
        calm = ~target_of(fleet)
        for step in range(0, calm.shape[1], STATISTICS_STEPS_APART):
            inputs = fleet.risk_input(spec, fleet.first_step + step, np.flatnonzero(calm[:, step]))
            if len(inputs.history):
                days.append(Day.of(differences_from_peers(inputs, spec)[0], spec))
    deviations = np.concatenate([day.deviation for day in days])
    spec = replace(spec, deviation=np.median(deviations, axis=0).astype(np.float32))
    levels = np.concatenate([day.scaled(spec) for day in days], axis=1)  # [scale, server, metric]
    return replace(spec, covariance=np.stack([_covariance(of_scale) for of_scale in levels]))


def _covariance(levels: np.ndarray) -> np.ndarray:
    """Second moments of [sample, metric] over the samples in which both metrics are known: float32 [metric, metric]."""
    near = (np.abs(levels) < FURTHEST_LEVEL).astype(np.float64)  # False for NaN
    values = np.where(near > 0, levels, 0.0).astype(np.float64)
    moments = values.T @ values / np.maximum(near.T @ near, 1)
    moments += 0.02 * np.diag(np.maximum(np.diag(moments), 1e-3))  # invertible for metrics that are one another's copy
    return moments.astype(np.float32)
