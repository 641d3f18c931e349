"""The evaluation of a model as tables for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fleet_forecast.evaluation.backtest import MODEL
from fleet_forecast.evaluation.examples import Example
from fleet_forecast.evaluation.loss_sums import LossSums
from fleet_forecast.evaluation.scores import AMOUNTS

METRIC_COLUMNS = ["metric", "wql", "accuracy", "coverage_80", "coverage_96"]


class GroupEvaluation(NamedTuple):
    """One group of servers: a table of Backtest.scores, the document of `breakdown`, examples, and losses by day."""

    scores: pd.DataFrame
    breakdown: dict[str, Any]
    examples: list[Example]
    losses_by_day: Mapping[int, LossSums] = MappingProxyType({})


@dataclass(frozen=True)
class Evaluation:
    """Scores in the test period.

    groups: by group of servers ("training", "unseen"). cold_start: scores of unseen servers by length of history; empty
    if there are no unseen servers.
    """

    groups: dict[str, GroupEvaluation] = field(default_factory=dict)
    cold_start: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def scores(self) -> dict[str, pd.DataFrame]:
        """Tables of Backtest.scores by group of servers."""
        return {name: group.scores for name, group in self.groups.items()}

    def as_document(self) -> dict[str, Any]:
        """Content of evaluation.json."""
        rows = self.cold_start.replace({np.nan: None}).to_dict("records") if len(self.cold_start) else []
        return {
            "groups": {name: group.breakdown for name, group in self.groups.items()},
            "cold_start": rows,
            "losses_by_day": [[day, sums.as_fields()] for day, sums in sorted(self._losses_by_day().items())],
        }

    def _losses_by_day(self) -> dict[int, LossSums]:
        """Of all groups together: what the daemon compares the losses of its own forecasts with."""
        found: dict[int, LossSums] = {}
        for group in self.groups.values():
            for day, sums in group.losses_by_day.items():
                found.setdefault(day, LossSums()).merge(sums)
        return found


def as_text(evaluation: Evaluation) -> str:
    """The tables for a terminal."""
    parts = []
    for servers, table in evaluation.scores.items():
        means = table[table["metric"] == "mean"].drop(columns=["metric", *AMOUNTS])
        by_metric = table[(table["method"] == MODEL) & (table["metric"] != "mean")][METRIC_COLUMNS]
        about_means = "mean over metrics; WQL, MASE, WAPE: smaller is better"
        about_bands = "calibrated bands cover 80 and 96 % of the measurements"
        parts += [
            f"Test period, {servers} servers ({about_means})\n{_text(means)}",
            f"The model on {servers} servers, by metric ({about_bands})\n{_text(by_metric)}",
        ]
    if len(evaluation.cold_start):
        parts.append(
            f"New servers: accuracy and WQL by length of history (mean over metrics)\n{_text(evaluation.cold_start)}"
        )
    return "\n\n".join(parts)


def scores_as_json(scores: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """{training|unseen: {method: {metric: {wql, mase, ...}}}}; a score that does not exist is null."""
    return {
        servers: {
            str(method): {
                str(row["metric"]): {
                    key: None if not np.isfinite(row[key]) else round(float(row[key]), 5)
                    for key in table.columns
                    if key not in ("method", "metric")
                }
                for _, row in of_method.iterrows()
            }
            for method, of_method in table.groupby("method", sort=False)
        }
        for servers, table in scores.items()
    }


def _text(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.3f}")
