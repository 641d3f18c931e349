"""The model directory: its files, how it is written as a whole, and how it is verified before use.

models/tft_model_<UTC time>/
    model.safetensors      weights of the stock network
    evaluated.safetensors  the same before the final fit, to compare a later model with; not in a model without one
    model.onnx             the same network with its head, for ONNX Runtime
    explain.onnx           the same with variable and attention weights as further outputs
    config.json            architecture, encoders, scaling, step, time zone, targets, quantiles, versions
    canary.json            a synthetic history and the forecast of it at training time
    training_info.json     how the model was trained, and its scores
    risk_model.txt, .json  trees of the risk model, and its features, calibration and curve; not in every model
    departures.json        how far healthy servers deviate from their forecasts; not in every model
    evaluation.json        errors by horizon, hour, profile and metric, calibration, cold start
    report.html, *.parquet a page for people, and its tables (scores, cold start, mean weights by profile)
    manifest.json          written last: format version, and size and sha256 of every other file
models/current             relative symbolic link to the model in use, switched by rename
models/starter/            the project's own model, used until there is another one; its README.md describes it

No file is a pickle, and loading runs no code from the directory. safetensors and ONNX files have no checksum of their
own; the manifest's sha256 detects damage.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from fleet_forecast.atomic_write import sync
from fleet_forecast.inference.model_config import CONFIG_FILE, RETRAIN, ModelConfig, ModelError

FORMAT_VERSION = 3  # of the files and their content; another one is refused
WEIGHTS_FILE = "model.safetensors"
EVALUATED_WEIGHTS_FILE = "evaluated.safetensors"
ONNX_FILE = "model.onnx"
EXPLAIN_FILE = "explain.onnx"
CANARY_FILE = "canary.json"
TRAINING_INFO_FILE = "training_info.json"
EVALUATION_FILE = "evaluation.json"
DEPARTURES_FILE = "departures.json"
MANIFEST_FILE = "manifest.json"
CURRENT_LINK = "current"
MAX_MANIFEST_BYTES = 1024 * 1024
MAX_DOCUMENT_BYTES = 8 * 1024 * 1024
STARTER = "starter"  # its model id
STARTER_DIR = Path(__file__).resolve().parents[2] / "models" / STARTER
STARTER_NOTICE = (
    "these are forecasts of the starter model, which was not trained on this fleet; train your own model: python "
    "tft_trainer.py --warm-start starter"
)
TEMPORARY_PREFIX = ".tmp-"  # of files being written; they remain only if the process is killed


@contextmanager
def only_writer(models_dir: Path) -> Iterator[None]:
    """Lock a models folder for one writing process, and remove the temporary files of a killed one.

    Raises ModelError if another process has the lock. The lock ends with the process.
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
    """A temporary directory to write a model into; on success it gets a manifest and is renamed to models_dir/model_id.

    Everything is on disk before the rename. After a crash or an exception there is no `model_id`.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    temporary = models_dir / f"{TEMPORARY_PREFIX}{model_id}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        write_manifest(temporary)
        temporary.rename(models_dir / model_id)
        sync(models_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def promote(models_dir: Path, model_id: str) -> None:
    """Point models_dir/current at model_id with one rename: a reader gets the old model or the new one."""
    temporary = models_dir / f"{TEMPORARY_PREFIX}{CURRENT_LINK}-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(model_id)
    temporary.replace(models_dir / CURRENT_LINK)
    sync(models_dir)


def present_model(path: Path, chosen: bool) -> Path:
    """The directory to load: `path`, or the starter model if the user chose no path and the default does not exist."""
    return path if chosen or path.exists() or path.is_symlink() else STARTER_DIR


def is_starter(model_id: str) -> bool:
    """Whether it is the starter model."""
    return model_id == STARTER


def verify(model_dir: Path) -> Path:
    """Check a model directory against its manifest; returns the directory with links resolved.

    Raises ModelError if the format version is another one, or with the first file that is missing, additional, a link,
    or differs from the manifest.
    """
    resolved = model_dir.resolve()
    if not resolved.is_dir():
        raise ModelError(f"{model_dir}: no such model directory; train one with tft_trainer.py or correct the path")
    manifest = _read_manifest(resolved)
    present = {path.name for path in resolved.iterdir()} - {MANIFEST_FILE}
    for name in sorted(present ^ set(manifest)):
        state = "is missing" if name in manifest else "does not belong to the model"
        raise ModelError(f"{resolved / name}: {state}; copy the model directory again or train again")
    for name, expected in manifest.items():
        path = resolved / name
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            whole = size == expected["bytes"] and _sha256(file) == expected["sha256"]
        if not whole:
            raise ModelError(
                f"{path}: is damaged (size or sha256 differs from the manifest); copy it again or train again"
            )
    return resolved


def read_config(model_dir: Path) -> ModelConfig:
    """The configuration of a verified model directory."""
    return ModelConfig.from_json((model_dir / CONFIG_FILE).read_text(encoding="utf-8"))


def write_manifest(directory: Path) -> None:
    """Write manifest.json over the files that are there, and flush everything to disk."""
    files = {}
    for path in sorted(directory.iterdir()):
        with open_regular(path) as file:
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(file)}
        sync(path)
    manifest = directory / MANIFEST_FILE
    manifest.write_text(json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=2), encoding="utf-8")
    sync(manifest)
    sync(directory)


def _read_manifest(model_dir: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 by file name. Raises ModelError on a manifest that is missing, damaged or of another format."""
    path = model_dir / MANIFEST_FILE
    try:
        manifest = json.loads(read_regular(path, MAX_MANIFEST_BYTES))
        version = manifest.get("format_version", 1)  # the first format had no version
        files = {
            str(name): {"bytes": int(of["bytes"]), "sha256": str(of["sha256"])}
            for name, of in manifest["files"].items()
        }
    except FileNotFoundError as error:
        if (model_dir / CURRENT_LINK).is_dir():
            raise ModelError(
                f"{model_dir}: holds models; give one of them, such as {model_dir / CURRENT_LINK}"
            ) from error
        raise ModelError(f"{path}: missing, so the model is not complete; train again or use another model") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not a manifest ({error}); copy the model directory again or train again") from error
    if version != FORMAT_VERSION:
        raise ModelError(f"{path}: format_version is {version!r}, this software reads {FORMAT_VERSION}; {RETRAIN}")
    return files


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read. Raises ModelError for a link, a pipe, a device or a folder, at once; OSError."""
    plain = stat.S_ISREG(path.lstat().st_mode)  # before it is opened: opening a device can have effects
    # The path can change in between: a link is not followed, a pipe without a writer is not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) if plain else None
    if descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    if descriptor is not None:
        os.close(descriptor)
    raise ModelError(f"{path}: is not a plain file; copy the model directory again or train again")


def read_regular(path: Path, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
    """The content of a regular file. Raises ModelError if it is not one or is larger; OSError."""
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ModelError(f"{path}: is larger than {max_bytes:,} bytes; copy the model directory again or train again")
    return content


def read_document(model_dir: Path | None, name: str) -> dict[str, Any] | None:
    """An optional JSON object of a model directory; None if there is none, or if it cannot be read."""
    if model_dir is None:
        return None
    try:
        document = json.loads(read_regular(model_dir / name, MAX_DOCUMENT_BYTES))
    except (OSError, ValueError, ModelError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
