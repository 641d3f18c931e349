"""Profiles that consist of two: their servers form two groups further apart than the groups of one distribution.

The distance between the medians of two groups grows with any division of a sample. It is therefore compared with that
of divided samples of one normal distribution, as large and as scattered as the profile (a gap statistic, Tibshirani et
al. 2001, doi:10.1111/1467-9868.00293).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fleet_forecast.profile_audit.probabilities import Space

MIN_GROUP = 3  # servers; fewer are odd servers, not a profile
MIN_APART = 2.0  # times the largest distance in any of them; below 1.7 on simulated servers of one profile
MOST_MEMBERS = 200  # more servers of a profile say nothing new
REFERENCES = 49  # samples of one distribution
MOST_ROUNDS = 50


class Groups(NamedTuple):
    """Two groups of a profile's servers.

    profile: its number. members: int64, rows of its servers. second: bool [member], which are in the second group.
    apart: distance of the groups' medians, as a multiple of the largest one in a sample of one distribution.
    """

    profile: int
    members: np.ndarray
    second: np.ndarray
    apart: float


def two_in_one(behaviours: np.ndarray, profiles: np.ndarray, space: Space) -> list[Groups]:
    """The profiles whose servers form two groups.

    behaviours: float32 [server, feature]. profiles: int64 [server], a negative number for servers to leave out.
    """
    whitening = np.linalg.cholesky(space.precision)
    found = []
    for profile in range(len(space.medians)):
        members = np.flatnonzero(profiles == profile)[:MOST_MEMBERS]
        if len(members) < 2 * MIN_GROUP:
            continue
        differences = (behaviours[members] - space.medians[profile]) / space.deviations
        points = np.nan_to_num(differences) @ whitening
        second, distance = _divide(points)
        usual = np.median(np.abs(points)) / 0.6745  # standard deviation, which odd servers do not change
        limit = max(_divide(sample * usual)[1] for sample in _references(points.shape))
        if distance > MIN_APART * limit:
            found.append(Groups(profile, members, second, distance / limit))
    return found


def _references(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((REFERENCES, *shape))


def _divide(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The two groups of points [point, feature], and the distance of their medians; 0 if a group is too small."""
    second = _two_means(points)
    if min(second.sum(), (~second).sum()) < MIN_GROUP:
        return second, 0.0
    between = np.median(points[second], axis=0) - np.median(points[~second], axis=0)
    return second, float(np.sqrt((between**2).sum()))


def _two_means(points: np.ndarray) -> np.ndarray:
    """Lloyd's algorithm for two groups, begun on both sides of the direction of largest variance: bool [point]."""
    centred = points - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    second = centred @ directions[0] > 0
    for _ in range(MOST_ROUNDS):
        if second.all() or not second.any():
            break
        centres = np.stack([points[~second].mean(axis=0), points[second].mean(axis=0)])
        nearer = ((points - centres[1]) ** 2).sum(axis=1) < ((points - centres[0]) ** 2).sum(axis=1)
        if (nearer == second).all():
            break
        second = nearer
    return second
