"""The network: pytorch-forecasting's Temporal Fusion Transformer (Lim et al. 2021, arXiv:1912.09363), in stock weights.

`build_network` goes the documented way (`TimeSeriesDataSet` -> `from_dataset`), on a small template frame that only
states names and categories: windows.py cuts the actual batches and fleet_tft.py runs the network faster. ForecastModel
turns the raw outputs into quantiles that cannot cross and cannot leave the metric's physical range.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data import MultiNormalizer, NaNLabelEncoder, TorchNormalizer
from pytorch_forecasting.metrics import MultiLoss, QuantileLoss
from pytorch_forecasting.utils import get_embedding_size
from torch import nn
from torch.nn import functional

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.features.scaling import BOUND, FleetScaling
from fleet_forecast.features.windows import CALENDAR_SIZES, Windows, WindowSpec
from fleet_forecast.network.constants import constant
from fleet_forecast.network.fleet_tft import FleetTFT
from fleet_forecast.network.outputs import NetworkWeights
from fleet_forecast.network.quantile_map import compressed_window_units, in_window_units

Item = TypeVar("Item")

MEDIAN = QUANTILE_LEVELS.index(0.5)
IMPORTANCE_OF_SPREAD = 0.25  # a power; benchmarks/ablations.md says what it is worth
PROFILE_WIDTH = get_embedding_size(8)  # as pytorch-forecasting gives the seven profiles and the unknown one


def template_dataset(spec: WindowSpec, profiles: tuple[str, ...]) -> TimeSeriesDataSet:
    """A TimeSeriesDataSet that states the variables and categories of `spec`: the network is built from it.

    `NaNLabelEncoder(add_nan=True)` gives a profile outside `profiles`, and a hidden one, category 0. Without any
    profile the variable is left out.
    """
    frame = pd.DataFrame({"server": "any", "step": range(3), "profile": profiles[0] if profiles else "any"})
    frame = frame.assign(**{name: _codes(frame["step"], size) for name, size in CALENDAR_SIZES.items()})
    return dataset_of(frame.assign(**dict.fromkeys((*spec.metrics, *_inputs(spec)), 0.0)), spec, profiles)


def dataset_of(
    frame: pd.DataFrame,
    spec: WindowSpec,
    profiles: tuple[str, ...],
    shortest_encoder: int = 0,
    shortest_horizon: int = 1,
) -> TimeSeriesDataSet:
    """pytorch-forecasting's data set over the variables of `spec`; `frame` has them, and `server` and `step`."""
    identity = [TorchNormalizer(method="identity") for _ in spec.metrics]
    encoders = {name: NaNLabelEncoder().fit(_codes(range(size), size)) for name, size in CALENDAR_SIZES.items()}
    if profiles:
        encoders["profile"] = NaNLabelEncoder(add_nan=True).fit(pd.Series(profiles))
    return TimeSeriesDataSet(
        frame,
        time_idx="step",
        target=_one_or_list(spec.metrics),
        group_ids=["server"],
        min_encoder_length=shortest_encoder,
        max_encoder_length=spec.context_steps,
        min_prediction_length=shortest_horizon,
        max_prediction_length=spec.horizon_steps,
        static_categoricals=["profile"] if profiles else [],
        static_reals=list(spec.static_reals),
        time_varying_known_categoricals=list(CALENDAR_SIZES),
        time_varying_known_reals=[*spec.decoder_reals, "market_open"],
        time_varying_unknown_reals=list(spec.encoder_reals),
        categorical_encoders=encoders,
        target_normalizer=MultiNormalizer(identity) if len(identity) > 1 else identity[0],
        scalers=dict.fromkeys(_inputs(spec)),
        add_relative_time_idx=True,
        add_encoder_length=False,
    )


def _inputs(spec: WindowSpec) -> tuple[str, ...]:
    """The real inputs but the relative time index, which the data set adds itself."""
    return (*spec.static_reals, *spec.encoder_reals, *spec.decoder_reals, "market_open")


def _codes(values: Iterable[int], size: int) -> pd.Series:
    """Calendar codes as the strings the category encoder sorts like numbers."""
    return pd.Series([f"{value % size:02d}" for value in values])


def build_network(
    spec: WindowSpec,
    profiles: tuple[str, ...],
    hidden_size: int,
    network: type[TemporalFusionTransformer] = FleetTFT,
) -> TemporalFusionTransformer:
    """A freshly initialised network for `spec`; `network` is the stock class or FleetTFT (same weights)."""
    losses = [QuantileLoss(list(QUANTILE_LEVELS)) for _ in spec.metrics]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the template is tiny on purpose
        dataset = template_dataset(spec, profiles)
        return network.from_dataset(
            dataset,
            allowed_encoder_known_variable_names=[*CALENDAR_SIZES, "market_open", "relative_time_idx"],
            hidden_size=hidden_size,
            hidden_continuous_size=8,
            attention_head_size=4,
            dropout=0.1,
            output_size=_one_or_list([len(QUANTILE_LEVELS) for _ in spec.metrics]),
            embedding_sizes=_embedding_sizes(profiles),
            loss=losses[0] if len(losses) == 1 else MultiLoss(losses),
        )


def _embedding_sizes(profiles: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """(categories, width) of each embedding: pytorch-forecasting's own, but for a profile's, which is fixed.

    So a network keeps its shape when a profile joins the fleet or leaves it, and can go on from earlier weights.
    """
    sizes = {name: (size, get_embedding_size(size)) for name, size in CALENDAR_SIZES.items()}
    return {**sizes, "profile": (1 + len(profiles), PROFILE_WIDTH)} if profiles else sizes


def _one_or_list(items: Sequence[Item]) -> Item | list[Item]:
    """pytorch-forecasting takes a single target bare and several as a list."""
    return items[0] if len(items) == 1 else list(items)


class ForecastModel(nn.Module):
    """Network plus head: window tensors in, quantiles in physical units out.

    Within the head the steps of the horizon come last, [window, metric, quantile, H]: what is scaled by window, metric
    or quantile is then scaled in runs of H numbers, several times as fast in ONNX Runtime as in runs of seven.

    The head reads a metric's seven raw outputs as the median and six positive distances, so quantiles cannot cross;
    they are normal scores, which the window's shape turns into window units (window_shape.py), the window's centre and
    spread undo the scaling, and the link (scaling.py) leads back into the metric's physical range.
    """

    def __init__(self, network: TemporalFusionTransformer, spec: WindowSpec, scaling: FleetScaling) -> None:
        super().__init__()
        self.network = network
        self.context_steps = spec.context_steps
        self.uses_profile = "profile" in network.hparams.x_categoricals
        # Metrics of a kind side by side, (percentage or not, how many): each kind is undone by itself.
        self.runs = [(bool(percent), len(list(run))) for percent, run in groupby(scaling.percent)]
        self.strip: torch.Tensor
        self.register_buffer("strip", torch.as_tensor(scaling.strip, dtype=torch.float32), persistent=False)

    def forward(
        self,
        profile: torch.Tensor,
        encoder_calendar: torch.Tensor,
        decoder_calendar: torch.Tensor,
        encoder_market: torch.Tensor,
        decoder_market: torch.Tensor,
        static: torch.Tensor,
        encoder: torch.Tensor,
        decoder: torch.Tensor,
        centre: torch.Tensor,
        spread: torch.Tensor,
        shape: torch.Tensor,
    ) -> torch.Tensor:
        """Fields of windows.Windows -> quantiles, physical units: [window, H, metric, quantile]."""
        scores = self.normal_scores(
            profile, encoder_calendar, decoder_calendar, encoder_market, decoder_market, static, encoder, decoder
        )
        return self.in_physical_units(scores, centre, spread, shape)

    def in_physical_units(
        self, scores: torch.Tensor, centre: torch.Tensor, spread: torch.Tensor, shape: torch.Tensor
    ) -> torch.Tensor:
        """Undo the scaling of normal scores [window, metric, quantile, H]: [window, H, metric, quantile]."""
        units = in_window_units(scores, shape)
        linked = centre.transpose(1, 2)[:, :, None] + spread[..., None, None] * units
        return self.from_link(linked).permute(0, 3, 1, 2)

    def from_link(self, linked: torch.Tensor) -> torch.Tensor:
        """FleetScaling.from_link on [window, metric, quantile, H]."""
        strip = self.strip[:, None, None]
        counts = [count for _, count in self.runs]
        strips, hundreds = (linked / strip).split(counts, dim=1), (100.0 / strip).split(counts)
        values = [
            _percent_from_link(part, hundred) if percent else _softplus(part) - BOUND
            for (percent, _), part, hundred in zip(self.runs, strips, hundreds, strict=True)
        ]
        return _not_falling(strip * torch.relu(torch.cat(values, dim=1)))

    def compressed_quantiles(self, *windows: torch.Tensor) -> torch.Tensor:
        """Fields of windows.Windows -> quantiles in the units of sampling.Batch.targets, for the loss.

        [window, metric, quantile, H].
        """
        *inputs, _centre, _spread, shape = windows
        return compressed_window_units(self.normal_scores(*inputs), shape)

    def normal_scores(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The network's answer to its inputs, all fields but the last three: [window, metric, quantile, H]."""
        return self.from_prediction(self.network(self.network_inputs(*inputs))["prediction"])

    def from_prediction(self, raw: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """The network's output for each metric [window, H, quantile] -> quantiles that do not cross."""
        return ordered(torch.stack([rows.transpose(1, 2) for rows in (raw if isinstance(raw, list) else [raw])], dim=1))

    def explained(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `forward`, with the network's weights beside the quantiles: fields of interpretation.NetworkWeights."""
        *seen, centre, spread, shape = inputs
        with _interpretable(self.network):
            output = self.network(self.network_inputs(*seen))
        attention = torch.cat([output["encoder_attention"], output["decoder_attention"]], dim=-1)
        return (
            self.in_physical_units(self.from_prediction(output["prediction"]), centre, spread, shape),
            output["static_variables"][:, 0],
            output["encoder_variables"][:, :, 0],
            output["decoder_variables"][:, :, 0],
            attention.mean(dim=2),
        )

    def network_inputs(
        self,
        profile: torch.Tensor,
        encoder_calendar: torch.Tensor,
        decoder_calendar: torch.Tensor,
        encoder_market: torch.Tensor,
        decoder_market: torch.Tensor,
        static: torch.Tensor,
        encoder: torch.Tensor,
        decoder: torch.Tensor,
    ) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """The stock network's inputs, columns in the order of TimeSeriesDataSet.reals and .flat_categoricals."""
        windows, encoder_steps, horizon_steps = static.shape[0], encoder.shape[1], decoder.shape[1]

        def known(
            steps: int, first: int, lags: torch.Tensor, market: torch.Tensor, measured: torch.Tensor
        ) -> torch.Tensor:
            position = torch.arange(first, first + steps, dtype=static.dtype, device=static.device) / self.context_steps
            fixed = static[:, None, :].expand(windows, steps, static.shape[1])
            return torch.cat([fixed, lags, market, position[None, :, None].expand(windows, steps, 1), measured], dim=2)

        def categories(steps: int, calendar: torch.Tensor) -> torch.Tensor:
            if not self.uses_profile:
                return calendar
            return torch.cat([profile[:, None, None].expand(windows, steps, 1), calendar], dim=2)

        no_lags = decoder.new_zeros(windows, encoder_steps, decoder.shape[2])
        not_yet_measured = encoder.new_zeros(windows, horizon_steps, encoder.shape[2])
        identity = constant((0.0, 1.0), static.dtype, static.device).expand(windows, 2)
        return {
            "encoder_cat": categories(encoder_steps, encoder_calendar),
            "decoder_cat": categories(horizon_steps, decoder_calendar),
            "encoder_cont": known(encoder_steps, -encoder_steps, no_lags, encoder_market, encoder),
            "decoder_cont": known(horizon_steps, 0, decoder, decoder_market, not_yet_measured),
            "encoder_lengths": torch.full((windows,), encoder_steps, dtype=torch.int64, device=static.device),
            "decoder_lengths": torch.full((windows,), horizon_steps, dtype=torch.int64, device=static.device),
            "target_scale": _one_or_list([identity for _ in range(len(self.strip))]),
        }


class _Explained(nn.Module):
    """ForecastModel.explained as a module, for the export."""

    def __init__(self, model: ForecastModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model.explained(*inputs)


@contextmanager
def _interpretable(network: TemporalFusionTransformer) -> Iterator[None]:
    """Attention weights are computed meanwhile."""
    network.interpretable = True
    try:
        yield
    finally:
        network.interpretable = False


def _not_falling(values: torch.Tensor) -> torch.Tensor:
    """Quantiles [window, metric, quantile, H] that increase but for rounding: neighbours that are nearly equal."""
    return torch.cat(list(accumulate(values.split(1, dim=2), torch.maximum)), dim=2)


def _percent_from_link(strips: torch.Tensor, hundred: torch.Tensor) -> torch.Tensor:
    """Percentages in strips, bounded above only; hundred: 100 % in strips [metric, 1, 1]."""
    inside = _softplus(strips) - _softplus(strips - hundred)
    return torch.minimum((inside - BOUND) / (1 - 2 * BOUND / hundred), hundred)


def ordered(raw: torch.Tensor) -> torch.Tensor:
    """Raw outputs [..., quantile, H] -> values that increase: median first, softplus distances outward from it."""
    median = raw[..., MEDIAN : MEDIAN + 1, :]
    below = _softplus(raw[..., :MEDIAN, :]).flip(-2).cumsum(-2).flip(-2)
    above = _softplus(raw[..., MEDIAN + 1 :, :]).cumsum(-2)
    return torch.cat([median - below, median, median + above], dim=-2)


def _softplus(values: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)); exported in operators that ONNX Runtime vectorises, as its own takes one number at a time."""
    if torch.onnx.is_in_onnx_export():
        return torch.relu(values) + torch.log(1.0 + torch.exp(-values.abs()))
    return functional.softplus(values)


def window_tensors(windows: Windows, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """Fields of `windows` as tensors, in the order ForecastModel.forward takes them."""
    return [torch.from_numpy(field).to(device) for field in windows]


def export_onnx(model: ForecastModel, windows: Windows, path: Path) -> None:
    """Write the model as ONNX with free batch size and encoder length; `windows` is an example batch."""
    _export(model, windows, path, ("quantiles",))


def export_explanation(model: ForecastModel, windows: Windows, path: Path) -> None:
    """Write the model with the network's weights as further outputs (interpretation.NetworkWeights).

    A file of its own: in one file the ordinary forecast takes a sixth longer, even if only the quantiles are asked for.
    """
    _export(_Explained(model), windows, path, NetworkWeights._fields)


def _export(model: nn.Module, windows: Windows, path: Path, outputs: Sequence[str]) -> None:
    free = {name: {0: "windows"} for name in Windows._fields}
    for name in ("encoder_calendar", "encoder_market", "encoder"):
        free[name][1] = "encoder_steps"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            tuple(window_tensors(windows)),
            str(path),
            input_names=list(Windows._fields),
            output_names=list(outputs),
            dynamic_axes=free,
            dynamo=False,
            opset_version=17,
        )


def importance(spread: torch.Tensor) -> torch.Tensor:
    """How much the errors of windows count in training: [window, metric], over windows 1 on average.

    In units of its own spread every window is as large as any other, a server that idles all day as one that works, and
    to learn from all of them alike is to learn most. But an error costs what it is in physical units. A small power of
    the spread is between the two; with its square root already, a few busy servers speak for all.

    spread: [window, metric], of the windows.
    """
    larger = spread**IMPORTANCE_OF_SPREAD
    return larger / larger.mean(dim=0)


def pinball_loss(scaled: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Mean pinball loss over quantiles and measured targets (Koenker & Bassett 1978).

    scaled: [window, metric, quantile, H]; targets: [window, H, metric] in the same units, NaN = not measured: left out.
    weights: [window, metric] or a number, above 0: of the mean over targets (importance).
    """
    levels = constant(QUANTILE_LEVELS, scaled.dtype, scaled.device)[:, None]
    targets = targets.transpose(1, 2)
    measured = ~torch.isnan(targets)
    error = torch.where(measured, targets, 0.0)[:, :, None] - scaled
    loss = torch.maximum(levels * error, (levels - 1.0) * error).mean(dim=2)
    weight = measured * torch.as_tensor(weights, dtype=loss.dtype, device=loss.device)[..., None]
    return (weight * loss).sum() / weight.sum().clamp(min=torch.finfo(loss.dtype).tiny)
