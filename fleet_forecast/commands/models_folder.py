"""The models of a folder: the previous one, and the removal of old ones.

A model records in its training_info.json which model it was compared with and replaced. No other file could contradict
`current`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import (
    CURRENT_LINK,
    MANIFEST_FILE,
    TEMPORARY_PREFIX,
    TRAINING_INFO_FILE,
    promote,
    read_document,
    verify,
)

FEWEST_KEPT = 2  # the current model and the one before


def current_model(models_dir: Path) -> Path | None:
    """The directory that models_dir/current points to; None without the link. It need not exist."""
    link = models_dir / CURRENT_LINK
    return link.resolve() if link.is_symlink() or link.exists() else None


def model_before(models_dir: Path) -> Path | None:
    """The model that the current one replaced; None if the current one records none."""
    current = current_model(models_dir)
    if current is None:
        return None
    champion = (read_document(current, TRAINING_INFO_FILE) or {}).get("champion")
    name = champion.get("model") if isinstance(champion, dict) else None
    return models_dir.resolve() / Path(name).name if isinstance(name, str) and name else None


def roll_back(models_dir: Path) -> tuple[str, str]:
    """Point `current` at the previous model; returns the names of the current and of the previous one.

    Raises ModelError if there is no current model, none before, or if that one is not complete.
    """
    current, before = current_model(models_dir), model_before(models_dir)
    if current is None:
        raise ModelError(f"{models_dir / CURRENT_LINK}: does not exist; train a model, or give another --models-dir")
    if before is None or not before.is_dir():
        missing = "it records no model before it" if before is None else f"the model before, {before.name}, is gone"
        raise ModelError(
            f"{current}: {missing}; point the link at one of the folder's models: ln -sfn MODEL "
            f"{models_dir / CURRENT_LINK}"
        )
    verify(before)
    promote(models_dir, before.name)
    return current.name, before.name


def remove_old(models_dir: Path, keep: int) -> list[str]:
    """Delete all models but the newest `keep`; never the current one and the one before. Returns the deleted names.

    A model is renamed before its files are deleted, so that a killed deletion leaves no incomplete model;
    model_directory.only_writer removes the rest.
    """
    kept = {path.name for path in (current_model(models_dir), model_before(models_dir)) if path is not None}
    models = sorted(path for path in models_dir.glob("tft_model_*") if (path / MANIFEST_FILE).is_file())
    surplus = len(models) - max(keep, FEWEST_KEPT)
    removed = [path for path in models if path.name not in kept][: max(0, surplus)]
    for path in removed:
        doomed = models_dir / f"{TEMPORARY_PREFIX}removed-{path.name}-{os.getpid()}"
        path.rename(doomed)
        shutil.rmtree(doomed)
    return [path.name for path in removed]
