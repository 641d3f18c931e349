"""Gradients on a CPU: those of the planned batch, which is built one batch ahead."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.network.build import build_network
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.training.batches.sampler import BatchSampler
from fleet_forecast.training.batches.source import Batch, BatchPlan, WindowSource
from fleet_forecast.training.gradients import Gradients, gradients_of, loss_of, to_device
from fleet_forecast.training.trainer_state import flatten_parameters

METRICS = ("cpu_pct", "mem_pct")
PROFILES = ("database", "web_api")
SPEC = WindowSpec(METRICS, 300, BusinessCalendar("UTC"), context_steps=24, horizon_steps=12)


@pytest.fixture(scope="module")
def source() -> WindowSource:
    values = np.random.default_rng(0).uniform(5, 90, (4, 400, 2)).astype(np.float32)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    grid = FleetGrid(tuple("abcd"), PROFILES * 2, METRICS, start, 300, values)
    return WindowSource(grid, SPEC, fit_scaling(values, dict.fromkeys(METRICS, "percent"), grid.profiles, 24))


@pytest.fixture(scope="module")
def plans(source: WindowSource) -> list[BatchPlan]:
    return list(BatchSampler(source, np.arange(4), 399, 16).epoch(np.random.default_rng(0)))


@pytest.fixture
def model(source: WindowSource) -> ForecastModel:
    torch.manual_seed(0)
    return ForecastModel(build_network(SPEC, PROFILES, 8), SPEC, source.scaling).eval()


def test_gradients_are_those_of_the_batch(source: WindowSource, plans: list[BatchPlan], model: ForecastModel) -> None:
    whole = flatten_parameters(model)
    with gradients_of(model, [whole], source, 16) as gradients:
        found = [(gradients.compute(ready), whole.grad.clone()) for _, ready in gradients.prefetch(plans)]
    assert len(found) == len(plans) > 3
    for plan, (loss, gradient) in zip(plans, found, strict=True):
        whole.grad.zero_()
        expected = loss_of(model, *to_device(source.augmented_batch(plan), torch.device("cpu")))
        expected.backward()
        assert torch.equal(loss, expected.detach())
        assert torch.equal(gradient, whole.grad)


def test_the_sample_weight_grows_with_the_scale_of_a_window(
    source: WindowSource, plans: list[BatchPlan], model: ForecastModel
) -> None:
    windows, targets = to_device(source.augmented_batch(plans[0]), torch.device("cpu"))
    alone = loss_of(model, windows.map(lambda field: field[:1]), targets[:1]).item()
    together = loss_of(model, windows, targets).item()
    windows.target_scale.scale[0] = 1e24
    assert loss_of(model, windows, targets).item() == pytest.approx(alone, rel=1e-3)
    assert abs(together / alone - 1) > 0.01


def test_the_next_plan_is_prepared_while_one_is_used(plans: list[BatchPlan]) -> None:
    prepared: list[int] = []

    def prepare(plan: BatchPlan) -> str:
        prepared.append(plan.number)
        return f"ready {plan.number}"

    seen = [(plan.number, ready, len(prepared)) for plan, ready in Gradients(prepare, torch.tensor).prefetch(plans[:4])]
    assert seen == [(0, "ready 0", 2), (1, "ready 1", 3), (2, "ready 2", 4), (3, "ready 3", 4)]


def test_a_batch_is_built_in_another_thread_whose_errors_are_raised_in_this_one(
    source: WindowSource, plans: list[BatchPlan], model: ForecastModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, build = [], source.augmented_batch

    def recorded(plan: BatchPlan) -> Batch:
        threads.append(threading.current_thread())
        if plan.number == 1:
            raise ValueError("no such window")
        return build(plan)

    monkeypatch.setattr(source, "augmented_batch", recorded)
    trained = [flatten_parameters(model)]
    with gradients_of(model, trained, source, 16) as gradients:
        ready = [gradients.prepare(replace(plan)) for plan in plans[:2]]
        gradients.compute(ready[0])
        with pytest.raises(ValueError, match="no such window"):
            gradients.compute(ready[1])
    assert threading.current_thread() not in threads
    assert len(set(threads)) == 1
