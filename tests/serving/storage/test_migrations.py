"""A history file of another schema version or with other metrics is migrated and keeps its samples."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_contract import METRICS
from fleet_forecast.serving.storage import migrations
from fleet_forecast.serving.storage.errors import HistoryVersionError
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.schema import SCHEMA_VERSION
from fleet_forecast.serving.storage.store import HistoryStore
from tests.serving.fake_daemon import FakeDaemon
from tests.serving.storage.stored import STEP

REPOSITORY = Path(__file__).parents[3]
SIX = ("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms")
ADDED = ("cpu_pct", "gpu_pct", *SIX[1:])
OTHERS = {
    "added": ADDED,
    "removed": (*SIX[:1], *SIX[2:]),
    "reordered": SIX[::-1],
    "replaced": ("gpu_pct", "latency_ms", "mem_pct"),
}
NAN = np.nan
# Two servers: step 0 and 1 have means, step 3 is pending.
SAMPLES = [
    (0, 1, 1_000, None, 10.0, 20.0, None, None, None, 7.0),
    (0, 1, 2_000, "healthy", 20.0, None, None, None, None, 7.0),
    (1, 2, 301_000, None, 5.0, 6.0, None, None, None, 7.0),
    (3, 2, 900_000, None, 50.0, None, None, None, None, 7.0),
]
MEANS = {0: (1, [15.0, 20.0, NAN, NAN, NAN, 7.0]), 1: (2, [5.0, 6.0, NAN, NAN, NAN, 7.0])}


def write_version_1(path):
    """The file that schema version 1 writes: its tables did not name the metrics."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA auto_vacuum=INCREMENTAL")
    database.execute("PRAGMA journal_mode=WAL").fetchall()
    database.executescript(
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);"
        "CREATE TABLE servers (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, profile TEXT);"
        "CREATE TABLE samples (step INTEGER NOT NULL, server_id INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL,"
        " state TEXT, cpu_pct REAL, mem_pct REAL, disk_io_mb_s REAL, net_in_mb_s REAL, net_out_mb_s REAL,"
        " latency_ms REAL, PRIMARY KEY (step, server_id, timestamp_ms)) WITHOUT ROWID;"
        "CREATE TABLE pending (step INTEGER PRIMARY KEY);"
        "CREATE TABLE steps (step INTEGER PRIMARY KEY, server_ids BLOB NOT NULL, means BLOB NOT NULL);"
        "INSERT INTO meta VALUES ('schema_version', 1), ('step_seconds', 300);"
        "INSERT INTO servers VALUES (1, 'a', 'database'), (2, 'b', NULL);"
        "INSERT INTO pending VALUES (3);"
    )
    database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", SAMPLES)
    for step, (server_id, means) in MEANS.items():
        blobs = np.array([server_id], np.int32).tobytes(), np.array(means, np.float32).tobytes()
        database.execute("INSERT INTO steps VALUES (?, ?, ?)", (step, *blobs))
    database.close()


def check_content(store, metrics):
    """The store holds everything of version 1's file that has a place in these metrics."""

    def arranged(values, missing):
        by_metric = dict(zip(SIX, values, strict=True))
        return [by_metric.get(metric, missing) for metric in metrics]

    assert store.set_aside is None
    assert store.metrics == metrics
    assert store.step_seconds == 300
    assert {name: (s.server_id, s.profile) for name, s in store.servers.items()} == {
        "a": (1, "database"),
        "b": (2, None),
    }
    assert (store.last_step(1), store.last_step(2)) == (0, 3)
    found = {(s.timestamp_ms, s.state, s.values) for n in (1, 2) for s in store.raw_samples(n, 0, 9).result(5)}
    assert found == {(row[2], row[3], tuple(arranged(row[4:], None))) for row in SAMPLES}
    for means in store.stored_step_means(0, 1).result(5):
        server_id, expected = MEANS[means.step]
        assert means.server_ids.tolist() == [server_id]
        np.testing.assert_array_equal(means.means, np.array([arranged(expected, NAN)], np.float32), strict=True)


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "h.sqlite"
    write_version_1(path)
    return path


def dump(path):
    database = sqlite3.connect(path)
    lines = list(database.iterdump())
    (version,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return version, lines


def test_a_file_of_version_1_keeps_its_samples_means_and_servers(old_file):
    store = HistoryStore(old_file, 60, metrics=SIX)
    check_content(store, SIX)
    assert [means.step for means in store.changed_step_means(9).result(5)] == [3]
    store.append([Sample("c", 1_500_000, None, None, (1.0,) * 6)]).result(5)
    store.close()
    assert dump(old_file)[0] == SCHEMA_VERSION


def test_a_file_of_version_1_without_content_is_migrated(tmp_path):
    path = tmp_path / "h.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL)")  # killed after this one
    database.close()
    store = HistoryStore(path, STEP)
    store.append([Sample("c", 0, None, None, (1.0,) * len(METRICS))]).result(5)
    assert store.set_aside is None
    store.close()


@pytest.mark.parametrize("metrics", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("first", ["version 1", "present version"])
def test_other_metrics_keep_the_common_ones(old_file, first, metrics):
    if first == "present version":
        HistoryStore(old_file, STEP, metrics=SIX).close()
    store = HistoryStore(old_file, STEP, metrics=metrics)
    check_content(store, metrics)
    values = tuple(float(n) for n in range(len(metrics)))
    store.append([Sample("a", 1_500_000, None, None, values)]).result(5)
    (pending, new) = store.changed_step_means(9).result(5)
    assert (pending.step, new.step) == (3, 5)
    assert new.means.tolist() == [list(values)]
    assert store.server_step_means(1, 5, 5).result(5)[5].tolist() == list(values)
    store.use_step(60).result(5)
    assert store.raw_samples(1, 25, 25).result(5)[0].values == values
    store.close()


def test_a_metric_that_was_added_is_not_measured_before_and_removed_again_leaves_the_rest(old_file):
    HistoryStore(old_file, STEP, metrics=ADDED).close()
    store = HistoryStore(old_file, STEP, metrics=SIX)
    check_content(store, SIX)
    store.close()


def test_samples_of_a_metric_that_the_fleet_lacks_for_a_while_are_kept(tmp_path):
    path, metrics = tmp_path / "h.sqlite", (*SIX, "group")  # a word of SQL
    store = HistoryStore(path, STEP, metrics=metrics)
    store.append([Sample("a", 1_500_000, None, None, (1.0,) * 6 + (7.5,))]).result(5)
    store.changed_step_means(9).result(5)
    store.close()
    store = HistoryStore(path, STEP, metrics=SIX)
    assert store.raw_samples(1, 5, 5).result(5)[0].values == (1.0,) * 6
    store.use_step(60).result(5)
    store.close()
    store = HistoryStore(path, STEP, metrics=("group", *SIX))
    (means,) = store.changed_step_means(99).result(5)
    assert means.means.tolist() == [[7.5] + [1.0] * 6]
    assert store.set_aside is None
    store.close()


def test_the_same_metrics_change_nothing_in_the_file(old_file):
    HistoryStore(old_file, STEP, metrics=SIX).close()
    before = dump(old_file)
    HistoryStore(old_file, STEP, metrics=SIX).close()
    assert dump(old_file) == before


NEWER = SCHEMA_VERSION + 1


@pytest.fixture
def newer_file(old_file):
    HistoryStore(old_file, STEP, metrics=SIX).close()
    with sqlite3.connect(old_file) as database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (NEWER,))
        database.execute(f"PRAGMA user_version = {NEWER}")
    database.close()
    return old_file


def test_a_file_of_newer_software_is_refused_and_left_unchanged(newer_file):
    before = dump(newer_file)
    with pytest.raises(HistoryVersionError) as refused:
        HistoryStore(newer_file, STEP, metrics=SIX)
    for part in (str(newer_file), f"schema version {NEWER}", f"newer than {SCHEMA_VERSION}", "--history"):
        assert part in str(refused.value)
    assert list(newer_file.parent.glob("*.damaged*")) == []
    assert dump(newer_file) == before


def test_the_daemon_does_not_start_on_a_file_of_newer_software(newer_file, tmp_path):
    daemon = FakeDaemon(tmp_path, history=newer_file)
    with daemon.launched():
        assert daemon.process.wait(30) == 1
    assert f"schema version {NEWER} is newer than {SCHEMA_VERSION}" in daemon.log.read_text()
    assert dump(newer_file)[0] == NEWER


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET value = 99 WHERE key = 'schema_version'",
        "UPDATE meta SET value = 0 WHERE key = 'schema_version'",
        "UPDATE meta SET value = 'two' WHERE key = 'schema_version'",
        "UPDATE meta SET value = 1 WHERE key = 'schema_version'",
        "DELETE FROM meta WHERE key = 'schema_version'",
        "DELETE FROM meta WHERE key = 'metrics'",
        "UPDATE meta SET value = 'cpu_pct' WHERE key = 'metrics'",
        "UPDATE meta SET value = replace(value, 'mem_pct', 'mem_pcu') WHERE key = 'metrics'",
        "UPDATE meta SET value = replace(value, 'mem_pct', 'cpu_pct') WHERE key = 'metrics'",
        "UPDATE meta SET value = x'00ff' WHERE key = 'metrics'",
    ],
)
def test_a_damaged_version_or_metric_list_is_damage(old_file, statement):
    HistoryStore(old_file, STEP, metrics=SIX).close()
    with sqlite3.connect(old_file) as database:
        assert database.execute(statement).rowcount == 1
    database.close()
    store = HistoryStore(old_file, STEP, metrics=SIX)
    assert store.set_aside is not None
    store.close()


def test_a_migration_that_fails_leaves_the_old_file(old_file, monkeypatch):
    before = dump(old_file)

    def failing(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(migrations, "_rearrange_means", failing)
    with pytest.raises(KeyboardInterrupt):
        HistoryStore(old_file, STEP, metrics=ADDED)
    assert dump(old_file) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from fleet_forecast.serving.storage import migrations
from fleet_forecast.serving.storage.store import HistoryStore

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(migrations, sys.argv[2], killed)
HistoryStore(Path(sys.argv[1]), 300, metrics=sys.argv[3].split(","))
"""


@pytest.mark.parametrize("at", ["_change_metrics", "_rearrange_means", "write_layout"])
def test_a_kill_during_a_migration_leaves_the_old_file(old_file, at):
    arguments = [str(old_file), at, ",".join(ADDED)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    copy = old_file.with_name("copy.sqlite")
    for suffix in ("", "-wal"):
        if (part := old_file.with_name(old_file.name + suffix)).exists():
            shutil.copy(part, copy.with_name(copy.name + suffix))
    assert dump(copy)[0] == 0
    store = HistoryStore(old_file, STEP, metrics=ADDED)
    check_content(store, ADDED)
    store.close()
