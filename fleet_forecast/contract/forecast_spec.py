"""What a forecast consists of: its quantile levels, and the distances at which it is reported."""

from __future__ import annotations

QUANTILE_LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)  # of a new model; a trained one records its own
SCORED_LEVELS = (0.1, 0.5, 0.9)  # at which forecasts are scored and exposed
REPORT_HORIZONS = {"15m": 900, "1h": 3_600, "4h": 14_400, "8h": 28_800}  # label -> seconds after the origin


def report_horizons(forecast_seconds: int) -> dict[str, int]:
    """The report horizons of a forecast of this length, label -> seconds.

    These are REPORT_HORIZONS within the length. The length itself is added if it is beyond all of them (24h) or before.
    """
    horizons = {label: seconds for label, seconds in REPORT_HORIZONS.items() if seconds <= forecast_seconds}
    if not horizons or forecast_seconds > max(REPORT_HORIZONS.values()):
        hours, rest = divmod(forecast_seconds, 3_600)
        horizons[f"{forecast_seconds // 60}m" if rest else f"{hours}h"] = forecast_seconds
    return horizons
