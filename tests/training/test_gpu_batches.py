"""Windows cut in torch out of a resident fleet are those of windows.py, batch against batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import INPUT_GRID, Windows, WindowSpec
from fleet_forecast.network.model import ForecastModel, build_network
from fleet_forecast.training.gpu_batches import ResidentWindows
from fleet_forecast.training.gradients import gradients_of
from fleet_forecast.training.sampling import Handicaps, Plan, WindowSource, epoch
from fleet_forecast.training.trainer_state import device_of, flatten_parameters

METRICS = ("cpu_pct", "mem_pct", "net_in_mb_s")
SPEC = WindowSpec(METRICS, 1800, "America/New_York", context_steps=48, horizon_steps=16)
STEPS = 12 * 48
PROFILES = ("database", "web_api")
SEVERE = Handicaps(short_history_share=0.5, hidden_profile_share=0.5, fictional_servers=50.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source() -> WindowSource:
    """Servers with a rhythm, without one, with gaps, idle, constant, and one that starts late."""
    random = np.random.default_rng(0)
    day = 30 * np.sin(2 * np.pi * np.arange(STEPS) / 48)
    values = random.uniform(0, 12, (6, STEPS, 3)) + 40 + day[:, None] * np.array([1, 0, 1])
    values[1] = random.uniform(0, 100, (STEPS, 3))
    values[2][random.random((STEPS, 3)) < 0.2] = np.nan
    values[3] *= random.random((STEPS, 1)) > 0.9
    values[4, :, 1] = 7.0
    values[5, :400] = np.nan
    start = np.datetime64("2026-03-02T00:00:00", "s")
    grid = FleetGrid(tuple("abcdef"), PROFILES * 3, METRICS, start, 1800, values.astype(np.float32))
    scaling = fit_scaling(grid.values, METRICS, np.array([True, True, False]), grid.profiles, 48)
    return WindowSource(grid, SPEC, scaling)


def plans(source: WindowSource, seed: int = 0, batch_size: int = 32) -> Iterator[Plan]:
    doubt = np.full((1 + len(PROFILES), len(METRICS)), 5.0, dtype=np.float32)
    return epoch(source, np.arange(6), STEPS - 1, batch_size, np.random.default_rng(seed), doubt, SEVERE)


def test_every_field_of_every_batch_is_that_of_the_windows_cut_in_numpy(source: WindowSource) -> None:
    resident, lengths = ResidentWindows(source, CPU), set()
    for plan in plans(source):
        expected = source.cut(plan)
        windows, targets = resident.cut(resident.plan(plan), plan.encoder_steps)
        pairs = zip(Windows._fields, expected.windows, windows, strict=True)
        for name, wanted, made in (*pairs, ("targets", expected.targets, targets)):
            assert made.numpy().dtype == wanted.dtype, name
            if name in ("encoder", "decoder"):  # rounded to the grid, where rounding may fall to either side
                off = made.numpy() != wanted
                assert off.mean() < 0.01
                np.testing.assert_allclose(made, wanted, atol=1.001 / INPUT_GRID, err_msg=name)
            else:
                np.testing.assert_allclose(made, wanted, rtol=2e-5, atol=2e-4, err_msg=name)
        lengths.add(plan.encoder_steps)
    assert lengths == set(SPEC.encoder_lengths)


def test_a_plan_in_the_memory_of_another_gives_its_own_windows(source: WindowSource) -> None:
    resident = ResidentWindows(source, CPU)
    first, second = (next(plans(source, seed)) for seed in (1, 2))
    memory, other = resident.plan(first), resident.plan(second)
    memory.take_over(other)
    for ours, theirs in zip(memory, other, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def test_no_input_is_larger_than_the_largest_input(source: WindowSource) -> None:
    resident = ResidentWindows(source, CPU)
    largest = resident.largest_input() / INPUT_GRID
    inputs = [field.abs().max() for plan in plans(source) for field in resident.cut(resident.plan(plan), 48)[0][6:8]]
    assert 0.2 * largest < max(inputs) <= largest


@pytest.fixture
def model(source: WindowSource) -> ForecastModel:
    torch.manual_seed(0)
    return ForecastModel(build_network(SPEC, PROFILES, 8), SPEC, source.scaling).eval()


def test_told_the_largest_input_the_network_computes_the_same(source: WindowSource, model: ForecastModel) -> None:
    batch = next(plan for plan in plans(source) if plan.encoder_steps == 48)
    gradients = []
    for largest in (None, ResidentWindows(source, CPU).largest_input()):
        with gradients_of(model, [flatten_parameters(model)], source, 32) as gradients_at:
            model.network.largest_input = largest
            loss = gradients_at.compute(gradients_at.prepare(batch))
        gradients.append([loss, *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)])
    for looked_up, told in zip(*gradients, strict=True):
        torch.testing.assert_close(told, looked_up, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("encoder_steps", SPEC.encoder_lengths)
def test_a_gpu_gives_the_gradients_a_processor_gives(
    source: WindowSource, model: ForecastModel, encoder_steps: int
) -> None:
    """At once and replayed; attention in bfloat16 and products in TF32 are as exact as eight and ten bits can be."""
    drawn = (replace(plan) for seed in range(99) for plan in plans(source, seed))
    batches = [plan for plan, _ in zip((p for p in drawn if p.encoder_steps == encoder_steps), range(6), strict=False)]
    found: dict[str, list[list[torch.Tensor]]] = {}
    for device in ("cpu", "cuda"):
        there = model.to(device)
        for module in there.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        there.train()
        trained = list(there.parameters()) if device == "cuda" else [flatten_parameters(there)]
        with gradients_of(there, trained, source, 32) as gradients:
            found[device] = []
            for _, ready in gradients.one_ahead(batches):
                loss = gradients.compute(ready)
                weights = [w.grad if w.grad is not None else torch.zeros_like(w) for w in there.parameters()]
                found[device].append([part.detach().cpu().clone() for part in (loss, *weights)])
    assert device_of(model).type == "cuda"
    for here, there_too in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(here[0], there_too[0], rtol=1e-3, atol=1e-5)
        ours, theirs = (torch.cat([part.flatten() for part in parts[1:]]) for parts in (here, there_too))
        assert (ours - theirs).norm() < 0.02 * ours.norm()
