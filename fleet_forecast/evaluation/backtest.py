"""How good a forecast is, beside what simple means would have said: scores, baselines, rolling backtest, cold start.

Scores follow the field's definitions, over all points measured:
    WQL       mean over quantiles q of 2 * sum(pinball_q) / sum(|actual|)       (Salinas et al. 2020; GIFT-Eval)
    MASE      mean |actual - median| / mean |actual - actual a day before|      (Hyndman & Koehler 2006, season = 1 day)
    WAPE      sum |actual - median| / sum |actual|;  accuracy = 100 * (1 - WAPE)
    coverage  share of points inside the central 80 % or 96 % band
Forecasts and baselines are scored on exactly the same points. Forecasts are arrays [window, horizon, metric, quantile].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fleet_forecast.contract.forecast_spec import SCORED_LEVELS
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.windows import DAY_SECONDS

MEDIAN = 0.5
MODEL = "model"
AMOUNTS = ["points", "total"]  # columns of scores: points counted, and sum |actual|, which WQL and WAPE divide by
Forecaster = Callable[[np.ndarray, Sequence[str | None], np.ndarray], np.ndarray]  # Engine.forecast


@dataclass(frozen=True)
class Backtest:
    """Forecasts of past windows beside what then happened.

    rows, origins: int64 [window], server row and origin step in the grid. actual: float32 [window, horizon, metric],
    NaN = not measured. naive_error: float32 [server, metric], mean |change from the day before| before the test period.
    forecasts: by method, float32 [window, horizon, metric, quantile]; the quantiles are `quantiles`.
    """

    metrics: tuple[str, ...]
    quantiles: tuple[float, ...]
    rows: np.ndarray
    origins: np.ndarray
    actual: np.ndarray
    naive_error: np.ndarray
    forecasts: Mapping[str, np.ndarray]

    def scores(self, windows: np.ndarray | None = None) -> pd.DataFrame:
        """One row per method and metric, and one per method with metric "mean": scores and AMOUNTS.

        windows: boolean [window], which windows count (default all).
        """
        chosen = np.ones(len(self.rows), dtype=bool) if windows is None else windows
        counted = self._points_every_method_forecast(chosen)
        tables = []
        for method, forecast in self.forecasts.items():
            table = score(
                self.actual[chosen],
                forecast[chosen],
                self.quantiles,
                counted,
                self.naive_error[self.rows[chosen]],
            )
            table.insert(0, "metric", self.metrics)
            mean = table.drop(columns="metric").mean()
            mean["points"], mean["total"] = table["points"].sum(), np.nan  # units do not add up
            table.loc[len(table)] = {"metric": "mean", **mean}
            table.insert(0, "method", method)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def beside(self, name: str, forecast: np.ndarray) -> Backtest:
        """The same windows with one more method's forecast."""
        return replace(self, forecasts={**self.forecasts, name: forecast})

    def _points_every_method_forecast(self, chosen: np.ndarray) -> np.ndarray:
        """Boolean [window, horizon, metric]: measured, and forecast by all (yesterday may not have been measured)."""
        counted = ~np.isnan(self.actual[chosen])
        for forecast in self.forecasts.values():
            counted &= ~np.isnan(forecast[chosen]).any(axis=3)
        return counted


def pinball(actual: np.ndarray, forecast: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Pinball loss of each quantile: actual [...], forecast [..., quantile] -> [..., quantile]."""
    error = actual[..., None] - forecast
    levels = np.asarray(quantiles, dtype=np.float64)
    return np.maximum(levels * error, (levels - 1.0) * error)


def score(
    actual: np.ndarray,
    forecast: np.ndarray,
    quantiles: Sequence[float],
    counted: np.ndarray,
    naive_error: np.ndarray,
) -> pd.DataFrame:
    """Scores per metric (rows) over the counted points.

    actual [window, horizon, metric], forecast [window, horizon, metric, quantile], counted boolean like actual,
    naive_error [window, metric] (the denominator of MASE). A metric without a counted point scores NaN.
    """
    columns = list(quantiles)
    scored = [columns.index(quantile) for quantile in SCORED_LEVELS]
    records = []
    for metric in range(actual.shape[2]):
        mask = counted[:, :, metric]
        truth = actual[:, :, metric][mask].astype(np.float64)
        predicted = forecast[:, :, metric][mask].astype(np.float64)  # [point, quantile]
        naive = np.broadcast_to(naive_error[:, None, metric], mask.shape)[mask]
        records.append(_score_points(truth, predicted, columns, scored, naive))
    return pd.DataFrame.from_records(records)


def _score_points(
    truth: np.ndarray, predicted: np.ndarray, columns: list[float], scored: list[int], naive: np.ndarray
) -> dict[str, float]:
    names = ("wql", "mase", "wape", "accuracy", "coverage_80", "coverage_96")
    if truth.size == 0:
        return {**dict.fromkeys(names, np.nan), "points": 0, "total": 0.0}
    total = float(np.abs(truth).sum())
    size = total or np.nan
    loss = pinball(truth, predicted[:, scored], SCORED_LEVELS)
    miss = np.abs(truth - predicted[:, columns.index(MEDIAN)])
    wape = float(miss.sum() / size)
    wql = float(np.mean(2 * loss.sum(axis=0) / size))
    mase = float(miss.mean() / naive.mean()) if naive.mean() > 0 else np.nan
    bands = [_coverage(truth, predicted, columns, low, high) for low, high in ((0.1, 0.9), (0.02, 0.98))]
    return dict(zip(names, (wql, mase, wape, 100 * (1 - wape), *bands), strict=True)) | {
        "points": truth.size,
        "total": total,
    }


def _coverage(truth: np.ndarray, predicted: np.ndarray, columns: list[float], low: float, high: float) -> float:
    if low not in columns or high not in columns:
        return np.nan
    inside = (truth >= predicted[:, columns.index(low)]) & (truth <= predicted[:, columns.index(high)])
    return float(100 * inside.mean())


def rolling_origins(first: int, last: int, horizon_steps: int, every_steps: int) -> np.ndarray:
    """Origins whose whole horizon lies in first..last (grid steps): int64 [origin]."""
    return np.arange(first - 1, last - horizon_steps + 1, every_steps, dtype=np.int64)


def backtest(
    grid: FleetGrid,
    rows: np.ndarray,
    origins: np.ndarray,
    horizon_steps: int,
    history_steps: int,
    quantiles: Sequence[float],
    forecaster: Forecaster,
    with_profile: bool = True,
    with_baselines: bool = True,
) -> Backtest:
    """Forecast every (server, origin) with at least one measured target and set the baselines beside it.

    rows: server rows of the grid; origins: grid steps; history_steps: how many steps before the origin the forecaster
    and the baselines are shown (0 = nothing: a server without history). with_profile=False hides the profile.
    """
    window_rows, window_origins = (part.ravel() for part in np.meshgrid(rows, origins, indexing="ij"))
    actual = _future(grid.values, window_rows, window_origins, horizon_steps)
    some = ~np.isnan(actual).all(axis=(1, 2))
    window_rows, window_origins, actual = window_rows[some], window_origins[some], actual[some]
    times = grid.timestamps()
    forecasts: dict[str, list[np.ndarray]] = {}
    day_steps = DAY_SECONDS // grid.step_seconds
    for chunk in np.array_split(np.arange(len(window_rows)), max(1, len(window_rows) // 256)):
        history = past(grid.values, window_rows[chunk], window_origins[chunk], history_steps)
        profiles = [grid.profiles[row] if with_profile else None for row in window_rows[chunk]]
        forecasts.setdefault(MODEL, []).append(forecaster(history, profiles, times[window_origins[chunk]]))
        if with_baselines:
            for name, values in baselines(history, horizon_steps, day_steps, quantiles).items():
                forecasts.setdefault(name, []).append(values)
    return Backtest(
        metrics=grid.metrics,
        quantiles=tuple(quantiles),
        rows=window_rows,
        origins=window_origins,
        actual=actual,
        naive_error=naive_daily_error(grid.values[:, : int(origins.min()) + 1], day_steps),
        forecasts={name: np.concatenate(parts) for name, parts in forecasts.items()},
    )


def baselines(
    history: np.ndarray, horizon_steps: int, day_steps: int, quantiles: Sequence[float]
) -> dict[str, np.ndarray]:
    """What simple means say from the same history: [window, horizon, metric, quantile] each, NaN where they cannot.

    A method that needs more history than there is (yesterday: a day) is left out.
    last_value: the last measurement, at every quantile; yesterday: the value a whole number of days before.
    flat_6h, flat_24h: the empirical quantiles of the last 6 or 24 hours. history: [window, step, metric].
    """
    windows, steps, metrics = history.shape
    shape = (windows, horizon_steps, metrics, len(quantiles))
    simple: dict[str, np.ndarray] = {}
    if steps:
        simple["last_value"] = _last_measured(history)[:, None, :, None]
    lag = day_steps * -(-horizon_steps // day_steps)
    if steps >= lag:
        simple["yesterday"] = history[:, steps - lag :][:, :horizon_steps, :, None].copy()  # the history may go
    for hours in (6, 24) if steps else ():
        recent = history[:, -max(1, day_steps * hours // 24) :]
        simple[f"flat_{hours}h"] = _quantiles(recent, quantiles)[:, None]
    return {name: np.broadcast_to(values, shape) for name, values in simple.items()}


def profile_quantiles(
    grid: FleetGrid, rows: np.ndarray, last_step: int, quantiles: Sequence[float]
) -> dict[str | None, np.ndarray]:
    """Quantiles of all that a profile's servers measured before `last_step`: [metric, quantile] by profile.

    The simplest thing to say about a server without history; None holds the whole fleet's.
    """
    owner = np.array([grid.profiles[row] or "" for row in rows])

    def of(chosen: np.ndarray) -> np.ndarray:
        columns = (grid.values[chosen, :last_step, metric] for metric in range(len(grid.metrics)))
        return np.stack([_quantiles(column.reshape(1, -1, 1), quantiles)[0, 0] for column in columns])

    named: dict[str | None, np.ndarray] = {str(name): of(rows[owner == name]) for name in np.unique(owner) if name}
    return {None: of(rows), **named}


def young_histories(step_seconds: int) -> dict[str, int]:
    """Lengths of history a new server is judged with: steps by label. Hours that are no steps, or one, are left out."""
    hours = {f"{hours} h": divmod(hours * 3600, step_seconds) for hours in (1, 6, 24)}
    return {
        "none": 0,
        "1 step": 1,
        **{label: steps for label, (steps, rest) in hours.items() if steps > 1 and not rest},
    }


def cold_start_table(
    grid: FleetGrid,
    rows: np.ndarray,
    origins: np.ndarray,
    horizon_steps: int,
    quantiles: Sequence[float],
    forecaster: Forecaster,
    prior: Mapping[str | None, np.ndarray],
    knows_profiles: bool,
) -> pd.DataFrame:
    """Servers the model never saw, shown 0, 1 step, 1 h, 6 h and 24 h of history: WQL and accuracy by method.

    The model speaks with the profile given and hidden (only hidden if it knows no profiles); beside it the baselines of
    that history and the flat quantiles of the profile's training data (`prior`, see profile_quantiles).
    """
    tables = []
    for label, steps in young_histories(grid.step_seconds).items():
        past = backtest(grid, rows, origins, horizon_steps, steps, quantiles, forecaster, with_profile=False)
        told = [grid.profiles[row] for row in past.rows]
        flat = np.array([prior.get(profile, prior[None]) for profile in told]).reshape(-1, 1, *prior[None].shape)
        past = past.beside("profile_flat", np.broadcast_to(flat, past.forecasts[MODEL].shape))
        if knows_profiles:
            given = backtest(grid, rows, origins, horizon_steps, steps, quantiles, forecaster, with_baselines=False)
            past = past.beside(f"{MODEL}, profile given", given.forecasts[MODEL])
        scores = past.scores()
        means = scores[scores["metric"] == "mean"]
        tables.append(means[["method", "wql", "accuracy", "coverage_80"]].assign(history=label))
    table = pd.concat(tables, ignore_index=True)
    if knows_profiles:
        table["method"] = table["method"].replace({MODEL: f"{MODEL}, profile hidden"})
    return table[["history", "method", "wql", "accuracy", "coverage_80"]]


def best_baseline(scores: pd.DataFrame) -> str:
    """The baseline with the smallest mean WQL in a table of `Backtest.scores`."""
    means = scores[(scores["metric"] == "mean") & (scores["method"] != MODEL)].set_index("method")["wql"]
    return str(means.idxmin())


def naive_daily_error(values: np.ndarray, day_steps: int) -> np.ndarray:
    """Mean |value - value a day before| over [server, step, metric]: [server, metric], fleet mean where unknown."""
    total, count = np.zeros(values[:, 0].shape, np.float32), np.zeros(values[:, 0].shape, np.int64)
    for server, of_server in enumerate(values):  # all at once would be as large as the fleet, several times
        change = np.abs(of_server[day_steps:] - of_server[:-day_steps])
        measured = ~np.isnan(change)
        count[server] = measured.sum(axis=0)
        total[server] = np.where(measured, change, 0.0).sum(axis=0)
    own = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    fleet = total.sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    return np.where(np.isnan(own), fleet, own).astype(np.float32)


def past(values: np.ndarray, rows: np.ndarray, origins: np.ndarray, steps: int) -> np.ndarray:
    """The last `steps` steps up to each origin, NaN before the grid begins: float32 [window, steps, metric]."""
    index = origins[:, None] + np.arange(1 - steps, 1)
    taken = values[rows[:, None], np.maximum(index, 0)]
    taken[index < 0] = np.nan
    return taken


def _future(values: np.ndarray, rows: np.ndarray, origins: np.ndarray, horizon_steps: int) -> np.ndarray:
    """What happened after each origin, NaN after the grid ends: float32 [window, horizon, metric]."""
    index = origins[:, None] + np.arange(1, horizon_steps + 1)
    taken = values[rows[:, None], np.minimum(index, values.shape[1] - 1)]
    taken[index >= values.shape[1]] = np.nan
    return taken


def _last_measured(history: np.ndarray) -> np.ndarray:
    """The newest measurement of each window and metric, NaN if there is none: [window, metric]."""
    measured = ~np.isnan(history)
    steps = history.shape[1]
    newest = steps - 1 - np.argmax(measured[:, ::-1], axis=1)
    return np.take_along_axis(history, newest[:, None], axis=1)[:, 0]


def _quantiles(values: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Empirical quantiles (linear interpolation) over axis 1, NaN ignored: [window, metric, quantile]."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = (~np.isnan(values)).sum(axis=1)  # [window, metric]
    position = np.asarray(levels) * np.maximum(count - 1, 0)[..., None]  # [window, metric, quantile]
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(count - 1, 0)[..., None])
    columns = np.moveaxis(ordered, 1, 2)  # [window, metric, step]
    lower, upper = (np.take_along_axis(columns, at, axis=2) for at in (low, high))
    return (lower + (upper - lower) * (position - low)).astype(np.float32)
