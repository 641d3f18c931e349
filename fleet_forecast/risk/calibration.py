"""Calibration: from the raw score of the trees to probabilities, an increasing piecewise linear function of log odds.

The scores of held-out fleets are cut into bins. The observed frequency of each bin, made non-decreasing by pool
adjacent violators (Barlow et al. 1972; Zadrozny and Elkan 2002), is a knot. Weights correct the rate of incidents of
the held-out fleets to the usual one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 24  # of all scores, and as many of the scores before and during incidents
SMALLEST_SLOPE = 1e-3  # of log odds over the score: different scores never have equal probabilities
PRIOR_WEIGHT = 1.0  # added to each bin, at the mean frequency: no probability is 0 or 1
CHART_BINS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


class Calibration(NamedTuple):
    """Knots of the function. scores: increasing [knot]. log_odds: increasing [horizon, knot]."""

    scores: np.ndarray
    log_odds: np.ndarray

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """float32 [server, horizon], not decreasing along horizon.

        Beyond the last knot the log odds rise as the score does, before the first they are nearly constant.
        """
        beyond = np.maximum(scores - self.scores[-1], 0) + SMALLEST_SLOPE * np.minimum(scores - self.scores[0], 0)
        columns = [np.interp(scores, self.scores, of_horizon) + beyond for of_horizon in self.log_odds]
        found = 1 / (1 + np.exp(-np.stack(columns, axis=1)))
        return np.maximum.accumulate(found, axis=1).astype(np.float32)


class Outcomes(NamedTuple):
    """What happened after the scores of held-out fleets.

    scores: [sample]. happened: bool [sample, horizon]. weight: [sample], of the usual rate of incidents.
    """

    scores: np.ndarray
    happened: np.ndarray
    weight: np.ndarray


def fit_calibration(outcomes: Outcomes) -> Calibration:
    """The calibration of held-out outcomes."""
    edges = _edges(outcomes)
    bins = np.searchsorted(edges, outcomes.scores, side="right")
    weight = np.bincount(bins, outcomes.weight, len(edges) + 1)
    used = weight > 0
    scores = (np.bincount(bins, outcomes.weight * outcomes.scores, len(edges) + 1) / np.maximum(weight, 1e-12))[used]
    knots = []
    for happened in outcomes.happened.T:
        hits = np.bincount(bins, outcomes.weight * happened, len(edges) + 1)[used]
        mean = hits.sum() / weight.sum()
        frequency = (hits + PRIOR_WEIGHT * mean) / (weight[used] + PRIOR_WEIGHT)
        frequency = np.clip(_pooled(frequency, weight[used]), 1e-6, 1 - 1e-6)
        log_odds = np.log(frequency / (1 - frequency))
        knots.append(np.maximum.accumulate(log_odds + SMALLEST_SLOPE * (scores - scores[0])))
    return Calibration(scores, np.stack(knots))


def reliability(probabilities: np.ndarray, outcomes: Outcomes, horizon: int) -> list[dict[str, float]]:
    """The reliability diagram of one horizon: mean probability, frequency and weight by bins of the probability."""
    own, happened = probabilities[:, horizon], outcomes.happened[:, horizon]
    bins = np.searchsorted(CHART_BINS, own, side="right")
    rows = []
    for position in np.unique(bins).tolist():
        inside = bins == position
        weight = outcomes.weight[inside]
        mean, frequency = (float(np.average(values[inside], weights=weight)) for values in (own, happened))
        rows.append(
            {"probability": round(mean, 5), "frequency": round(frequency, 5), "weight": round(float(weight.sum()), 1)}
        )
    return rows


def _edges(outcomes: Outcomes) -> np.ndarray:
    """Edges of bins: quantiles of all scores, and of those before and during incidents."""
    levels = np.arange(1, BINS) / BINS
    eventful = outcomes.scores[outcomes.happened[:, 0]]
    parts: Sequence[np.ndarray] = [np.quantile(outcomes.scores, levels)]
    if eventful.size:
        parts = [*parts, np.quantile(eventful, levels)]
    return np.unique(np.concatenate(parts))


def _pooled(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence that is nearest in weighted squares."""
    blocks: list[list[float]] = []  # value, weight, length
    for value, mass in zip(values.tolist(), weight.tolist(), strict=True):
        blocks.append([value, mass, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            later, before = blocks.pop(), blocks.pop()
            mass = before[1] + later[1]
            mean = (before[0] * before[1] + later[0] * later[1]) / mass
            blocks.append([mean, mass, before[2] + later[2]])
    return np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])
