"""The risk of a server as a document: probabilities by horizon, and the drivers that raise or lower it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fleet_forecast.inference.risk_model import RISK_HORIZONS, Driver
from fleet_forecast.serving.forecasts.snapshot import ServerRisk

DIGITS = 4


def risk_document(risk: ServerRisk | None) -> dict[str, Any] | None:
    """Probabilities by horizon, and what the model was trained on; None without a risk."""
    if risk is None:
        return None
    values = (round(value, DIGITS) for value in risk.probabilities.tolist())
    return {"trained_on": risk.model.trained_on, "within": dict(zip(RISK_HORIZONS, values, strict=True))}


def explained_risk(risk: ServerRisk | None) -> dict[str, Any] | None:
    """The same with the drivers of the risk, the largest first."""
    document = risk_document(risk)
    if risk is None or document is None:
        return None
    contributions = risk.model.contributions(risk.features[None])[0]
    order = np.argsort(-np.abs(contributions), kind="stable")
    drivers = [(risk.model.drivers[index], float(contributions[index])) for index in order]
    return document | {
        "drivers": [
            {"metric": driver.metric, "scale_seconds": driver.seconds, "log_odds": round(log_odds, DIGITS)}
            for driver, log_odds in drivers
        ]
    }


def largest_drivers(risk: ServerRisk, count: int) -> list[Driver]:
    """Those that raise the risk most, the largest first."""
    contributions = risk.model.contributions(risk.features[None])[0]
    order = np.argsort(-contributions, kind="stable")[:count]
    return [risk.model.drivers[index] for index in order if contributions[index] > 0]


def driver_text(driver: Driver, label_of: Callable[[str], str]) -> str:
    """A driver that has a metric, as text."""
    label = label_of(driver.metric or "")
    if not driver.seconds:
        return f"{label} now"
    minutes = driver.seconds // 60
    return f"{label} over {minutes} min" if minutes < 120 else f"{label} over {minutes / 60:g} h"
