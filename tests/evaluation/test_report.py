"""report.html: its content and order, names escaped in it, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from fleet_forecast.evaluation.examples import PLACES, Example
from fleet_forecast.evaluation.report import ModelReport, write_report
from fleet_forecast.evaluation.tables import Evaluation, GroupEvaluation
from fleet_forecast.evaluation.weight_tables import WeightTables

INFO = {
    "data": "training",
    "servers": 3,
    "unseen_servers": ["a<b>"],
    "validation_servers": [],
    "first_timestamp": "2026-01-01T00:00:00Z",
    "train_end": "2026-01-17T00:00:00Z",
    "test_start": "2026-01-20T00:00:00Z",
    "last_timestamp": "2026-01-30T00:00:00Z",
    "parameters": 12345,
    "minutes": 2.0,
    "epochs": 1.0,
    "windows_per_second": 300.0,
    "stopped_by": "minutes",
    "comparison": None,
    "final_fit": None,
    "settings": {"epochs": 20, "resume": False},
    "loss_history": [
        {"epoch": 0.5, "loss": 0.3, "validation_loss": 0.4},
        {"epoch": 1, "loss": 0.2, "validation_loss": 0.3},
    ],
}
LEVELS = (0.02, 0.1, 0.5, 0.9, 0.98)


def scores() -> pd.DataFrame:
    rows = [
        ("model", "cpu_pct", 0.111, 500),
        ("model", "mean", 0.222, 900),
        ("window_quantiles_24h", "cpu_pct", 0.444, 500),
        ("window_quantiles_24h", "mean", 0.333, 900),
    ]
    return pd.DataFrame(rows, columns=["method", "metric", "wql", "points"]).assign(total=7_777.0)


def group() -> GroupEvaluation:
    errors = {"model": [0.1, 0.2], "baseline": [0.3, 0.4]}
    profile = {"profile": "<web>", "windows": 4, "model": 0.1, "baseline_wql": 0.2, "coverage_80": 80.0}
    breakdown = {
        "baseline": "window_quantiles_24h",
        "by_horizon": {"hours": [1, 2], **errors},
        "by_hour": {"hours": [0, 1], **errors},
        "by_profile": [profile],
        "by_metric_horizon": {},
        "calibration": [{"profile": "</script><b>", "levels": [0.1, 0.9], "below": [12.0, 88.0]}],
    }
    origin = np.datetime64("2026-01-20T00:00:00", "s")
    quantiles = np.tile(np.arange(5, dtype=np.float32), (4, 1))
    shown = [
        Example("<web>", place, "a1", "cpu_pct", origin, 300, np.ones(6), np.ones(4), quantiles, LEVELS, 0.25)
        for place in PLACES
    ]
    return GroupEvaluation(scores(), breakdown, shown)


def cold_start() -> pd.DataFrame:
    rows = [(history, "model, profile given", 0.3) for history in ("none", "1 h")]
    return pd.DataFrame(rows, columns=["history", "method", "wql"])


def weights() -> WeightTables:
    static = [("profile", 0.1), ("cpu_pct_loc", 0.6), ("cpu_pct_scale", 0.3)]
    rows = [(profile, "static", name, weight) for profile in ("database", "<web>") for name, weight in static]
    rows += [
        (profile, group, "half_hour", 1.0) for profile in ("database", "<web>") for group in ("encoder", "decoder")
    ]
    lags = [("context", 0.0, 0.5), ("context", 1.0, 0.25), ("horizon", float("nan"), 0.25)]
    return WeightTables(
        pd.DataFrame(rows, columns=["profile", "group", "variable", "weight"]),
        pd.DataFrame(
            [(profile, *lag) for profile in ("database", "<web>") for lag in lags],
            columns=["profile", "on", "lag_hours", "weight"],
        ),
    )


def written(folder: Path, evaluation: Evaluation, info: dict[str, Any] = INFO) -> str:
    """The page without Plotly's script, which names other hosts in comments."""
    data = pd.DataFrame({"profile": ["<web>"], "servers": [3], "silent_pct": [1.5]})
    write_report(folder, ModelReport("tft_model_x", info, evaluation, weights(), data))
    page = (folder / "report.html").read_text()
    assert get_plotlyjs() in page
    return page.replace(get_plotlyjs(), "")


@pytest.fixture
def page(tmp_path: Path) -> str:
    return written(tmp_path, Evaluation({"unseen": group(), "training": group()}, cold_start()))


def test_names_are_escaped_and_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert "<web>" not in page
    assert "</script><b>" not in page
    assert "&lt;web&gt;" in page
    assert "a&lt;b&gt;" in page
    assert not re.search(r"https?://(?!www\.w3\.org)|src=|@import|url\(", page)


def test_the_sections_come_in_the_order_of_their_weight_for_a_reader(page: str) -> None:
    titles = re.findall(r"<h2>([^<]*)", page)
    assert titles == [
        "Scores",
        "New servers, by length of history",
        "Calibration, unseen servers",
        "Errors, unseen servers",
        "Loss",
        "Forecasts, unseen servers",
        "Variable and attention weights",
        "Data",
        "Settings and versions",
    ]
    assert page.count("plotly-graph-div") == 1 + 1 + 4 + 1 + 3 + 1


def test_three_sentences_describe_the_model_and_its_error(page: str) -> None:
    (lead,) = re.findall(r'<p class="lead">([^<]*)</p>', page)
    assert "1 profile and 3 servers" in lead
    assert lead.count("0.67 times that of the best baseline (window_quantiles_24h: 0.333)") == 2


def test_variables_are_sorted_by_weight_with_labels_and_percentages(page: str) -> None:
    static = page.partition("static variables")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)", row) for row in static.split("<tr>")[2:]]
    assert rows == [
        ["cpu_pct, level in the context", "60.0", "60.0"],
        ["cpu_pct, scale in the context", "30.0", "30.0"],
        ["profile", "10.0", "10.0"],
    ]
    assert "database 25 %" in page


def test_a_risk_model_is_shown_with_its_source_curve_and_reliability(tmp_path: Path) -> None:
    point = {"level": 0.625, "false_alarms_per_server_month": 0.375, "recall_long_precursor": 0.4}
    risk = {
        "source": "simulated fleets: <few> labels",
        "alert_horizon": "4h",
        "curve": [{**point, "recall_other": None, "ahead": 0.3}],
        "reliability": {"1h": [], "4h": [{"probability": 0.25, "frequency": 0.125, "weight": 77.5}]},
    }
    page = written(tmp_path, Evaluation(), INFO | {"risk_model": risk})
    assert "Trained on simulated fleets: &lt;few&gt; labels" in page
    assert all(f">{number}<" in page for number in ("0.625", "0.375", "0.250", "0.125", "77.500"))


def test_scores_show_means_and_fold_single_metrics(page: str) -> None:
    shown, _, folded = page.partition("<details>")
    assert "0.222" in shown
    assert ">0.111" not in shown
    assert "0.111" in folded
    assert ">500<" in folded


def test_a_model_without_test_servers_has_its_report(tmp_path: Path) -> None:
    page = written(tmp_path, Evaluation())
    assert "Risk of incidents" not in page
    assert "Calibration" not in page


def test_it_shows_the_comparison_with_the_model_that_was_in_use(tmp_path: Path) -> None:
    compared = {"group": "unseen", "servers": 4, "windows": 9, "ratio": 1.234, "ratio_upper_95": None}
    champion = {"model": "old<1>", "groups": [compared], "worse": ["its error is higher"], "remark": ""}
    text = written(tmp_path, Evaluation({"unseen": group()}, cold_start()), {**INFO, "champion": champion})
    assert "The champion was old&lt;1&gt;. It is worse: its error is higher." in text
    assert "<th>servers of" in text
    assert re.search(r"unseen<td[^>]*>4<td[^>]*>9<td[^>]*>1.234<td[^>]*>-", text)
