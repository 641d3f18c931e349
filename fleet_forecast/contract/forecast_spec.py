"""The quantile levels of a forecast, and the horizons at which it is reported."""

from __future__ import annotations

from collections.abc import Sequence

QUANTILE_LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)  # of a new model; a trained one records its own
MEDIAN_LEVEL = 0.5
BAND_80 = (0.1, 0.9)  # levels of the central interval that covers 80 % of the values
BAND_96 = (0.02, 0.98)
SCORED_LEVELS = (BAND_80[0], MEDIAN_LEVEL, BAND_80[1])  # at which forecasts are scored and exposed
REPORT_HORIZONS = {"15m": 900, "1h": 3_600, "4h": 14_400, "8h": 28_800}  # label -> seconds after the origin


def check_levels(levels: Sequence[float]) -> None:
    """Raises ValueError for quantile levels that a model cannot have."""
    place = f"QUANTILE_LEVELS in {__name__} are {', '.join(map(str, levels))}"
    if list(levels) != sorted(set(levels)) or not all(0 < level < 1 for level in levels):
        raise ValueError(f"{place}: give increasing levels between 0 and 1")
    if missing := [level for level in SCORED_LEVELS if level not in levels]:
        raise ValueError(f"{place}: add {missing[0]}, at which forecasts are scored, or change SCORED_LEVELS there")


check_levels(QUANTILE_LEVELS)


def report_horizons(forecast_seconds: int) -> dict[str, int]:
    """The report horizons of a forecast of this length, label -> seconds.

    These are REPORT_HORIZONS within the length. The length itself is added if it is beyond all of them (24h) or before.
    """
    horizons = {label: seconds for label, seconds in REPORT_HORIZONS.items() if seconds <= forecast_seconds}
    if not horizons or forecast_seconds > max(REPORT_HORIZONS.values()):
        hours, rest = divmod(forecast_seconds, 3_600)
        horizons[f"{forecast_seconds // 60}m" if rest else f"{hours}h"] = forecast_seconds
    return horizons
