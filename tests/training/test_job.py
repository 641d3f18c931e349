"""A job's model is evaluated and explained although the data have gaps."""

from __future__ import annotations

import numpy as np

from tests.training.test_trainer import job_with


def test_forecasts_are_explained_when_every_test_origin_lies_in_a_gap() -> None:
    job = job_with()
    job.grid.values[:, job.test_origins()] = np.nan
    tables = job.mean_weights(job.fresh_model())
    assert set(tables.attention["profile"]) == {"database", "web_api"}
