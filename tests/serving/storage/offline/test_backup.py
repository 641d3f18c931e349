"""A backup of a history that a process writes to, and its restoration."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

import tft_inference
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.serving.storage.offline.copying import back_up
from fleet_forecast.serving.storage.store import HistoryStore
from tests.serving.storage.offline.test_export import ROOT, WRITER
from tests.serving.storage.stored import STEP, means_of, sample


def test_a_backup_taken_while_a_process_writes_has_every_acknowledged_batch_and_can_be_continued(tmp_path, capsys):
    history, backup = tmp_path / "h.sqlite", tmp_path / "backup.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(history)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as it:
        try:
            for line in it.stdout:
                if int(line) == 119:
                    break
            assert tft_inference.main(["--backup", str(backup), "--history", str(history)]) == 0
        finally:
            it.kill()
    assert json.loads(capsys.readouterr().out)["bytes"] == backup.stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "backup"))] == ["backup.sqlite"]
    store = HistoryStore(backup, STEP)
    held = means_of(store)
    steps = {step for _, step in held}
    assert steps >= set(range(120))
    assert len(held) == 400 * len(steps), "a batch of 400 servers is one commit"
    assert all(held["7", step]["cpu_pct"] == step % 100 for step in steps)
    store.append([sample("new", 0)]).result(10)
    assert ("new", 0) in means_of(store)
    store.close()


def test_a_file_that_exists_and_a_damaged_history_are_refused_and_nothing_is_left(tmp_path):
    history = tmp_path / "h.sqlite"
    store = HistoryStore(history, STEP)
    store.append([sample(name, 0) for name in map(str, range(2000))]).result(10)
    store.close()
    with pytest.raises(DataFileError, match=r"h\.sqlite: exists; give the name of a new file"):
        back_up(history, history)
    content = bytearray(history.read_bytes())
    content[8192:12288] = b"x" * 4096
    history.write_bytes(content)
    with pytest.raises(DataFileError, match="is damaged"):
        back_up(history, tmp_path / "backup.sqlite")
    with pytest.raises(DataFileError, match="no such file"):
        back_up(tmp_path / "missing.sqlite", tmp_path / "backup.sqlite")
    for foreign in (tmp_path / "empty", tmp_path / "other"):
        foreign.touch()
    with closing(sqlite3.connect(tmp_path / "other")) as database:
        database.execute("CREATE TABLE names (name TEXT)")
    for foreign in (tmp_path / "empty", tmp_path / "other"):
        with pytest.raises(DataFileError, match="is not a history of a daemon"):
            back_up(foreign, tmp_path / "backup.sqlite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "h.sqlite", "other"]
