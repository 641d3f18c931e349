"""Forecasts and alerts for tests."""

import time
from dataclasses import replace

import numpy as np

from data_contract import METRICS
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
STEP = 300
VIEW = ModelView("m", METRICS, LEVELS, STEP)


def forecast(cpu, origin=0, name="ppweb001", width=5.0, profile="web_api"):
    """A forecast whose cpu median is `cpu` (a number, or one per step); the other metrics stay far below thresholds."""
    median = np.broadcast_to(np.asarray(cpu, dtype=np.float32), 96)
    quantiles = np.full((len(METRICS), len(LEVELS), 96), 1.0, dtype=np.float32)
    quantiles[0] = median[None, :] + (np.array(LEVELS, dtype=np.float32)[:, None] - 0.5) * 2 * width
    current = (float(median[0]), *(1.0,) * 5)
    return ServerForecast(name, VIEW, origin * STEP, 0.0, profile, "rule", 288, quantiles, (), current)


def alert(ended=None, name="ppweb001"):
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        changed = book.update([forecast(97, origin, name)], time.time())
    (found,) = changed
    return found if ended is None else replace(found, ended_seconds=ended)
