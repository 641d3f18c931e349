"""Before training the model forecasts the window quantiles, which are the prior without history."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.features.window_batch import TargetScale, WindowBatch
from fleet_forecast.network.build import build_network
from fleet_forecast.network.head import ordered, raw_of
from fleet_forecast.network.model import ForecastModel
from tests.network.test_fleet_tft import PROFILES, random_inputs, scaling_of, spec_of


@given(st.lists(st.floats(-8, 8), min_size=7, max_size=7).map(sorted))
def test_raw_outputs_are_found_back_from_increasing_scores(scores: list[float]) -> None:
    apart = torch.tensor(scores, dtype=torch.float64)[:, None] + 0.01 * torch.arange(7)[:, None]
    torch.testing.assert_close(ordered(raw_of(apart)), apart, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("metrics", [("cpu_pct",), ("cpu_pct", "net_in_mb_s")])
def test_whatever_its_inputs_an_untrained_model_forecasts_the_window_quantiles(metrics: tuple[str, ...]) -> None:
    spec, random = spec_of(metrics), np.random.default_rng(4)
    scaling, windows = scaling_of(spec), 6
    model = ForecastModel(build_network(spec, PROFILES, 8), spec, scaling).start_at_prior().eval()
    shape = windows, len(metrics)
    loc = random.normal(20, 10, (windows, spec.horizon_steps, len(metrics))).astype(np.float32)
    scale = random.uniform(0.5, 9, shape).astype(np.float32)
    quantiles = np.sort(random.normal(0, 1.5, (*shape, 7)), axis=-1).astype(np.float32)
    target_scale = TargetScale(*(torch.from_numpy(part) for part in (loc, scale, quantiles)))
    with torch.no_grad():
        inputs = random_inputs(spec, windows, 24, torch.arange(windows) % (1 + len(PROFILES)))
        found = model(WindowBatch(inputs, target_scale)).numpy()
    transformed = loc[..., None] + (scale[..., None] * quantiles)[:, None]
    expected = np.moveaxis(scaling.bounds.inverse(np.moveaxis(transformed, -1, 0)), 0, -1)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)
