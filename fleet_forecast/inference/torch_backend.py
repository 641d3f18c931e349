"""The torch model of a model directory, as the engine calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fleet_forecast.features.window_batch import Windows
from fleet_forecast.inference.model_config import ModelConfig
from fleet_forecast.inference.model_directory import WEIGHTS_FILE
from fleet_forecast.network.build import build_network
from fleet_forecast.network.model import ForecastModel, window_tensors
from fleet_forecast.network.outputs import NetworkWeights


def torch_run(model: ForecastModel) -> Callable[[Windows], np.ndarray]:
    """Windows -> quantiles of a torch model, for engine.Engine."""

    def run(windows: Windows) -> np.ndarray:
        return _without_gradients(model, model, windows).cpu().numpy()

    return run


def torch_explain(model: ForecastModel) -> Callable[[Windows], NetworkWeights]:
    """Windows -> quantiles and the weights of variables and attention."""

    def explain(windows: Windows) -> NetworkWeights:
        return NetworkWeights(*(field.cpu().numpy() for field in _without_gradients(model, model.explain, windows)))

    return explain


def _without_gradients(model: ForecastModel, method: Callable[..., Any], windows: Windows) -> Any:
    """The output of a method of the model in evaluation mode; the model's own mode is restored.

    TF32 is off: it rounds the factors of a GPU's LSTM to ten bits, which is too coarse for the canary.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        output = method(window_tensors(windows, next(model.parameters()).device))
    model.train(was_training)
    return output


def load_model(model_dir: Path, config: ModelConfig, weights_file: str = WEIGHTS_FILE) -> ForecastModel:
    """Rebuild the torch model of a verified model directory."""
    network = build_network(config.spec, config.profiles, config.hidden_size)
    network.load_state_dict(load_file(model_dir / weights_file))
    return ForecastModel(network, config.spec, config.scaling).eval()
