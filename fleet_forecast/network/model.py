"""The forecast model: network plus head, window tensors in, quantiles in physical units out."""

from __future__ import annotations

import torch
from pytorch_forecasting import TemporalFusionTransformer
from torch import Tensor, nn

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.features.quantile_map import normal_scores
from fleet_forecast.features.scaling import FleetScaling
from fleet_forecast.features.window_batch import NetworkInputs, WindowBatch, Windows
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.network.build import scalar_or_list
from fleet_forecast.network.constants import constant
from fleet_forecast.network.head import QuantileHead, ordered, raw_of
from fleet_forecast.network.outputs import NetworkOutput
from fleet_forecast.network.quantile_map import map_scores_asinh

WindowTensors = WindowBatch[Tensor]


class ForecastModel(nn.Module):
    """A network (FleetTFT, or the stock class with the same weights) and its head."""

    def __init__(self, network: TemporalFusionTransformer, spec: WindowSpec, scaling: FleetScaling) -> None:
        super().__init__()
        self.network = network
        self.context_steps = spec.context_steps
        self.targets = len(spec.metrics)
        self.uses_profile = "profile" in network.hparams.x_categoricals
        self.head = QuantileHead(scaling.bounds)

    def start_at_prior(self) -> ForecastModel:
        """Makes an untrained model forecast the window quantiles, which are the prior without history; returns it.

        The output layer starts with zero weights (as in Fixup, Zhang et al. 2019, arXiv:1901.09321) and with the normal
        scores of the quantile levels as bias, so that training learns deviations from the prior only.
        """
        raw = raw_of(torch.tensor(normal_scores(QUANTILE_LEVELS))[:, None])[:, 0]
        with torch.no_grad():  # of each metric: weight [quantile, hidden] and bias [quantile]
            for parameter in self.network.get_submodule("output_layer").parameters():
                parameter.copy_(raw if parameter.ndim == 1 else torch.zeros_like(parameter))
        return self

    def forward(self, windows: WindowTensors) -> Tensor:
        """Quantiles in physical units: [window, H, metric, quantile]."""
        quantiles: Tensor = self.head(self.normal_scores(windows.inputs), windows.target_scale)
        return quantiles

    def asinh_quantiles(self, windows: WindowTensors, largest_input: int | None = None) -> Tensor:
        """Quantiles in the units of training targets, for the loss: [window, metric, quantile, H]."""
        scores = self.normal_scores(windows.inputs, largest_input)
        return map_scores_asinh(scores, windows.target_scale.window_quantiles)

    def normal_scores(self, inputs: NetworkInputs[Tensor], largest_input: int | None = None) -> Tensor:
        """The network's output as increasing normal scores: [window, metric, quantile, H].

        largest_input: see FleetTFT.forward.
        """
        options = {} if largest_input is None else {"largest_input": largest_input}  # unknown to the stock class
        return self.scores_of(self.network(self.network_inputs(inputs), **options)["prediction"])

    def scores_of(self, raw: Tensor | list[Tensor]) -> Tensor:
        """The network's raw output for each metric [window, H, quantile] -> increasing normal scores."""
        of_metrics = raw if isinstance(raw, list) else [raw]
        return ordered(torch.stack([rows.transpose(1, 2) for rows in of_metrics], dim=1))

    def explain(self, windows: WindowTensors) -> NetworkOutput[Tensor]:
        """Quantiles as of `forward`, and the network's weights; needs FleetTFT."""
        output = self.network(self.network_inputs(windows.inputs), attention_weights=True)
        attention = torch.cat([output["encoder_attention"], output["decoder_attention"]], dim=-1)
        return NetworkOutput(
            quantiles=self.head(self.scores_of(output["prediction"]), windows.target_scale),
            static_weights=output["static_variables"][:, 0],
            encoder_weights=output["encoder_variables"][:, :, 0],
            decoder_weights=output["decoder_variables"][:, :, 0],
            attention=attention.mean(dim=2),
        )

    def network_inputs(self, inputs: NetworkInputs[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """The stock network's inputs, columns in the order of TimeSeriesDataSet.reals and .flat_categoricals."""
        static, encoder, decoder = inputs.static, inputs.encoder, inputs.decoder
        windows, encoder_steps, horizon_steps = static.shape[0], encoder.shape[1], decoder.shape[1]
        no_lags = decoder.new_zeros(windows, encoder_steps, decoder.shape[2])
        not_measured = encoder.new_zeros(windows, horizon_steps, encoder.shape[2])
        encoder_known = torch.cat([no_lags, inputs.encoder_market, self._relative_time(static, -encoder_steps, 0)], 2)
        decoder_known = torch.cat([decoder, inputs.decoder_market, self._relative_time(static, 0, horizon_steps)], 2)
        identity = constant((0.0, 1.0), static.dtype, static.device).expand(windows, 2)
        return {
            "encoder_cat": self._categories(inputs.profile, inputs.encoder_calendar),
            "decoder_cat": self._categories(inputs.profile, inputs.decoder_calendar),
            "encoder_cont": torch.cat([_per_step(static, encoder_steps), encoder_known, encoder], dim=2),
            "decoder_cont": torch.cat([_per_step(static, horizon_steps), decoder_known, not_measured], dim=2),
            "encoder_lengths": torch.full((windows,), encoder_steps, dtype=torch.int64, device=static.device),
            "decoder_lengths": torch.full((windows,), horizon_steps, dtype=torch.int64, device=static.device),
            "target_scale": scalar_or_list([identity for _ in range(self.targets)]),
        }

    def _relative_time(self, static: Tensor, first: int, end: int) -> Tensor:
        """Steps first .. end from the origin in contexts: [window, step, 1]."""
        position = torch.arange(first, end, dtype=static.dtype, device=static.device) / self.context_steps
        return position[None, :, None].expand(static.shape[0], end - first, 1)

    def _categories(self, profile: Tensor, calendar: Tensor) -> Tensor:
        """[window, step, category]."""
        if not self.uses_profile:
            return calendar
        return torch.cat([profile[:, None, None].expand(*calendar.shape[:2], 1), calendar], dim=2)


def _per_step(static: Tensor, steps: int) -> Tensor:
    """[window, variable] -> [window, step, variable]."""
    return static[:, None, :].expand(static.shape[0], steps, static.shape[1])


def window_tensors(windows: Windows, device: torch.device | str = "cpu") -> WindowTensors:
    """The windows as tensors on a device."""
    return windows.map(lambda field: torch.from_numpy(field).to(device))
