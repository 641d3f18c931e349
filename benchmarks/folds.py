"""Scores of several folds, in each of which other servers are held out, as those of one set of servers."""

from __future__ import annotations

import pandas as pd


def wql_together(records: pd.DataFrame) -> pd.Series[float]:
    """WQL of each (servers, method) over the points of all folds, mean over metrics.

    records: rows of evaluation.Backtest.scores for single metrics, of all folds, with a column `servers`. So it does
    not matter which servers share a fold, nor does a fold of quiet ones count as much as one of busy ones.
    """
    keys = ["servers", "method", "metric"]
    loss = (records["wql"] * records["total"]).groupby([records[key] for key in keys]).sum()
    return (loss / records.groupby(keys)["total"].sum()).groupby(["servers", "method"]).mean()
