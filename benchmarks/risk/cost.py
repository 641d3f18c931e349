"""Processor time of the risk model compared with that of the forecasts, for a fleet of 10,000 servers.

python benchmarks/risk/cost.py --model models/current       # JSON is the last line
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers  # noqa: E402 - in the parent folder
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import ModelError  # noqa: E402
from fleet_forecast.risk.features import RiskInput  # noqa: E402

CHUNK = 256  # servers that the daemon forecasts at once
FORECAST_SERVERS = 1_024  # of which the forecasts are timed; their time is proportional
ROUNDS = 3


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least processor time of some rounds."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/current"), help="model directory (%(default)s)")
    parser.add_argument("--servers", type=int, default=10_000, help="of the fleet (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        engine = Engine.load(arguments.model, device="cpu", threads=1)
    except ModelError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    model = engine.risk_model
    if model is None:
        print(f"error: {arguments.model} has no risk model; train one without --no-risk-model", file=sys.stderr)
        return 1
    config, servers = engine.config, arguments.servers
    shape = servers, config.context_steps, len(config.targets)
    history = np.random.default_rng(0).lognormal(3, 0.5, size=shape).astype(np.float32).clip(0, 100)
    names, known = [str(row) for row in range(servers)], config.profiles or ("generic",)
    profiles = [known[row % len(known)] for row in range(servers)]
    members = ProfileMembers.of(names, profiles)
    table, mask, first_step = PeerTable.build(history, members, 1_000), members.mask(servers), 1_000
    origins = np.full(servers, (first_step + shape[1] - 1) * config.step_seconds).astype("datetime64[s]")

    def risks() -> None:
        for start in range(0, servers, CHUNK):
            part = slice(start, start + CHUNK)
            peers = Peers(table, mask[part])
            features = model.features(RiskInput(history[part], profiles[part], origins[part], peers))
            model.probabilities(features)

    def forecasts() -> None:
        for start in range(0, FORECAST_SERVERS, CHUNK):
            part = slice(start, start + CHUNK)
            engine.forecast(history[part], profiles[part], origins[part], Peers(table, mask[part]))

    risk, forecast = cpu_seconds(risks), cpu_seconds(forecasts) * servers / FORECAST_SERVERS
    result = {"servers": servers, "risk_cpu_seconds": round(risk, 3), "forecast_cpu_seconds": round(forecast, 2)}
    print(json.dumps({"model": engine.model_id, **result, "ratio": round(risk / forecast, 4)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
