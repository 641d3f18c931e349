"""Rolling-origin backtest: a forecaster and the baselines, scored on the same points of past windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fleet_forecast.evaluation.baselines import Observed, TrainingQuantiles, baseline_forecasts
from fleet_forecast.evaluation.scores import mean_seasonal_error, score_table
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.history import future_values, past_values
from fleet_forecast.features.peers import Peers
from fleet_forecast.features.windows import DAY_SECONDS

MODEL = "model"  # name of the forecaster in score tables
MEAN = "mean"  # name of the mean over metrics in score tables
CHUNK_WINDOWS = 256  # forecast at once; bounds memory
Forecaster = Callable[..., np.ndarray]  # Engine.forecast; it receives peers only from a plan that has some


@dataclass(frozen=True)
class BacktestPlan:
    """The windows of a backtest: every server in `rows` (int64) at every step in `origins` (int64) of a grid.

    peers: of all servers of the grid, for the forecaster; None: it has none.
    """

    grid: FleetGrid
    rows: np.ndarray
    origins: np.ndarray
    horizon_steps: int
    quantiles: tuple[float, ...]
    peers: Peers | None = None

    @property
    def day_steps(self) -> int:
        """Steps in 24 hours."""
        return DAY_SECONDS // self.grid.step_seconds

    def windows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows with at least one measured target: rows and origins, int64 [window], and actual values.

        actual: float32 [window, horizon, metric], NaN = not measured.
        """
        rows, origins = (part.ravel() for part in np.meshgrid(self.rows, self.origins, indexing="ij"))
        actual = future_values(self.grid.values, rows, origins, self.horizon_steps)
        measured = ~np.isnan(actual).all(axis=(1, 2))
        return rows[measured], origins[measured], actual[measured]


@dataclass(frozen=True)
class Backtest:
    """Forecasts of past windows and the values measured since.

    rows, origins: int64 [window], server row and origin step in the grid. actual: float32 [window, horizon, metric],
    NaN = not measured. seasonal_error: float32 [server, metric], the denominator of MASE. forecasts: by method,
    float32 [window, horizon, metric, quantile]; the levels are `quantiles`.
    """

    metrics: tuple[str, ...]
    quantiles: tuple[float, ...]
    rows: np.ndarray
    origins: np.ndarray
    actual: np.ndarray
    seasonal_error: np.ndarray
    forecasts: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, plan: BacktestPlan, forecasts: Mapping[str, np.ndarray]) -> Backtest:
        """The forecasts of all windows of a plan, by method."""
        rows, origins, actual = plan.windows()
        before = plan.grid.values[:, : int(plan.origins.min()) + 1]
        return cls(
            metrics=plan.grid.metrics,
            quantiles=plan.quantiles,
            rows=rows,
            origins=origins,
            actual=actual,
            seasonal_error=mean_seasonal_error(before, plan.day_steps),
            forecasts=forecasts,
        )

    def scores(self, windows: np.ndarray | None = None) -> pd.DataFrame:
        """One row per method and metric, and one per method with the mean over metrics (MEAN).

        windows: boolean [window], the windows to score (default all). Columns: method, metric, and those of
        scores.score_table.
        """
        chosen = np.ones(len(self.rows), dtype=bool) if windows is None else windows
        scored = self._points_of_all_methods(chosen)
        tables = []
        for method, forecast in self.forecasts.items():
            table = score_table(
                self.actual[chosen],
                forecast[chosen],
                self.quantiles,
                scored,
                self.seasonal_error[self.rows[chosen]],
            )
            table.insert(0, "metric", self.metrics)
            mean = table.drop(columns="metric").mean()
            mean["points"], mean["total"] = table["points"].sum(), np.nan  # units do not add up
            table.loc[len(table)] = {"metric": MEAN, **mean}
            table.insert(0, "method", method)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def with_forecast(self, name: str, forecast: np.ndarray) -> Backtest:
        """The same windows with the forecast of one more method."""
        return replace(self, forecasts={**self.forecasts, name: forecast})

    def _points_of_all_methods(self, chosen: np.ndarray) -> np.ndarray:
        """Points that were measured and that every method forecasts: boolean [window, horizon, metric]."""
        scored = ~np.isnan(self.actual[chosen])
        for forecast in self.forecasts.values():
            scored &= ~np.isnan(forecast[chosen]).any(axis=3)
        return scored


def rolling_origins(first: int, last: int, horizon_steps: int, every_steps: int) -> np.ndarray:
    """Origins with their whole horizon within steps first..last of the grid: int64 [origin]."""
    return np.arange(first - 1, last - horizon_steps + 1, every_steps, dtype=np.int64)


def model_forecasts(
    plan: BacktestPlan, forecaster: Forecaster, history_steps: int, with_profiles: bool = True
) -> np.ndarray:
    """Forecast every window of the plan: float32 [window, horizon, metric, quantile].

    history_steps: steps up to the origin that the forecaster receives; 0 = servers without history.
    with_profiles: False masks the profiles.
    """
    grid, times = plan.grid, plan.grid.timestamps()
    rows, origins, _ = plan.windows()
    parts = []
    for chunk in _chunks(len(rows)):
        history = past_values(grid.values, rows[chunk], origins[chunk], history_steps)
        profiles = [grid.profiles[row] if with_profiles else None for row in rows[chunk]]
        peers = () if plan.peers is None else (Peers(plan.peers.table, plan.peers.members[rows[chunk]]),)
        parts.append(forecaster(history, profiles, times[origins[chunk]], *peers))
    return np.concatenate(parts)


def backtest(
    plan: BacktestPlan,
    forecaster: Forecaster,
    history_steps: int,
    with_profiles: bool = True,
    by_profile: TrainingQuantiles | None = None,
) -> Backtest:
    """Forecast every window of the plan with the forecaster (as MODEL) and with the baselines.

    The baselines receive the same history. by_profile: input of the baseline profile_quantiles, which is left out
    without it; the other arguments as for `model_forecasts`.
    """
    forecasts = {MODEL: model_forecasts(plan, forecaster, history_steps, with_profiles)}
    return Backtest.of(plan, forecasts | _baseline_forecasts(plan, history_steps, by_profile))


def best_baseline(scores: pd.DataFrame) -> str:
    """The baseline with the smallest mean WQL in a table of `Backtest.scores`; the first one if none has a score."""
    means = scores[(scores["metric"] == MEAN) & (scores["method"] != MODEL)].set_index("method")["wql"]
    return str(means.idxmin() if means.notna().any() else means.index[0])


def _baseline_forecasts(
    plan: BacktestPlan, history_steps: int, by_profile: TrainingQuantiles | None
) -> dict[str, np.ndarray]:
    """Forecasts of the baselines for every window of the plan, by name."""
    grid = plan.grid
    rows, origins, _ = plan.windows()
    forecasts: dict[str, list[np.ndarray]] = {}
    for chunk in _chunks(len(rows)):
        history = past_values(grid.values, rows[chunk], origins[chunk], history_steps)
        profiles = [grid.profiles[row] for row in rows[chunk]]
        quantiles = None if by_profile is None else _of_profiles(by_profile, profiles)
        observed = Observed(history, plan.horizon_steps, plan.day_steps, plan.quantiles, quantiles)
        for name, values in baseline_forecasts(observed).items():
            forecasts.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in forecasts.items()}


def _chunks(windows: int) -> list[np.ndarray]:
    return np.array_split(np.arange(windows), max(1, windows // CHUNK_WINDOWS))


def _of_profiles(by_profile: TrainingQuantiles, profiles: Sequence[str | None]) -> np.ndarray:
    """The quantiles of each window's profile: float32 [window, metric, quantile]."""
    fleet = by_profile[None]
    return np.array([by_profile.get(profile, fleet) for profile in profiles]).reshape(-1, *fleet.shape)
