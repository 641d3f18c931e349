"""Export of a history while another process writes to it, as metrics of the contract."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_contract import DataFileError, read_metrics
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.serving.storage import export
from fleet_forecast.serving.storage.export import export_history
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import BUILT_IN_RULES
from tests.serving.storage.stored import STEP, means_of, sample

ROOT = Path(__file__).resolve().parents[3]
# Writes numbered batches of 400 servers without pause, and prints the number of each acknowledged one.
WRITER = """
import pathlib, sys
from fleet_forecast.serving.storage.store import HistoryStore
from tests.serving.storage.stored import STEP, sample

store = HistoryStore(pathlib.Path(sys.argv[1]), STEP)
for batch in range(100_000):
    store.append([sample(name, STEP * batch, float(batch % 100)) for name in map(str, range(400))]).result(30)
    print(batch, flush=True)
"""


def exported(history, folder):
    folder.mkdir()
    export_history(history, folder, BUILT_IN_RULES, BusinessCalendar("Europe/Berlin", ("DE",)))
    return read_metrics(folder)


def test_it_has_the_means_that_the_daemon_forecasts_from_and_its_profiles(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    samples = [sample("ppdb001", second, second / 100, mem_pct=40.0) for second in range(0, 6_000, 60)]
    samples += [sample("sent", second, 7.0, profile="web_api") for second in range(0, 6_000, 600)]
    store.append([*samples, sample("gone", 0)]).result(10)
    store.delete_server("gone").result(10)
    expected = means_of(store)
    store.close()
    data = exported(tmp_path / "h.sqlite", tmp_path / "out")
    assert data.metadata.step_seconds == STEP
    assert data.metadata.business_calendar().holidays == ("DE",)
    assert (data.metadata.timezone, data.metadata.fleet) == ("Europe/Berlin", {"database": 1, "web_api": 1})
    assert dict(zip(data.frame["server_name"], data.frame["profile"], strict=True)) == {
        "ppdb001": "database",
        "sent": "web_api",
    }
    found = {
        (row.server_name, int(row.timestamp.timestamp()) // STEP): {
            metric: value for metric in data.metrics if not np.isnan(value := getattr(row, metric))
        }
        for row in data.frame.itertuples()
    }
    assert found == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics_metadata.json",
        "server_metrics.parquet",
    ]


def test_while_a_process_writes_every_acknowledged_step_is_exported_whole(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "h.sqlite")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        try:
            for line in writer.stdout:
                if int(line) == 119:  # the log was written to the file, and begun anew
                    break
            data = exported(tmp_path / "h.sqlite", tmp_path / "out")
        finally:
            writer.kill()
    steps = data.frame.groupby("server_name", observed=True)["timestamp"].agg(["min", "max", "size"])
    assert (steps["size"] >= 120).all()
    assert steps["size"].nunique() == 1, "a batch is one commit"
    assert ((steps["max"] - steps["min"]).dt.total_seconds() == STEP * (steps["size"] - 1)).all()
    assert (data.frame["cpu_pct"] == data.frame["timestamp"].astype("int64") // 10**9 // STEP % 100).all()


def test_a_copy_is_repeated_if_the_log_was_begun_anew_meanwhile(tmp_path, monkeypatch):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample("a", 0)]).result(10)
    shutil.copytree(tmp_path, tmp_path / "unchanged")
    store.close()
    history, copied = tmp_path / "unchanged" / "h.sqlite", []

    def copyfile(source, target):
        copied.append(source.name)
        target.write_bytes(source.read_bytes())
        if len(copied) == 1:
            wal = history.with_name("h.sqlite-wal")
            wal.write_bytes(wal.read_bytes()[:16] + b"otherwise" + wal.read_bytes()[25:])

    monkeypatch.setattr(export.shutil, "copyfile", copyfile)
    with pytest.raises(DataFileError, match="holds no complete step"):  # the content of the second log is not valid
        exported(history, tmp_path / "out")
    assert copied == ["h.sqlite", "h.sqlite-wal"] * 2


def test_the_running_step_is_left_out(tmp_path):
    now = time.time() // STEP * STEP
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([sample("a", now - 2 * STEP), sample("a", now)]).result(10)
    store.close()
    assert len(exported(tmp_path / "h.sqlite", tmp_path / "out").frame) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give the daemon's --history"),
        (b"x" * 5_000, "damaged"),
        (b"", "holds no complete step"),
    ],
)
def test_a_history_that_cannot_be_used_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "h.sqlite").write_bytes(content)
    with pytest.raises(DataFileError, match=message):
        exported(tmp_path / "h.sqlite", tmp_path / "out")
