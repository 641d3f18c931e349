"""Speed of forecasting from raw history to quantiles, compared with stock pytorch-forecasting; a fleet of 10,000.

    python benchmarks/forecasting.py --model models/current          # about two minutes; JSON is the last line
    python benchmarks/forecasting.py --rounds 1 --fleet 1000         # a quick look

Both sides run the same weights on the same 90 servers with 24 h of history and the same number of threads. Rounds
alternate, so that other load affects both; CPU seconds are measured as well. Our side starts from rows of a file: grid,
windows, network (ONNX Runtime), physical units. The stock side starts from a frame with all inputs computed and scaled,
which favours it: TimeSeriesDataSet, its loader with the best of several batch sizes, predict. The forecasts of both
sides must be equal.

The large fleet is forecast in a separate process with all the history that the model can use. Its peak memory includes
Python and the arrays of input and output.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_contract import METRIC_SPECS  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.features.window_batch import WindowBatch, Windows  # noqa: E402
from fleet_forecast.features.windows import CALENDAR_SIZES  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import ModelConfig, ModelError  # noqa: E402
from fleet_forecast.inference.model_directory import WEIGHTS_FILE  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

SERVERS = 90
HISTORY_HOURS = 24
STOCK_BATCH_SIZES = (32, 64, 128)
ORIGIN = np.datetime64("2026-11-03T15:00:00", "s")
TOLERANCE = 1e-3  # relative, and absolute in the metric's unit: two runtimes sum in different order
TARGET_RATIO = 1 / 3
TARGET_MEMORY_MB = 2_000

Forecast = Callable[[], np.ndarray]  # -> physical quantiles [server, horizon, metric, quantile]


class WrongResultError(RuntimeError):
    """The two sides do not give the same forecast, so their times cannot be compared."""


def random_history(config: ModelConfig, servers: int, steps: int) -> np.ndarray:
    """Random walks within each metric's range: float32 [server, step, metric]."""
    random = np.random.default_rng(0)
    walk = random.normal(0, 0.1, (servers, steps, len(config.targets))).astype(np.float32).cumsum(axis=1)
    upper = np.array([min(METRIC_SPECS[name].upper, 200.0) for name in config.targets], dtype=np.float32)
    return upper / (1 + np.exp(-walk))


def profiles_of(config: ModelConfig, servers: int) -> list[str | None]:
    """The model's profiles in turn; None if it has no profile feature."""
    known = config.profiles or (None,)
    return [known[server % len(known)] for server in range(servers)]


# --- ours -----------------------------------------------------------------------------------------------------------


def frame_of(history: np.ndarray, profiles: Sequence[str | None], config: ModelConfig) -> pd.DataFrame:
    """The history as contract rows."""
    servers, steps, _ = history.shape
    times = ORIGIN - np.arange(steps)[::-1] * np.timedelta64(config.step_seconds, "s")
    names = [f"server{server:05d}" for server in range(servers)]
    frame = pd.DataFrame({"timestamp": np.tile(times, servers), "server_name": np.repeat(names, steps)})
    if config.profiles:
        frame["profile"] = np.repeat(np.array(profiles, dtype=object), steps)
    columns = {name: history[:, :, metric].ravel() for metric, name in enumerate(config.targets)}
    return frame.assign(**columns)


def our_side(engine: Engine, frame: pd.DataFrame) -> Forecast:
    """Contract rows -> grid -> engine."""

    def forecast() -> np.ndarray:
        grid = FleetGrid.from_frame(frame, engine.config.targets, engine.config.step_seconds)
        return engine.forecast(grid.values, grid.profiles, grid.timestamps()[-1])

    return forecast


# --- stock ----------------------------------------------------------------------------------------------------------


def windows_of(engine: Engine, history: np.ndarray, profiles: Sequence[str | None]) -> list[Windows]:
    """The windows that the engine gives to the network, by chunk."""
    config, seen = engine.config, []

    def record(windows: Windows) -> np.ndarray:
        seen.append(windows)
        shape = (len(windows.inputs.profile), config.horizon_steps, len(config.targets), len(config.quantiles))
        return np.zeros(shape, dtype=np.float32)

    Engine(config, record).forecast(history, profiles, ORIGIN)
    return seen


def joined_windows(windows: Sequence[Windows]) -> Windows:
    """The windows of all portions as one batch."""
    parts = [part.fields() for part in windows]
    return WindowBatch.of_fields({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def stock_frame(windows: Sequence[Windows], profiles: Sequence[str | None], config: ModelConfig) -> pd.DataFrame:
    """The network's inputs as the rows TimeSeriesDataSet takes: context and horizon of each server."""
    spec = config.spec
    joined = joined_windows(windows).inputs
    servers, rows = len(joined.profile), spec.context_steps + spec.horizon_steps

    def over_time(encoder: np.ndarray, decoder: np.ndarray) -> np.ndarray:  # [server, E | H, column] -> [row, column]
        return np.concatenate([encoder, decoder], axis=1).reshape(servers * rows, -1)

    calendar = over_time(joined.encoder_calendar, joined.decoder_calendar)
    names = [f"server{server:05d}" for server in range(servers)]  # in the order in which the data set sorts them
    frame = pd.DataFrame({"server": np.repeat(names, rows)})
    frame["step"] = np.tile(np.arange(rows), servers)
    frame["profile"] = np.repeat(np.array([name or "any" for name in profiles]), rows)
    for column, (name, size) in enumerate(CALENDAR_SIZES.items()):
        frame[name] = np.array([f"{code:02d}" for code in range(size)])[calendar[:, column]]
    encoder_only = over_time(joined.encoder, np.zeros((servers, spec.horizon_steps, joined.encoder.shape[2])))
    decoder_only = over_time(np.zeros((servers, spec.context_steps, joined.decoder.shape[2])), joined.decoder)
    parts = {
        spec.static_reals: np.repeat(joined.static, rows, axis=0),
        spec.encoder_reals: encoder_only,
        spec.decoder_reals: decoder_only,
        ("market_open",): over_time(joined.encoder_market, joined.decoder_market),
        spec.metrics: np.zeros((servers * rows, len(spec.metrics))),
    }
    reals = [pd.DataFrame(values.astype(np.float32), columns=list(names)) for names, values in parts.items()]
    return pd.concat([frame, *reals], axis=1)


def stock_side(model_dir: Path, config: ModelConfig, frame: pd.DataFrame, batch_size: int) -> Callable[[], Any]:
    """Frame -> TimeSeriesDataSet -> loader -> predict, with the model's weights in the stock class."""
    from pytorch_forecasting import TemporalFusionTransformer
    from safetensors.torch import load_file

    from fleet_forecast.network.build import build_network, dataset_of

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # silences a line about devices at each call
    spec = config.spec
    network = build_network(spec, config.profiles, config.hidden_size, TemporalFusionTransformer)
    network.load_state_dict(load_file(model_dir / WEIGHTS_FILE))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}

    def predict() -> Any:
        lengths = {"shortest_encoder": spec.context_steps, "shortest_horizon": spec.horizon_steps}
        dataset = dataset_of(frame, spec, config.profiles, **lengths)
        loader = dataset.to_dataloader(train=False, batch_size=batch_size, num_workers=0)
        return network.predict(loader, mode="quantiles", trainer_kwargs={**quiet, "enable_model_summary": False})

    return predict


def in_physical_units(predicted: Any, windows: Sequence[Windows], config: ModelConfig) -> np.ndarray:
    """The stock network's raw outputs in physical units: [server, horizon, metric, quantile]."""
    import torch

    from fleet_forecast.network.head import ordered
    from fleet_forecast.network.quantile_map import map_scores

    rows = predicted if isinstance(predicted, list) else [predicted]  # [server, horizon, quantile] of each metric
    raw = torch.stack([row.transpose(1, 2) for row in rows], dim=1)
    loc, scale, window_quantiles = joined_windows(windows).target_scale
    standardised = map_scores(ordered(raw), torch.from_numpy(window_quantiles)).numpy()
    standardised = np.moveaxis(standardised, (2, 3), (0, 2))  # [quantile, server, horizon, metric]
    return np.moveaxis(config.scaling.bounds.inverse(loc + scale[:, None] * standardised), 0, -1)


# --- comparison ----------------------------------------------------------------------------------------------------


def compare(model_dir: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of both sides for 90 servers."""
    import torch

    torch.set_num_threads(threads)
    engine = Engine.load(model_dir, device="cpu", threads=threads)
    config = engine.config
    history = random_history(config, SERVERS, HISTORY_HOURS * 3600 // config.step_seconds)
    profiles = profiles_of(config, SERVERS)
    windows = windows_of(engine, history, profiles)
    ours = our_side(engine, frame_of(history, profiles, config))
    frame = stock_frame(windows, profiles, config)
    stock = {f"stock_{size}": stock_side(model_dir.resolve(), config, frame, size) for size in STOCK_BATCH_SIZES}
    result = ours()
    for predict in stock.values():  # also warms up
        difference = np.abs(in_physical_units(predict(), windows, config) - result)
        if (difference > TOLERANCE * (1 + np.abs(result))).any():
            raise WrongResultError(f"stock and ours differ by up to {difference.max():.3g}: nothing to compare")
    seconds: dict[str, list[float]] = {name: [] for name in ("fleet", *stock)}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ("fleet", *stock)}
    for number in range(rounds):
        for name, side in {"fleet": ours, **stock}.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            side()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu_started)
        print(f"round {number + 1}: " + ", ".join(f"{n} {s[-1]:.3f} s" for n, s in seconds.items()), file=sys.stderr)
    best = min(stock, key=lambda name: statistics.median(seconds[name]))
    ratios = [one / other for one, other in zip(seconds["fleet"], seconds[best], strict=True)]
    return {
        "servers": SERVERS,
        "metrics": len(config.targets),
        "threads": threads,
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "cpu_seconds": {name: round(statistics.median(values), 4) for name, values in cpu_seconds.items()},
        "stock_best": best,
        "ratio": round(statistics.median(ratios), 4),
        "ratio_per_round": [round(ratio, 4) for ratio in ratios],
        "ratio_of_cpu_seconds": round(
            statistics.median(cpu_seconds["fleet"]) / statistics.median(cpu_seconds[best]), 4
        ),
        "target_ratio": round(TARGET_RATIO, 4),
    }


# --- the large fleet ------------------------------------------------------------------------------------------------


def forecast_fleet(model_dir: Path, servers: int, threads: int) -> dict[str, Any]:
    """Forecast a number of servers in one call in this process: seconds and peak memory."""
    engine = Engine.load(model_dir, device="cpu", threads=threads)
    history = random_history(engine.config, servers, engine.config.history_steps)
    started = time.perf_counter()
    quantiles = engine.forecast(history, profiles_of(engine.config, servers), ORIGIN)
    seconds = time.perf_counter() - started
    if not np.isfinite(quantiles).all() or (np.diff(quantiles, axis=-1) < 0).any():
        raise WrongResultError("quantiles of the large fleet are not finite or not in order")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"servers": servers, "seconds": round(seconds, 2), "peak_memory_mb": round(peak / 1e6)}


def forecast_fleet_in_new_process(model_dir: Path, servers: int, threads: int) -> dict[str, Any]:
    """forecast_fleet in a separate process without other imports."""
    flags = ["--model", str(model_dir), "--fleet", str(servers), "--only-fleet", "--threads", str(threads)]
    child = subprocess.run([sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return result | {"target_memory_mb": TARGET_MEMORY_MB}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0 when done, 1 if the model cannot be used, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/current", help="model directory (models/current)")
    parser.add_argument("--rounds", type=int, default=5, help="number of measurements of both sides (%(default)s)")
    parser.add_argument("--fleet", type=int, default=10_000, help="servers of the large fleet (%(default)s)")
    parser.add_argument("--only-fleet", action="store_true", help="measure the large fleet in this process, no stock")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=threads, help="threads of each side (default: one per core)")
    arguments = parser.parse_args(argv)
    if min(arguments.rounds, arguments.fleet, arguments.threads) < 1:
        parser.error("--rounds, --fleet and --threads: give numbers of at least 1")
    warnings.simplefilter("ignore")
    try:
        if arguments.only_fleet:
            result = forecast_fleet(arguments.model, arguments.fleet, arguments.threads)
        else:
            # First, while this process is small: the peak memory of a child starts at that of its parent.
            fleet = forecast_fleet_in_new_process(arguments.model, arguments.fleet, arguments.threads)
            result = compare(arguments.model, arguments.rounds, arguments.threads) | {"fleet": fleet}
    except (ModelError, WrongResultError, subprocess.CalledProcessError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
