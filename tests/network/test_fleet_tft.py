"""FleetTFT equals the stock class with the same weights, for every shape of batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_forecasting import TemporalFusionTransformer

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR
from fleet_forecast.features.scaling import FleetScaling, fit_scaling
from fleet_forecast.features.window_batch import NetworkInputs
from fleet_forecast.features.windows import INPUT_GRID, WindowSpec
from fleet_forecast.network.build import build_network
from fleet_forecast.network.fleet_tft import FleetTFT
from fleet_forecast.network.model import ForecastModel

PROFILES = ("database", "generic", "web_api")


def spec_of(metrics: tuple[str, ...]) -> WindowSpec:
    return WindowSpec(metrics, 300, DEFAULT_CALENDAR, 288, 96)


def scaling_of(spec: WindowSpec) -> FleetScaling:
    values = np.random.default_rng(0).uniform(1, 90, (4, 600, len(spec.metrics))).astype(np.float32)
    kinds = {name: "percent" if name.endswith("_pct") else "rate" for name in spec.metrics}
    return fit_scaling(values, kinds, ("database", "generic", "web_api", None), 288)


def random_inputs(
    spec: WindowSpec, windows: int, encoder_steps: int, profile: torch.Tensor
) -> NetworkInputs[torch.Tensor]:
    """Random inputs of the right kind (flags are 0 or 1)."""
    draw = torch.Generator().manual_seed(encoder_steps)

    def calendar(steps: int) -> torch.Tensor:
        parts = [torch.randint(0, size, (windows, steps), generator=draw) for size in (48, 8)]
        return torch.stack(parts, dim=-1)

    def flags(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2, shape, generator=draw).float()

    def values(*shape: int) -> torch.Tensor:
        return torch.round(torch.randn(*shape, generator=draw) * INPUT_GRID) / INPUT_GRID

    metrics = len(spec.metrics)
    measured = torch.stack([values(windows, encoder_steps, metrics), flags(windows, encoder_steps, metrics)], dim=-1)
    return NetworkInputs(
        profile,
        calendar(encoder_steps),
        calendar(96),
        flags(windows, encoder_steps, 1),
        flags(windows, 96, 1),
        values(windows, len(spec.static_reals)),
        measured.flatten(2),
        values(windows, 96, len(spec.decoder_reals)),
    )


def both_networks(spec: WindowSpec) -> tuple[ForecastModel, ForecastModel]:
    """Stock and fleet network with the same weights, none at the initial zero or one of biases, gates and norms."""
    torch.manual_seed(1)
    stock = build_network(spec, PROFILES, 32, TemporalFusionTransformer)
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    fleet = build_network(spec, PROFILES, 32, FleetTFT)
    fleet.load_state_dict(stock.state_dict())
    return ForecastModel(stock, spec, scaling_of(spec)), ForecastModel(fleet, spec, scaling_of(spec))


def in_double_precision(inputs: NetworkInputs[torch.Tensor]) -> NetworkInputs[torch.Tensor]:
    return NetworkInputs(*(field.double() if field.is_floating_point() else field for field in inputs))


@pytest.mark.parametrize("encoder_steps", [0, 1, 7, 288])
@pytest.mark.parametrize("masked_profiles", ["none", "some", "all"])
def test_output_and_interpretation_equal_the_stock_class(encoder_steps: int, masked_profiles: str) -> None:
    """The stock class computes in double precision: its own rounding in single precision exceeds 1e-5 in places."""
    spec = spec_of(("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms"))
    stock, fleet = (model.eval() for model in both_networks(spec))
    profile = {"none": [1, 2, 3, 1], "some": [0, 2, 0, 3], "all": [0, 0, 0, 0]}[masked_profiles]
    inputs = random_inputs(spec, 4, encoder_steps, torch.tensor(profile))
    with torch.no_grad():
        expected = stock.double().network(stock.network_inputs(in_double_precision(inputs)))
        actual = fleet.network(fleet.network_inputs(inputs), attention_weights=True)
    for metric, (ours, theirs) in enumerate(zip(actual["prediction"], expected["prediction"], strict=True)):
        torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=0, msg=f"metric {metric}")
    for name in (
        "encoder_attention",
        "decoder_attention",
        "static_variables",
        "encoder_variables",
        "decoder_variables",
    ):
        torch.testing.assert_close(actual[name], expected[name].float(), atol=1e-5, rtol=0)


def test_one_target_equals_the_stock_class() -> None:
    spec = spec_of(("cpu_pct",))
    stock, fleet = (model.eval() for model in both_networks(spec))
    inputs = random_inputs(spec, 3, 48, torch.tensor([0, 1, 2]))
    with torch.no_grad():
        expected = stock.double().normal_scores(in_double_precision(inputs))
        torch.testing.assert_close(fleet.normal_scores(inputs), expected.float(), atol=1e-5, rtol=0)


def test_gradients_equal_the_stock_class_except_that_the_unknown_profile_is_trained() -> None:
    """The stock class pads category 0 of a NaN-tolerant categorical, so that its embedding stays zero."""
    spec = spec_of(("cpu_pct", "net_in_mb_s"))
    stock, fleet = (model.eval() for model in both_networks(spec))
    inputs = random_inputs(spec, 4, 24, torch.tensor([0, 1, 2, 3]))
    for model in (stock, fleet):
        model.normal_scores(inputs).square().mean().backward()
    theirs = dict(stock.network.named_parameters())
    for name, parameter in fleet.network.named_parameters():
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = torch.zeros_like(parameter) if theirs[name].grad is None else theirs[name].grad
        if name == "input_embeddings.embeddings.profile.weight":
            assert ours[0].abs().max() > 0
            assert expected[0].abs().max() == 0
            ours, expected = ours[1:], expected[1:]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-3, msg=name)


def test_gradients_of_a_batch_are_those_of_its_windows_one_by_one() -> None:
    """The last batch of an epoch may have one window."""
    spec = spec_of(("cpu_pct", "net_in_mb_s"))
    _, fleet = (model.eval() for model in both_networks(spec))
    inputs = random_inputs(spec, 2, 24, torch.tensor([0, 1]))
    fleet.normal_scores(inputs).square().sum().backward()
    of_batch = {
        name: parameter.grad.clone() for name, parameter in fleet.named_parameters() if parameter.grad is not None
    }
    fleet.zero_grad()
    for window in range(2):
        one = NetworkInputs(*(part[window : window + 1] for part in inputs))
        fleet.normal_scores(one).square().sum().backward()
    for name, expected in of_batch.items():
        torch.testing.assert_close(dict(fleet.named_parameters())[name].grad, expected, atol=1e-5, rtol=1e-3, msg=name)


def test_a_network_can_be_trained_after_inference() -> None:
    """Cached tensors, such as the interpolation, must not be inference tensors."""
    width = 20  # of no other test, so that nothing is cached yet
    spec = spec_of(("cpu_pct", "net_in_mb_s"))
    model = ForecastModel(build_network(spec, PROFILES, width), spec, scaling_of(spec))
    inputs = random_inputs(spec, 4, 24, torch.tensor([0, 1, 2, 3]))
    with torch.inference_mode():
        model.normal_scores(inputs)
    model.normal_scores(inputs).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_dropout_is_active_in_training_only() -> None:
    spec = spec_of(("cpu_pct", "net_in_mb_s"))
    _, fleet = both_networks(spec)
    inputs = random_inputs(spec, 4, 24, torch.tensor([0, 1, 2, 3]))
    with torch.no_grad():
        fleet.train()
        assert not torch.equal(fleet.normal_scores(inputs), fleet.normal_scores(inputs))
        fleet.eval()
        assert torch.equal(fleet.normal_scores(inputs), fleet.normal_scores(inputs))
