"""The forecast loop on a clock set by the test: which servers are forecast, when, and from which history."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_contract import METRICS
from fleet_forecast.serving.forecasts.forecast_loop import LOWEST_PRIORITY, NICENESS
from fleet_forecast.serving.storage.samples import Sample
from tests.serving.fake_engine import FakeConfig, FakeEngine
from tests.serving.forecasts.scene import CPU, NOON, STEP, Scene


def test_the_origin_is_the_last_complete_step_of_each_server(scene):
    scene.measure("a", 1)
    scene.measure("b", 2)
    scene.measure("b", 0)  # the running step does not count yet
    found = scene.cycle()
    assert found["a"].origin_seconds == NOON - STEP
    assert found["b"].origin_seconds == NOON - 2 * STEP
    found = scene.cycle(step=1)
    assert found["b"].origin_seconds == NOON


def test_the_engine_gets_the_history_with_its_gaps(scene):
    for steps_ago, cpu in ((5, 10.0), (4, 20.0), (1, 50.0)):
        scene.measure("a", steps_ago, cpu)
    scene.measure("a", 1, 70.0, seconds_in=60)
    scene.cycle()
    (call,) = scene.engine.calls
    np.testing.assert_array_equal(call["history"][0, -6:, CPU], [np.nan, 10.0, 20.0, np.nan, np.nan, 60.0])
    assert call["origins"][0] == np.datetime64(NOON - STEP, "s")


def test_a_silent_server_becomes_stale_is_dropped_and_is_not_forecast_again(scene):
    scene.measure("a", 1)
    scene.measure("b", 1)
    scene.cycle()
    for step in range(1, 13):
        scene.measure("b", 0)
        found = scene.cycle(step=1)
        assert found["b"].origin_seconds == NOON + (step - 1) * STEP
        if step < 12:
            assert found["a"].origin_seconds == NOON - STEP
            assert scene.forecasts.is_stale(found["a"]) == (step >= 3)
    assert "a" not in found


def test_counts_over_the_fleet_equal_the_counts_of_its_forecasts(scene):
    for name, steps_ago in (("ppdb01", 1), ("ppml02", 1), ("zeus", 1), ("apollo", 2), ("ppml01", 3)):
        scene.measure(name, steps_ago)
    for steps in range(4):
        found = scene.cycle(step=min(steps, 1))
        snapshot, stale = scene.forecasts.snapshot, [f for f in found.values() if scene.forecasts.is_stale(f)]
        assert scene.forecasts.stale_servers() == len(stale)
        assert snapshot.profiles == {"database": 1, "ml_compute": 2, "generic": 2}
        assert snapshot.unmatched == ["apollo", "zeus"]
    assert len(stale) == 5


def test_only_changed_servers_are_forecast_between_two_steps(scene):
    for name in "abc":
        scene.measure(name, 1)
    scene.cycle()
    scene.measure("b", 1, 90.0, seconds_in=100)
    scene.measure("new", 0)
    scene.cycle()
    assert len(scene.engine.calls) == 2
    assert scene.engine.calls[1]["history"].shape[0] == 2
    scene.cycle()
    assert len(scene.engine.calls) == 2
    assert scene.forecasts.statistics.cycles == 1


def test_steps_that_ended_during_a_cycle_are_counted_as_skipped(scene):
    scene.measure("a", 1)
    scene.cycle()
    scene.cycle(step=4)
    assert scene.forecasts.statistics.skipped == 3


def test_a_clock_set_far_ahead_and_back_loses_nothing(scene):
    for steps_ago in range(1, 20):
        scene.measure("a", steps_ago, float(steps_ago))
    before = scene.cycle()["a"]
    scene.cycle(step=100_000)
    assert scene.forecasts.snapshot.forecasts == {}
    scene.now = float(NOON)
    scene.measure("a", 1, 1.0, seconds_in=1)
    again = scene.cycle()["a"]
    assert again.origin_seconds == before.origin_seconds
    assert again.history_steps == before.history_steps == 19


def test_a_cycle_that_fails_keeps_the_last_forecasts(scene):
    scene.measure("a", 1)
    before = scene.cycle()["a"]

    def broken(*_):
        raise RuntimeError("out of memory")

    scene.engine.forecast = broken
    scene.measure("a", 0)
    with pytest.raises(RuntimeError):
        scene.cycle(step=1)
    assert scene.forecasts.snapshot.forecasts["a"] is before


def test_a_new_model_with_the_same_windows_forecasts_the_fleet_from_the_window_in_memory(scene, monkeypatch):
    for steps_ago in (1, 2, 3):
        scene.measure("a", steps_ago, 10.0 * steps_ago)
    scene.measure("b", 1, 90.0)
    scene.cycle()
    read_again = []
    monkeypatch.setattr(scene.store, "stored_step_means", lambda *steps: read_again.append(steps))
    scene.forecasts.engine = FakeEngine(model_id="tft_model_next")
    found = scene.cycle()
    assert {name: forecast.model.model_id for name, forecast in found.items()} == dict.fromkeys("ab", "tft_model_next")
    np.testing.assert_array_equal(
        scene.forecasts.engine.calls[0]["history"][0], scene.engine.calls[0]["history"][0], strict=True
    )
    assert not read_again


@pytest.mark.parametrize("change", [{"history_steps": 400}, {"step_seconds": 600}])
def test_a_new_model_with_other_windows_reads_the_history_again(scene, change):
    for steps_ago in range(1, 350):
        scene.measure("a", steps_ago, float(steps_ago % 50))
    scene.cycle()
    scene.forecasts.engine = FakeEngine(FakeConfig(**change))
    assert scene.cycle()["a"].history_steps == (349 if "history_steps" in change else 175)


def test_a_new_model_with_a_shorter_step_keeps_all_servers(scene):
    for name in ("sending", "silent"):
        scene.measure(name, 2)
    scene.cycle()
    known = dict(scene.store.servers)
    scene.forecasts.engine = FakeEngine(FakeConfig(step_seconds=60))
    scene.measure("sending", 1)
    scene.cycle()
    scene.measure("sending", 0)
    scene.cycle(step=2)
    assert scene.store.servers == known


def test_a_server_added_while_the_newest_step_is_looked_up_fails_no_cycle(scene, monkeypatch):
    scene.measure("a", 1)
    last_step, expired = scene.store.last_step, []

    def appearing(server_id):
        scene.store.append([Sample("b", 0, None, None, (1.0,) * len(METRICS))]).result(5)
        return last_step(server_id)

    monkeypatch.setattr(scene.store, "last_step", appearing)
    monkeypatch.setattr(scene.store, "expire", lambda *steps: expired.append(steps) or scene.store._ask(lambda: 0))
    scene.cycle()
    assert expired


def test_a_new_model_forecasts_the_whole_fleet_after_its_first_cycle_failed(scene):
    scene.measure("a", 1)
    scene.cycle()
    scene.forecasts.engine = following = FakeEngine(model_id="tft_model_next")
    forecast = following.forecast
    following.forecast = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        scene.cycle()
    following.forecast = forecast
    assert scene.cycle()["a"].model.model_id == "tft_model_next"


def test_chunks_cover_the_fleet_once(tmp_path):
    scene = Scene(tmp_path, chunk_servers=3)
    for number in range(10):
        scene.measure(f"s{number}", 1, float(number))
    found = scene.cycle()
    assert sorted(len(call["profiles"]) for call in scene.engine.calls) == [1, 3, 3, 3]
    assert {name: forecast.current[CPU] for name, forecast in found.items()} == {f"s{n}": float(n) for n in range(10)}
    scene.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a priority of its own")
def test_forecasting_runs_at_a_lower_priority_in_every_thread_that_it_starts(scene):
    niceness = []

    def note(*_):
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    forecast = scene.engine.forecast

    def forecast_in_threads(*arguments):
        note()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(note).result()
        return forecast(*arguments)

    scene.engine.forecast = forecast_in_threads
    scene.measure("a", 1)
    scene.cycle()
    note()
    own = niceness.pop()
    assert niceness == [min(own + NICENESS, LOWEST_PRIORITY)] * 2
