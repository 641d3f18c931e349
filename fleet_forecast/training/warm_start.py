"""Go on from an earlier model: its weights in a network for new data.

What the earlier model knew about each kind of server it keeps; a kind it never saw starts as the unknown one, for which
it was trained too. Scaling is always fitted on the new data.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.inference.model_config import ModelConfig, ModelError
from fleet_forecast.inference.model_directory import WEIGHTS_FILE, read_config, verify

PROFILE_EMBEDDING = "input_embeddings.embeddings.profile.weight"  # [1 + profile, width]; row 0 is the unknown profile


def earlier_model(model_dir: Path, spec: WindowSpec, profiles: tuple[str, ...], hidden_size: int) -> ModelConfig:
    """The configuration of a verified model directory, checked to be of the same architecture.

    profiles: those the new network will know, empty without the profile feature; they need not be the same ones.
    Raises ModelError naming what differs.
    """
    config = read_config(verify(model_dir))
    wanted = {
        "metrics": (config.targets, spec.metrics),
        "step in seconds": (config.step_seconds, spec.step_seconds),
        "context in steps": (config.context_steps, spec.context_steps),
        "horizon in steps": (config.horizon_steps, spec.horizon_steps),
        "hidden size": (config.hidden_size, hidden_size),
        "profile feature": (bool(config.profiles), bool(profiles)),
    }
    differing = [f"{name} (there {there}, here {here})" for name, (there, here) in wanted.items() if there != here]
    if differing:
        raise ModelError(
            f"--warm-start {model_dir}: another architecture than this training's: {', '.join(differing)}; choose "
            "flags and data to match, or train afresh without --warm-start"
        )
    return config


def start_from(network: nn.Module, profiles: tuple[str, ...], model_dir: Path, earlier: ModelConfig) -> None:
    """Put the earlier model's weights into a network that knows `profiles`.

    Raises ModelError if they do not fit (a model of another version of this software).
    """
    weights = load_file(model_dir.resolve() / WEIGHTS_FILE)
    if profiles:
        weights[PROFILE_EMBEDDING] = profile_rows(weights[PROFILE_EMBEDDING], earlier.profiles, profiles)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"--warm-start {model_dir}: its weights do not fit this network ({error}); it was made by another version "
            "of this software: train afresh without --warm-start"
        ) from error


def profile_rows(rows: torch.Tensor, known: tuple[str, ...], wanted: tuple[str, ...]) -> torch.Tensor:
    """Embedding rows [1 + known, width] -> [1 + wanted, width]: new profiles get the unknown one's row, row 0."""
    row_of = {name: row for row, name in enumerate(known, start=1)}
    return rows[[0, *(row_of.get(name, 0) for name in wanted)]].clone()
