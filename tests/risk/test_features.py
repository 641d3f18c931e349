"""Features of the risk model against a loop over servers, metrics and steps."""

import numpy as np
import pytest

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers
from fleet_forecast.risk.features import (
    CHANGE_SECONDS,
    LEVEL_SECONDS,
    PRIOR_STEPS,
    SMALLEST_RATE,
    SMALLEST_SHARE,
    RiskInput,
    RiskSpec,
    feature_names,
    risk_features,
)

METRICS = ("cpu_pct", "net_in_mb_s", "latency_ms")
STEP = 1_800
FIRST_STEP = 1_000_000
PROFILES = ("web_api", "web_api", "web_api", "web_api", "database", None, "web_api")


def spec_of(random):
    scales = len(LEVEL_SECONDS) + len(CHANGE_SECONDS)
    roots = random.normal(size=(scales, 3, 3))
    covariance = (roots @ roots.transpose(0, 2, 1) + np.eye(3)).astype(np.float32)
    deviation = np.array([0.4, 0.7, 0.2], dtype=np.float32)
    return RiskSpec(
        METRICS, (True, False, False), STEP, BusinessCalendar("UTC"), ("database", "web_api"), deviation, covariance
    )


def fleet(random, steps=48):
    values = np.exp(random.normal(size=(len(PROFILES), steps, 3))).astype(np.float32)
    values[..., 0] *= 20
    values[random.random(values.shape) < 0.15] = np.nan
    values[2, :, 1] = np.nan  # a metric that one server does not have
    values[3, : steps - 5] = np.nan  # a new server
    values[6] = np.nan
    members = ProfileMembers.of([str(row) for row in range(len(PROFILES))], PROFILES)
    return values, Peers(PeerTable.build(values, members, FIRST_STEP), members.mask(len(PROFILES)))


def on_log_scale(value, percent):
    if percent:
        share = min(max(value / 100, SMALLEST_SHARE), 1 - SMALLEST_SHARE)
        return np.log(share / (1 - share))
    return np.log(max(value, SMALLEST_RATE))


def slow_features(values, spec, row):
    """One server's features, by metric, from plain loops."""
    steps = values.shape[1]
    scaled, offsets, deviations = {}, [], []
    for m, percent in enumerate(spec.percent):
        own = [on_log_scale(v, percent) if not np.isnan(v) else np.nan for v in values[row, :, m]]
        differences = []
        for step in range(steps):
            others = [
                on_log_scale(values[other, step, m], percent)
                for other in range(len(values))
                if other != row and PROFILES[row] is not None and PROFILES[other] == PROFILES[row]
                if not np.isnan(values[other, step, m])
            ]
            differences.append(own[step] - np.median(others) if others else np.nan)
        if np.isnan(differences).all():
            differences = own
        known = [d for d in differences if not np.isnan(d)]
        mean = np.mean(known) if known else np.nan
        squares = sum((d - mean) ** 2 for d in known) + PRIOR_STEPS * spec.deviation[m] ** 2
        deviation = np.sqrt(squares / (len(known) + PRIOR_STEPS))

        def mean_of(end, start, series=differences):
            part = [d for d in series[max(steps - start, 0) : steps - end] if not np.isnan(d)]
            return np.mean(part) if part else np.nan

        for index, seconds in enumerate(LEVEL_SECONDS):
            scaled[index, m] = (mean_of(0, max(1, seconds // STEP)) - mean) / deviation
        for index, seconds in enumerate(CHANGE_SECONDS, start=len(LEVEL_SECONDS)):
            n = max(1, seconds // STEP)
            scaled[index, m] = (mean_of(0, n) - mean_of(n, 2 * n)) / deviation
        offsets.append(mean)
        deviations.append(np.log(deviation / spec.deviation[m]))
    table = np.array([[scaled[index, m] for m in range(3)] for index in range(len(spec.covariance))])
    alone = np.full_like(table, np.nan)
    for index, levels in enumerate(table):
        known = np.flatnonzero(~np.isnan(levels))
        for m in known:
            others = [other for other in known if other != m]
            covariance = spec.covariance[index].astype(np.float64)
            predicted = 0.0
            if others:
                weights = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, m])
                predicted = weights @ levels[others]
            alone[index, m] = levels[m] - predicted
    return np.concatenate([table.ravel(), alone.ravel(), offsets, deviations])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.filterwarnings("error")
def test_they_equal_those_of_a_loop(seed):
    random = np.random.default_rng(seed)
    spec = spec_of(random)
    values, peers = fleet(random)
    origin = np.datetime64((FIRST_STEP + values.shape[1] - 1) * STEP, "s")
    found = risk_features(RiskInput(values, PROFILES, np.full(len(values), origin), peers), spec)
    names = feature_names(METRICS)
    assert found.shape == (len(values), len(names))
    assert found.dtype == np.float32
    for row in range(len(values)):
        np.testing.assert_allclose(found[row, :-5], slow_features(values, spec, row), rtol=2e-3, atol=2e-3)


def test_the_last_columns_are_profile_time_peers_and_history():
    random = np.random.default_rng(3)
    spec = spec_of(random)
    values, peers = fleet(random)
    origin = np.datetime64("2027-01-12T10:30:00", "s")  # a Tuesday
    first = int(origin.astype(np.int64)) // STEP - values.shape[1] + 1
    peers = peers._replace(table=PeerTable(peers.table.profiles, first, peers.table.statistics))
    found = risk_features(RiskInput(values, PROFILES, np.full(len(values), origin), peers), spec)[:, -5:]
    assert [str(name) for name in feature_names(METRICS)[-5:]] == [
        "profile",
        "hour",
        "weekday",
        "peers",
        "history_hours",
    ]
    np.testing.assert_array_equal(found[:, 0], [1, 1, 1, 1, 0, np.nan, 1])
    np.testing.assert_array_equal(found[:, 1:3], [[10, 1]] * len(values))
    measured = ~np.isnan(values)
    for row, profile in enumerate(PROFILES):
        others = [other for other in range(len(values)) if other != row and profile and PROFILES[other] == profile]
        assert found[row, 3] == measured[others, -1].sum(axis=0).max(initial=0)
        compared = measured[row] & measured[others].any(axis=0)
        compared = np.where(compared.any(axis=0), compared, measured[row])  # a metric without peers
        assert found[row, 4] == compared.sum(axis=0).max() * 0.5


def test_servers_may_have_different_origins_and_be_computed_alone():
    random = np.random.default_rng(4)
    spec = spec_of(random)
    values, peers = fleet(random, steps=60)
    last = np.array([59, 58, 59, 57, 59, 59, 58])
    history = np.stack([values[row, step - 47 : step + 1] for row, step in enumerate(last)])
    origins = ((FIRST_STEP + last) * STEP).astype("datetime64[s]")
    together = risk_features(RiskInput(history, PROFILES, origins, peers), spec)
    for row in range(len(values)):
        part = Peers(peers.table, peers.members[[row]])
        alone = risk_features(RiskInput(history[[row]], PROFILES[row : row + 1], origins[[row]], part), spec)
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_a_shorter_history_is_one_with_unmeasured_steps_before_it():
    random = np.random.default_rng(5)
    spec = spec_of(random)
    values, peers = fleet(random)
    origins = np.full(len(values), np.datetime64((FIRST_STEP + 47) * STEP, "s"))
    masked = values.copy()
    masked[:, :-6] = np.nan
    short = risk_features(RiskInput(values[:, -6:], PROFILES, origins, peers), spec)
    np.testing.assert_array_equal(short, risk_features(RiskInput(masked, PROFILES, origins, peers), spec))
