"""The model directory: what is in it, how it is written so that it is never half there, how it is checked before use.

models/tft_model_<UTC time>/
    model.safetensors      weights of the stock network
    model.onnx             the same network with its head, for ONNX Runtime
    explain.onnx           the same with the weights of variables and attention as further outputs
    config.json            architecture, encoders, scaling, step, time zone, targets, quantiles, contract version
    training_info.json     how it was trained and how it scored
    report.html, *.parquet the same for people, and the tables behind it (scores, cold start, mean weights by profile)
    manifest.json          written last: size and sha256 of every other file
models/current             relative symbolic link to the model in use, switched by rename

No file is a pickle; loading runs no code from the directory. safetensors and ONNX carry no checksum, so the manifest's
sha256 is what tells a flipped bit from a good model.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fleet_forecast.contract.specs import CONTRACT_VERSION
from fleet_forecast.features.scaling import STATISTICS, FleetScaling
from fleet_forecast.features.windows import WINDOWS_VERSION, WindowSpec

WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
EXPLAIN_FILE = "explain.onnx"  # loaded when an explanation is asked for; older models have none
CONFIG_FILE = "config.json"
CANARY_FILE = "canary.json"
TRAINING_INFO_FILE = "training_info.json"
MANIFEST_FILE = "manifest.json"
CURRENT_LINK = "current"
TEMPORARY_PREFIX = ".tmp-"  # of what is being written; left behind only by a run that was killed
CANARY_TOLERANCE = 1e-3  # relative to the canary's quantiles: float32 sums differ a little between processors


class ModelError(RuntimeError):
    """A model directory cannot be used; the message names the file, what is wrong and the remedy."""


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed beside the weights to rebuild the model and feed it.

    Raises ModelError on versions of the contract or of windows other than this software's.
    """

    model_id: str
    contract_version: str
    hidden_size: int
    quantiles: tuple[float, ...]
    network_profiles: tuple[str, ...]
    spec: WindowSpec
    scaling: FleetScaling
    windows_version: int = 1  # models that do not say it are of the first

    def __post_init__(self) -> None:
        for name, spoken in (("contract_version", CONTRACT_VERSION), ("windows_version", WINDOWS_VERSION)):
            if (own := getattr(self, name)) != spoken:
                raise ModelError(
                    f"{CONFIG_FILE}: {name} is {own!r}, this software speaks {spoken!r}; "
                    "train again with this version or use the software the model came with"
                )

    @property
    def targets(self) -> tuple[str, ...]:
        """The metrics the model forecasts, in the order of its arrays."""
        return self.spec.metrics

    @property
    def step_seconds(self) -> int:
        """Seconds per step."""
        return self.spec.step_seconds

    @property
    def timezone(self) -> str:
        """Business time zone of the calendar features."""
        return self.spec.timezone

    @property
    def context_steps(self) -> int:
        """Length of the encoder in steps."""
        return self.spec.context_steps

    @property
    def horizon_steps(self) -> int:
        """Length of the forecast in steps."""
        return self.spec.horizon_steps

    @property
    def history_steps(self) -> int:
        """How many past steps the model can use; more is ignored."""
        return self.spec.history_steps

    @property
    def profiles(self) -> tuple[str, ...]:
        """Profiles the model was trained on (empty if it was trained without the profile feature)."""
        return self.network_profiles

    def to_json(self) -> str:
        """config.json."""
        scaling = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in asdict(self.scaling).items()
        }
        return json.dumps({**asdict(self), "scaling": scaling}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read config.json; raises ModelError if a field is missing, unknown or not what it should be."""
        try:
            fields = json.loads(text)
            if fields["contract_version"] == CONTRACT_VERSION:
                fields["spec"] = WindowSpec(**{**fields["spec"], "metrics": tuple(fields["spec"]["metrics"])})
                fields["scaling"] = _scaling_from_fields(fields["scaling"])
                fields["quantiles"] = tuple(fields["quantiles"])
                fields["network_profiles"] = tuple(fields["network_profiles"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{CONFIG_FILE}: not a model configuration ({error}); train again") from error


def _scaling_from_fields(fields: Mapping[str, Any]) -> FleetScaling:
    floats = {name: np.array(fields[name], dtype=np.float32) for name in ("bound_width", *STATISTICS)}
    return FleetScaling(
        metrics=tuple(fields["metrics"]),
        percent=np.array(fields["percent"], dtype=bool),
        profiles=tuple(fields["profiles"]),
        context_steps=int(fields["context_steps"]),
        **floats,
    )


@contextmanager
def only_writer(models_dir: Path) -> Iterator[None]:
    """Hold a models folder: one training at a time writes there; what a killed one left half-written is removed.

    Raises ModelError if another process holds it. The hold ends with the process, however it ends.
    """
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ModelError(f"{models_dir}: is a file; give a folder as --models-dir") from None
    descriptor = os.open(models_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ModelError(
                f"{models_dir}: another training writes there; wait until it has ended or give another --models-dir"
            ) from error
        for path in models_dir.glob(f"{TEMPORARY_PREFIX}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        yield
    finally:
        os.close(descriptor)


@contextmanager
def new_model_directory(models_dir: Path, model_id: str) -> Iterator[Path]:
    """A temporary directory to write a model into; on success it is sealed and becomes models_dir/model_id.

    Everything is on disk before the name appears; a crash or an exception at any point leaves no `model_id`.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    temporary = models_dir / f"{TEMPORARY_PREFIX}{model_id}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _seal(temporary)
        temporary.rename(models_dir / model_id)
        sync(models_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def promote(models_dir: Path, model_id: str) -> None:
    """Point models_dir/current at model_id: one rename, so a reader sees the old model or the new one."""
    temporary = models_dir / f"{TEMPORARY_PREFIX}{CURRENT_LINK}-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(model_id)
    temporary.replace(models_dir / CURRENT_LINK)
    sync(models_dir)


def verify(model_dir: Path) -> Path:
    """Check a model directory against its manifest; returns the directory with links resolved.

    Raises ModelError naming the first file that is missing, additional, a link, or not as the manifest says.
    """
    resolved = model_dir.resolve()
    if not resolved.is_dir():
        raise ModelError(f"{model_dir}: no such model directory; train one with tft_trainer.py or correct the path")
    manifest = _read_manifest(resolved)
    present = {path.relative_to(resolved).as_posix() for path in resolved.rglob("*")} - {MANIFEST_FILE}
    for name in sorted(present ^ set(manifest)):
        state = "is missing" if name in manifest else "does not belong to the model"
        raise ModelError(f"{resolved / name}: {state}; copy the model directory again or train again")
    for name, expected in manifest.items():
        path = resolved / name
        if path.is_symlink() or not path.is_file():
            raise ModelError(f"{path}: is not a plain file; copy the model directory again or train again")
        if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise ModelError(
                f"{path}: is damaged (size or sha256 differs from the manifest); copy it again or train again"
            )
    return resolved


def read_config(model_dir: Path) -> ModelConfig:
    """The configuration of a verified model directory."""
    return ModelConfig.from_json((model_dir / CONFIG_FILE).read_text(encoding="utf-8"))


def _read_manifest(model_dir: Path) -> dict[str, dict[str, Any]]:
    path = model_dir / MANIFEST_FILE
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): {"bytes": int(of["bytes"]), "sha256": str(of["sha256"])} for name, of in files.items()}
    except FileNotFoundError as error:
        if (model_dir / CURRENT_LINK).is_dir():
            raise ModelError(
                f"{model_dir}: holds models; give one of them, such as {model_dir / CURRENT_LINK}"
            ) from error
        raise ModelError(f"{path}: missing, so the model is not complete; train again or use another model") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a manifest ({error}); copy the model directory again or train again") from error


def _seal(directory: Path) -> None:
    """Write manifest.json over the files present and flush everything to disk."""
    files = {}
    for path in sorted(directory.iterdir()):
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        sync(path)
    manifest = directory / MANIFEST_FILE
    manifest.write_text(json.dumps({"files": files}, indent=2), encoding="utf-8")
    sync(manifest)
    sync(directory)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
