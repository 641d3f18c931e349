"""Score tables as text and as JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from fleet_forecast.evaluation.backtest import Backtest
from fleet_forecast.evaluation.tables import Evaluation, GroupEvaluation, as_text, scores_as_json


def scores() -> pd.DataFrame:
    """Two windows; "mem_pct" was not measured."""
    actual = np.full((2, 3, 2), 10.0)
    actual[..., 1] = np.nan
    forecasts = {name: np.full((2, 3, 2, 3), value) for name, value in (("model", 11.0), ("other", 14.0))}
    rows = np.arange(2)
    return Backtest(("cpu_pct", "mem_pct"), (0.1, 0.5, 0.9), rows, rows, actual, np.ones((2, 2)), forecasts).scores()


def test_json_has_every_method_and_metric_and_null_for_missing_scores() -> None:
    by_method = json.loads(json.dumps(scores_as_json({"unseen": scores()}), allow_nan=False))["unseen"]
    assert set(by_method) == {"model", "other"}
    assert set(by_method["model"]) == {"cpu_pct", "mem_pct", "mean"}
    assert by_method["model"]["cpu_pct"]["wql"] < by_method["other"]["cpu_pct"]["wql"]
    assert by_method["model"]["mem_pct"]["wql"] is None


def test_text_has_a_table_of_methods_and_one_of_metrics_for_each_group_of_servers() -> None:
    parts = as_text(Evaluation({name: GroupEvaluation(scores(), {}, []) for name in ("training", "unseen")})).split(
        "\n\n"
    )
    assert [part.split(" servers")[0] for part in parts] == [
        "Test period, training",
        "The model on training",
        "Test period, unseen",
        "The model on unseen",
    ]
    assert "other" in parts[0]
    assert "cpu_pct" in parts[1]
