"""Thresholds, levels and the file that overrides them."""

from pathlib import Path

import pytest

from data_contract import METRICS
from fleet_forecast.contract.definitions import use_fleet
from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.serving.alerting.bounds import NO_BOUNDS, Bounds
from fleet_forecast.serving.alerting.rules import AlertRules, alert_rules_of, default_thresholds
from server_profiles import ServerProfile


def rules_in(folder, text):
    """The rules of a fleet file whose table [alerts] begins with a text."""
    (folder / "fleet.toml").write_text(f"[alerts]\n{text}")
    return alert_rules_of(read_fleet(folder / "fleet.toml"))


def test_default_thresholds_are_above_the_normal_load_of_a_profile():
    rules = AlertRules()
    assert rules.thresholds_of("x", "database")["mem_pct"] == Bounds(99.4)
    assert rules.thresholds_of("x", "web_api")["mem_pct"] == Bounds(91.5)


def test_rules_per_profile_and_server(tmp_path):
    rules = rules_in(
        tmp_path,
        "fire_probability = 0.8\nlookahead_seconds = 3600\ndepartures = false\n"
        "[alerts.profiles.database]\nmem_pct = 95\ncpu_pct = false\n[alerts.servers.ppdb007]\nmem_pct = 97.5\n",
    )
    assert rules.fire_probability == 0.8
    assert not rules.departures
    assert rules.thresholds_of("ppdb001", "database")["mem_pct"].above == 95
    assert rules.thresholds_of("ppdb007", "database")["mem_pct"].above == 97.5
    assert rules.is_muted("ppdb007", "database", "cpu_pct")
    assert not rules.is_muted("ppweb001", "web_api", "cpu_pct")
    latency = default_thresholds(ServerProfile.DATABASE)["latency_ms"]
    assert rules.thresholds_of("ppdb007", "database")["latency_ms"] == Bounds(latency)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is not TOML"),
        ("level = 1", "unknown key 'level'"),
        ("fire_probability = 1.5", "fire_probability is 1.5"),
        ("fire_forecasts = true", "fire_forecasts is true"),
        ("fire_forecasts = 0", "fire_forecasts is 0"),
        ("departures = 1", "departures is 1; .* true or false"),
        ("resolve_probability = 0.9", "must be below"),
        ("profiles = 1", "profiles is 1"),
        ("[alerts.profiles]\ndatabase = 1", "database is 1"),
        ("[alerts.profiles.db]\ncpu_pct = 1", "unknown profile 'db'"),
        ("[alerts.servers.a]\ncpu = 1", "unknown metric 'cpu'"),
        ("[alerts.servers.a]\ncpu_pct = 'x'", "cpu_pct.above is 'x'"),
        ("[alerts.servers.a]\ncpu_pct = nan", "cpu_pct.above is nan"),
    ],
)
def test_a_wrong_rule_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(TomlFileError, match=message):
        rules_in(tmp_path, text)


def test_a_threshold_that_is_never_crossed_is_refused(tmp_path):
    with pytest.raises(TomlFileError, match="database: cpu_pct 900 is outside 0 to 100 and is never crossed"):
        rules_in(tmp_path, "[alerts.profiles.database]\ncpu_pct = 900\n")


def test_every_profile_has_a_threshold_for_every_metric():
    rules = AlertRules()
    for profile in ServerProfile:
        assert all(rules.bounds_of("x", profile, metric).limits for metric in METRICS)


def test_a_profile_that_the_fleet_does_not_have_has_the_percentages_of_generic_and_its_rules():
    rules = AlertRules(profiles={"generic": {"net_in_mb_s": 400.0}})
    generic, unknown = rules.thresholds_of("x", "generic"), rules.thresholds_of("mf1", "mainframe")
    assert set(unknown) == {"cpu_pct", "mem_pct", "net_in_mb_s"}
    assert all(unknown[metric] == generic[metric] for metric in unknown)
    assert set(AlertRules().thresholds_of("mf1", "mainframe")) == {"cpu_pct", "mem_pct"}


def test_the_documented_rules_are_read_and_the_documented_defaults_hold(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
    (tmp_path / "fleet.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    rules, default = alert_rules_of(read_fleet(tmp_path / "fleet.toml")), AlertRules()
    assert rules.thresholds_of("ppdb007", "database")["mem_pct"].above == 97.5
    assert rules.fire_probability == 0.6
    levels = "at least 0.5 in two consecutive forecasts, and ends when it was below 0.25 in three"
    assert levels in " ".join(text.split())
    assert (default.fire_probability, default.fire_forecasts) == (0.5, 2)
    assert (default.resolve_probability, default.resolve_forecasts) == (0.25, 3)
    assert f"within the next {default.lookahead_seconds // 3600} hours" in text


OWN = """
[profiles.cache]
baselines = {cpu_pct = [30, 5]}
[metrics.gpu_pct]
unit = "%"
kind = "percent"
[metrics.queue_depth]
unit = "jobs"
kind = "rate"
threshold = {above = 100, below = 1}
[metrics.mem_pct]
threshold = {below = 5}
[alerts.servers.ppml1]
gpu_pct = 97
[alerts.profiles.cache]
queue_depth = 50
"""


def test_an_own_metric_has_the_threshold_of_the_fleet_file_and_no_other(tmp_path):
    (tmp_path / "fleet.toml").write_text(OWN)
    with use_fleet(read_fleet(tmp_path / "fleet.toml")) as fleet:
        rules = alert_rules_of(fleet)
        assert rules.thresholds_of("ppml1", "ml_compute")["gpu_pct"] == Bounds(97)
        assert rules.bounds_of("ppml2", "ml_compute", "gpu_pct") == NO_BOUNDS
        assert rules.bounds_of("ppml2", "ml_compute", "queue_depth") == Bounds(100, 1)
        assert rules.bounds_of("redis1", "cache", "queue_depth") == Bounds(50, 1)
        assert rules.bounds_of("redis1", "cache", "cpu_pct") == Bounds(90)  # of its baseline
        assert rules.bounds_of("redis1", "cache", "latency_ms") == NO_BOUNDS
        assert rules.bounds_of("ppdb1", "database", "mem_pct") == Bounds(99.4, 5)
