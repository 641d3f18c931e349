"""Forecasts of new servers with fewer peers than usual, as when shards are missing or a profile is young.

    python benchmarks/scale/few_peers.py --model models/current
    python benchmarks/scale/few_peers.py --model models/a --data servers.parquet --counts 40 10 1 0
    python benchmarks/scale/few_peers.py --model models/current --ignore-count      # as if the usual number were there

Of each profile some servers are peers, chosen at random, and others are forecast with no history, one step, an hour and
a day, at an origin every eight hours of the last third of the time. The default data are a simulated fleet that no
model was trained on (seed 909), 34 servers of each profile. For each length of history and number of peers: the share
of measurements in the band of 80 %, with the smallest and largest of a metric; the width of this band, relative to the
first number of peers, and the WQL, both means over the metrics. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_contract import read_metrics  # noqa: E402
from fleet_forecast.contract.definitions import PROFILES  # noqa: E402
from fleet_forecast.contract.forecast_spec import SCORED_LEVELS  # noqa: E402
from fleet_forecast.evaluation.scores import pinball_loss  # noqa: E402
from fleet_forecast.features.fewer_peers import unknown_noise  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.features.history import future_values, past_values  # noqa: E402
from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers  # noqa: E402
from fleet_forecast.flags import add_flag  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import ModelConfig  # noqa: E402

SEED, HOURS, SERVERS_OF_PROFILE = 909, 240, 34
COUNTS = (25, 12, 6, 3, 2, 1, 0)
HISTORY_HOURS = {"none": 0.0, "1 step": None, "1 h": 1.0, "24 h": 24.0}
FORECAST_SERVERS = 8  # of each profile, in each draw
ORIGIN_EVERY_HOURS = 8


class Drawn(NamedTuple):
    """Rows of the servers that are peers, and of those that are forecast."""

    peers: np.ndarray
    servers: np.ndarray


class Scores(NamedTuple):
    """Of one length of history and number of peers, by metric."""

    coverage: np.ndarray
    width: np.ndarray
    wql: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each length of history and number of peers, JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flag(parser, "--model", type=Path, default=ROOT / "models" / "current", help="model directory (%(default)s)")
    add_flag(parser, "--data", type=Path, help="servers that the model was not trained on (a simulated fleet)")
    add_flag(parser, "--counts", type=int, nargs="+", default=COUNTS, metavar="N", help="numbers of peers")
    add_flag(parser, "--draws", type=int, default=4, help="random choices of peers (%(default)s)")
    add_flag(parser, "--ignore-count", action="store_true", help="without the effect of the number of peers")
    arguments = parser.parse_args(argv)
    engine = Engine.load(arguments.model, "cpu")
    if arguments.ignore_count:
        engine.config = _without_noise(engine)
    with tempfile.TemporaryDirectory() as folder:
        frame = read_metrics(arguments.data or _simulated(Path(folder))).frame
    grid = FleetGrid.from_frame(frame, engine.config.targets, engine.config.step_seconds)
    rows = []
    for label, hours in HISTORY_HOURS.items():
        steps = 1 if hours is None else round(hours * 3600 / grid.step_seconds)
        widest = None
        for count in arguments.counts:
            scores = _scores(engine, grid, steps, [_drawn(grid, count, draw) for draw in range(arguments.draws)])
            widest = scores.width if widest is None else widest
            rows.append({"history": label, "peers": count, **_summary(scores, widest)})
            print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps({"model": engine.model_id, "ignore_count": arguments.ignore_count, "rows": rows}))
    return 0


def _without_noise(engine: Engine) -> ModelConfig:
    scaling = engine.config.scaling
    if scaling.peer_prior is None:
        raise SystemExit(f"error: {engine.model_id} has no peers")
    noise = unknown_noise(scaling.peer_prior.noise.usual_count.shape)
    return replace(engine.config, scaling=replace(scaling, peer_prior=scaling.peer_prior._replace(noise=noise)))


def _simulated(folder: Path) -> Path:
    flags = [f"--num_{profile}={SERVERS_OF_PROFILE}" for profile in PROFILES]
    command = [sys.executable, "metrics_generator.py", f"--seed={SEED}", f"--hours={HOURS}", f"--out_dir={folder}"]
    subprocess.run([*command, *flags], cwd=ROOT, check=True, capture_output=True)
    return folder


def _drawn(grid: FleetGrid, count: int, draw: int) -> Drawn:
    random, profiles = np.random.default_rng([SEED, draw]), np.array(grid.profiles, dtype=object)
    peers, servers = [], []
    for profile in sorted({name for name in grid.profiles if name is not None}):
        rows = random.permutation(np.flatnonzero(profiles == profile))
        chosen = min(FORECAST_SERVERS, max(len(rows) - count, 1))  # the same servers for every number of peers
        servers.append(rows[:chosen])
        peers.append(rows[chosen:][:count])
    return Drawn(np.sort(np.concatenate(peers)), np.sort(np.concatenate(servers)))


def _scores(engine: Engine, grid: FleetGrid, steps: int, draws: Sequence[Drawn]) -> Scores:
    config = engine.config
    levels = [config.quantiles.index(level) for level in SCORED_LEVELS]
    every = round(ORIGIN_EVERY_HOURS * 3600 / grid.step_seconds)
    origins = range(2 * grid.steps // 3, grid.steps - config.horizon_steps, every)
    covered, widths, losses, sizes = [], [], np.zeros(()), np.zeros(())
    for draw in draws:
        peers = _peers(grid, draw)
        for origin in origins:
            at = np.full(len(draw.servers), origin)
            history = past_values(grid.values, draw.servers, at, config.history_steps)
            history[:, : history.shape[1] - steps] = np.nan
            profiles = [grid.profiles[row] for row in draw.servers]
            forecast = engine.forecast(history, profiles, grid.timestamps()[origin], peers)[..., levels]
            actual = future_values(grid.values, draw.servers, at, config.horizon_steps)
            low, high = forecast[..., 0], forecast[..., -1]
            inside = np.where(np.isnan(actual), np.nan, (actual >= low) & (actual <= high))
            covered.append(np.nanmean(inside, axis=(0, 1)))
            widths.append((high - low).mean(axis=(0, 1)))
            losses = losses + 2 * np.nansum(pinball_loss(actual, forecast, SCORED_LEVELS), axis=(0, 1)).mean(axis=-1)
            sizes = sizes + np.nansum(np.abs(actual), axis=(0, 1))
    return Scores(np.mean(covered, axis=0), np.mean(widths, axis=0), losses / sizes)


def _peers(grid: FleetGrid, draw: Drawn) -> Peers:
    members = ProfileMembers.of([grid.servers[row] for row in draw.peers], [grid.profiles[row] for row in draw.peers])
    table = PeerTable.build(grid.values[draw.peers], members, grid.first_step)
    return Peers(table, np.zeros(len(draw.servers), dtype=bool))


def _summary(scores: Scores, widest: np.ndarray) -> dict[str, float]:
    return {
        "coverage_80": round(100 * float(scores.coverage.mean()), 1),
        "smallest_coverage": round(100 * float(scores.coverage.min()), 1),
        "largest_coverage": round(100 * float(scores.coverage.max()), 1),
        "relative_width": round(float(np.mean(scores.width / widest)), 3),
        "wql": round(float(scores.wql.mean()), 4),
    }


if __name__ == "__main__":
    raise SystemExit(main())
