"""ONNX export. The record of window tensors is flattened here only: one ONNX input per field, by its name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fleet_forecast.features.window_batch import FIELDS, WindowBatch, Windows
from fleet_forecast.network.model import ForecastModel, WindowTensors, window_tensors
from fleet_forecast.network.outputs import NetworkWeights

PER_ENCODER_STEP = ("encoder_calendar", "encoder_market", "encoder")  # fields whose second axis is the encoder's


def export_onnx(model: ForecastModel, windows: Windows, path: Path) -> None:
    """Write the model as ONNX with free batch size and encoder length; `windows` is an example batch."""
    _export(_Flattened(model, model.forward), windows, path, ("quantiles",))


def export_explanation(model: ForecastModel, windows: Windows, path: Path) -> None:
    """Write the model with the network's weights as further outputs (outputs.NetworkOutput).

    A separate file: in one file the ordinary forecast takes a sixth longer, even if only the quantiles are requested.
    """
    _export(_Flattened(model, model.explain), windows, path, NetworkWeights._fields)


class _Flattened(nn.Module):
    """A method of the model that takes the fields of WindowTensors as separate arguments."""

    def __init__(self, model: ForecastModel, method: Callable[[WindowTensors], Any]) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *fields: Tensor) -> Any:
        return self.method(WindowBatch.of_fields(dict(zip(FIELDS, fields, strict=True))))


def _export(module: nn.Module, windows: Windows, path: Path, outputs: Sequence[str]) -> None:
    free = {name: {0: "windows"} for name in FIELDS}
    for name in PER_ENCODER_STEP:
        free[name][1] = "encoder_steps"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(window_tensors(windows).fields().values()),
            str(path),
            input_names=list(FIELDS),
            output_names=list(outputs),
            dynamic_axes=free,
            dynamo=False,
            opset_version=17,
        )
