"""Warm start: the weights of an earlier model in a network for new data.

The embedding of each known profile is kept. A new profile starts with the embedding of the unknown profile. Scaling is
always fitted on the new data. The new data may lack metrics or profiles of the earlier model: the network then has
fewer variables, and only the variable selection, whose size depends on their number, starts from new weights.

The weights are those before the earlier model's final fit. The published ones were also trained on days that can lie in
the new test period, and on its unseen servers: scores after a start from them would be too good.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.inference.model_config import ModelConfig, ModelError
from fleet_forecast.inference.model_directory import EVALUATED_WEIGHTS_FILE, WEIGHTS_FILE, read_config, verify

PROFILE_EMBEDDING = "input_embeddings.embeddings.profile.weight"  # [1 + profile, width]; row 0: unknown profile
OUTPUT_LAYER = "output_layer"  # then .0, .1, ... by metric, if there are several
WEIGHS_VARIABLES = ".flattened_grn."  # in the names of the layers whose size depends on the number of variables


def earlier_config(model_dir: Path, spec: WindowSpec, profiles: tuple[str, ...], hidden_size: int) -> ModelConfig:
    """The configuration of a verified model directory of the same architecture.

    profiles: those of the new network, empty without the profile feature; they may differ from the earlier ones. The
    new network may have fewer metrics, and no profile feature. Raises ModelError naming every difference in
    architecture.
    """
    config = read_config(verify(model_dir))
    known = tuple(metric for metric in config.targets if metric in spec.metrics)
    required = {
        "metrics": (known, spec.metrics),
        "step in seconds": (config.step_seconds, spec.step_seconds),
        "context in steps": (config.context_steps, spec.context_steps),
        "horizon in steps": (config.horizon_steps, spec.horizon_steps),
        "hidden size": (config.hidden_size, hidden_size),
        "profile feature": (bool(config.profiles), bool(config.profiles or profiles)),
    }
    differing = [f"{name} (there {there}, here {here})" for name, (there, here) in required.items() if there != here]
    if differing:
        raise ModelError(
            f"--warm-start {model_dir}: another architecture than this training's: {', '.join(differing)}; choose "
            "flags and data to match, or train afresh without --warm-start"
        )
    return config


def load_earlier_weights(
    network: nn.Module, metrics: tuple[str, ...], profiles: tuple[str, ...], model_dir: Path, earlier: ModelConfig
) -> None:
    """Load the earlier model's weights into a network with these metrics and profiles.

    Raises ModelError if they do not fit (a model of another version of this software).
    """
    evaluated = model_dir.resolve() / EVALUATED_WEIGHTS_FILE
    weights = load_file(evaluated if evaluated.exists() else model_dir.resolve() / WEIGHTS_FILE)
    if profiles:
        weights[PROFILE_EMBEDDING] = profile_rows(weights[PROFILE_EMBEDDING], earlier.profiles, profiles)
    if metrics != earlier.targets or bool(profiles) != bool(earlier.profiles):
        weights = fewer_variables(weights, network.state_dict(), [earlier.targets.index(name) for name in metrics])
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"--warm-start {model_dir}: its weights do not fit this network ({error}); it was made by another version "
            "of this software: train afresh without --warm-start"
        ) from error


def fewer_variables(
    weights: dict[str, torch.Tensor], fresh: dict[str, torch.Tensor], metrics: list[int]
) -> dict[str, torch.Tensor]:
    """The weights of a network of which `fresh`, with initial weights, has some of the variables only.

    metrics: where those of the smaller network are among those of the larger one, which has several.
    """
    single = len(metrics) == 1
    earlier_names = {name: name for name in fresh if WEIGHS_VARIABLES not in name}
    for index, of_earlier in enumerate(metrics):
        for part in ("weight", "bias"):
            own = f"{OUTPUT_LAYER}.{part}" if single else f"{OUTPUT_LAYER}.{index}.{part}"
            earlier_names[own] = f"{OUTPUT_LAYER}.{of_earlier}.{part}"
    return fresh | {own: weights[name] for own, name in earlier_names.items() if name in weights}


def profile_changes(earlier: tuple[str, ...], profiles: tuple[str, ...]) -> list[str]:
    """Sentences on the profiles that only one of the two networks has."""
    changes = []
    if new := sorted(set(profiles) - set(earlier)):
        changes.append(f"profiles new to the earlier model start as the unknown one: {', '.join(new)}")
    if removed := sorted(set(earlier) - set(profiles)):
        changes.append(f"profiles without a training server are removed: {', '.join(removed)}")
    return changes


def profile_rows(rows: torch.Tensor, known: tuple[str, ...], wanted: tuple[str, ...]) -> torch.Tensor:
    """Embedding rows [1 + known, width] -> [1 + wanted, width]; new profiles get row 0, the unknown profile's."""
    row_of = {name: row for row, name in enumerate(known, start=1)}
    return rows[[0, *(row_of.get(name, 0) for name in wanted)]].clone()
