"""Gradients on a processor: those of the batch that is asked for, cut one batch ahead."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import Windows, WindowSpec
from fleet_forecast.network.model import ForecastModel, build_network
from fleet_forecast.training.gradients import Gradients, gradients_of, loss_arguments, loss_of
from fleet_forecast.training.sampling import Batch, Plan, WindowSource, epoch
from fleet_forecast.training.trainer_state import flatten_parameters

METRICS = ("cpu_pct", "mem_pct")
PROFILES = ("database", "web_api")
SPEC = WindowSpec(METRICS, 300, "UTC", context_steps=24, horizon_steps=12)


@pytest.fixture(scope="module")
def source() -> WindowSource:
    values = np.random.default_rng(0).uniform(5, 90, (4, 400, 2)).astype(np.float32)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    grid = FleetGrid(tuple("abcd"), PROFILES * 2, METRICS, start, 300, values)
    return WindowSource(grid, SPEC, fit_scaling(values, METRICS, np.array([True, True]), grid.profiles, 24))


@pytest.fixture(scope="module")
def plans(source: WindowSource) -> list[Plan]:
    doubt = np.full((3, 2), 5.0, dtype=np.float32)
    return list(epoch(source, np.arange(4), 399, 16, np.random.default_rng(0), doubt))


@pytest.fixture
def model(source: WindowSource) -> ForecastModel:
    torch.manual_seed(0)
    return ForecastModel(build_network(SPEC, PROFILES, 8), SPEC, source.scaling).eval()


def test_every_batch_gets_its_own_gradients(source: WindowSource, plans: list[Plan], model: ForecastModel) -> None:
    whole = flatten_parameters(model)
    with gradients_of(model, [whole], source, 16) as gradients:
        found = [(gradients.compute(ready), whole.grad.clone()) for _, ready in gradients.one_ahead(plans)]
    assert len(found) == len(plans) > 3
    for plan, (loss, gradient) in zip(plans, found, strict=True):
        whole.grad.zero_()
        expected = loss_of(model, *loss_arguments(source.cut(plan), torch.device("cpu")))
        expected.backward()
        assert torch.equal(loss, expected.detach())
        assert torch.equal(gradient, whole.grad)


def test_a_window_far_wider_than_all_others_decides_the_loss(
    source: WindowSource, plans: list[Plan], model: ForecastModel
) -> None:
    windows, targets = loss_arguments(source.cut(plans[0]), torch.device("cpu"))
    alone = loss_of(model, [part[:1] for part in windows], targets[:1]).item()
    together = loss_of(model, windows, targets).item()
    windows[Windows._fields.index("spread")][0] = 1e24
    assert loss_of(model, windows, targets).item() == pytest.approx(alone, rel=1e-3)
    assert abs(together / alone - 1) > 0.01


def test_the_next_plan_is_being_prepared_while_one_is_used(plans: list[Plan]) -> None:
    prepared: list[int] = []

    def prepare(plan: Plan) -> str:
        prepared.append(plan.number)
        return f"ready {plan.number}"

    seen = [
        (plan.number, ready, len(prepared)) for plan, ready in Gradients(prepare, torch.tensor).one_ahead(plans[:4])
    ]
    assert seen == [(0, "ready 0", 2), (1, "ready 1", 3), (2, "ready 2", 4), (3, "ready 3", 4)]


def test_a_batch_is_cut_in_another_thread_and_what_goes_wrong_there_is_raised_here(
    source: WindowSource, plans: list[Plan], model: ForecastModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, cut = [], source.cut

    def cutting(plan: Plan) -> Batch:
        threads.append(threading.current_thread())
        if plan.number == 1:
            raise ValueError("no such window")
        return cut(plan)

    monkeypatch.setattr(source, "cut", cutting)
    trained = [flatten_parameters(model)]
    with gradients_of(model, trained, source, 16) as gradients:
        ready = [gradients.prepare(replace(plan)) for plan in plans[:2]]
        gradients.compute(ready[0])
        with pytest.raises(ValueError, match="no such window"):
            gradients.compute(ready[1])
    assert threading.current_thread() not in threads
    assert len(set(threads)) == 1
