"""The durable store: acknowledged samples stay, in any order of arrival."""

import random
import shutil
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_contract import METRICS
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryLockedError, HistoryUnavailableError
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.step_means import step_means
from tests.serving.storage.stored import STEP, means_of, sample


def reference_means(samples):
    """The same by features.step_means, from the samples sorted by time."""
    merged = {}
    for each in samples:
        known = merged.get((each.server_name, each.timestamp_ms), (None,) * len(METRICS))
        values = tuple(old if new is None else new for old, new in zip(known, each.values, strict=True))
        merged[each.server_name, each.timestamp_ms] = values
    cells = {}
    for server in sorted({name for name, _ in merged}):
        rows = sorted((instant, values) for (name, instant), values in merged.items() if name == server)
        steps = np.array([instant // (STEP * 1000) for instant, _ in rows])
        means = step_means(steps, np.array([values for _, values in rows], dtype=np.float64), 4)
        for step in set(steps.tolist()):
            measured = zip(METRICS, means[step].tolist(), strict=True)
            cells[server, step] = {metric: value for metric, value in measured if not np.isnan(value)}
    return cells


SAMPLES = st.lists(
    st.builds(
        sample,
        name=st.sampled_from("abc"),
        second=st.integers(0, 4 * STEP - 1),
        cpu=st.none() | st.floats(0, 100),
        mem_pct=st.none() | st.floats(0, 100),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda each: (each.server_name, each.timestamp_ms),
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(samples=SAMPLES, repeats=st.integers(0, 10), seed=st.integers(0, 2**32))
def test_sql_means_of_late_repeated_and_unordered_samples_equal_step_means(tmp_path_factory, samples, repeats, seed):
    shuffled = samples + samples[:repeats]
    dice = random.Random(seed)
    dice.shuffle(shuffled)
    folder = tmp_path_factory.mktemp("h")
    store = HistoryStore(folder / "h.sqlite", STEP)
    while shuffled:
        cut = dice.randint(1, len(shuffled))
        store.append(shuffled[:cut])
        shuffled = shuffled[cut:]
        if dice.random() < 0.5:
            store.changed_step_means(dice.randint(0, 4), most=2)
    found = means_of(store)
    store.close()
    assert found == reference_means(samples)
    again = HistoryStore(folder / "h.sqlite", STEP)
    assert means_of(again) == found
    again.close()
    shutil.rmtree(folder)


def test_a_repeated_time_takes_the_later_values_and_null_keeps_the_earlier(store):
    store.append([sample(cpu=1.0, mem_pct=2.0)])
    store.append([sample(cpu=5.0)])
    assert means_of(store) == {("a", 0): {"cpu_pct": 5.0, "mem_pct": 2.0}}


def test_changes_of_the_running_step_stay_pending(store):
    store.append([sample(second=0), sample(second=STEP)]).result(5)
    assert [means.step for means in store.changed_step_means(0).result(5)] == [0]
    assert store.changed_step_means(0).result(5) == []
    assert [means.step for means in store.changed_step_means(1).result(5)] == [1]


def test_raw_samples_are_returned_as_received_and_sorted(store):
    store.append([sample(second=400, cpu=2.0), sample(second=10.5, cpu=1.0), sample("b", second=10)])
    found = store.raw_samples(1, 0, 1).result(5)
    assert [(each.timestamp_ms, each.values[0]) for each in found] == [(10_500, 1.0), (400_000, 2.0)]


def test_the_means_of_one_server_equal_its_rows_of_the_whole_fleet(store):
    store.append([sample(f"s{n}", second=n % 3 * STEP + n, cpu=float(n)) for n in range(9)]).result(5)
    store.append([sample("s4", second=2 * STEP + 1, cpu=None, mem_pct=7.0)]).result(5)
    everything = means_of(store)
    for name, server in store.servers.items():
        own = {
            (name, step): {metric: v for metric, v in zip(METRICS, means.tolist(), strict=True) if not np.isnan(v)}
            for step, means in store.server_step_means(server.server_id, 0, 9).result(5).items()
        }
        assert own == {cell: means for cell, means in everything.items() if cell[0] == name}
    assert list(store.server_step_means(store.servers["s4"].server_id, 2, 2).result(5)) == [2]


def test_profiles_sent_with_samples_are_kept(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample(profile="database")]).result(5)
    store.append([sample(second=1)]).result(5)
    store.close()
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    assert store.servers["a"].profile == "database"
    store.close()


def test_too_many_waiting_records_are_refused_and_memory_stays_bounded(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP, max_waiting_records=10)
    gate = threading.Event()
    blocked = store._ask(gate.wait)
    store.append([sample(second=n) for n in range(10)])
    with pytest.raises(HistoryBusyError):
        store.append([sample(second=11)])
    gate.set()
    blocked.result(5)
    for _ in range(100):
        if store.waiting_records() == 0:
            break
        time.sleep(0.01)
    store.append([sample(second=11)]).result(5)
    store.close()


def test_expiry_deletes_old_samples_means_and_servers(store):
    store.append([sample("old", second=0), sample("new", second=50 * STEP)]).result(5)
    means_of(store)
    while store.expire(10, 5).result(5):
        pass
    assert set(store.servers) == {"new"}
    assert set(means_of(store)) == {("new", 50)}
    store.append([sample("old", second=51 * STEP)]).result(5)
    assert ("old", 51) in means_of(store)


def test_expiry_shrinks_the_file(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    for start in range(40):
        store.append([sample(f"s{n}", second=start * STEP + n) for n in range(200)])
    means_of(store)
    store.close()
    grown = store.path.stat().st_size
    store = HistoryStore(store.path, STEP)
    while store.expire(39, 39).result(5):
        pass
    store.close()
    assert store.path.stat().st_size < grown / 2


def test_another_step_computes_the_means_again(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample(second=0, cpu=10.0), sample(second=STEP, cpu=20.0)])
    means_of(store)
    store.use_step(600).result(5)
    assert means_of(store) == {("a", 0): {"cpu_pct": 15.0}}
    store.close()
    store = HistoryStore(tmp_path / "h.sqlite", STEP)  # an existing file keeps its step and its means
    assert means_of(store) == {("a", 0): {"cpu_pct": 15.0}}
    store.use_step(STEP).result(5)
    assert means_of(store) == {("a", 0): {"cpu_pct": 10.0}, ("a", 1): {"cpu_pct": 20.0}}
    store.close()


@pytest.mark.parametrize("step_seconds", [60, 1500])
def test_a_change_of_step_does_not_change_when_a_silent_server_expires(store, step_seconds):
    day = 86_400
    store.append([sample(name, second=day + 60 * n) for name in ("sending", "silent") for n in range(10)]).result(5)
    silent = store.servers["silent"].server_id
    store.use_step(step_seconds).result(5)
    store.append([sample("sending", second=2 * day)]).result(5)
    kept_from = day // step_seconds - 1
    store.expire(kept_from, kept_from).result(5)
    store.append([sample("silent", second=2 * day)]).result(5)
    assert store.servers["silent"].server_id == silent
    assert len(store.raw_samples(silent, kept_from, 2 * day // step_seconds).result(5)) == 11
    store.append([sample("sending", second=4 * day)]).result(5)
    kept_from = 3 * day // step_seconds
    store.expire(kept_from, kept_from).result(5)
    assert set(store.servers) == {"sending"}


def test_a_second_process_is_refused(store):
    store.append([sample()]).result(5)
    with pytest.raises(HistoryLockedError, match="another process uses it"):
        HistoryStore(store.path, STEP)


def test_means_are_kept_longer_than_their_samples(store):
    store.append([sample(second=step * STEP, cpu=float(step)) for step in range(20)]).result(5)
    means_of(store)
    while store.expire(15, 5).result(5):
        pass
    assert [each.values[0] for each in store.raw_samples(1, 0, 30).result(5)] == [15.0, 16.0, 17.0, 18.0, 19.0]
    assert means_of(store) == {("a", step): {"cpu_pct": float(step)} for step in range(5, 20)}


def test_a_new_server_never_gets_the_id_of_expired_means(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample("kept", second=20 * STEP), sample("gone", second=0, cpu=99.0)]).result(5)
    means_of(store)
    while store.expire(15, 0).result(5):  # the samples go, the means stay
        pass
    assert set(store.servers) == {"kept"}
    store.close()
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample("new", second=21 * STEP, cpu=1.0)]).result(5)
    new_id = store.servers["new"].server_id
    while store.changed_step_means(10**9).result(5):
        pass
    found = [means for means in store.stored_step_means(0, 10**9).result(5) if new_id in means.server_ids]
    assert [means.step for means in found] == [21]
    store.close()


def test_a_late_sample_is_not_the_newest_step_after_a_restart(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample(second=100 * STEP)]).result(5)
    means_of(store)
    store.append([sample(second=50 * STEP)]).result(5)
    store.close()
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    assert store.last_step(store.servers["a"].server_id) == 100
    store.close()


def test_a_name_is_registered_when_its_samples_are_committed(tmp_path, monkeypatch):
    store = HistoryStore(tmp_path / "h.sqlite", STEP, max_servers=2)
    store.append([sample("a", profile="database")]).result(5)
    with monkeypatch.context() as failing:
        failing.setattr(store._database, "_drafted", lambda *_: 1 / 0)
        with pytest.raises(HistoryUnavailableError):
            store.append([sample("refused"), sample("a", profile="web_api")]).result(5)
    assert {name: server.profile for name, server in store.servers.items()} == {"a": "database"}
    store.append([sample("b")]).result(5)
    assert {name: server.server_id for name, server in store.servers.items()} == {"a": 1, "b": 2}
    store.close()


def test_names_of_waiting_batches_count_towards_the_limit_until_they_are_released(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP, max_servers=2)
    store.append([sample("known")]).result(5)
    first, second = store.new_names(), store.new_names()
    assert first.may_add("known")
    assert first.may_add("new")
    assert second.may_add("new")
    assert not second.may_add("further")
    first.release()
    assert not store.new_names().may_add("further")
    second.release()
    assert store.new_names().may_add("further")
    assert set(store.servers) == {"known"}
    store.close()


def test_at_the_limit_a_new_server_replaces_one_with_few_steps_that_fell_silent(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP, max_servers=3)
    store.append([sample("long", second=step * STEP) for step in range(5)]).result(5)
    store.append([sample(name, second=4 * STEP) for name in ("once1", "once2")]).result(5)
    assert not store.new_names().may_add("new")  # all sent the newest step
    store.append([sample("long", second=6 * STEP)]).result(5)
    assert store.new_names().may_add("new")
    store.append([sample("new", second=6 * STEP)]).result(5)
    assert {"long", "new"} < set(store.servers)
    assert len(store.servers) == 3
    kept, ids = set(store.servers), {server.server_id for server in store.servers.values()}
    store.close()
    store = HistoryStore(tmp_path / "h.sqlite", STEP, max_servers=4)
    assert set(store.servers) == kept
    store.append([sample("later", second=7 * STEP)]).result(5)
    assert store.servers["later"].server_id not in ids | {2, 3}
    store.close()


def test_a_server_with_few_measured_steps_expires_early(store):
    store.append([sample("long", second=step * STEP) for step in range(12)]).result(5)
    store.append([sample("short", second=step * STEP) for step in range(3)]).result(5)
    store.append([sample("sending", second=100 * STEP)]).result(5)
    store.expire(0, 0, 90).result(5)
    assert set(store.servers) == {"long", "sending"}


def test_a_deleted_server_returns_without_its_history(store):
    store.append([sample("a", second=0), sample("b", second=0)]).result(5)
    old = store.servers["a"].server_id
    assert store.delete_server("a").result(5)
    assert not store.delete_server("a").result(5)
    assert store.raw_samples(old, 0, 1).result(5) == []
    store.append([sample("a", second=STEP)]).result(5)
    assert store.servers["a"].server_id != old
    assert len(store.raw_samples(store.servers["b"].server_id, 0, 1).result(5)) == 1
