"""The checkpoint of an unfinished training run: one file in the models folder, replaced atomically.

models/.unfinished.safetensors has the tensors of each part of the run (the model; the ablation without profiles) and,
as JSON in its header, a format version, the counters of each part and the identity of the run: settings and a
fingerprint of the data. It is not a model: the loader and the daemon do not read it. It is removed after the run has
published its model.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.model_directory import TEMPORARY_PREFIX
from fleet_forecast.training.ranks.group import is_first
from fleet_forecast.training.trainer_state import TrainerState, TrainerTensors

CHECKPOINT_FILE = ".unfinished.safetensors"
CHECKPOINT_FORMAT = 3  # increase it when the names or the meaning of counters or tensors change; 1 was not recorded
SEPARATOR = "/"  # between the name of a part and that of a tensor

Tensors = dict[str, torch.Tensor]


class CheckpointError(RuntimeError):
    """There is no run to resume, or its checkpoint cannot be used. The message names the cause and the remedy."""


@dataclass(frozen=True)
class PartState:
    """Tensors, and counters that JSON can represent, of one part of a run."""

    tensors: Tensors
    counters: dict[str, Any]


@dataclass
class Checkpoint:
    """The state of an unfinished run, by part.

    identity: settings and data that must be equal for a run to be resumed, by the flag or field that sets them.
    """

    path: Path
    identity: dict[str, Any]
    parts: dict[str, PartState] = field(default_factory=dict)

    @classmethod
    def new(cls, models_dir: Path, identity: Mapping[str, Any]) -> Checkpoint:
        """An empty checkpoint. The file of an earlier run remains until the first `save`."""
        return cls(models_dir / CHECKPOINT_FILE, _json_round_trip(identity))

    @classmethod
    def resume(cls, models_dir: Path, identity: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint in the folder. Raises CheckpointError if there is none or if its identity differs."""
        path = models_dir / CHECKPOINT_FILE
        if not path.exists():
            raise CheckpointError(
                f"--resume: {path} does not exist, so there is nothing to resume; train without --resume"
            )
        saved, parts = _read(path)
        present = _json_round_trip(identity)
        differing = [
            f"{name} (was {saved.get(name)!r}, is {present.get(name)!r})"
            for name in sorted({*saved, *present})
            if saved.get(name) != present.get(name)
        ]
        if differing:
            raise CheckpointError(
                f"--resume: the interrupted run had other settings or data: {', '.join(differing)}; "
                "give the same again, or train afresh without --resume"
            )
        return cls(path, present, parts)

    def save(self, part: str, state: PartState) -> None:
        """Write this state and the latest ones of the other parts to disk.

        If the file cannot be written (full disk), a note goes to stderr and the earlier file remains.
        """
        self.parts[part] = state
        tensors = {
            f"{name}{SEPARATOR}{key}": value
            for name, of_part in self.parts.items()
            for key, value in of_part.tensors.items()
        }
        header = {
            "format": CHECKPOINT_FORMAT,
            "identity": self.identity,
            "parts": {name: of_part.counters for name, of_part in self.parts.items()},
        }
        try:
            content = save(tensors, metadata={"run": json.dumps(header)})
            replace_file(self.path, content, prefix=f"{TEMPORARY_PREFIX}unfinished-")
        except (OSError, SafetensorError) as error:
            print(
                f"\nnote: {self.path}: the checkpoint could not be saved ({error}); training continues", file=sys.stderr
            )

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Checkpointer:
    """Saves and restores one part of a run. Without a checkpoint it does nothing.

    Of several processes the first one writes, and all read.
    """

    part: str
    checkpoint: Checkpoint | None = None

    def save(self, state: TrainerState, tensors: TrainerTensors) -> None:
        """Write the state to disk."""
        if self.checkpoint and is_first():
            self.checkpoint.save(self.part, PartState(tensors.state_dict(), state.counters()))

    def restore(self, state: TrainerState, tensors: TrainerTensors) -> None:
        """Load the last saved state of the part, if there is one.

        Raises CheckpointError if it belongs to another network.
        """
        if not self.checkpoint or self.part not in self.checkpoint.parts:
            return
        saved = self.checkpoint.parts[self.part]
        try:
            tensors.load_state_dict(saved.tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"--resume: the state of the interrupted run does not fit this network ({error}); it was made by "
                "another version of this software: train without --resume"
            ) from error
        state.restore(saved.counters)


def fingerprint(grid: FleetGrid) -> str:
    """sha256 of the data: servers, profiles, metrics, times and values."""
    digest = hashlib.sha256()
    described = [grid.servers, grid.profiles, grid.metrics, str(grid.start), grid.step_seconds, grid.values.shape]
    digest.update(json.dumps(described).encode())
    for of_server in grid.values:
        digest.update(np.ascontiguousarray(of_server).data)
    return digest.hexdigest()


def _json_round_trip(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as it is read back from a file: tuples become lists."""
    decoded: dict[str, Any] = json.loads(json.dumps(identity))
    return decoded


def _read(path: Path) -> tuple[dict[str, Any], dict[str, PartState]]:
    """Identity and parts. Raises CheckpointError if the file is damaged or of another format."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["run"])
            _check_format(path, header.get("format", 1))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        parts = {
            part: PartState(
                {
                    name.removeprefix(part + SEPARATOR): value
                    for name, value in tensors.items()
                    if name.startswith(part + SEPARATOR)
                },
                counters,
            )
            for part, counters in header["parts"].items()
        }
        return dict(header["identity"]), parts
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"--resume: {path} is damaged ({error}); remove it and train without --resume") from error


def _check_format(path: Path, version: object) -> None:
    if version != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"--resume: {path} has checkpoint format {version}, this software reads {CHECKPOINT_FORMAT}; train without "
            "--resume, or resume with the version of the software that wrote it"
        )
