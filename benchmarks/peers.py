"""Other methods on unseen real servers: LightGBM with lags and calendar, and the baselines.

    python benchmarks/peers.py                                          # both data sets, four folds each
    python benchmarks/peers.py --data ../shared/data/smd_fleet.parquet --folds 2
    python benchmarks/peers.py --data ../shared/data/smd_fleet.parquet --model models/current
    python benchmarks/peers.py --data ../shared/data/smd_fleet.parquet --model models/a --model models/b

The horizon is 8 hours, with an origin every 8 hours of the last 30 % of the time. Each fold holds out another part of
the servers. All methods are scored on the same points at the quantiles 0.1, 0.5 and 0.9, with the functions that score
the model (fleet_forecast/evaluation). With --model, the held-out servers are those of the model, one fold per model, so
that LightGBM and the model are trained on the same servers and days. `pooled` is the ratio of the WQL over the
servers of all folds as one set. Tables go to stdout, the last line is JSON.

LightGBM has one model per metric and quantile. Values are scaled with the mean and standard deviation of the window's
last day. Features of a step: latest values, means and quantiles of the window, the same time of the previous day and
week (and the 2 hours around it), the distance, the calendar, the window's mean and scale.

`seasonal_mean` is not trained: the seasonal component of the last week with the strength that the last day shows
(features/seasonality.py), plus the quantiles of the remainder of the last day.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.real_servers import ratios  # noqa: E402
from data_contract import METRIC_SPECS, ContractError, DataFileError, read_metrics  # noqa: E402
from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS, SCORED_LEVELS  # noqa: E402
from fleet_forecast.evaluation.backtest import MODEL, Backtest, BacktestPlan, backtest, rolling_origins  # noqa: E402
from fleet_forecast.evaluation.baselines import Observed, window_quantiles  # noqa: E402
from fleet_forecast.features.grid import FleetGrid, infer_step_seconds  # noqa: E402
from fleet_forecast.features.history import past_values  # noqa: E402
from fleet_forecast.features.seasonality import seasonal_component  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import ModelError  # noqa: E402
from fleet_forecast.inference.model_directory import TRAINING_INFO_FILE  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

DATA = (ROOT / "../shared/data/bitbrains_public.parquet", ROOT / "../shared/data/smd_fleet.parquet")
QUANTILES = SCORED_LEVELS
HORIZON_HOURS = 8
TRAIN_FRACTION = 0.7  # of the time
VALIDATION_SHARE = 0.15  # of the training time, its end: when to stop adding trees
ORIGIN_EVERY_HOURS = 8  # scored windows
TRAIN_ORIGIN_EVERY_MINUTES = 55  # training windows; no divisor of a day, so that all hours occur
STEPS_PER_WINDOW = 12  # horizon steps drawn from each training window
MAX_TRAIN_ROWS = 250_000
TREES = lightgbm.LGBMRegressor(
    objective="quantile", n_estimators=600, learning_rate=0.04, num_leaves=31, min_child_samples=100,
    subsample=0.8, subsample_freq=1, colsample_bytree=0.7, reg_lambda=1.0, random_state=0, verbose=-1,
)  # fmt: skip
PATIENCE_TREES = 40
WINDOW_QUANTILES = QUANTILE_LEVELS  # of the last day, as features
SEED = 0
DAY_HOURS, WEEK_HOURS = 24, 168
LIGHTGBM, SEASONAL_MEAN = "lightgbm", "seasonal_mean"  # names of the methods in tables

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """One data set on its grid with its lengths in steps."""

    name: str
    grid: FleetGrid
    horizon: int
    day: int
    test_start: int  # grid step; targets before it are for training and validation

    @property
    def week(self) -> int:
        """Steps of a week."""
        return 7 * self.day

    @property
    def history(self) -> int:
        """Steps the features look back: a week, and an hour around its begin."""
        return self.week + self.day // 24


# --- features -------------------------------------------------------------------------------------------------------


def window_statistics(history: Floats, day: int) -> tuple[Floats, Floats, Floats]:
    """Mean (loc) and scale of the last day, and the scaled features that all steps of a window share.

    history: [window, step], NaN = not measured -> [window], [window], [window, feature].
    """
    last_day = history[:, -day:].astype(np.float64)
    loc = _masked(np.nanmean, last_day, 0.0)
    deviation = _masked(np.nanstd, last_day, 0.0)
    scale = np.maximum(deviation, 0.01 * np.abs(loc) + 0.05)
    hour = day // 24
    scaled = (last_day - loc[:, None]) / scale[:, None]
    newest = scaled[:, [-1, -2, -3, -6, -12]]
    means = [_masked(np.nanmean, scaled[:, -steps:], np.nan) for steps in (hour, 3 * hour, 6 * hour, 12 * hour)]
    deviations = [_masked(np.nanstd, scaled[:, -steps:], np.nan) for steps in (hour, 6 * hour)]
    quantiles = last_day_quantiles(scaled[:, :, None].astype(np.float32), day, WINDOW_QUANTILES)[:, 0, 0]
    shared = np.column_stack([newest, *means, *deviations, quantiles, np.log(scale), loc])
    return loc.astype(np.float32), scale.astype(np.float32), shared.astype(np.float32)


def last_day_quantiles(history: Floats, day: int, quantiles: Sequence[float]) -> Floats:
    """Empirical quantiles of the last 24 hours: history [window, step, metric] -> [window, 1, metric, quantile]."""
    found = window_quantiles(Observed(history, 1, day, quantiles), hours=24)
    assert found is not None  # noqa: S101 - the history has a day
    return found


def step_features(history: Floats, steps: npt.NDArray[np.int64], day: int, loc: Floats, scale: Floats) -> Floats:
    """Features of single horizon steps: history [window, step], steps [window, chosen], 1 is the first.

    The same time of the previous day and week and the means of the 2 hours around them, scaled; and the mean of the
    same time over the days of the week before -> [window, chosen, feature].
    """
    hour = day // 24
    last = history.shape[1] - 1
    around = np.arange(-hour, hour + 1)
    columns = []
    for lag in (day, 7 * day):
        at = last + steps - lag
        columns.append(_take(history, at))
        columns.append(_masked(np.nanmean, _take(history, at[..., None] + around), np.nan))
    days = last + steps[..., None] - day * np.arange(1, 8)
    columns.append(_masked(np.nanmean, _take(history, days), np.nan))
    stacked = np.stack(columns, axis=-1)
    return ((stacked - loc[:, None, None]) / scale[:, None, None]).astype(np.float32)


def calendar_features(origins: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], task: Task) -> Floats:
    """Distance, minute of day and day of week (UTC, as the data has no zone): [window, chosen, feature]."""
    seconds = task.grid.start.astype(np.int64) + (origins[:, None] + steps) * task.grid.step_seconds
    weekday = (seconds // 86_400 + 3) % 7
    return np.stack([steps, seconds % 86_400 // 60, weekday], axis=-1).astype(np.float32)


def features(
    history: Floats, origins: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], task: Task
) -> tuple[Floats, Floats, Floats]:
    """All features [window * chosen, feature], and loc and scale [window] to scale targets with."""
    loc, scale, shared = window_statistics(history, task.day)
    own = step_features(history, steps, task.day, loc, scale)
    repeated = np.broadcast_to(shared[:, None], (*steps.shape, shared.shape[1]))
    table = np.concatenate([repeated, own, calendar_features(origins, steps, task)], axis=-1)
    return table.reshape(-1, table.shape[-1]), loc, scale


def _take(history: Floats, index: npt.NDArray[np.int64]) -> Floats:
    """history[window, index[window, ...]], NaN outside."""
    inside = (index >= 0) & (index < history.shape[1])
    rows = np.arange(len(history)).reshape(-1, *[1] * (index.ndim - 1))
    taken: Floats = np.where(inside, history[rows, np.clip(index, 0, history.shape[1] - 1)], np.nan)
    return taken


def _masked(reduce: Any, values: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
    """`reduce` over the last axis, `empty` where nothing is measured."""
    nothing = np.isnan(values).all(axis=-1)
    filled = np.where(nothing[..., None], 0.0, values)
    result: npt.NDArray[Any] = np.where(nothing, empty, reduce(filled, axis=-1))
    return result


# --- LightGBM -------------------------------------------------------------------------------------------------------


class LightGBMPeer:
    """Quantile regression of one data set, one model for each metric and quantile."""

    def __init__(self, task: Task, rows: npt.NDArray[np.int64]) -> None:
        started = time.monotonic()
        self._task = task
        self._models = [self._fit_metric(metric, rows) for metric in range(len(task.grid.metrics))]
        self.fit_seconds = time.monotonic() - started

    def _fit_metric(self, metric: int, rows: npt.NDArray[np.int64]) -> list[lightgbm.LGBMRegressor]:
        task = self._task
        train_end = int(task.test_start * (1 - VALIDATION_SHARE))
        training = self._examples(metric, rows, task.day, train_end)
        validation = self._examples(metric, rows, train_end, task.test_start)
        models = []
        for quantile in QUANTILES:
            model = lightgbm.LGBMRegressor(**{**TREES.get_params(), "alpha": quantile})
            model.fit(
                training[0],
                training[1],
                sample_weight=training[2],
                eval_X=validation[0],
                eval_y=validation[1],
                eval_sample_weight=[validation[2]],
                callbacks=[lightgbm.early_stopping(PATIENCE_TREES, verbose=False)],
            )
            models.append(model)
        return models

    def _examples(
        self, metric: int, rows: npt.NDArray[np.int64], first: int, end: int
    ) -> tuple[Floats, Floats, Floats]:
        """Features, scaled targets and weights of windows whose targets lie in first..end-1."""
        task, random = self._task, np.random.default_rng([SEED, metric, first])
        every = max(1, TRAIN_ORIGIN_EVERY_MINUTES * 60 // task.grid.step_seconds)
        origins = np.arange(first - 1, end - task.horizon, every)
        windows, chosen = (part.ravel() for part in np.meshgrid(rows, origins, indexing="ij"))
        most = MAX_TRAIN_ROWS // STEPS_PER_WINDOW
        if len(windows) > most:
            kept = random.choice(len(windows), most, replace=False)
            windows, chosen = windows[kept], chosen[kept]
        steps = random.integers(1, task.horizon + 1, (len(windows), STEPS_PER_WINDOW))
        values = task.grid.values[:, :, metric]
        history = past_values(values[:, :, None], windows, chosen, task.history)[:, :, 0]
        table, loc, scale = features(history, chosen, steps, task)
        target = ((values[windows[:, None], chosen[:, None] + steps] - loc[:, None]) / scale[:, None]).ravel()
        # Errors count in the metric's unit, as in the score; the floor gives servers of small scale some weight.
        weight = np.repeat(scale / scale.mean() + 0.1, STEPS_PER_WINDOW)
        known = ~np.isnan(target)
        return table[known], target[known], weight[known]

    def forecast(
        self, history: Floats, _profiles: Sequence[str | None], origins: npt.NDArray[np.datetime64]
    ) -> npt.NDArray[np.float32]:
        """Quantiles [window, horizon, metric, quantile]; history [window, step, metric]."""
        task = self._task
        at = ((origins - task.grid.start) // np.timedelta64(task.grid.step_seconds, "s")).astype(np.int64)
        steps = np.broadcast_to(np.arange(1, task.horizon + 1), (len(history), task.horizon))
        result = np.empty((len(history), task.horizon, history.shape[2], len(QUANTILES)), dtype=np.float32)
        for metric, models in enumerate(self._models):
            table, loc, scale = features(history[:, :, metric], at, steps, task)
            for index, model in enumerate(models):
                scaled = np.asarray(model.predict(table)).reshape(steps.shape)
                result[:, :, metric, index] = scaled * scale[:, None] + loc[:, None]
            spec = METRIC_SPECS[task.grid.metrics[metric]]
            np.clip(result[:, :, metric], spec.lower, spec.upper, out=result[:, :, metric])
        result.sort(axis=3)
        return result


# --- the seasonal mean ----------------------------------------------------------------------------------------------


def seasonal_mean(history: Floats, horizon: int, day: int, quantiles: Sequence[float]) -> Floats:
    """The daily seasonality alone: [window, step, metric] -> [window, horizon, metric, quantile], physical units."""
    at = history.shape[1] - 1 + np.arange(1 - day, horizon + 1)[None, :, None] - day * np.arange(1, 8)
    series = np.moveaxis(history, -1, 0)  # metric first
    earlier_days = np.stack([_masked(np.nanmean, _take(one, at), np.nan) for one in series], axis=-1).astype(np.float32)
    today = history[:, -day:]
    seasonal = seasonal_component(today, earlier_days, day)
    remainder = last_day_quantiles(today - seasonal.component[:, :day], day, quantiles)
    forecast: Floats = remainder + seasonal.component[:, day:, :, None]
    return forecast


# --- comparison ----------------------------------------------------------------------------------------------------


def load_task(path: Path) -> Task:
    """A data set on its grid."""
    data = read_metrics(path)
    step_seconds = infer_step_seconds(data.frame)
    grid = FleetGrid.from_frame(data.frame, data.metrics, step_seconds)
    day = DAY_HOURS * 3600 // step_seconds
    return Task(path.stem, grid, HORIZON_HOURS * 3600 // step_seconds, day, int(grid.steps * TRAIN_FRACTION))


class Parts(NamedTuple):
    """Rows of unseen servers, and of servers a model used for validation only: int64 [server] each."""

    unseen: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def held_out(task: Task, folds: int) -> list[Parts]:
    """Of each fold; every server is held out once, none is used for validation only."""
    shuffled = np.random.default_rng(SEED).permutation(len(task.grid.servers))
    return [Parts(np.sort(part), shuffled[:0]) for part in np.array_split(shuffled, folds)]


def compare(task: Task, parts: Parts, engine: Engine | None) -> tuple[pd.DataFrame, float]:
    """Scores of all methods on training and unseen servers, and the seconds it took to fit LightGBM.

    LightGBM is fitted on the validation servers, too; they are not scored.
    """
    fitted = np.setdiff1d(np.arange(len(task.grid.servers)), parts.unseen)
    peer = LightGBMPeer(task, fitted)
    origins = rolling_origins(
        task.test_start, task.grid.steps - 1, task.horizon, ORIGIN_EVERY_HOURS * 3600 // task.grid.step_seconds
    )
    tables = []
    for name, rows in (("training", np.setdiff1d(fitted, parts.validation)), ("unseen", parts.unseen)):
        made = backtest(BacktestPlan(task.grid, rows, origins, task.horizon, QUANTILES), peer.forecast, task.history)
        forecasts = {LIGHTGBM if method == MODEL else method: f for method, f in made.forecasts.items()}
        made = replace(made, forecasts=forecasts).with_forecast(SEASONAL_MEAN, _seasonal_means(task, made))
        if engine is not None:
            made = made.with_forecast(MODEL, _model_forecast(engine, task, made))
        tables.append(made.scores().assign(servers=name))
    return pd.concat(tables, ignore_index=True), peer.fit_seconds


def _seasonal_means(task: Task, made: Backtest) -> Floats:
    """`seasonal_mean` of all windows, within the metrics' ranges."""
    history = past_values(task.grid.values, made.rows, made.origins, task.history)
    forecast = seasonal_mean(history, task.horizon, task.day, QUANTILES)
    for metric, name in enumerate(task.grid.metrics):
        np.clip(forecast[:, :, metric], METRIC_SPECS[name].lower, METRIC_SPECS[name].upper, out=forecast[:, :, metric])
    return forecast


def _model_forecast(engine: Engine, task: Task, made: Backtest) -> npt.NDArray[np.float32]:
    """The model's quantiles 0.1, 0.5 and 0.9 of the same windows."""
    wanted = [engine.config.quantiles.index(quantile) for quantile in QUANTILES]
    metrics = [engine.config.targets.index(metric) for metric in task.grid.metrics]
    times = task.grid.timestamps()
    parts = []
    for chunk in np.array_split(np.arange(len(made.rows)), max(1, len(made.rows) // 256)):
        rows, origins = made.rows[chunk], made.origins[chunk]
        history = past_values(task.grid.values, rows, origins, engine.config.history_steps)
        profiles = [task.grid.profiles[row] for row in rows]
        forecast = engine.forecast(_ordered(history, metrics), profiles, times[origins])
        parts.append(forecast[:, :, metrics][..., wanted])
    return np.concatenate(parts)


def _ordered(history: Floats, metrics: list[int]) -> Floats:
    """History with its metrics where the model has them."""
    arranged = np.full((*history.shape[:2], max(metrics) + 1), np.nan, dtype=np.float32)
    arranged[:, :, metrics] = history
    return arranged


def summarise(folds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The table of real_servers.ratios for the scores of some folds."""
    records = pd.concat(folds, keys=range(len(folds)), names=["fold"]).reset_index("fold")
    return ratios(records, [LIGHTGBM, SEASONAL_MEAN, MODEL])


def run(path: Path, folds: int, models: Sequence[Path]) -> dict[str, Any]:
    """One data set; prints its table and returns it as a dictionary."""
    task = load_task(path)
    engines: list[Engine | None] = [Engine.load(model) for model in models] or [None] * folds
    parts = [_held_out_by(model, task) for model in models] or held_out(task, folds)
    tables, seconds = [], 0.0
    for part, engine in zip(tqdm(parts, desc=task.name, unit="fold", file=sys.stderr), engines, strict=True):
        table, fit_seconds = compare(task, part, engine)
        tables.append(table)
        seconds += fit_seconds / len(parts)
    summary = summarise(tables)
    print(
        f"\n{task.name}: {len(parts)} fold(s), ratio = WQL / best baseline; LightGBM fitted in {seconds:.0f} s a fold"
    )
    print(summary.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.3f}"))
    records = json.loads(summary.to_json(orient="records", double_precision=5))
    return {"folds": len(parts), "lightgbm_fit_seconds": round(seconds, 1), "methods": records}


def _held_out_by(model: Path, task: Task) -> Parts:
    info = json.loads((model / TRAINING_INFO_FILE).read_text(encoding="utf-8"))
    named = [set(info[part]) for part in ("unseen_servers", "validation_servers")]
    parts = Parts(*(np.flatnonzero([server in names for server in task.grid.servers]) for names in named))
    if not len(parts.unseen):
        raise ModelError(f"{model}: held out no server of {task.name}; train it on this data with --holdout-servers")
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns 0 when done, 1 if data or model cannot be used, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", help="file or folder; may be given again (both real sets)"
    )
    parser.add_argument("--folds", type=int, default=4, help="parts of the servers, held out in turn (%(default)s)")
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        default=[],
        help="model directory to score on the same windows, trained with --no-final-fit; may be given again, needs one "
        "--data",
    )
    arguments = parser.parse_args(argv)
    paths = arguments.data or [path.resolve() for path in DATA]
    if arguments.model and len(paths) != 1:
        parser.error("--model is scored on the data it was trained on: give that as --data")
    if arguments.folds < 2:
        parser.error(f"--folds {arguments.folds}: must be at least 2")
    try:
        result = {path.stem: run(path, arguments.folds, arguments.model) for path in paths}
    except (ContractError, DataFileError, ModelError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(json.dumps({"quantiles": QUANTILES, "horizon_hours": HORIZON_HOURS, "data": result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
