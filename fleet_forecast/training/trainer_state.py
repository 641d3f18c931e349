"""What a training run consists of: its counters, its tensors, and where both are kept while it is unfinished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fleet_forecast.network.model import ForecastModel
from fleet_forecast.training.checkpoint import Checkpoint, CheckpointError, PartState, Tensors

Weights = dict[str, torch.Tensor]


@dataclass
class Fit:
    """How a training run stands or went; at its end `model` has the kept weights.

    first_validation_loss: before the first step. course: a point per check on the validation days, its `loss` the mean
    of the training batches since the check before. stopped_by: empty while the run is under way.
    cooling_from, cooling_rate: the step at which patience ran out, 0 before, and the learning rate then.
    epoch, batch: epochs done, and batches done of the epoch under way. paced_*: those of the steps that count for
    `windows_per_second`.
    """

    model: ForecastModel
    steps_per_epoch: int = 1
    steps: int = 0
    epoch: int = 0
    batch: int = 0
    windows: int = 0
    seconds: float = 0.0
    paced_windows: int = 0
    paced_seconds: float = 0.0
    check_seconds: float = 0.0
    checks_without_gain: int = 0
    cooling_from: int = 0
    cooling_rate: float = 0.0
    first_validation_loss: float = float("nan")
    best_validation_loss: float = float("inf")
    stopped_by: str = ""
    course: list[dict[str, float]] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        """Visits of every server-hour."""
        return self.steps / self.steps_per_epoch

    @property
    def windows_per_second(self) -> float:
        """Pace of the training steps, loading included, checks and the first steps of a session left out."""
        if self.paced_windows:
            return self.paced_windows / self.paced_seconds
        return self.windows / self.seconds if self.seconds else 0.0

    def counters(self) -> dict[str, Any]:
        """All but the model, as JSON takes it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "model"}

    def restore(self, counters: dict[str, Any]) -> None:
        """Set what `counters` gave."""
        for name, value in counters.items():
            setattr(self, name, value)


class State:
    """The tensors of a run: weights, their average, the best average so far, AdamW's moments, the loss summed."""

    def __init__(self, model: ForecastModel, learning_rate: float, weight_decay: float) -> None:
        self.model = model
        # A GPU's LSTM wants its own parameters in memory of their own.
        on_gpu = device_of(model).type == "cuda"
        self.trained: list[torch.Tensor] = list(model.parameters()) if on_gpu else [side_by_side(model)]
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self.averaged = [tensor.detach().clone() for tensor in self.trained]
        self.best = weights_of(model)
        self.loss_sum = torch.zeros((), device=device_of(model))

    @property
    def average(self) -> Weights:
        """The averaged weights by name, in the memory where they are averaged."""
        if len(self.averaged) == 1:
            return named_parts(self.averaged[0], self.model)
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, self.averaged, strict=True))

    def take_average(self, decay: float) -> None:
        """Move the averaged weights by 1 - decay toward those of now."""
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.trained, 1 - decay)

    def tensors(self) -> Tensors:
        """Everything above and torch's random state, by name."""
        groups = {"weights": weights_of(self.model), "average": self.average, "best": self.best}
        named = {f"{group}.{name}": value for group, weights in groups.items() for name, value in weights.items()}
        moments = self.optimizer.state_dict()["state"]
        named |= {f"adamw.{index}.{key}": value for index, of in moments.items() for key, value in of.items()}
        named |= {"loss_sum": self.loss_sum, "random.cpu": torch.get_rng_state()}
        if self.loss_sum.is_cuda:
            named["random.cuda"] = torch.cuda.get_rng_state(self.loss_sum.device)
        # Copies, as the loop goes on changing its own.
        return {name: value.detach().cpu().clone() for name, value in named.items()}

    def restore(self, tensors: Tensors) -> None:
        """Set what `tensors` gave. Raises KeyError or ValueError if they are another network's."""
        groups: dict[str, Weights] = {"weights": {}, "average": {}, "best": {}}
        moments: dict[int, Tensors] = {}
        for full_name, value in tensors.items():
            group, _, name = full_name.partition(".")
            if group in groups:
                groups[group][name] = value
            elif group == "adamw":
                index, _, key = name.partition(".")
                moments.setdefault(int(index), {})[key] = value
        lengths = [moments[index]["exp_avg"].shape for index in sorted(moments)]
        if lengths and lengths != [tensor.shape for tensor in self.trained]:
            raise ValueError("AdamW's moments belong to other tensors")
        put_weights(self.model, groups["weights"])
        for name, average in self.average.items():
            average.copy_(groups["average"][name])
        self.best = {name: value.to(self.loss_sum.device) for name, value in groups["best"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.loss_sum.copy_(tensors["loss_sum"])
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self.loss_sum.is_cuda:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.loss_sum.device)


@dataclass(frozen=True)
class Keeper:
    """Saves a run as one part of a checkpoint, or nowhere."""

    part: str
    checkpoint: Checkpoint | None = None

    def save(self, run: Fit, state: State) -> None:
        """On disk when this returns."""
        if self.checkpoint:
            self.checkpoint.save(self.part, PartState(state.tensors(), run.counters()))

    def restore(self, run: Fit, state: State) -> None:
        """Put a run where its last save left it, if there is one.

        Raises CheckpointError if it is of another network.
        """
        if self.checkpoint and self.part in self.checkpoint.parts:
            saved = self.checkpoint.parts[self.part]
            try:
                state.restore(saved.tensors)
            except (KeyError, ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"--resume: the state of the interrupted run does not fit this network ({error}); it was made by "
                    "another version of this software: train without --resume"
                ) from error
            run.restore(saved.counters)


def weights_of(model: ForecastModel) -> Weights:
    """A copy of the model's weights, each once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def put_weights(model: ForecastModel, weights: Weights) -> None:
    """Set the model's weights, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def copy_of(weights: Weights) -> Weights:
    """The same numbers in other memory."""
    return {name: value.clone() for name, value in weights.items()}


def device_of(model: ForecastModel) -> torch.device:
    """Where the model is computed."""
    return next(model.parameters()).device


def side_by_side(model: nn.Module) -> nn.Parameter:
    """One tensor that holds all parameters of the model, and their gradients in its own.

    The model's parameters become views of it, and their gradients of its gradient, to which backward adds: what happens
    to the one happens to the other. Gradients are zeroed in place.
    """
    parameters = list(model.parameters())
    whole = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    whole.grad = torch.zeros_like(whole)
    for parameter, values, gradient in zip(
        parameters, _parts(whole.data, parameters), _parts(whole.grad, parameters), strict=True
    ):
        parameter.data, parameter.grad = values, gradient
    return whole


def named_parts(whole: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Views of a tensor as long as all parameters of the model, by the parameters' names."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, _parts(whole, parameters), strict=True))


def _parts(whole: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    pieces = whole.split([parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]
