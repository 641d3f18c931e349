"""How far servers depart from what was forecast for them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from data_contract import METRICS
from fleet_forecast.serving.alerting import anomaly as departures
from fleet_forecast.serving.alerting.anomaly import Departures, distance, scores, shares_of_distance
from fleet_forecast.serving.alerting.book import DEPARTURE, AlertBook, AlertRules
from tests.serving.alerting.test_book import LEVELS, STEP, VIEW, forecast

NORMAL = stats.norm.ppf(LEVELS)
LEAD, WINDOW = 12, 3


def normal_forecast(origin, values, centre=0.0, name="ppdb001", profile="database"):
    """Quantiles of a normal distribution of width 10 around 100 + centre; `values` are current, in widths off 100."""
    quantiles = np.broadcast_to(100 + 10 * (centre + NORMAL)[None, :, None], (len(METRICS), 7, 96))
    current = tuple(None if np.isnan(value) else 100 + 10 * value for value in values)
    plain = forecast(50, origin, name, profile=profile)
    return replace(plain, quantiles=quantiles.astype(np.float32), current=current)


def run(memory, rows, first=0, **fields):
    """What `take` gives for the last of some steps' values [step, metric]."""
    for origin, values in enumerate(rows, start=first):
        (found,) = memory.take([normal_forecast(origin, values, **fields)])
    return found


def test_a_score_is_the_normal_score_within_the_quantiles():
    values = np.array([80.0, 93.3, 100.0, 110.0, 120.5])
    quantiles = np.broadcast_to(100 + 10 * NORMAL, (5, 7))
    np.testing.assert_allclose(scores(values, quantiles, LEVELS), (values - 100) / 10, atol=1e-6)


def test_scores_rise_with_the_value_without_jumps_and_stay_small_in_long_tails():
    values = np.linspace(-300, 1000, 20_001)
    quantiles = np.broadcast_to(np.array([10, 20, 40, 50, 55, 90, 100.0]), (len(values), 7))
    found = scores(values, quantiles, LEVELS)
    assert np.diff(found).min() >= 0
    assert np.diff(found).max() < 0.02
    assert NORMAL[-1] < found[-1] < 6
    assert np.isnan(scores(np.array([np.nan]), quantiles[:1], LEVELS)).all()


def test_a_metric_that_never_changed_does_not_cry_at_a_rounding_error():
    assert abs(scores(np.array([50.01]), np.full((1, 7), 50.0), LEVELS)[0]) < NORMAL[-1] + 0.1


def test_the_distance_is_mahalanobis_over_the_known_metrics():
    random = np.random.default_rng(0)
    root = random.normal(size=(6, 6))
    scatter, averages = root @ root.T + np.eye(6), random.normal(size=(40, 6))
    averages[random.random(averages.shape) < 0.3] = np.nan
    shares = shares_of_distance(averages, scatter)
    for row, parts in zip(averages, shares, strict=True):
        known = ~np.isnan(row)
        slow = row[known] @ np.linalg.inv(scatter[np.ix_(known, known)]) @ row[known]
        assert np.nansum(parts) == pytest.approx(slow)
        assert (np.isnan(parts) == ~known).all()
        assert distance(parts[None])[0] == pytest.approx(np.sqrt(slow + (~known).sum()))


def test_scores_are_those_of_the_forecast_made_an_hour_before_averaged_over_a_quarter():
    random = np.random.default_rng(1)
    centres, values = random.normal(size=60), random.normal(size=(60, len(METRICS)))
    values[random.random(values.shape) < 0.2] = np.nan
    memory, slow = Departures(VIEW), np.full((60, len(METRICS)), np.nan)
    for origin in range(60):
        if origin >= LEAD:
            slow[origin] = values[origin] - centres[origin - LEAD]
        averages, said = memory.averages([normal_forecast(origin, values[origin], centres[origin])])
        window = slow[max(0, origin - WINDOW + 1) : origin + 1]
        enough = (~np.isnan(window)).sum(axis=0) >= 2
        expected = np.where(enough, np.nansum(window, axis=0) / np.maximum((~np.isnan(window)).sum(axis=0), 1), np.nan)
        inside = np.abs(np.nan_to_num(window)).max(axis=0) < NORMAL[-1]  # beyond it scores are not the normal ones
        np.testing.assert_allclose(averages[0][inside], expected[inside], atol=1e-4)
        assert np.isnan(said).all() == (origin < LEAD)


def test_nothing_is_known_in_the_first_hour_nor_after_a_silence():
    memory = Departures(VIEW)
    assert run(memory, np.zeros((LEAD + 1, 6))) is None
    assert run(memory, np.zeros((4, 6)), first=LEAD + 1) is not None
    assert run(memory, np.zeros((LEAD, 6)), first=LEAD + 20) is None
    assert run(memory, np.zeros((4, 6)), first=2 * LEAD + 20) is not None


def test_what_trouble_looks_like():
    usual = np.zeros((LEAD + 8, 6))
    slow, fast, busy = usual.copy(), usual.copy(), usual.copy()
    slow[-3:] = (-2, 0, 0, -2, -3, 6)  # answers slowly, passes little on
    fast[-3:] = (-2, 0, 0, -2, -3, -6)
    busy[-3:] = (1.5, 0.5, 1.5, 1.5, 1.5, 1.5)  # load: everything rises together
    found = {name: run(Departures(VIEW), rows) for name, rows in (("slow", slow), ("fast", fast), ("busy", busy))}
    assert found["slow"].probability > 0.5
    assert METRICS[int(np.argmax(found["slow"].shares))] == "latency_ms"
    assert (found["slow"].low[0], found["slow"].high[0]) == pytest.approx((100 - 12.8, 100 + 12.8), abs=0.1)
    assert found["fast"].probability == 0
    assert found["busy"].probability < 0.05


def test_what_a_profile_shares_is_no_servers_trouble():
    memory, names = Departures(VIEW), [f"ppdb{number:03d}" for number in range(6)]
    for origin in range(LEAD + 6):
        shift = np.array([-3, 0, 3, -4, -4, 3.0]) if origin > LEAD else np.zeros(6)
        cycle = [normal_forecast(origin, shift, name=name) for name in names]
        cycle.append(normal_forecast(origin, shift, name="ppweb001", profile="web_api"))
        found = memory.take(cycle)
    assert max(departure.probability for departure in found[:6]) < 0.01
    assert found[6].probability > 0.5  # alone with it


def test_many_servers_give_what_each_gives_alone():
    random = np.random.default_rng(2)
    values = random.normal(size=(LEAD + 10, 150, 6))
    together = Departures(VIEW)
    for origin, step in enumerate(values):
        # Profiles of their own: no peers.
        found = together.take(
            [normal_forecast(origin, row, name=f"s{n}", profile=f"p{n}") for n, row in enumerate(step)]
        )
    for number in (0, 63, 64, 149):
        alone = run(Departures(VIEW), values[:, number])
        assert found[number].probability == pytest.approx(alone.probability)


def test_a_server_that_left_is_forgotten_and_its_place_taken():
    memory = Departures(VIEW)
    run(memory, np.zeros((LEAD + 4, 6)))
    memory.keep_only([])
    assert run(memory, np.zeros((1, 6)), first=LEAD + 4, name="another") is None
    assert run(memory, np.zeros((1, 6)), first=LEAD + 4) is None


def test_another_kind_of_model_starts_anew():
    memory = Departures(VIEW)
    assert memory.fits(replace(VIEW, model_id="other"))
    assert not memory.fits(replace(VIEW, step_seconds=60))


def departing_book(steps, rules=None):
    """A book that saw an ordinary hour and then `steps` of trouble; and the alerts that changed at the end."""
    book = AlertBook(rules or AlertRules())
    for origin in range(LEAD + 4 + steps):
        values = (-2, 0, 0, -2, -3, 6) if origin >= LEAD + 4 else (0,) * 6
        changed = book.judge([_calm_thresholds(normal_forecast(origin, values))], origin * STEP)
    return book, changed


def _calm_thresholds(made):
    """The same forecast on a scale far below every threshold."""
    return replace(
        made,
        quantiles=made.quantiles / 1000,
        current=tuple(None if value is None else value / 1000 for value in made.current),
    )


def test_a_departure_raises_one_alert_that_says_why_and_resolves():
    book, _ = departing_book(5)
    (alert,) = book.firing.values()
    assert (alert.metric, alert.reason) == ("latency_ms", DEPARTURE)
    assert alert.probability >= 0.4
    assert "latency is at 0 ms where 0 to 0 ms was forecast an hour ago" in alert.sentence
    assert "the server is in trouble" in alert.sentence
    origin, ended = LEAD + 9, []
    while not ended:
        ended = book.judge([_calm_thresholds(normal_forecast(origin, (0,) * 6))], origin * STEP)
        origin += 1
    assert ended[0].key == alert.key
    assert "is back at what was forecast" in ended[0].sentence
    assert book.firing == {}


def test_an_alert_of_a_departure_waits_after_a_restart_until_enough_is_known():
    before, _ = departing_book(5)
    book = AlertBook(AlertRules())
    book.restore(before.as_documents())
    changes = [book.judge([_calm_thresholds(normal_forecast(100 + n, (0,) * 6))], n) for n in range(LEAD + 10)]
    ends = [n for n, changed in enumerate(changes) if changed]
    assert len(ends) == 1  # no earlier than its scores are known again: after the lead
    assert ends[0] >= LEAD + AlertRules().resolve_forecasts - 1


def test_departures_can_be_switched_off_or_their_metric_muted():
    assert departing_book(6, AlertRules(departures=False))[0].firing == {}
    muted = AlertRules(servers={"ppdb001": {"latency_ms": None}})
    assert [alert.metric for alert in departing_book(6, muted)[0].firing.values()] == ["net_out_mb_s"]
    silent = AlertRules(servers={"ppdb001": dict.fromkeys(METRICS)})
    assert departing_book(6, silent)[0].firing == {}


def test_the_scatter_is_a_covariance():
    scatter = np.array(departures.SCATTER)
    np.testing.assert_array_equal(scatter, scatter.T)
    assert np.linalg.eigvalsh(scatter).min() > 0
    assert scatter.shape == (len(METRICS), len(METRICS))
