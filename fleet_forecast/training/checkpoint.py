"""What an interrupted training goes on from: one file below the models folder, replaced as a whole.

models/.unfinished.safetensors holds the tensors of each part of the run (the model; the comparison without profiles)
and, in its header as JSON, their counters and the run's identity: a fingerprint of the data and the settings. It is
written beside and renamed, so that a crash at any point leaves the state before or the state after. It is no model:
the loader and the daemon never look at it, and the run that publishes removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fleet_forecast.atomic_write import sync
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.model_directory import TEMPORARY_PREFIX

CHECKPOINT_FILE = ".unfinished.safetensors"
SEPARATOR = "/"  # between a part's name and a tensor's

Tensors = dict[str, torch.Tensor]


class CheckpointError(RuntimeError):
    """There is nothing to resume, or not by this run; the message says why and what to do."""


@dataclass(frozen=True)
class PartState:
    """Tensors and JSON-able counters of one part of a run."""

    tensors: Tensors
    counters: dict[str, Any]


@dataclass
class Checkpoint:
    """The state of an unfinished run, by part.

    identity: what must be the same for the run to go on bit for bit, by the flag or field that sets it.
    """

    path: Path
    identity: dict[str, Any]
    parts: dict[str, PartState] = field(default_factory=dict)

    @classmethod
    def new(cls, models_dir: Path, identity: Mapping[str, Any]) -> Checkpoint:
        """For a run from the start; an older file stays until this run first saves its state."""
        return cls(models_dir / CHECKPOINT_FILE, _as_json(identity))

    @classmethod
    def resume(cls, models_dir: Path, identity: Mapping[str, Any]) -> Checkpoint:
        """The interrupted run's state. Raises CheckpointError if there is none or if it is not of this identity."""
        path = models_dir / CHECKPOINT_FILE
        if not path.exists():
            raise CheckpointError(
                f"--resume: {path} does not exist, so there is nothing to resume; train without --resume"
            )
        saved, parts = _read(path)
        present = _as_json(identity)
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
        """Keep the state of one part beside those of the others; on disk when this returns.

        A full disk costs the training nothing but the checkpoint: it is said on stderr.
        """
        self.parts[part] = state
        tensors = {
            f"{name}{SEPARATOR}{key}": value
            for name, of_part in self.parts.items()
            for key, value in of_part.tensors.items()
        }
        header = {"identity": self.identity, "parts": {name: of.counters for name, of in self.parts.items()}}
        temporary = self.path.with_name(f"{TEMPORARY_PREFIX}unfinished-{os.getpid()}")
        try:
            save_file(tensors, temporary, metadata={"run": json.dumps(header)})
            sync(temporary)
            temporary.replace(self.path)
            sync(self.path.parent)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            print(f"\nnote: {self.path}: the state could not be saved ({error}); training goes on", file=sys.stderr)

    def remove(self) -> None:
        """The run is published: there is nothing left to resume."""
        self.path.unlink(missing_ok=True)


def _as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples are lists there."""
    read: dict[str, Any] = json.loads(json.dumps(identity))
    return read


def _read(path: Path) -> tuple[dict[str, Any], dict[str, PartState]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
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


def fingerprint(grid: FleetGrid) -> str:
    """sha256 over everything training reads of the data: servers, profiles, metrics, times and values."""
    digest = hashlib.sha256()
    described = [grid.servers, grid.profiles, grid.metrics, str(grid.start), grid.step_seconds, grid.values.shape]
    digest.update(json.dumps(described).encode())
    for of_server in grid.values:
        digest.update(np.ascontiguousarray(of_server).data)
    return digest.hexdigest()
