"""The canary: a synthetic history stored with its forecast at training time.

A loaded model must reproduce the forecast. It does not if the network or the features are computed differently than at
training time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers
from fleet_forecast.inference.model_config import ModelConfig, ModelError

SIGNIFICANT_DIGITS = 6  # of the stored numbers, fewer than a float32 has: the file is smaller
CANARY_TOLERANCE = 1e-3  # relative, and absolute in the metric's unit: float32 sums differ between processors
Forecaster = Callable[[np.ndarray, Sequence[str | None], np.ndarray, Peers], np.ndarray]  # Engine.forecast


class Canary(NamedTuple):
    """Input and output of Engine.forecast for three servers.

    The first has no profile and little history. The others have the same profile and origin and are each other's peers;
    one of them has little history.
    """

    history: np.ndarray
    profiles: list[str | None]
    origins: np.ndarray
    quantiles: np.ndarray

    def peers(self, step_seconds: int) -> Peers:
        """The servers with a profile as peers."""
        return _peers(self.history, self.profiles, self.origins, step_seconds)


def write_canary(path: Path, config: ModelConfig, forecaster: Forecaster) -> None:
    """Store a synthetic history with the forecast of it."""
    history = _synthetic_history(config)
    profiles = [None, *[config.profiles[0] if config.profiles else None] * 2]
    times = ["2026-01-05T15:00:00", "2026-07-04T03:00:00", "2026-07-04T03:00:00"]
    origins = np.array(times, dtype="datetime64[s]")
    quantiles = forecaster(history, profiles, origins, _peers(history, profiles, origins, config.step_seconds))
    canary = {
        "history": _as_json(history),
        "profiles": profiles,
        "origins": [str(origin) for origin in origins],
        "quantiles": _as_json(quantiles),
    }
    path.write_text(json.dumps(canary), encoding="utf-8")


def _as_json(values: np.ndarray) -> Any:
    """Nested lists of numbers with SIGNIFICANT_DIGITS; NaN as None."""
    if values.ndim:
        return [_as_json(part) for part in values]
    return None if np.isnan(values) else float(f"{values:.{SIGNIFICANT_DIGITS}g}")


def read_canary(path: Path) -> Canary:
    """The stored canary; null is NaN."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Canary(
        history=np.array(stored["history"], dtype=np.float32),
        profiles=stored["profiles"],
        origins=np.array(stored["origins"], dtype="datetime64[s]"),
        quantiles=np.array(stored["quantiles"], dtype=np.float32),
    )


def check_canary(path: Path, step_seconds: int, forecaster: Forecaster) -> None:
    """Raise ModelError if the forecaster does not reproduce the stored forecast."""
    try:
        canary = read_canary(path)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a canary ({error}); copy the model directory again or train again") from error
    made = forecaster(canary.history, canary.profiles, canary.origins, canary.peers(step_seconds))
    if not np.allclose(made, canary.quantiles, rtol=CANARY_TOLERANCE, atol=CANARY_TOLERANCE):
        worst = float(np.max(np.abs(made - canary.quantiles)))
        raise ModelError(
            f"{path}: the model does not reproduce its canary forecast (off by up to {worst:.3g}); "
            "use the package versions of requirements.txt or train again"
        )


def _synthetic_history(config: ModelConfig) -> np.ndarray:
    """float32 [server, step, metric] in the contract's units: the same day repeated, with noise."""
    random = np.random.default_rng(0)
    shape = (3, config.context_steps + config.spec.seasonal_lag_steps, len(config.targets))
    loc, scale = config.scaling.loc[0], config.scaling.scale[0]  # [metric]
    days = np.resize(random.normal(size=(config.spec.day_steps, shape[2])), shape[1:])
    history = config.scaling.bounds.inverse(loc + scale * (days + 0.3 * random.normal(size=shape)))
    history[[0, 2], : -config.context_steps // 4] = np.nan
    return np.array(_as_json(history), dtype=np.float32)


def _peers(history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray, step_seconds: int) -> Peers:
    names = [str(row) for row in range(len(history))]
    members = ProfileMembers.of(names, profiles)
    last_step = int(origins[-1].astype(np.int64)) // step_seconds
    table = PeerTable.build(history, members, last_step + 1 - history.shape[1])
    return Peers(table, members.mask(len(history)))
