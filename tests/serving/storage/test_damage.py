"""Damage of a history file never stops the daemon: the file is set aside and a new one is created."""

import os
import sqlite3

import numpy as np
import pytest

import fleet_forecast.serving.storage.database
from fleet_forecast.serving.storage import opening
from fleet_forecast.serving.storage.errors import HistoryUnavailableError
from fleet_forecast.serving.storage.integrity import DamagedError, check_integrity, is_damage
from fleet_forecast.serving.storage.store import HistoryStore
from tests.serving.storage.stored import STEP, means_of, sample


def written_history(folder):
    """A closed history file of 100 servers and 20 steps."""
    path = folder / "h.sqlite"
    store = HistoryStore(path, STEP)
    for start in range(20):
        store.append([sample(f"s{n}", second=start * STEP) for n in range(100)])
    means_of(store)
    store.close()
    return path


@pytest.mark.parametrize("damage", ["garbage", "overwritten pages", "truncated", "damaged version"])
def test_a_damaged_file_is_set_aside_and_a_new_one_is_created(tmp_path, damage):
    path = written_history(tmp_path)
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
def test_values_that_no_store_writes_are_damage_and_never_block_the_start(tmp_path, statement, value):
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
def test_damage_that_sqlite_reports_as_another_error_never_blocks_the_start(tmp_path, monkeypatch, place):
    monkeypatch.setattr("fleet_forecast.serving.storage.opening.OPEN_PAUSE_SECONDS", 0.0)
    path = tmp_path / "h.sqlite"
    HistoryStore(path, STEP).close()
    content = bytearray(path.read_bytes())
    content[18 if place == "header" else content.index(b"CREATE TABLE steps") + 12] |= 0x80
    path.write_bytes(content)
    store = HistoryStore(path, STEP)
    assert store.set_aside is not None
    store.close()


def test_a_damaged_step_found_in_use_is_set_aside(store):
    store.append([sample()]).result(5)
    means_of(store)
    store._ask(lambda: store._database.connection.execute("UPDATE steps SET server_ids = x'fb00ff'")).result(5)
    with pytest.raises(HistoryUnavailableError, match="do not match"):
        store.stored_step_means(0, 1).result(5)
    store.append([sample(second=1)]).result(5)
    assert store.set_aside is not None


def test_damage_found_in_use_is_set_aside_and_the_servers_keep_their_ids(tmp_path, monkeypatch):
    path = written_history(tmp_path)
    content = path.read_bytes()
    first, last = len(content) // 4096 // 4 * 4096, len(content) // 4096 // 2 * 4096
    path.write_bytes(content[:first] + b"\xa5" * (last - first) + content[last:])
    monkeypatch.setattr(
        "fleet_forecast.serving.storage.opening.check_integrity", lambda _database: None
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


def test_a_damaged_file_is_set_aside_once_though_the_disk_has_no_room_for_a_new_one(store, monkeypatch):
    store.append([sample()]).result(5)
    connect, failures = fleet_forecast.serving.storage.database.connect, [1, 2]

    def failing(path, layout):
        if failures:
            failures.pop()
            raise sqlite3.OperationalError("database or disk is full")
        return connect(path, layout)

    monkeypatch.setattr(fleet_forecast.serving.storage.database, "connect", failing)
    store._ask(lambda: store._database.note_problem(DamagedError("found"))).result(5)
    for second in (1, 2):
        with pytest.raises(HistoryUnavailableError):
            store.append([sample(second=second)]).result(5)
    store.append([sample(second=3)]).result(5)
    assert [path.name for path in store.path.parent.glob("*.damaged-*[0-9]")] == [store.set_aside.name]
    assert {each.timestamp_ms for each in store.raw_samples(1, 0, 1).result(5)} == {3000}


FAULTS = {
    "disk": (sqlite3.OperationalError, sqlite3.SQLITE_IOERR, "the disk fails"),
    "memory of SQLite": (sqlite3.OperationalError, sqlite3.SQLITE_NOMEM, "not enough memory"),
    "memory of Python": (MemoryError, None, "not enough memory"),
    "rights": (sqlite3.OperationalError, sqlite3.SQLITE_PERM, "check the folder's rights"),
}


def fail_to_check(monkeypatch, failures, error, code):
    monkeypatch.setattr(opening, "OPEN_PAUSE_SECONDS", 0.0)
    check, calls = opening.check_integrity, []

    def failing(database):
        calls.append(database)
        if len(calls) <= failures:
            problem = error("fault")
            if code is not None:
                problem.sqlite_errorcode = code
            raise problem
        check(database)

    monkeypatch.setattr(opening, "check_integrity", failing)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_proves_no_damage_is_refused_and_the_file_stays(tmp_path, monkeypatch, fault):
    error, code, message = FAULTS[fault]
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample()]).result(5)
    store.close()
    with monkeypatch.context() as failing:
        fail_to_check(failing, 10_000, error, code)
        with pytest.raises(OSError, match=message):
            HistoryStore(tmp_path / "h.sqlite", STEP)
    assert not list(tmp_path.glob("*.damaged-*"))
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    assert (set(store.servers), store.set_aside) == ({"a"}, None)
    store.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (sqlite3.OperationalError, sqlite3.SQLITE_IOERR),
        (MemoryError, None),
        (sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT),
    ],
)
def test_a_fault_that_passes_at_the_start_changes_nothing(tmp_path, monkeypatch, error, code):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample()]).result(5)
    store.close()
    fail_to_check(monkeypatch, 1, error, code)
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    assert (set(store.servers), store.set_aside) == ({"a"}, None)
    store.close()


@pytest.mark.parametrize("text", ["unable to get the page. error code=", "btreeInitPage() returns error code "])
@pytest.mark.parametrize(("code", "damage"), [(7, False), (10, False), (266, False), (11, True)])
def test_a_page_that_the_check_cannot_read_is_damage_only_if_its_content_is(text, code, damage):
    finding = f"*** in database main ***\nPage 115: {text}{code}"
    database = sqlite3.connect(":memory:")
    database.create_function("found", 0, lambda: finding)

    class Checked:
        set_progress_handler = database.set_progress_handler

        def execute(self, _pragma):
            return database.execute("SELECT found()")

    with pytest.raises(sqlite3.DatabaseError, match="Page 115") as caught:
        check_integrity(Checked())
    database.close()
    assert is_damage(caught.value) == damage


def test_too_little_memory_for_a_read_gives_a_response_and_is_not_damage(store):
    def too_large():
        raise MemoryError

    with pytest.raises(HistoryUnavailableError, match="not enough memory"):
        store._ask(too_large).result(5)
    store.append([sample()]).result(5)
    assert store.set_aside is None


def test_a_file_found_damaged_while_memory_is_short_is_not_set_aside(tmp_path, monkeypatch):
    HistoryStore(tmp_path / "h.sqlite", STEP).close()
    fail_to_check(monkeypatch, 10_000, DamagedError, None)
    monkeypatch.setattr(opening, "MEMORY_OF_A_CHECK_BYTES", 2**62)
    with pytest.raises(OSError, match="not enough memory"):
        HistoryStore(tmp_path / "h.sqlite", STEP)
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_folder_that_cannot_be_made_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"h\.sqlite: cannot be opened or created \(.*\); check the folder's rights"):
        opening.open_history(tmp_path / "file" / "history" / "h.sqlite", opening.Layout(STEP, ("cpu_pct",)))
