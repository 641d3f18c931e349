"""A job: what its model is judged and explained on where data have gaps."""

from __future__ import annotations

import numpy as np

from tests.training.test_trainer import job_with


def test_forecasts_are_explained_though_nothing_was_measured_at_the_moments_they_are_judged_at() -> None:
    job = job_with()
    job.grid.values[:, job.test_origins()] = np.nan
    tables = job.mean_weights(job.fresh_model())
    assert set(tables.attention["profile"]) == {"database", "web_api"}
