"""The durable store: what was acknowledged stays, in any order; damage and a full disk never stop the daemon."""

import os
import random
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import fleet_forecast.serving.storage.store
from data_contract import METRICS
from fleet_forecast.serving.storage.integrity import StepMeans
from fleet_forecast.serving.storage.ring_buffer import NEVER, StepGrid
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.store import (
    HistoryBusyError,
    HistoryLockedError,
    HistoryStore,
    HistoryUnavailableError,
)

STEP = 300
REPOSITORY = Path(__file__).parents[3]


def sample(name="a", second=0, cpu=50.0, profile=None, **values):
    measured = {"cpu_pct": cpu} | values
    return Sample(name, int(second * 1000), profile, None, tuple(measured.get(metric) for metric in METRICS))


@pytest.fixture
def store(tmp_path):
    opened = HistoryStore(tmp_path / "h.sqlite", STEP)
    yield opened
    opened.close()


def means_of(store, last_step=10**9):
    """{(server, step): {metric: mean}} of everything stored, after all changes were taken."""
    while store.changed_step_means(last_step).result(10):
        pass
    names = {server.server_id: name for name, server in store.servers.items()}
    return {
        (names[server_id], means.step): {
            metric: value for metric, value in zip(METRICS, row, strict=True) if not np.isnan(value)
        }
        for means in store.stored_step_means(0, last_step).result(10)
        for server_id, row in zip(means.server_ids.tolist(), means.means.tolist(), strict=True)
    }


def reference_means(samples):
    """The same by a plain loop over the samples sorted by time."""
    newest = {}
    for each in samples:
        known = newest.get((each.server_name, each.timestamp_ms), (None,) * len(METRICS))
        merged = tuple(old if new is None else new for old, new in zip(known, each.values, strict=True))
        newest[each.server_name, each.timestamp_ms] = merged
    cells = {}
    for (name, instant), values in sorted(newest.items()):
        cell = cells.setdefault((name, instant // (STEP * 1000)), {})
        for metric, value in zip(METRICS, values, strict=True):
            if value is not None:
                cell.setdefault(metric, []).append(value)
    return {
        cell: {metric: float(np.float32(sum(values) / len(values))) for metric, values in metrics.items()}
        for cell, metrics in cells.items()
    }


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
def test_late_repeated_and_unordered_samples_give_what_sorted_ones_give(tmp_path_factory, samples, repeats, seed):
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


def test_a_later_measurement_wins_and_null_erases_nothing(store):
    store.append([sample(cpu=1.0, mem_pct=2.0)])
    store.append([sample(cpu=5.0)])
    assert means_of(store) == {("a", 0): {"cpu_pct": 5.0, "mem_pct": 2.0}}


def test_the_running_step_keeps_its_changes_for_later(store):
    store.append([sample(second=0), sample(second=STEP)]).result(5)
    assert [means.step for means in store.changed_step_means(0).result(5)] == [0]
    assert store.changed_step_means(0).result(5) == []
    assert [means.step for means in store.changed_step_means(1).result(5)] == [1]


def test_raw_samples_come_back_as_received_and_sorted(store):
    store.append([sample(second=400, cpu=2.0), sample(second=10.5, cpu=1.0), sample("b", second=10)])
    found = store.raw_samples(1, 0, 1).result(5)
    assert [(each.timestamp_ms, each.values[0]) for each in found] == [(10_500, 1.0), (400_000, 2.0)]


def test_one_servers_means_are_its_rows_of_the_whole_fleets(store):
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


def test_what_expires_goes_with_its_servers(store):
    store.append([sample("old", second=0), sample("new", second=50 * STEP)]).result(5)
    means_of(store)
    while store.expire(10, 5).result(5):
        pass
    assert set(store.servers) == {"new"}
    assert set(means_of(store)) == {("new", 50)}
    store.append([sample("old", second=51 * STEP)]).result(5)
    assert ("old", 51) in means_of(store)


def test_an_expired_store_gives_its_space_back(tmp_path):
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


def test_another_step_takes_the_means_anew(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample(second=0, cpu=10.0), sample(second=STEP, cpu=20.0)])
    means_of(store)
    store.use_step(600).result(5)
    assert means_of(store) == {("a", 0): {"cpu_pct": 15.0}}
    store.close()
    store = HistoryStore(tmp_path / "h.sqlite", STEP)  # an existing file keeps its step, and the means taken on it
    assert means_of(store) == {("a", 0): {"cpu_pct": 15.0}}
    store.use_step(STEP).result(5)
    assert means_of(store) == {("a", 0): {"cpu_pct": 10.0}, ("a", 1): {"cpu_pct": 20.0}}
    store.close()


@pytest.mark.parametrize("step_seconds", [60, 1500])
def test_a_server_silent_over_a_change_of_step_keeps_its_samples_and_goes_in_its_time(store, step_seconds):
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


@pytest.mark.parametrize("damage", ["garbage", "overwritten pages", "truncated", "other schema"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(tmp_path, damage):
    path = tmp_path / "h.sqlite"
    store = HistoryStore(path, STEP)
    for start in range(20):
        store.append([sample(f"s{n}", second=start * STEP) for n in range(100)])
    means_of(store)
    store.close()
    content = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(os.urandom(8192))
    elif damage == "overwritten pages":
        path.write_bytes(content[:4096] + b"\xa5" * 8192 + content[12288:])
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        with sqlite3.connect(path) as database:
            database.execute("UPDATE meta SET value = 99 WHERE key = 'schema_version'")
        database.close()
    store = HistoryStore(path, STEP)
    assert store.set_aside is not None
    assert store.set_aside.exists()
    store.append([sample()]).result(5)
    assert set(store.servers) == {"a"}
    store.close()


IDS = "UPDATE steps SET server_ids = ? WHERE step = 1"


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        (IDS, np.array([1, -5, 3], np.int32).tobytes()),
        (IDS, np.array([1, 2, 2**31 - 1], np.int32).tobytes()),
        (IDS, np.array([1, 3, 2], np.int32).tobytes()),
        (IDS, np.array([1, 2], np.int32).tobytes()),
        (IDS, b"\x01\x00"),
        (IDS, "text"),
        ("UPDATE steps SET means = ? WHERE step = 1", b""),
        ("UPDATE steps SET step = ? WHERE step = 2", 2**60),
        ("UPDATE steps SET step = ? WHERE step = 0", -1),
        ("UPDATE servers SET id = ? WHERE name = 's0'", 2**60),
        ("UPDATE servers SET id = ? WHERE name = 's0'", -1),
        ("UPDATE servers SET name = ? WHERE name = 's0'", b"s0"),
        ("UPDATE servers SET profile = ? WHERE name = 's0'", b"database"),
        ("UPDATE meta SET value = ? WHERE key = 'step_seconds'", 0),
        ("UPDATE meta SET value = ? WHERE key = 'step_seconds'", "text"),
    ],
)
def test_values_no_store_wrote_are_damage_and_never_block_the_start(tmp_path, statement, value):
    path = tmp_path / "h.sqlite"
    store = HistoryStore(path, STEP)
    store.append([sample(f"s{n}", second=step * STEP) for n in range(3) for step in range(3)])
    means_of(store)
    store.close()
    with sqlite3.connect(path) as database:
        assert database.execute(statement, (value,)).rowcount == 1
    database.close()
    store = HistoryStore(path, STEP)
    assert store.set_aside is not None
    assert store.set_aside.exists()
    store.append([sample()]).result(5)
    assert {name: server.server_id for name, server in store.servers.items()} == {"a": 1}
    store.close()


@pytest.mark.parametrize("place", ["schema", "header"])
def test_a_damaged_byte_that_sqlite_does_not_call_damage_never_blocks_the_start(tmp_path, monkeypatch, place):
    monkeypatch.setattr("fleet_forecast.serving.storage.store.OPEN_PAUSE_SECONDS", 0.0)
    path = tmp_path / "h.sqlite"
    HistoryStore(path, STEP).close()
    content = bytearray(path.read_bytes())
    content[18 if place == "header" else content.index(b"CREATE TABLE steps") + 12] |= 0x80
    path.write_bytes(content)
    store = HistoryStore(path, STEP)
    assert store.set_aside is not None
    store.close()


def test_a_damaged_step_that_shows_in_use_is_set_aside(store):
    store.append([sample()]).result(5)
    means_of(store)
    store._ask(lambda: store._database.execute("UPDATE steps SET server_ids = x'fb00ff'")).result(5)
    with pytest.raises(HistoryUnavailableError, match="do not match"):
        store.stored_step_means(0, 1).result(5)
    store.append([sample(second=1)]).result(5)
    assert store.set_aside is not None


def test_damage_that_shows_in_use_is_set_aside_and_the_servers_keep_their_ids(tmp_path, monkeypatch):
    path = tmp_path / "h.sqlite"
    store = HistoryStore(path, STEP)
    for start in range(20):
        store.append([sample(f"s{n}", second=start * STEP) for n in range(100)])
    means_of(store)
    store.close()
    content = path.read_bytes()
    first, last = len(content) // 4096 // 4 * 4096, len(content) // 4096 // 2 * 4096
    path.write_bytes(content[:first] + b"\xa5" * (last - first) + content[last:])
    monkeypatch.setattr(
        "fleet_forecast.serving.storage.store.check_integrity", lambda _database: None
    )  # as in a file too large to check
    store = HistoryStore(path, STEP)
    known = dict(store.servers)
    assert store.set_aside is None
    everywhere = [sample(f"s{n}", second=step * STEP + 1) for n in range(100) for step in range(20)]
    with pytest.raises(HistoryUnavailableError, match="malformed"):
        store.append(everywhere).result(5)
    store.append([sample("s7", second=21 * STEP, cpu=7.0), sample("new", second=21 * STEP)]).result(5)
    assert store.set_aside is not None
    assert store.failure is None
    assert {name: store.servers[name] for name in known} == known
    assert set(means_of(store)) == {("s7", 21), ("new", 21)}
    store.close()
    again = HistoryStore(path, STEP)
    assert {name: again.servers[name] for name in known} == known
    again.close()


@pytest.mark.parametrize("failures", [1, 10_000])
def test_a_disk_that_fails_at_the_start_is_asked_again_before_its_file_is_set_aside(tmp_path, monkeypatch, failures):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample()]).result(5)
    store.close()
    monkeypatch.setattr("fleet_forecast.serving.storage.store.OPEN_PAUSE_SECONDS", 0.0)
    check, calls = fleet_forecast.serving.storage.store.check_integrity, []

    def failing(database):
        calls.append(database)
        if len(calls) <= failures and len(calls) <= fleet_forecast.serving.storage.store.OPEN_ATTEMPTS:
            problem = sqlite3.OperationalError("disk I/O error")
            problem.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise problem
        check(database)

    monkeypatch.setattr("fleet_forecast.serving.storage.store.check_integrity", failing)
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    assert (set(store.servers), store.set_aside is None) == (({"a"}, True) if failures == 1 else (set(), False))
    store.close()


def test_means_outlive_the_samples_they_were_taken_from(store):
    store.append([sample(second=step * STEP, cpu=float(step)) for step in range(20)]).result(5)
    means_of(store)
    while store.expire(15, 5).result(5):
        pass
    assert [each.values[0] for each in store.raw_samples(1, 0, 30).result(5)] == [15.0, 16.0, 17.0, 18.0, 19.0]
    assert means_of(store) == {("a", step): {"cpu_pct": float(step)} for step in range(5, 20)}


def test_a_new_server_never_inherits_the_means_of_one_that_expired(tmp_path):
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


def test_a_late_sample_before_a_restart_is_not_taken_for_the_newest(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample(second=100 * STEP)]).result(5)
    means_of(store)
    store.append([sample(second=50 * STEP)]).result(5)
    store.close()
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    assert store.last_step(store.servers["a"].server_id) == 100
    store.close()


def pages(store):
    return store._ask(lambda: store._database.execute("PRAGMA page_count").fetchone()[0]).result(5)


def limit_pages(store, most):
    store._ask(lambda: store._database.execute(f"PRAGMA max_page_count={most}").fetchall()).result(5)


def test_a_full_disk_refuses_then_recovers_in_the_same_process(store):
    store.append([sample()]).result(5)
    limit_pages(store, pages(store))
    with pytest.raises(HistoryUnavailableError, match="full"):
        store.append([sample(f"s{n}", second=STEP) for n in range(5000)]).result(5)
    assert "full" in store.failure
    assert means_of(store) == {("a", 0): {"cpu_pct": 50.0}}
    limit_pages(store, 1_000_000)
    store.append([sample(f"s{n}", second=STEP) for n in range(5000)]).result(5)
    assert store.failure is None
    assert len(means_of(store)) == 5001


def steps_taken(store):
    """Steps given until the list is empty, which it must be after a few calls."""
    steps = []
    for _ in range(5):
        taken = store.changed_step_means(10**9, most=2).result(5)
        if not taken:
            return steps
        steps += [means.step for means in taken]
    raise AssertionError("given without end")


def test_means_taken_while_the_disk_is_full_are_given_once_a_round_and_stored_after_it(store):
    steps = [0, 1, 2]
    store.append([sample(f"s{n}", second=step * STEP) for n in range(300) for step in steps]).result(5)
    limit_pages(store, pages(store))
    assert steps_taken(store) == steps_taken(store) == steps
    assert store.stored_step_means(0, 9).result(5) == []
    limit_pages(store, 1_000_000)
    assert steps_taken(store) == steps
    assert steps_taken(store) == []
    assert [means.step for means in store.stored_step_means(0, 9).result(5)] == steps


def test_samples_the_disk_had_no_room_for_move_no_servers_newest_step(store):
    store.append([sample("s0", second=STEP)]).result(5)
    limit_pages(store, pages(store))
    refused = [sample(f"s{n}", second=9 * STEP) for n in range(5000)]
    with pytest.raises(HistoryUnavailableError, match="full"):
        store.append(refused).result(5)
    assert store.last_step(store.servers["s0"].server_id) == 1
    assert store.last_step(store.servers["s1"].server_id) is None
    limit_pages(store, 1_000_000)
    store.append(refused).result(5)
    assert {store.last_step(server.server_id) for server in store.servers.values()} == {9}


# --- the window in memory -------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.sampled_from([1, 2, 70])), min_size=1, max_size=30),
    asked=st.integers(0, 35),
    length=st.integers(1, 12),
)
def test_the_rolling_window_holds_what_a_plain_table_holds(steps, asked, length):
    grid, table = StepGrid(8, 1), {}
    for value, (step, server) in enumerate(steps):
        table = {cell: kept for cell, kept in table.items() if cell[1] != step} | {(server, step): float(value)}
        grid.put(StepMeans(step, np.array([server], np.int32), np.array([[value]], np.float32)))
    newest = max(step for step, _ in steps)
    for server in (1, 2, 70):
        history = grid.history([server], np.array([asked]), length)[0, :, 0]
        expected = []
        for step in range(asked - min(length, 8) + 1, asked + 1):
            inside = newest - 8 < step <= newest
            expected.append(table.get((server, step), np.nan) if inside else np.nan)
        np.testing.assert_array_equal(history, np.array(expected, np.float32))


def test_last_measured_looks_back_no_further_than_asked():
    grid = StepGrid(10, 1)
    grid.put(StepMeans(5, np.array([1, 2], np.int32), np.array([[1.0], [np.nan]], np.float32)))
    grid.advance(8)
    assert grid.last_measured([1, 2], 8, 4).tolist() == [5, NEVER]
    assert grid.last_measured([1, 2], 8, 3).tolist() == [NEVER, NEVER]


def test_the_memory_of_dropped_servers_is_used_again():
    grid = StepGrid(4, 1)
    for server in range(1000):
        grid.put(StepMeans(server // 10, np.array([server], np.int32), np.ones((1, 1), np.float32)))
        grid.drop([server])
    assert grid._values.shape[0] == 64
    assert np.isnan(grid.history([5000], np.array([99]), 4)).all()
