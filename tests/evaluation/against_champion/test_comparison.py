"""The comparison of two models on the same windows: the ratio, its interval, and when the challenger is worse."""

import numpy as np
import pytest

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS, SCORED_LEVELS
from fleet_forecast.evaluation.against_champion.comparison import (
    DRAWS,
    TOLERATED_PCT,
    Forecasts,
    GroupComparison,
    compare_group,
    found_ahead_pct,
    risk_is_worse,
)
from fleet_forecast.evaluation.scores import weighted_quantile_loss
from fleet_forecast.risk.alarms import CurvePoint

SERVERS, WINDOWS, HORIZON, METRICS = 30, 6, 12, 2


def scene(seed=0, servers=SERVERS):
    """Servers of the windows, actual values, and forecasts with errors of the width of their bands."""
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(servers), WINDOWS)
    level = random.uniform(20, 60, (servers, 1, METRICS))[rows]
    actual = (level + random.normal(0, 3, (len(rows), HORIZON, METRICS))).astype(np.float32)
    actual[random.random(actual.shape) < 0.1] = np.nan
    deviations = np.array([-6.2, -3.8, -2.0, 0, 2.0, 3.8, 6.2])
    bands = np.broadcast_to(level[..., None] + deviations, (*actual.shape, len(deviations)))
    return rows, actual, Forecasts(bands.astype(np.float32), QUANTILE_LEVELS)


def worse(forecasts, shift):
    return Forecasts(forecasts.quantiles + np.float32(shift), forecasts.levels)


def test_the_ratio_is_that_of_the_weighted_quantile_losses():
    rows, actual, good = scene()
    found = compare_group("unseen", rows, actual, good, worse(good, 2))
    wql = []
    for forecasts in (good, worse(good, 2)):
        columns = [QUANTILE_LEVELS.index(level) for level in SCORED_LEVELS]
        of_metric = []
        for metric in range(METRICS):
            known = ~np.isnan(actual[..., metric])
            values = forecasts.quantiles[:, :, metric][known][:, columns].astype(np.float64)
            of_metric.append(weighted_quantile_loss(actual[..., metric][known], values, SCORED_LEVELS))
        wql.append(np.mean(of_metric))
    assert (found.champion_wql, found.challenger_wql) == pytest.approx(tuple(wql), rel=1e-5)
    assert found.ratio == pytest.approx(wql[1] / wql[0], rel=1e-5)
    assert (found.servers, found.windows) == (SERVERS, SERVERS * WINDOWS)
    inside = [(f.quantiles[..., 1] <= actual) & (actual <= f.quantiles[..., 5]) for f in (good, worse(good, 2))]
    expected = [100 * each.sum() / (~np.isnan(actual)).sum() for each in inside]
    assert (found.champion_coverage_80, found.challenger_coverage_80) == pytest.approx(tuple(expected))


def test_the_interval_is_that_of_drawing_servers_with_replacement():
    rows, actual, good = scene()
    shift = np.random.default_rng(5).normal(0, 2, SERVERS)[rows][:, None, None, None]
    found = compare_group("unseen", rows, actual, good, worse(good, shift))
    random, ratios = np.random.default_rng(1), []
    for _ in range(400):
        chosen = np.concatenate([np.flatnonzero(rows == row) for row in random.integers(0, SERVERS, SERVERS)])
        drawn = [Forecasts(f.quantiles[chosen], QUANTILE_LEVELS) for f in (good, worse(good, shift))]
        ratios.append(compare_group("", np.zeros(len(chosen)), actual[chosen], *drawn).ratio)
    assert found.ratio_upper_95 == pytest.approx(np.quantile(ratios, 0.95), rel=0.01)
    assert DRAWS >= 1_000


def test_a_model_is_not_worse_than_itself_whatever_the_number_of_servers():
    for servers in (1, 4, 5, SERVERS):
        rows, actual, good = scene(servers=servers)
        found = compare_group("training", rows, actual, good, good)
        assert found.ratio == 1.0
        assert found.ratio_upper_95 == (None if servers < 5 else 1.0)
        assert found.problems() == []


def test_a_clearly_larger_error_is_named_with_its_size_and_the_servers():
    rows, actual, good = scene()
    (error, *rest) = compare_group("unseen", rows, actual, good, worse(good, 4)).problems()
    assert error.startswith("its error (WQL) on unseen servers is ")
    assert "its 80 % band covers" in rest[0]


def outcome(ratio, upper, coverage=80.0):
    return GroupComparison("unseen", 7, 70, 0.2, 0.2 * ratio, ratio, upper, 78.0, coverage).problems()


def test_the_margins_decide():
    assert outcome(1.019, 1.09) == []
    assert outcome(0.95, None) == []
    assert "2.1 % higher" in outcome(1.021, 1.09)[0]
    assert "may be 12 % higher (7 servers cannot show more)" in outcome(1.0, 1 + (TOLERATED_PCT + 2) / 100)[0]
    assert "covers 67.9 %" in outcome(1.0, 1.0, 67.9)[0]
    assert outcome(1.0, 1.0, 91.9) == []


def test_without_a_common_point_there_is_no_comparison():
    rows, actual, good = scene()
    assert compare_group("unseen", rows, np.full_like(actual, np.nan), good, good) is None
    assert compare_group("unseen", rows, np.zeros_like(actual), good, good) is None


def curve(*points):
    return [CurvePoint(0.5, false_alarms, None, None, None, ahead, None) for false_alarms, ahead in points]


def test_risk_models_are_compared_at_the_same_rate_of_false_alarms():
    good, bad = curve((5.0, 0.9), (0.9, 0.5), (0.1, 0.2)), curve((5.0, 0.9), (0.9, 0.38), (0.1, 0.1))
    assert found_ahead_pct(good) == 50
    assert risk_is_worse(good, good) is None
    assert risk_is_worse(bad, good) is None
    assert "finds 38 % of the incidents with a long precursor before the harm, that of the champion 50 %" in str(
        risk_is_worse(good, bad)
    )
    assert risk_is_worse(good, curve((5.0, 0.9))) is None, "without a point at this rate there is nothing to compare"
