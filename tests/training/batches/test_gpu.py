"""GPU batches equal the batches built in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import INPUT_GRID, WindowSpec
from fleet_forecast.network.build import build_network
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.training.batches.augmentation import Augmentation
from fleet_forecast.training.batches.gpu import GpuBatches
from fleet_forecast.training.batches.sampler import BatchSampler
from fleet_forecast.training.batches.source import BatchPlan, WindowSource
from fleet_forecast.training.gradients import gradients_of, loss_of, to_device
from fleet_forecast.training.trainer_state import device_of, flatten_parameters
from tests.training.fleets import source_with_peers

METRICS = ("cpu_pct", "mem_pct", "net_in_mb_s")
SPEC = WindowSpec(METRICS, 1800, DEFAULT_CALENDAR, context_steps=48, horizon_steps=16)
STEPS = 12 * 48
PROFILES = ("database", "web_api")
SEVERE = Augmentation(short_history_share=0.5, masked_profile_share=0.5, synthetic_servers=50.0, masked_peers_share=0.9)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["without peers", "with peers"])
def source(request: pytest.FixtureRequest) -> WindowSource:
    """Servers with daily seasonality, without it, with gaps, idle, constant, and one that starts late."""
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
    scaling = fit_scaling(
        grid.values, dict(zip(METRICS, ("percent", "percent", "rate"), strict=True)), grid.profiles, 48
    )
    return source_with_peers(grid, SPEC, scaling) if request.param else WindowSource(grid, SPEC, scaling)


def plans(source: WindowSource, seed: int = 0, batch_size: int = 32) -> Iterator[BatchPlan]:
    sampler = BatchSampler(source, np.arange(6), STEPS - 1, batch_size, SEVERE)
    return sampler.epoch(np.random.default_rng(seed))


def test_every_field_of_every_batch_equals_the_one_built_in_numpy(source: WindowSource) -> None:
    gpu, lengths = GpuBatches(source, CPU), set()
    for plan in chain(plans(source), plans(source, 1), plans(source, 2)):
        expected = source.augmented_batch(plan)
        windows, targets = gpu.batch(gpu.plan(plan), plan.selection.encoder_steps)
        made_fields = {**windows.fields(), "targets": targets}
        for name, wanted in {**expected.windows.fields(), "targets": expected.targets}.items():
            made = made_fields[name]
            assert made.numpy().dtype == wanted.dtype, name
            if name in ("encoder", "decoder"):  # quantised, where rounding may fall to either side
                off = made.numpy() != wanted
                assert off.mean() < 0.01
                np.testing.assert_allclose(made, wanted, atol=1.001 / INPUT_GRID, err_msg=name)
            else:
                np.testing.assert_allclose(made, wanted, rtol=2e-5, atol=5e-4, err_msg=name)
        lengths.add(plan.selection.encoder_steps)
    assert lengths == set(SPEC.encoder_lengths)


def test_a_plan_copied_into_the_memory_of_another_is_equal_to_it(source: WindowSource) -> None:
    gpu = GpuBatches(source, CPU)
    first, second = (next(plans(source, seed)) for seed in (1, 2))
    memory, other = gpu.plan(first), gpu.plan(second)
    memory.copy_(other)
    for ours, theirs in zip(memory, other, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def test_no_input_is_larger_than_the_largest_input(source: WindowSource) -> None:
    gpu = GpuBatches(source, CPU)
    largest = gpu.largest_input() / INPUT_GRID
    inputs = [
        field.abs().max()
        for plan in plans(source)
        for field in gpu.batch(gpu.plan(plan), 48).windows.inputs[6:]  # encoder and decoder
    ]
    assert 0.2 * largest < max(inputs) <= largest


@pytest.fixture
def model(source: WindowSource) -> ForecastModel:
    torch.manual_seed(0)
    return ForecastModel(build_network(SPEC, PROFILES, 8), SPEC, source.scaling).eval()


def test_with_the_largest_input_given_the_loss_and_gradients_are_the_same(
    source: WindowSource, model: ForecastModel
) -> None:
    batch = next(plan for plan in plans(source) if plan.selection.encoder_steps == 48)
    gradients = []
    windows, targets = to_device(source.augmented_batch(batch), CPU)
    for largest in (None, GpuBatches(source, CPU).largest_input()):
        model.zero_grad()
        loss = loss_of(model, windows, targets, largest)
        loss.backward()
        gradients.append([loss, *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)])
    for looked_up, given in zip(*gradients, strict=True):
        torch.testing.assert_close(given, looked_up, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("encoder_steps", SPEC.encoder_lengths)
def test_a_gpu_has_the_gradients_of_a_cpu(source: WindowSource, model: ForecastModel, encoder_steps: int) -> None:
    """Computed and replayed, within the precision of bfloat16 attention and TF32 products."""
    drawn = (replace(plan) for seed in range(99) for plan in plans(source, seed))
    batches = [
        plan
        for plan, _ in zip((p for p in drawn if p.selection.encoder_steps == encoder_steps), range(6), strict=False)
    ]
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
            for _, ready in gradients.prefetch(batches):
                loss = gradients.compute(ready)
                weights = [w.grad if w.grad is not None else torch.zeros_like(w) for w in there.parameters()]
                found[device].append([part.detach().cpu().clone() for part in (loss, *weights)])
    assert device_of(model).type == "cuda"
    for here, there_too in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(here[0], there_too[0], rtol=1e-3, atol=1e-5)
        ours, theirs = (torch.cat([part.flatten() for part in parts[1:]]) for parts in (here, there_too))
        assert (ours - theirs).norm() < 0.02 * ours.norm()
