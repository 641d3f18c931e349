"""How likely each profile is for a server, given its behaviour.

Each profile is a multivariate Student t distribution (its long tails allow for servers with wrong names) around the
median behaviour of its servers, the server itself excluded. All profiles have one covariance up to a factor, estimated
from the servers' differences to the median of their profile: a fleet has fewer servers of a profile than a covariance
has entries (linear discriminant analysis with a shrunk covariance, Friedman 1989, doi:10.2307/2289860). The logarithms
are divided by a temperature at which the names of the fleet are most likely (Guo et al. 2017, arXiv:1706.04599):
features are not as independent as the distribution assumes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fleet_forecast.features.peers import LeaveOneOut, leave_one_out, medians_without_one, order_statistics

NO_PROFILE = -1
SHRINKAGE = 0.2  # of correlations towards 0; 0.1 to 0.5 give the same results
DEGREES_OF_FREEDOM = 6
MOST_DEVIATIONS = 3.0  # differences are cut to so many deviations before they are correlated
MEDIAN_VARIANCE = np.pi / 2  # of the median of n normal values, times n
SCATTER_SERVERS = 3  # as many servers as the scatter of all profiles counts for in that of one
WRONG_NAMES = 0.05  # share of names that are taken for wrong when the temperature is chosen
TEMPERATURES = np.geomspace(1, 300, 60)
PLAUSIBLE_SHARE = 0.99  # of servers are as close to their own profile
WEIGHT_ROUNDS = 3
SMALLEST_DEVIATION = 1e-6


class ProfileProbabilities(NamedTuple):
    """Results for each server.

    probabilities: float64 [server, profile], sum 1; NaN for servers without a measured behaviour. plausible: bool
    [server, profile], whether the behaviour is one that servers of the profile have.
    """

    probabilities: np.ndarray
    plausible: np.ndarray


class Space(NamedTuple):
    """Where behaviours are compared.

    medians: float64 [profile, feature], NaN for a profile without servers. deviations: [feature]. precision: [feature,
    feature], inverse of the correlations.
    """

    medians: np.ndarray
    deviations: np.ndarray
    precision: np.ndarray

    def distances(self, differences: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance per feature: [server] of [server, feature]; NaN features are left out.

        NaN if no feature is left.
        """
        measured = ~np.isnan(differences)
        scaled = np.where(measured, differences / self.deviations, 0.0)
        count = measured.sum(axis=1)
        squared = np.einsum("sf,fg,sg->s", scaled, self.precision, scaled)
        return np.divide(squared, count, out=np.full(len(count), np.nan), where=count > 0)


def profile_probabilities(
    behaviours: np.ndarray, profiles: np.ndarray, matched: np.ndarray, profile_count: int
) -> ProfileProbabilities:
    """Probability of every profile for every server.

    behaviours: float32 [server, feature], NaN = missing. profiles: int64 [server], NO_PROFILE = not known.
    matched: bool [server], whether a rule gave the profile; the others are not used to calibrate. A profile without
    another server has probability 0.
    """
    space, own = compare(behaviours, profiles, profile_count)
    counts = np.bincount(profiles[profiles >= 0], minlength=profile_count)
    named = np.flatnonzero(profiles >= 0)
    distances = np.stack([space.distances(behaviours - median) for median in space.medians], axis=1)
    distances[named, profiles[named]] = space.distances(own[named])
    others = np.tile(counts, (len(behaviours), 1))
    others[named, profiles[named]] -= 1
    distances[others < 1] = np.inf
    distances /= 1 + MEDIAN_VARIANCE / np.maximum(others, 1)
    scatter = _scatter(distances, profiles, profile_count)
    features = behaviours.shape[1]
    relative = distances / scatter
    logs = -0.5 * (DEGREES_OF_FREEDOM + features) * np.log1p(relative * features / DEGREES_OF_FREEDOM)
    logs -= 0.5 * features * np.log(scatter * (1 + MEDIAN_VARIANCE / np.maximum(others, 1)))
    of_own = relative[named, profiles[named]]
    of_own = of_own[np.isfinite(of_own)]
    limit = np.quantile(of_own, PLAUSIBLE_SHARE) if of_own.size else np.inf
    return ProfileProbabilities(_calibrated(logs, np.where(matched, profiles, NO_PROFILE)), relative <= limit)


def compare(behaviours: np.ndarray, profiles: np.ndarray, profile_count: int) -> tuple[Space, np.ndarray]:
    """The space of a fleet, and each server's difference to the median of its profile's other servers.

    The differences are NaN without a profile or without others. Arguments as for profile_probabilities.
    """
    medians = np.full((profile_count, behaviours.shape[1]), np.nan)
    own = np.full(behaviours.shape, np.nan)
    for profile in range(profile_count):
        rows = np.flatnonzero(profiles == profile)
        if rows.size:
            without_one = medians_without_one(order_statistics(behaviours[rows][:, None]))
            medians[profile] = without_one.whole[0]
            repeated = LeaveOneOut(*(np.repeat(field, len(rows), axis=0) for field in without_one))
            own[rows] = behaviours[rows] - leave_one_out(repeated, behaviours[rows])
    deviations = _deviations(own)
    return Space(medians, deviations, _precision(own, deviations)), own


def _deviations(own: np.ndarray) -> np.ndarray:
    """Robust standard deviation of each feature; infinite, so that it never counts, where it cannot be estimated."""
    measured = ~np.isnan(own).all(axis=0)
    found = np.full(own.shape[1], np.inf)
    found[measured] = 1.4826 * np.nanmedian(np.abs(own[:, measured]), axis=0)
    return np.maximum(found, SMALLEST_DEVIATION)


def _precision(own: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Inverse of the shrunk correlations: [feature, feature].

    Distant servers count less, as in the maximum likelihood estimate of a Student t distribution (Lange et al. 1989,
    doi:10.1080/01621459.1989.10478852): a server of a wrong name differs in all features together.
    """
    scaled = np.nan_to_num(np.clip(own / deviations, -MOST_DEVIATIONS, MOST_DEVIATIONS))
    features = scaled.shape[1]
    precision = np.eye(features)
    for _ in range(WEIGHT_ROUNDS):
        squared = np.einsum("sf,fg,sg->s", scaled, precision, scaled)
        weights = (DEGREES_OF_FREEDOM + features) / (DEGREES_OF_FREEDOM + squared)
        covariance = (scaled * weights[:, None]).T @ scaled
        deviation = np.sqrt(np.maximum(np.diag(covariance), SMALLEST_DEVIATION))
        correlation = (1 - SHRINKAGE) * covariance / np.outer(deviation, deviation)
        np.fill_diagonal(correlation, 1.0)
        precision = np.linalg.inv(correlation)
    return precision


def _scatter(distances: np.ndarray, profiles: np.ndarray, profile_count: int) -> np.ndarray:
    """Factor of the covariance of each profile [profile]; close to that of all where a profile has few servers."""
    named = np.flatnonzero(profiles >= 0)
    own = distances[named, profiles[named]]
    usable = np.isfinite(own) & (own > 0)
    if not usable.any():
        return np.ones(profile_count)
    pooled = float(np.median(own[usable]))
    found = np.full(profile_count, pooled)
    for profile in range(profile_count):
        of_profile = own[usable & (profiles[named] == profile)]
        if of_profile.size:
            weight = of_profile.size / (of_profile.size + SCATTER_SERVERS)
            found[profile] *= (np.median(of_profile) / pooled) ** weight
    return found


def _calibrated(logs: np.ndarray, profiles: np.ndarray) -> np.ndarray:
    """Probabilities at the temperature at which the names, WRONG_NAMES of them wrong, are most likely."""
    usable = np.isfinite(logs).any(axis=1)
    found = np.full(logs.shape, np.nan)
    if not usable.any():
        return found
    logs, profiles = logs[usable], profiles[usable]
    logs = np.where(np.isnan(logs), -np.inf, logs)
    relative = logs - logs.max(axis=1, keepdims=True)
    named = np.flatnonzero(profiles >= 0)

    def at(temperature: float) -> np.ndarray:
        weights = np.exp(relative / temperature)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def likelihood(temperature: float) -> float:
        of_name = at(temperature)[named, profiles[named]]
        return float(np.log((1 - WRONG_NAMES) * of_name + WRONG_NAMES / logs.shape[1]).sum())

    found[usable] = at(max(TEMPERATURES, key=likelihood))
    return found
