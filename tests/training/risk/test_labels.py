"""Incidents from the data and from a file; what a risk model is trained on."""

import numpy as np
import pandas as pd
import pytest

from data_contract import DataFileError, check_metrics
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.reading import LabelledRow
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.training.risk import choose
from fleet_forecast.training.risk.choose import KnownFleet, held_out_counts, risk_model_of
from fleet_forecast.training.risk.fleets import EVEN_FLEETS
from fleet_forecast.training.risk.labels import known_incidents, periods
from tests.conftest import TINY_METRICS, tiny_fleet
from tests.risk_models import SMALL

STEP = 300


def test_rows_of_one_label_without_a_large_gap_are_one_incident():
    seconds = [0, 300, 900, 3_000, 3_300]
    rows = [LabelledRow("a", float(s), "oom") for s in seconds] + [LabelledRow("b", 0.0, "ddos")]
    assert periods(reversed(rows), STEP) == [
        IncidentRecord("a", 0.0, 1_200.0, "oom"),
        IncidentRecord("a", 3_000.0, 3_600.0, "oom"),
        IncidentRecord("b", 0.0, 300.0, "ddos"),
    ]


@pytest.fixture
def data(tmp_path):
    frame = tiny_fleet(hours=24)
    frame["incident"] = None
    own = frame["server_name"] == "ppdb003"
    frame.loc[frame[own].index[10:20], "incident"] = "disk_full"
    frame.to_parquet(tmp_path / "server_metrics.parquet", index=False)
    return check_metrics(tmp_path)


def test_labels_of_the_data_and_of_the_file_are_joined(data, tmp_path):
    path = tmp_path / "incidents.csv"
    path.write_text(
        "server_name,pattern,start,end,type\n,ppweb00[02],2026-03-02T03:00:00Z,2026-03-02T04:00:00Z,release\n"
    )
    start = pd.Timestamp("2026-03-02", tz="UTC").timestamp()
    assert known_incidents(data, STEP, path, print) == [
        IncidentRecord("ppdb003", start + 10 * STEP, start + 20 * STEP, "disk_full"),
        IncidentRecord("ppweb000", start + 3 * 3_600, start + 4 * 3_600, "release"),
        IncidentRecord("ppweb002", start + 3 * 3_600, start + 4 * 3_600, "release"),
    ]


def test_data_without_the_column_have_none(tmp_path):
    tiny_fleet(hours=2).to_parquet(tmp_path / "server_metrics.parquet", index=False)
    assert known_incidents(check_metrics(tmp_path), STEP, None, print) == []


def test_a_bad_row_of_the_file_is_named(data, tmp_path):
    path = tmp_path / "incidents.csv"
    path.write_text("server_name,start,end\nppdb003,2026-03-02T05:00:00Z,2026-03-02T04:00:00Z\n")
    with pytest.raises(DataFileError, match=r"incidents.csv: row 1: end .* is not after start"):
        known_incidents(data, STEP, path, print)


def noisy_fleet(metrics=TINY_METRICS, servers=12, days=6, incidents=0):
    """Random walks of one profile; incidents raise the first metric."""
    random = np.random.default_rng(0)
    steps = days * 288
    values = random.uniform(20, 40, size=(servers, steps, len(metrics))).astype(np.float32)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    first = float(start.astype(np.int64))
    names = tuple(f"ppweb{row:03d}" for row in range(servers))
    records = []
    for number in range(incidents):
        row, step = number % servers, 300 + 70 * (number // servers)
        values[row, step - 6 : step + 6, 0] = 95.0
        records.append(IncidentRecord(names[row], first + step * STEP, first + (step + 6) * STEP, "own"))
    grid = FleetGrid(names, ("web_api",) * servers, metrics, start, STEP, values)
    return KnownFleet(grid, sorted(records), BusinessCalendar("UTC"))


def test_many_labels_are_learned_and_named():
    notes = []
    model, source = risk_model_of(noisy_fleet(incidents=240), SMALL, notes.append)
    assert (model.trained_on, source) == ("labels", "240 incidents of this fleet")
    assert notes == ["the risk model is trained on the 240 incidents of this fleet"]
    assert max(point.recall_other or 0.0 for point in model.curve) > 0.8  # servers that it was not trained on


def test_few_labels_are_not_mixed_with_simulated_fleets(monkeypatch):
    asked = []

    def train(metrics, *rest):
        asked.append(metrics)
        return "model", []

    monkeypatch.setattr(choose, "train_on_simulator", train)
    notes = []
    known = noisy_fleet(metrics=("cpu_pct", "gpu_pct"), incidents=12)
    model, source = risk_model_of(known, SMALL, notes.append)
    assert model == "model"
    assert asked == [("cpu_pct",)]
    assert source == "simulated fleets: the data label 12 incidents, fewer than 200"
    assert notes == [
        f"the risk model is trained on {source}",
        "the risk model does not use gpu_pct, which the simulator does not have",
    ]


def test_the_curve_is_measured_on_fleets_like_the_users():
    assert held_out_counts(["web_api"] * 3 + ["database", None, "mainframe"]) == {"web_api": 68, "database": 22}
    many = held_out_counts(["web_api"] * 990 + ["database"] * 10)
    assert many == {"web_api": 89, "database": 1}
    assert held_out_counts(["mainframe", "generic", None]) == EVEN_FLEETS[0]


def test_without_labels_and_simulated_metrics_there_is_none():
    notes = []
    model, source = risk_model_of(noisy_fleet(metrics=("gpu_pct",)), SMALL, notes.append)
    assert model is None
    assert source.startswith("no risk model: the data label 0 incidents, and the simulator has none of its metrics")
    assert "--incidents" in notes[0]
