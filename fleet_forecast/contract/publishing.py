"""Replaces the metrics and the metadata of a folder, each as a whole."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet_forecast.atomic_write import sync
from fleet_forecast.contract.specs import METADATA_FILE, METRICS_FILE, METRICS_FOLDER

_TEMPORARY = ".server_metrics-"
_WRITTEN = re.compile(r"(servers-\d{7}|\d{8}T\d{6}Z-\d{6,})\.parquet")  # names of part files


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, on the same file system as `folder`; it is removed afterwards.

    Raises OSError if `folder` has metrics that no generator wrote, which publishing would remove.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_foreign_files(folder / METRICS_FOLDER)
    for abandoned in folder.glob(f"{_TEMPORARY}*"):  # by a run that was killed
        if not Path(f"/proc/{abandoned.name.removeprefix(_TEMPORARY)}").exists():
            shutil.rmtree(abandoned, ignore_errors=True)
    temporary = folder / f"{_TEMPORARY}{os.getpid()}"
    if temporary.exists():  # by a killed run with the same process id, which is usual in containers
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_foreign_files(metrics: Path) -> None:
    if metrics.is_symlink():
        raise OSError(f"{metrics}: is a link, which would be replaced; give another folder, or remove the link")
    for path in sorted(metrics.iterdir()) if metrics.is_dir() else ():
        if not _WRITTEN.fullmatch(path.name):
            raise OSError(f"{metrics}: has {path.name}, which would be removed; give another folder, or move the file")


def publish(temporary: Path, folder: Path) -> Path:
    """Move metrics, then metadata from a working folder to `folder`, each in one step; returns the metrics' path.

    A reader between the two steps finds the new metrics and the earlier metadata.
    """
    for file in temporary.rglob("*"):
        sync(file)
    new = next(path for path in (temporary / METRICS_FILE, temporary / METRICS_FOLDER) if path.exists())
    target = folder / new.name
    if new.is_dir() and target.is_dir():
        _exchange(new, target)
    else:
        new.replace(target)
    (temporary / METADATA_FILE).replace(folder / METADATA_FILE)
    if new.name == METRICS_FOLDER:  # a single file has precedence for readers
        (folder / METRICS_FILE).unlink(missing_ok=True)
    elif (folder / METRICS_FOLDER).is_dir():
        (folder / METRICS_FOLDER).rename(temporary / "replaced")
    sync(folder)
    return target


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders: in one step on Linux, in two steps elsewhere."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_working_directory, exchange = -100, 2
    if renameat2 is not None:
        paths = (at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second))
        if renameat2(*paths, exchange) == 0:
            return
    aside = first.with_name("replaced")
    second.rename(aside)
    first.rename(second)
