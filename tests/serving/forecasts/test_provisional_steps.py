"""Provisional forecasts: the running step of a server with less than an hour of history."""

import numpy as np

from fleet_forecast.serving.forecasts.explanations import explain_forecast
from tests.serving.forecasts.scene import CPU, NOON, STEP, Scene


def current(forecast):
    return forecast.current[CPU]


def test_a_new_server_is_forecast_from_each_sample_of_its_running_step(scene):
    scene.cycle()
    scene.measure("new", 0, 40.0)
    first = scene.cycle()["new"]
    assert (first.provisional, first.origin_seconds, first.history_steps) == (True, NOON, 1)
    assert current(first) == 40.0
    scene.measure("new", 0, 60.0, seconds_in=30)
    second = scene.cycle()["new"]
    assert (second.provisional, current(second), second.history_steps) == (True, 50.0, 1)
    assert scene.cycle()["new"] is second  # no new sample
    assert scene.forecasts.provisional.forecasts == 2


def test_a_complete_step_replaces_the_provisional_one(scene):
    scene.cycle()
    scene.measure("new", 0, 40.0)
    scene.cycle()
    scene.measure("new", 0, 80.0, seconds_in=290)
    done = scene.cycle(step=1)["new"]
    assert (done.provisional, done.origin_seconds, current(done)) == (False, NOON, 60.0)
    scene.measure("new", 0, 20.0)
    following = scene.cycle()["new"]
    assert (following.provisional, following.origin_seconds, following.history_steps) == (True, NOON + STEP, 2)
    np.testing.assert_array_equal(scene.engine.calls[-1]["history"][0, -2:, CPU], [60.0, 20.0])


def test_a_server_with_an_hour_of_history_stays_on_complete_steps(scene):
    for steps_ago in range(1, 13):
        scene.measure("old", steps_ago)
        if steps_ago < 12:
            scene.measure("new", steps_ago)
    scene.cycle()
    for name in ("old", "new"):
        scene.measure(name, 0, 90.0)
    found = scene.cycle()
    assert not found["old"].provisional
    assert found["old"].origin_seconds == NOON - STEP
    assert found["new"].provisional


def test_late_samples_of_a_new_server_do_not_bring_back_the_complete_step(scene):
    scene.measure("new", 1, 10.0)
    scene.cycle()
    scene.measure("new", 0, 40.0)
    scene.cycle()
    scene.measure("new", 1, 30.0, seconds_in=100)  # late, of the complete step
    scene.measure("new", 0, 50.0, seconds_in=20)
    found = scene.cycle()["new"]
    assert (found.provisional, found.origin_seconds) == (True, NOON)
    np.testing.assert_array_equal(scene.engine.calls[-1]["history"][0, -2:, CPU], [20.0, 45.0])


def test_a_restart_in_the_running_step_keeps_its_samples(tmp_path):
    before = Scene(tmp_path)
    before.measure("new", 1, 10.0)
    before.cycle()
    before.measure("new", 0, 40.0)
    before.cycle()
    before.close()
    after = Scene(tmp_path)
    after.measure("new", 0, 50.0, seconds_in=60)
    assert not after.cycle()["new"].provisional  # the first cycle is of complete steps
    found = after.cycle()["new"]
    assert (found.provisional, current(found), found.history_steps) == (True, 45.0, 2)
    after.close()


def test_a_sample_without_a_measurement_gives_no_provisional_forecast(scene):
    scene.cycle()
    scene.measure("new", 0, None)
    found = scene.cycle()["new"]
    assert not found.provisional
    assert found.history_steps == 0


def test_a_fleet_of_new_servers_is_read_in_turns(tmp_path):
    scene = Scene(tmp_path, chunk_servers=4)
    scene.cycle()
    names = [f"ppdb{number}" for number in range(10)]
    for name in names:
        scene.measure(name, 0)
    provisional = []
    for _ in range(3):
        found = scene.cycle()
        provisional.append(sum(forecast.provisional for forecast in found.values()))
        assert sorted(found) == names
    assert provisional == [4, 8, 10]
    scene.close()


def test_samples_after_the_end_of_a_step_count_before_the_step_is_complete(tmp_path):
    scene = Scene(tmp_path)
    object.__setattr__(scene.forecasts._settings, "grace_seconds", 10.0)
    scene.now += 20
    scene.cycle()
    scene.measure("new", 0, 40.0)
    scene.now += STEP - 15  # the step has ended and does not count as complete yet
    scene.measure("new", 0, 60.0)
    found = scene.cycle()["new"]
    assert (found.provisional, found.origin_seconds, found.history_steps) == (True, NOON + STEP, 2)
    scene.close()


def test_a_provisional_forecast_can_be_explained(scene):
    scene.cycle()
    scene.measure("new", 0, 40.0)
    forecast = scene.cycle()["new"]
    explained = scene.forecasts.worker.submit(explain_forecast, scene.forecasts, forecast, [1, 2]).result(5)
    assert explained["provisional"]
    assert explained["history_steps"] == 1


def test_a_new_model_forecasts_the_running_step_again(scene):
    scene.cycle()
    scene.measure("new", 0, 40.0)
    scene.cycle()
    scene.forecasts.engine = type(scene.engine)(model_id="next")
    scene.cycle()
    found = scene.cycle()["new"]
    assert (found.provisional, found.model.model_id) == (True, "next")
