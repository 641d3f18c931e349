"""Anomalies: deviations from the forecasts made an hour before."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from data_contract import METRICS
from fleet_forecast.serving.alerting.alert import DEPARTURE
from fleet_forecast.serving.alerting.anomaly_detector import AnomalyModel
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.past_forecasts import PastForecasts
from fleet_forecast.serving.alerting.rules import AlertRules
from tests.serving.alerting.examples import LEVELS, STEP, VIEW, forecast

NORMAL = stats.norm.ppf(LEVELS)
LEAD, WINDOW = 12, 3


def normal_forecast(origin, values, centre=0.0, name="ppdb001", profile="database"):
    """Quantiles of a normal distribution of width 10 around 100 + centre; `values` are current, in widths off 100."""
    quantiles = np.broadcast_to(100 + 10 * (centre + NORMAL)[None, :, None], (len(METRICS), 7, 96))
    current = tuple(None if np.isnan(value) else 100 + 10 * value for value in values)
    plain = forecast(50, origin, name, profile=profile)
    return replace(plain, quantiles=quantiles.astype(np.float32), current=current)


def run(model, rows, first=0, **fields):
    """The anomaly at the last of some steps' values [step, metric]."""
    for origin, values in enumerate(rows, start=first):
        (found,) = model.update([normal_forecast(origin, values, **fields)])
    return found


def test_scores_are_those_of_the_forecast_made_an_hour_before_averaged_over_a_quarter():
    random = np.random.default_rng(1)
    centres, values = random.normal(size=60), random.normal(size=(60, len(METRICS)))
    values[random.random(values.shape) < 0.2] = np.nan
    past_forecasts, slow = PastForecasts(VIEW), np.full((60, len(METRICS)), np.nan)
    for origin in range(60):
        if origin >= LEAD:
            slow[origin] = values[origin] - centres[origin - LEAD]
        averages, past = past_forecasts.update([normal_forecast(origin, values[origin], centres[origin])])
        window = slow[max(0, origin - WINDOW + 1) : origin + 1]
        enough = (~np.isnan(window)).sum(axis=0) >= 2
        expected = np.where(enough, np.nansum(window, axis=0) / np.maximum((~np.isnan(window)).sum(axis=0), 1), np.nan)
        inside = np.abs(np.nan_to_num(window)).max(axis=0) < NORMAL[-1]  # outside, scores are logarithmic
        np.testing.assert_allclose(averages[0][inside], expected[inside], atol=1e-4)
        assert np.isnan(past).all() == (origin < LEAD)


def test_there_is_no_anomaly_in_the_first_hour_nor_after_a_gap():
    model = AnomalyModel(VIEW)
    assert run(model, np.zeros((LEAD + 1, 6))) is None
    assert run(model, np.zeros((4, 6)), first=LEAD + 1) is not None
    assert run(model, np.zeros((LEAD, 6)), first=LEAD + 20) is None
    assert run(model, np.zeros((4, 6)), first=2 * LEAD + 20) is not None


def test_high_latency_at_low_traffic_is_an_anomaly_and_high_load_is_not():
    usual = np.zeros((LEAD + 8, 6))
    slow, fast, busy = usual.copy(), usual.copy(), usual.copy()
    slow[-3:] = (-2, 0, 0, -2, -3, 6)  # high latency, low traffic
    fast[-3:] = (-2, 0, 0, -2, -3, -6)
    busy[-3:] = (1.5, 0.5, 1.5, 1.5, 1.5, 1.5)  # load: everything rises together
    found = {name: run(AnomalyModel(VIEW), rows) for name, rows in (("slow", slow), ("fast", fast), ("busy", busy))}
    assert found["slow"].probability > 0.5
    assert METRICS[int(np.argmax(found["slow"].contributions))] == "latency_ms"
    assert (found["slow"].low[0], found["slow"].high[0]) == pytest.approx((100 - 12.8, 100 + 12.8), abs=0.1)
    assert found["fast"].probability == 0
    assert found["busy"].probability < 0.05


def test_a_deviation_that_a_profile_shares_is_not_an_anomaly():
    model, names = AnomalyModel(VIEW), [f"ppdb{number:03d}" for number in range(6)]
    for origin in range(LEAD + 6):
        shift = np.array([-3, 0, 3, -4, -4, 3.0]) if origin > LEAD else np.zeros(6)
        cycle = [normal_forecast(origin, shift, name=name) for name in names]
        cycle.append(normal_forecast(origin, shift, name="ppweb001", profile="web_api"))
        found = model.update(cycle)
    assert max(anomaly.probability for anomaly in found[:6]) < 0.01
    assert found[6].probability > 0.5  # the only one of its profile


def test_many_servers_have_the_results_of_each_alone():
    random = np.random.default_rng(2)
    values = random.normal(size=(LEAD + 10, 150, 6))
    together = AnomalyModel(VIEW)
    for origin, step in enumerate(values):
        # One profile each, so there are no peers.
        found = together.update(
            [normal_forecast(origin, row, name=f"s{n}", profile=f"p{n}") for n, row in enumerate(step)]
        )
    for number in (0, 63, 64, 149):
        alone = run(AnomalyModel(VIEW), values[:, number])
        assert found[number].probability == pytest.approx(alone.probability)


def test_the_state_of_a_server_that_left_is_discarded_and_its_row_reused():
    model = AnomalyModel(VIEW)
    run(model, np.zeros((LEAD + 4, 6)))
    model.past.keep_only([])
    assert run(model, np.zeros((1, 6)), first=LEAD + 4, name="another") is None
    assert run(model, np.zeros((1, 6)), first=LEAD + 4) is None


def test_a_model_of_other_metrics_levels_or_steps_starts_again():
    model = AnomalyModel(VIEW)
    assert model.past.is_compatible(replace(VIEW, model_id="other"))
    assert not model.past.is_compatible(replace(VIEW, step_seconds=60))


def book_with_anomaly(steps, rules=None):
    """A book after an ordinary hour and then `steps` of trouble; and the alerts that changed last."""
    book = AlertBook(rules or AlertRules())
    for origin in range(LEAD + 4 + steps):
        values = (-2, 0, 0, -2, -3, 6) if origin >= LEAD + 4 else (0,) * 6
        changed = book.update([_scaled_down(normal_forecast(origin, values))], origin * STEP)
    return book, changed


def _scaled_down(made):
    """The same forecast on a scale far below every threshold."""
    return replace(
        made,
        quantiles=made.quantiles / 1000,
        current=tuple(None if value is None else value / 1000 for value in made.current),
    )


def test_an_anomaly_raises_one_alert_with_its_evidence_and_resolves():
    book, _ = book_with_anomaly(5)
    (alert,) = book.firing.values()
    assert (alert.metric, alert.reason) == ("latency_ms", DEPARTURE)
    assert alert.probability >= 0.4
    assert "latency is at 0.16 ms where 0.087 to 0.11 ms was forecast an hour ago" in alert.sentence
    assert "the server is in trouble" in alert.sentence
    origin, ended = LEAD + 9, []
    while not ended:
        ended = book.update([_scaled_down(normal_forecast(origin, (0,) * 6))], origin * STEP)
        origin += 1
    assert ended[0].key == alert.key
    assert "is within its forecast again" in ended[0].sentence
    assert book.firing == {}


def test_after_a_restart_an_alert_of_an_anomaly_is_kept_until_past_forecasts_are_known():
    before, _ = book_with_anomaly(5)
    book = AlertBook(AlertRules())
    book.restore(before.as_documents())
    changes = [book.update([_scaled_down(normal_forecast(100 + n, (0,) * 6))], n) for n in range(LEAD + 10)]
    ends = [n for n, changed in enumerate(changes) if changed]
    assert len(ends) == 1  # after the lead, when its scores are known again
    assert ends[0] >= LEAD + AlertRules().resolve_forecasts - 1


def test_anomalies_can_be_switched_off_or_their_metric_muted():
    assert book_with_anomaly(6, AlertRules(departures=False))[0].firing == {}
    muted = AlertRules(servers={"ppdb001": {"latency_ms": None}})
    assert [alert.metric for alert in book_with_anomaly(6, muted)[0].firing.values()] == ["net_out_mb_s"]
    silent = AlertRules(servers={"ppdb001": dict.fromkeys(METRICS)})
    assert book_with_anomaly(6, silent)[0].firing == {}


def test_a_metric_without_a_covariance_is_left_out():
    view = replace(VIEW, metrics=("gpu_load", *METRICS))
    usual = np.zeros((LEAD + 8, 6))
    usual[-3:] = (-2, 0, 0, -2, -3, 6)
    model, more = AnomalyModel(VIEW), AnomalyModel(view)
    for origin, values in enumerate(usual):
        made = normal_forecast(origin, values)
        (expected,) = model.update([made])
        quantiles = np.concatenate([made.quantiles[:1], made.quantiles])
        (found,) = more.update([replace(made, model=view, quantiles=quantiles, current=(1e6, *made.current))])
    assert found.probability == expected.probability
    assert np.isnan(found.contributions[0])
    np.testing.assert_array_equal(found.contributions[1:], expected.contributions)


def test_without_a_metric_that_has_a_covariance_there_is_no_anomaly():
    view = replace(VIEW, metrics=("gpu_load",))
    assert AnomalyModel(view).update([replace(forecast(20), model=view)]) == [None]
