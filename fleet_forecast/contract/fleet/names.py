"""Names that own profiles and metrics may have."""

from __future__ import annotations

import re
from collections.abc import Collection

from fleet_forecast.contract.specs import COLUMN_SPECS

_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}")
_IN_USE = (
    *COLUMN_SPECS,
    *("step", "server_id", "timestamp_ms"),  # columns of the store
    *("server", "half_hour", "day_kind", "market_open", "relative_time_idx"),  # variables of the network
    *("measured_share", "peer_count", "seasonal_lag_share", "seasonal_mean_share", "encoder_length"),
)
_OF_A_METRIC = ("scaled", "mask", "loc", "scale", "seasonal_strength", "peer_weight", "seasonal_lag", "seasonal_mean")


def check_profile_name(name: str) -> str:
    """The name. Raises ValueError for one that the daemon would refuse."""
    if not _PROFILE.fullmatch(name):
        raise ValueError(f"profiles.{name}: a name has 1 to 64 of the characters A-Z a-z 0-9 . _ -; give another one")
    return name


def check_metric_name(name: str) -> str:
    """The name. Raises ValueError for one that is not the name of a column or series, or that means something else."""
    if not _METRIC.fullmatch(name):
        raise ValueError(
            f"metrics.{name}: a name has 1 to 64 of the characters a-z 0-9 _ and begins with a letter; give another one"
        )
    if name in _IN_USE:
        raise ValueError(f"metrics.{name}: the name is in use for something else; give another one")
    return name


def check_variables(metrics: Collection[str]) -> None:
    """Raises ValueError if a metric has the name of another one's variable in the network, such as cpu_pct_mask."""
    for metric in metrics:
        for part in _OF_A_METRIC:
            if f"{metric}_{part}" in metrics:
                raise ValueError(f"metrics.{metric}_{part}: the name is in use for {metric}; give another one")
