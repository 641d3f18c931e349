"""Thresholds, breaches, persistence: from quantiles to alerts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_contract import METRICS
from fleet_forecast.serving.alerting.book import AlertBook, AlertFileError, AlertRules, load_alert_rules, time_to_breach
from fleet_forecast.serving.alerting.exceedance import breach_probability
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast
from server_profiles import ServerProfile

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
STEP = 300
VIEW = ModelView("m", METRICS, LEVELS, STEP)


def forecast(cpu, origin=0, name="ppweb001", width=5.0, profile="web_api"):
    """A forecast whose cpu median is `cpu` (a number, or one per step); the other metrics stay far below thresholds."""
    median = np.broadcast_to(np.asarray(cpu, dtype=np.float32), 96)
    quantiles = np.full((len(METRICS), len(LEVELS), 96), 1.0, dtype=np.float32)
    quantiles[0] = median[None, :] + (np.array(LEVELS, dtype=np.float32)[:, None] - 0.5) * 2 * width
    current = (float(median[0]), *(1.0,) * 5)
    return ServerForecast(name, VIEW, origin * STEP, 0.0, profile, "rule", 288, quantiles, (), current)


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=7, max_size=7),
    thresholds=st.lists(st.floats(-2e3, 2e3), min_size=2, max_size=2),
)
def test_the_probability_falls_with_the_threshold_and_agrees_with_the_quantiles(values, thresholds):
    quantiles = np.sort(np.array(values))[None, :, None]
    low, high = sorted(thresholds)
    at = [float(breach_probability(quantiles, LEVELS, np.array([t]))[0, 0]) for t in (low, high)]
    assert 0 <= at[1] <= at[0] <= 1
    for level, value in zip(LEVELS, quantiles[0, :, 0], strict=True):
        above = float(breach_probability(quantiles, LEVELS, np.array([value + 1e-2 * (1 + abs(value))]))[0, 0])
        assert above <= 1 - level + 1e-6


def test_the_probability_is_exact_between_quantiles():
    quantiles = np.array([0, 10, 20, 30, 40, 50, 60.0])[None, :, None]
    found = [float(breach_probability(quantiles, LEVELS, np.array([t]))[0, 0]) for t in (0, 15, 30, 45, 60)]
    np.testing.assert_allclose(found, [0.98, 0.825, 0.5, 0.175, 0.02])
    assert float(breach_probability(quantiles, LEVELS, np.array([70]))[0, 0]) == pytest.approx(0.02 / np.e)
    assert float(breach_probability(quantiles, LEVELS, np.array([np.nan]))[0, 0]) == 0


def test_a_constant_forecast_is_above_or_below():
    quantiles = np.full((1, 7, 1), 50.0)
    assert float(breach_probability(quantiles, LEVELS, np.array([49.0]))[0, 0]) > 0.99
    assert float(breach_probability(quantiles, LEVELS, np.array([51.0]))[0, 0]) < 0.01


def test_time_to_breach_has_a_band():
    rising = forecast(np.arange(96), width=5.0)
    found = time_to_breach(rising, "cpu_pct", 50.0)
    assert found.expected_seconds == 52 * STEP
    assert found.earliest_seconds == 48 * STEP
    assert found.latest_seconds == 56 * STEP
    assert time_to_breach(rising, "cpu_pct", 500.0).expected_seconds is None


def test_an_alert_needs_several_forecasts_and_says_what_a_human_needs():
    book = AlertBook(AlertRules())
    high = np.r_[np.full(10, 70.0), np.full(86, 97.0)]
    assert book.judge([forecast(high, 1)], 1.0) == []
    assert book.judge([forecast(high, 1)], 2.0) == []  # the same forecast again is not another one
    (alert,) = book.judge([forecast(high, 2)], 3.0)
    assert (alert.server_name, alert.metric, alert.started_seconds) == ("ppweb001", "cpu_pct", 3.0)
    assert alert.probability > 0.9
    assert alert.expected_seconds == (2 + 11) * STEP
    assert "ppweb001 (web_api): CPU is at 70 % and exceeds 90 %" in alert.sentence
    assert book.judge([forecast(high, 3)], 4.0) == []
    assert book.firing["ppweb001", "cpu_pct"].started_seconds == 3.0


def test_a_metric_that_is_not_measured_raises_no_alert():
    book = AlertBook(AlertRules())
    for origin in range(4):
        assert book.judge([replace(forecast(97, origin), current=(None,) * 6)], 0.0) == []


def test_an_alert_resolves_with_hysteresis():
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        book.judge([forecast(97, origin)], 0.0)
    doubtful = forecast(88.5, 3)  # between the two levels: neither fires nor resolves
    assert book.judge([doubtful], 0.0) == []
    assert 0.25 < book.probabilities["ppweb001"][0, 2] < 0.5
    for origin in (4, 5):
        assert book.judge([forecast(20, origin)], 0.0) == []
    assert book.judge([forecast(97, 6)], 0.0) == []  # interrupted: the count begins anew
    for origin in (7, 8):
        assert book.judge([forecast(20, origin)], 0.0) == []
    (ended,) = book.judge([forecast(20, 9)], 9.0)
    assert (ended.ended_seconds, book.firing) == (9.0, {})


def test_alerts_go_on_after_the_clock_was_ahead_for_a_while():
    book = AlertBook(AlertRules())
    for origin in (1, 2, 600):  # the third with a clock two days ahead
        book.judge([forecast(97, origin)], (origin + 1) * STEP)
    assert len(book.firing) == 1
    ended = [alert for origin in (4, 5, 6) for alert in book.judge([forecast(20, origin)], (origin + 1) * STEP)]
    assert [alert.key for alert in ended] == [("ppweb001", "cpu_pct")]
    assert book.judge([forecast(20, 5)], 8 * STEP) == []  # an earlier one is again none to judge
    assert book.judge([forecast(97, 7)], 8 * STEP) == []
    assert len(book.judge([forecast(97, 8)], 9 * STEP)) == 1


def test_a_breach_beyond_the_lookahead_raises_no_alert_but_is_a_risk():
    book = AlertBook(AlertRules())
    late = np.r_[np.full(60, 20.0), np.full(36, 97.0)]
    for origin in range(4):
        assert book.judge([forecast(late, origin)], 0.0) == []
    assert book.probabilities["ppweb001"][0].tolist() == pytest.approx([0, 0, 0, 1], abs=0.05)


def test_what_is_normal_for_a_database_is_no_alert():
    rules = AlertRules()
    assert rules.thresholds_of("x", "database")["mem_pct"] == 99.4
    assert rules.thresholds_of("x", "web_api")["mem_pct"] == 91.5


def test_a_server_that_left_takes_its_alerts_along():
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        book.judge([forecast(97, origin)], 0.0)
    assert book.keep_only(["ppweb001"], 1.0) == []
    (ended,) = book.keep_only([], 2.0)
    assert ended.ended_seconds == 2.0
    assert "fell silent" in ended.sentence
    assert book.firing == {}


def test_alerts_survive_a_restart():
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        book.judge([forecast(97, origin)], 5.0)
    again = AlertBook(AlertRules())
    again.restore(book.as_documents())
    assert again.firing == book.firing
    assert again.judge([forecast(97, 3)], 9.0) == []
    assert again.firing["ppweb001", "cpu_pct"].started_seconds == 5.0


def test_rules_per_profile_and_server(tmp_path):
    (tmp_path / "a.toml").write_text(
        "fire_probability = 0.8\nlookahead_seconds = 3600\ndepartures = false\n"
        "[profiles.database]\nmem_pct = 95\ncpu_pct = false\n[servers.ppdb007]\nmem_pct = 97.5\n"
    )
    rules = load_alert_rules(tmp_path / "a.toml")
    assert rules.fire_probability == 0.8
    assert not rules.departures
    assert rules.thresholds_of("ppdb001", "database")["mem_pct"] == 95
    assert rules.thresholds_of("ppdb007", "database")["mem_pct"] == 97.5
    assert rules.thresholds_of("ppdb007", "database")["cpu_pct"] is None
    assert rules.thresholds_of("ppdb007", "database")["latency_ms"] == AlertRules().profiles["database"]["latency_ms"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is not TOML"),
        ("level = 1", "unknown key 'level'"),
        ("fire_probability = 1.5", "fire_probability is 1.5"),
        ("fire_forecasts = true", "fire_forecasts is True"),
        ("fire_forecasts = 0", "fire_forecasts is 0"),
        ("departures = 1", "departures is 1; .* true or false"),
        ("resolve_probability = 0.9", "must be below"),
        ("profiles = 1", "profiles is 1"),
        ("[profiles]\ndatabase = 1", "database is 1"),
        ("[profiles.db]\ncpu_pct = 1", "unknown profile 'db'"),
        ("[servers.a]\ncpu = 1", "unknown metric 'cpu'"),
        ("[servers.a]\ncpu_pct = 'x'", "cpu_pct is 'x'"),
        ("[servers.a]\ncpu_pct = nan", "cpu_pct is nan"),
    ],
)
def test_a_wrong_rule_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(AlertFileError, match=message):
        load_alert_rules(tmp_path / "a.toml")


def test_every_profile_has_a_threshold_for_every_metric():
    rules = AlertRules()
    for profile in ServerProfile:
        assert all(rules.thresholds_of("x", profile).get(metric) is not None for metric in METRICS)


def test_the_documented_rules_are_read_and_the_documented_defaults_hold(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
    (tmp_path / "a.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    rules, default = load_alert_rules(tmp_path / "a.toml"), AlertRules()
    assert rules.thresholds_of("ppdb007", "database")["mem_pct"] == 97.5
    assert rules.fire_probability == 0.6
    said = "at least 0.5 in two forecasts in a row, and ends when it was below 0.25 in three"
    assert said in " ".join(text.split())
    assert (default.fire_probability, default.fire_forecasts) == (0.5, 2)
    assert (default.resolve_probability, default.resolve_forecasts) == (0.25, 3)
    assert f"within the next {default.lookahead_seconds // 3600} hours" in text


def test_a_server_of_another_profile_than_the_seven_has_the_thresholds_of_generic():
    rules = AlertRules()
    assert rules.thresholds_of("mf1", "mainframe") == rules.thresholds_of("x", "generic")
