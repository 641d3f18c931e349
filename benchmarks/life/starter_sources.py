"""The five sources of the starter model, each as rows of the data contract on one shared clock.

The roles of real servers are not among the seven profiles. For the starter model's training they are left out, so the
profile comes from the names, which no rule matches: `generic`, as for every such name in this project. Dates are
shifted by whole weeks to the year of the simulation, so days of the week and hours of the day stay the same; hours are
those of the source's business day, written as UTC.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import metrics_generator  # noqa: E402
from fleet_forecast.contract.specs import METRICS  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

DATA = ROOT / "../shared/data"
FIRST_MONDAY = "2026-09-14T00:00:00Z"  # of the shared clock; the seven weeks after it have no holiday of the NYSE
SIMULATOR = "simulator"
SIMULATED_DAYS = 30
SIMULATED_SERVERS = {
    "ml_compute": 8,
    "database": 8,
    "web_api": 10,
    "conductor_mgmt": 4,
    "data_ingest": 6,
    "risk_analytics": 5,
    "generic": 4,
}
KEPT_SHARE = 0.5  # of the metrics of every other simulated server: fleets have any subset of the metrics
SEED = 26
STEPS = 600  # of the starter model's training
RECIPE = (  # flags of tft_trainer.py for the training on several sources
    *("--batch-size", "32", "--seed", "0", "--timezone", "UTC", "--device", "cpu"),
    *("--train-fraction", "0.95", "--holdout-servers", "0"),
    *("--no-comparison", "--no-final-fit", "--no-risk-model"),
)


class RealSource(NamedTuple):
    """hours_ahead: of the business day's clock, from that of the file. servers: drawn at random (all)."""

    hours_ahead: int = 0
    servers: int | None = None


REAL = {
    "fleets_public": RealSource(),
    "slices_public": RealSource(servers=300),
    "bitbrains_public": RealSource(hours_ahead=2),  # Amsterdam in summer
    "smd_fleet": RealSource(),
}
SOURCES = (SIMULATOR, *REAL)


def load(name: str) -> pd.DataFrame:
    """Rows of a source: timestamp, server_name, profile if it has roles, and its metrics."""
    return simulated() if name == SIMULATOR else real(name, REAL[name])


def simulated() -> pd.DataFrame:
    """A fleet of the seven profiles with all six metrics."""
    counts = [text for profile, count in SIMULATED_SERVERS.items() for text in (f"--num_{profile}", str(count))]
    length = ["--hours", str(24 * SIMULATED_DAYS), "--start", FIRST_MONDAY, "--timezone", "UTC", "--seed", str(SEED)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        if metrics_generator.main([*counts, *length, "--out_dir", folder]) != 0:
            raise RuntimeError("metrics_generator.py failed; its message is above")
        frame = pd.read_parquet(Path(folder) / "server_metrics.parquet")
    return _columns(frame)


def real(name: str, source: RealSource) -> pd.DataFrame:
    """The servers of a file of ../shared/data, on the shared clock and with the source in their names."""
    frame = _columns(pd.read_parquet(DATA / f"{name}.parquet"))
    frame["server_name"] = frame["server_name"].astype(str)
    if source.servers is not None:
        names = sorted(frame["server_name"].unique())
        chosen = np.random.default_rng(SEED).choice(names, source.servers, replace=False)
        frame = frame[frame["server_name"].isin(chosen)]
    local = frame["timestamp"] + pd.Timedelta(hours=source.hours_ahead)
    monday = local.min().normalize() - pd.Timedelta(days=local.min().dayofweek)
    moved = local + (pd.Timestamp(FIRST_MONDAY) - monday)
    return frame.assign(timestamp=moved, server_name=f"{name}-" + frame["server_name"])


def together(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of several sources, for one training.

    They are without the roles of real servers, and every other simulated server measures some of the metrics only.
    """
    parts = [
        with_fewer_metrics(frame) if name == SIMULATOR else frame.drop(columns="profile", errors="ignore")
        for name, frame in frames.items()
    ]
    return pd.concat(parts, ignore_index=True)


def with_fewer_metrics(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in which every other server has a random subset of the metrics, at least one."""
    random = np.random.default_rng(SEED)
    frame = frame.copy()
    for name in sorted(frame["server_name"].astype(str).unique())[::2]:
        kept = random.random(len(METRICS)) < KEPT_SHARE
        kept[random.integers(len(METRICS))] = True
        dropped = [metric for metric, keep in zip(METRICS, kept, strict=True) if not keep]
        frame.loc[frame["server_name"] == name, dropped] = np.nan
    return frame


def _columns(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[[name for name in ("timestamp", "server_name", "profile", *METRICS) if name in frame]]
