"""A job's model is evaluated and explained although the data have gaps."""

from __future__ import annotations

import numpy as np

from fleet_forecast.training.risk import departures
from tests.training.test_trainer import job_with


def test_forecasts_are_explained_when_every_test_origin_lies_in_a_gap() -> None:
    job = job_with()
    job.grid.values[:, job.test_origins()] = np.nan
    tables = job.mean_weights(job.fresh_model())
    assert set(tables.attention["profile"]) == {"database", "web_api"}


def test_departures_are_estimated_for_all_metrics_of_a_fleet_with_enough_samples(monkeypatch) -> None:
    job = job_with()
    assert job.departures(job.fresh_model(), []) is None
    monkeypatch.setattr(departures, "FEWEST_SAMPLES", 20)
    found = job.departures(job.fresh_model(), [])
    assert found is not None
    assert found.metrics == job.spec.metrics
    assert found.high_t > 0
    assert found.tail > 0
