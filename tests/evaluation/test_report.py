"""report.html: its content, and names escaped in it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from fleet_forecast.evaluation.report import ModelReport, write_report
from fleet_forecast.inference.explanations import WeightTables

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
    "loss_history": [
        {"epoch": 0.5, "loss": 0.3, "validation_loss": 0.4},
        {"epoch": 1, "loss": 0.2, "validation_loss": 0.3},
    ],
}


def scores() -> pd.DataFrame:
    rows = [
        ("model", "cpu_pct", 0.111, 500),
        ("model", "mean", 0.222, 900),
        ("window_quantiles_24h", "mean", 0.333, 900),
    ]
    return pd.DataFrame(rows, columns=["method", "metric", "wql", "points"]).assign(total=7_777.0)


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


@pytest.fixture
def page(tmp_path: Path) -> str:
    write_report(tmp_path, ModelReport("tft_model_x", INFO, {"unseen": scores()}, pd.DataFrame(), weights()))
    return (tmp_path / "report.html").read_text()


def test_names_are_escaped_and_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert "<web>" not in page
    assert "&lt;web&gt;" in page
    assert "a&lt;b&gt;" in page
    assert not re.search(r"<script|https?://|src=|@import|url\(", page)


def test_variables_are_sorted_by_weight_with_labels_and_percentages(page: str) -> None:
    static = page.partition("static variables")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)", row) for row in static.split("<tr>")[2:]]
    assert rows == [
        ["cpu_pct, level in the context", "60.0", "60.0"],
        ["cpu_pct, scale in the context", "30.0", "30.0"],
        ["profile", "10.0", "10.0"],
    ]


def test_attention_bars_are_proportional_to_weights_and_end_at_the_origin(page: str) -> None:
    figure = next(part for part in page.split("<figure>")[1:] if ">database<" in part)
    bars = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', figure)
    (far_x, far_y, far_height), (near_x, near_y, near_height) = [tuple(map(float, bar)) for bar in bars]
    assert far_x < near_x
    assert near_height == pytest.approx(2 * far_height)
    assert far_y + far_height == pytest.approx(near_y + near_height)
    assert "2 h before" in figure
    assert "25 % on the horizon" in figure


def test_a_risk_model_is_shown_with_its_source_curve_and_reliability(tmp_path: Path) -> None:
    rows = [{"probability": 0.25, "frequency": 0.125, "weight": 77.5}]
    risk = {
        "source": "simulated fleets: <few> labels",
        "alert_horizon": "4h",
        "curve": [{"level": 0.625, "false_alarms_per_server_month": 0.375}],
        "reliability": {"1h": [], "4h": rows},
    }
    info = INFO | {"risk_model": risk}
    write_report(tmp_path, ModelReport("tft_model_x", info, {"unseen": scores()}, pd.DataFrame(), weights()))
    page = (tmp_path / "report.html").read_text()
    assert "Trained on simulated fleets: &lt;few&gt; labels" in page
    assert all(f">{number}<" in page for number in ("0.625", "0.375", "0.250", "0.125", "77.500"))


def test_scores_show_means_and_fold_single_metrics(page: str) -> None:
    shown, _, folded = page.partition("<details>")
    assert "0.222" in shown
    assert "0.111" not in shown
    assert "0.111" in folded
    assert ">500<" in folded
