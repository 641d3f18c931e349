"""The state of a training run: counters, weights, their exponential moving average (EMA) and optimizer moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fleet_forecast.network.model import ForecastModel

Weights = dict[str, Tensor]  # by parameter name


@dataclass
class TrainerState:
    """Counters and losses of a run. After training `model` has the weights of the best validation.

    epoch, batch: completed epochs, and completed batches of the current epoch. seconds: training time, validations
    included. timed_windows, timed_seconds: of the steps that `windows_per_second` counts. cool_down_start,
    cool_down_learning_rate: step and learning rate when patience ran out; 0 before. first_validation_loss: before the
    first step. loss_history: one point per validation, its `loss` the mean of the training batches since the previous
    one. stopped_by: the reason why training ended; empty before.
    """

    model: ForecastModel
    steps_per_epoch: int = 1
    steps: int = 0
    epoch: int = 0
    batch: int = 0
    windows: int = 0
    seconds: float = 0.0
    timed_windows: int = 0
    timed_seconds: float = 0.0
    longest_validation_seconds: float = 0.0
    validations_without_improvement: int = 0
    cool_down_start: int = 0
    cool_down_learning_rate: float = 0.0
    first_validation_loss: float = float("nan")
    best_validation_loss: float = float("inf")
    stopped_by: str = ""
    loss_history: list[dict[str, float]] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_per_epoch

    @property
    def best_step(self) -> int:
        """Step of the best validation; 0 if the initial weights were the best."""
        best = [point["step"] for point in self.loss_history if point["validation_loss"] == self.best_validation_loss]
        return int(best[0]) if best else 0

    @property
    def windows_per_second(self) -> float:
        """Throughput of the training steps with data loading, without validations and the first steps."""
        if self.timed_windows:
            return self.timed_windows / self.timed_seconds
        return self.windows / self.seconds if self.seconds else 0.0

    def counters(self) -> dict[str, Any]:
        """All fields except the model; JSON can represent them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "model"}

    def restore(self, counters: dict[str, Any]) -> None:
        """Set the fields that `counters` returned."""
        for name, value in counters.items():
            setattr(self, name, value)


class TrainerTensors:
    """Weights, their EMA, the EMA of the best validation, AdamW's moments and the sum of the training loss.

    parameters: what the optimizer updates. On a CPU it is one tensor of all parameters, so that AdamW, gradient
    clipping and the EMA are one operation each. On a GPU cuDNN's LSTM requires its own layout of its parameters.
    """

    def __init__(self, model: ForecastModel, learning_rate: float, weight_decay: float) -> None:
        self.model = model
        on_gpu = device_of(model).type == "cuda"
        self.parameters: list[Tensor] = list(model.parameters()) if on_gpu else [flatten_parameters(model)]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self._ema = [tensor.detach().clone() for tensor in self.parameters]
        self.best = copy_weights(model)
        self.loss_sum = torch.zeros((), device=device_of(model))

    @property
    def ema(self) -> Weights:
        """The EMA of the weights: views, which `update_ema` changes."""
        if len(self._ema) == 1:
            return split_by_parameter(self._ema[0], self.model)
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, self._ema, strict=True))

    def update_ema(self, decay: float) -> None:
        """EMA = decay * EMA + (1 - decay) * weights."""
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, self.parameters, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors and of torch's random state, on the CPU, by name."""
        groups = {"weights": copy_weights(self.model), "ema": self.ema, "best": self.best}
        named = {f"{group}.{name}": value for group, weights in groups.items() for name, value in weights.items()}
        moments = self.optimizer.state_dict()["state"]
        named |= {f"adamw.{index}.{key}": value for index, of in moments.items() for key, value in of.items()}
        named |= {"loss_sum": self.loss_sum, "random.cpu": torch.get_rng_state()}
        if self.loss_sum.is_cuda:
            named["random.cuda"] = torch.cuda.get_rng_state(self.loss_sum.device)
        return {name: value.detach().cpu().clone() for name, value in named.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Set what `state_dict` returned.

        Raises KeyError, RuntimeError or ValueError if the tensors belong to another network.
        """
        groups: dict[str, Weights] = {"weights": {}, "ema": {}, "best": {}}
        moments: dict[int, dict[str, Tensor]] = {}
        for full_name, value in tensors.items():
            group, _, name = full_name.partition(".")
            if group in groups:
                groups[group][name] = value
            elif group == "adamw":
                index, _, key = name.partition(".")
                moments.setdefault(int(index), {})[key] = value
        shapes = [moments[index]["exp_avg"].shape for index in sorted(moments)]
        if shapes and shapes != [tensor.shape for tensor in self.parameters]:
            raise ValueError("AdamW's moments belong to other tensors")
        load_weights(self.model, groups["weights"])
        for name, average in self.ema.items():
            average.copy_(groups["ema"][name])
        self.best = {name: value.to(self.loss_sum.device) for name, value in groups["best"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.loss_sum.copy_(tensors["loss_sum"])
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self.loss_sum.is_cuda:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.loss_sum.device)


def copy_weights(model: ForecastModel) -> Weights:
    """A copy of the model's weights; a parameter that has two names occurs once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def load_weights(model: ForecastModel, weights: Weights) -> None:
    """Set the model's weights in place. Raises KeyError or RuntimeError if one is missing or has another shape."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def clone_weights(weights: Weights) -> Weights:
    return {name: value.clone() for name, value in weights.items()}


def device_of(model: ForecastModel) -> torch.device:
    return next(model.parameters()).device


def flatten_parameters(model: nn.Module) -> nn.Parameter:
    """One tensor with all parameters of the model, and one with all gradients as its `grad`.

    The model's parameters and gradients become views of these two. Gradients must be zeroed in place.
    """
    parameters = list(model.parameters())
    flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    flat.grad = torch.zeros_like(flat)
    for parameter, values, gradient in zip(
        parameters, _views(flat.data, parameters), _views(flat.grad, parameters), strict=True
    ):
        parameter.data, parameter.grad = values, gradient
    return flat


def split_by_parameter(flat: Tensor, model: nn.Module) -> Weights:
    """Views of a flat tensor with the shapes of the model's parameters, by parameter name."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, _views(flat, parameters), strict=True))


def _views(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    pieces = flat.split([parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]
