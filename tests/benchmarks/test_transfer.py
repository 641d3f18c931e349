"""Lives of models on changing fleets: worlds by a plan, scores by time and age, policies, a life that is resumed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.life import lives
from benchmarks.life.lives import NEVER, ON_ADVICE, ON_ADVICE_OR_UNKNOWN, PROFILES, REGULAR, SERVER_ID, Life, Training
from benchmarks.life.outcome import FROM_THE_START, by_age, by_period, delays, outcome, pooled, tables
from benchmarks.life.worlds import (
    CHANGE_DAY,
    NEW_TYPE,
    NEW_TYPE_SERVERS,
    SERVERS,
    SIMULATED_TRAINING_DAYS,
    WEEKS,
    World,
    lifetimes,
)
from fleet_forecast.evaluation.backtest import MODEL, Backtest
from fleet_forecast.evaluation.loss_sums import LossKey, LossSums
from fleet_forecast.evaluation.scores import weighted_quantile_loss
from fleet_forecast.features.grid import FleetGrid

HOUR = 3_600
START = np.datetime64("2026-03-02T00:00:00", "s")
FIRST_DAY = 12


def small_world(days=16):
    """Hourly rhythm and noise of two profiles; three databases appear on day 13, three servers of a new type on 14."""
    names = [f"ppdb{n:03d}" for n in range(7)] + [f"ppweb{n:03d}" for n in range(4)] + [f"pprisk{n}" for n in range(3)]
    profiles = ["database"] * 7 + ["web_api"] * 4 + ["risk_analytics"] * 3
    random, hours = np.random.default_rng(1), np.arange(days * 24)
    shape = 10 * np.sin(2 * np.pi * hours / 24) + 40
    values = shape[None, :, None] + random.normal(0, 2, (len(names), len(hours), 2)).astype(np.float32)
    values[4:7, : 13 * 24] = np.nan
    values[11:, : 14 * 24] = np.nan
    grid = FleetGrid(tuple(names), tuple(profiles), ("cpu_pct", "mem_pct"), START, HOUR, values.astype(np.float32))
    periods = {"first": (12, 13), "second": (14, 15)}
    return World("small", grid, "UTC", periods, 12, (14,), {"new type risk_analytics": 14})


# --- worlds ---------------------------------------------------------------------------------------------------------


def test_each_week_three_servers_of_known_profiles_appear_and_two_are_removed():
    servers = lifetimes()
    for week in range(1, WEEKS + 1):
        day = SIMULATED_TRAINING_DAYS + 7 * (week - 1) + CHANGE_DAY
        appeared = [each.profile for each in servers if each.first == day]
        assert len([profile for profile in appeared if profile in SERVERS]) == 3
        assert appeared.count(NEW_TYPE) == (NEW_TYPE_SERVERS if week == 8 else 0)
        assert len([each for each in servers if each.end == day]) == 2
    assert all(each.end is None or each.end > each.first for each in servers)
    numbers = [(each.profile, each.number) for each in servers]
    assert len(set(numbers)) == len(numbers)


def test_a_training_gets_the_last_days_of_the_servers_that_were_measured():
    world = small_world()
    frame = world.rows_until(14)
    times = frame["timestamp"]
    assert (times.min(), times.max()) == (times.min().floor("D"), times.max().floor("h"))
    assert str(times.min())[:10] == "2026-03-04"
    assert str(times.max())[:13] == "2026-03-15 23"
    assert frame["server_name"].nunique() == 11
    row = frame[(frame["server_name"] == "ppweb001") & (times == times.min())].iloc[0]
    assert row["profile"] == "web_api"
    assert row["cpu_pct"] == world.grid.values[8, 2 * 24, 0]
    assert world.measured_on(13).tolist() == list(range(11))
    grid, begin = world.around(13)
    assert begin == 9 * 24
    assert str(grid.timestamps()[begin])[:13] == "2026-03-15T00"


# --- scores ---------------------------------------------------------------------------------------------------------


def test_accuracy_and_wql_are_means_over_metrics_of_pooled_sums():
    scores = np.zeros((2, 6, 3, 2, 3), dtype=np.float32)
    scores[0, 0, 0] = [[10, 4, 100], [1, 1, 10]]
    scores[1, 2, 1] = [[20, 6, 100], [0, 0, 0]]
    found = pooled(scores)
    assert found["accuracy"] == pytest.approx(100 - 100 * (30 / 200 + 1 / 10) / 2)
    assert found["wql"] == pytest.approx((10 / 200 + 1 / 10) / 2, abs=1e-5)
    assert pooled(np.zeros((1, 2, 3))) is None


def test_scores_are_split_by_period_and_by_the_age_of_new_servers():
    world = small_world()
    scores = np.zeros((4, 6, 14, 2, 3), dtype=np.float32)
    scores[..., 2] = 100
    scores[1, 0, 4, :, 0] = 40  # a database on its first origin, 0 hours old
    scores[2, 0, 5, :, 0] = 20  # 24 hours old
    scores[2, 1, 5, :, 0] = 60  # 28 hours old
    measured = ~np.isnan(world.grid.values[:, FIRST_DAY * 24 :: 4]).all(axis=2)
    scores *= measured.reshape(14, 4, 6).transpose(1, 2, 0)[..., None, None]
    ages = by_age(world, scores)
    assert ages[FROM_THE_START]["accuracy"] == 100
    assert ages["no history"]["accuracy"] == pytest.approx(
        100 - 40 / 6, abs=1e-3
    )  # of three databases, three of the new type
    assert ages["first day"]["accuracy"] == pytest.approx(100 - 20 / 36, abs=1e-3)  # 6 origins of 6 servers
    assert ages["first week"]["accuracy"] == pytest.approx(100 - 60 / 36, abs=0.5)
    assert ages["later"] is None
    first = by_period(world, scores)["first"]["accuracy"]
    assert first == pytest.approx(100 - 40 / (8 * 6 + 11 * 6), abs=1e-3)


def test_sums_of_a_window_give_its_wql_and_leave_out_what_was_not_measured():
    random = np.random.default_rng(3)
    levels = (0.1, 0.5, 0.9)
    actual = random.normal(50, 5, (2, 4, 1)).astype(np.float32)
    actual[0, 1] = np.nan
    forecast = np.sort(random.normal(50, 5, (2, 4, 1, 3)), axis=3).astype(np.float32)
    compared = Backtest(
        ("cpu_pct",), levels, np.arange(2), np.zeros(2, int), actual, np.ones((2, 1)), {MODEL: forecast}
    )
    error, loss, magnitude = lives.sums_of(compared)[:, 0].sum(axis=0)
    known = ~np.isnan(actual)[..., 0]
    assert loss / magnitude == pytest.approx(weighted_quantile_loss(actual[known, 0], forecast[known, 0], levels))
    assert error == pytest.approx(np.abs(actual[known, 0] - forecast[known, 0, 1]).sum(), rel=1e-6)


def test_losses_of_servers_are_added_up_by_their_profile():
    sums = LossSums({LossKey("db1", "cpu_pct", "1h"): np.ones(5), LossKey("db2", "cpu_pct", "1h"): 2 * np.ones(5)})
    (key,) = (found := lives.by_profile(sums, {"db1": "database", "db2": "database"})).sums
    assert (key.profile, found.sums[key].tolist()) == ("database", [3.0] * 5)


def test_delays_count_from_the_change_to_the_first_advice_about_it():
    changes = {"new type x": 10, "moved rhythm of y": 20, "moved rhythm of z": 40}
    advised = [{"what": "change", "day": 4}, {"what": "new type x", "day": 10}, {"what": "change", "day": 22}]
    assert delays(changes, advised) == {"new type x": 0, "moved rhythm of y": 2, "moved rhythm of z": None}


# --- policies -------------------------------------------------------------------------------------------------------


def begun(policy, identity=PROFILES, tmp_path=None):
    """A life whose model was trained on the first 12 days."""
    life = Life(small_world(), identity, policy, Training(1, 1), tmp_path)
    life.engine = SimpleNamespace(model_id="first")
    servers = list(life.world.grid.servers[:4]) + list(life.world.grid.servers[7:11])
    life.trainings = [{"day": 12, "in_use": True, "servers": servers, "profiles": ["database", "web_api"]}]
    return life


def test_new_servers_of_known_profiles_are_a_reason_for_the_id_based_policy_alone():
    assert begun(ON_ADVICE)._reasons(13) == []
    assert begun(ON_ADVICE_OR_UNKNOWN, SERVER_ID)._reasons(13) == []  # without a day of history
    assert begun(ON_ADVICE_OR_UNKNOWN, SERVER_ID)._reasons(14) == ["3 unknown servers"]
    assert begun(REGULAR)._reasons(14) == ["regular"]
    assert begun(NEVER)._reasons(15) == []


def test_a_new_type_is_advised_at_once_and_trained_on_with_its_first_day():
    life = begun(ON_ADVICE)
    assert life._reasons(14) == []
    assert [each["day"] for each in life.advised] == [14]
    assert "train again when 3 have one" in life.advised[0]["words"][0]
    assert life._reasons(15) == ["new type risk_analytics"]
    assert len(life.advised) == 1


def test_a_training_that_brought_no_better_model_is_repeated_after_a_week():
    life = begun(ON_ADVICE)
    life.trainings.append({"day": 9, "in_use": False, "servers": [], "profiles": []})
    assert life._reasons(15) == []
    life.trainings[-1]["day"] = 8
    assert life._reasons(15) == ["new type risk_analytics"]


@pytest.mark.slow
def test_a_life_that_was_killed_goes_on_where_it_was_stored(tmp_path, monkeypatch):
    training = Training(3, 2, ("--hidden-size", "8", "--context-hours", "24"))
    first = tmp_path / "first"
    Life(small_world(), PROFILES, NEVER, training, first).begin_only()

    def life():
        return Life(small_world(), PROFILES, ON_ADVICE, training, tmp_path / "advice", first)

    whole = life()
    whole.run()
    assert [each["reasons"] for each in whole.trainings] == [["first"], ["new type risk_analytics"]]
    found = outcome(whole)
    assert found["delays_days"] == {"new type risk_analytics": 0}
    assert found["trainings"][0]["day"] == 15
    assert 0 < found["accuracy_and_wql"]["accuracy"] < 100
    assert "| live |" in tables({"live": found})

    monkeypatch.setattr(lives, "WEEK_DAYS", 2)  # stored on days 12 and 14
    killed = Life(small_world(), PROFILES, ON_ADVICE, training, tmp_path / "killed", first)
    monkeypatch.setattr(killed, "_train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = Life(small_world(), PROFILES, ON_ADVICE, training, tmp_path / "killed", first)
    days = []
    monkeypatch.setattr(again, "_forecast", lambda day, forecast=again._forecast: (days.append(day), forecast(day)))
    again.run()
    assert days == [14, 15]
    np.testing.assert_array_equal(again.scores[:2], whole.scores[:2])
    assert [each["reasons"] for each in again.trainings] == [["first"], ["new type risk_analytics"]]
