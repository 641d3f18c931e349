"""A fleet in parts: parquet files that each hold whole servers, in a folder or at an address of fsspec (s3://...)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec

from fleet_forecast.atomic_write import new_file
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.contract.specs import METADATA_FILE, METRICS_FOLDER

MANIFEST_FILE = "manifest.json"
_SUFFIXES = (".parquet", ".parq", ".pq")


class Part(NamedTuple):
    """A file of the input. name: its path below the input, with folders such as date=2026-11-29/."""

    address: str
    name: str


class Folder:
    """A folder, or a single file, at a path or an address; errors name the address. Can be sent to other processes."""

    def __init__(self, address: str) -> None:
        """Raises DataFileError if nothing knows how to reach the address."""
        self.address = address
        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as problem:
            raise DataFileError(
                f"{address}: cannot be reached ({problem}); install what it names, or correct it"
            ) from None

    def parts(self) -> list[Part]:
        """The parquet files, sorted; hidden ones and those that begin with _ are left out. Raises DataFileError."""
        try:
            if self._files.isfile(self._root):
                return [Part(self.address, PurePosixPath(self._root).name)]
            found = sorted(self._files.find(self._root))
        except OSError as problem:
            raise self._unusable("cannot be listed", problem) from None
        names = [PurePosixPath(path).relative_to(self._root).as_posix() for path in found]
        parts = [Part(self._files.unstrip_protocol(path), name) for path, name in zip(found, names, strict=True)]
        parts = [part for part in parts if part.name.lower().endswith(_SUFFIXES) and _is_visible(part.name)]
        if not parts:
            raise DataFileError(f"{self.address}: holds no parquet files; give a folder of them, each of whole servers")
        return parts

    def is_within(self, other: Folder) -> bool:
        """Whether this folder is the other one, or in it."""
        own, root = PurePosixPath(self._root), PurePosixPath(other._root)
        return self._files == other._files and (own == root or root in own.parents)

    def refuse_other_files(self, expected: Sequence[str]) -> None:
        """Raises DataFileError if the folder has visible files that are not the expected ones, or is a file."""
        if not self._files.exists(self._root):
            return
        if self._files.isfile(self._root):
            raise DataFileError(f"{self.address}: is a file; give a folder")
        names = (
            PurePosixPath(path).relative_to(self._root).as_posix() for path in sorted(self._files.find(self._root))
        )
        known = set(expected)
        for name in names:
            if name not in known and _is_visible(name):
                raise DataFileError(
                    f"{self.address}: has {name}, which this run does not write; give an empty folder, or remove it"
                )

    def interrupted_note(self, parts: Sequence[Part]) -> str | None:
        """A note if the folder looks like that of a generator's run that did not end: it writes the metadata last."""
        generated = any(part.name.startswith(f"{METRICS_FOLDER}/") for part in parts)
        if not generated or self._files.exists(f"{self._root.rstrip('/')}/{METADATA_FILE}"):
            return None
        return f"{self.address}: has no {METADATA_FILE}; if metrics_generator.py wrote these files, it was interrupted"

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        """A local file to write in the `with` block, which then appears as `name` in the folder, as a whole.

        Raises DataFileError if it cannot be written.
        """
        target = f"{self._root.rstrip('/')}/{name}"
        try:
            if _is_local(self._files):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                with new_file(Path(target)) as file:
                    yield file
                return
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / PurePosixPath(name).name
                yield file
                self._files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
                self._files.put_file(str(file), target)  # an object store shows an object once it is whole
        except OSError as problem:
            raise self._unusable(f"{name} cannot be written", problem) from None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        target = f"{self._root.rstrip('/')}/{name}"
        if self._files.exists(target):
            self._files.rm_file(target)

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Write manifest.json, which says that the run has ended."""
        with self.new(MANIFEST_FILE) as file:
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _unusable(self, what: str, problem: OSError) -> DataFileError:
        reason = problem.strerror or problem
        return DataFileError(f"{self.address}: {what} ({reason}); check the address, its rights and its free space")


@contextmanager
def fetched(part: Part) -> Iterator[Path]:
    """A local folder that holds the part alone, under its name. Raises DataFileError if it cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / part.name
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            files, path = fsspec.core.url_to_fs(part.address)
            if _is_local(files):
                local.symlink_to(Path(path).absolute())
            else:
                files.get_file(path, str(local))
        except (ImportError, ValueError, OSError) as problem:
            raise DataFileError(
                f"{part.address}: cannot be read ({problem}); check the address and its rights"
            ) from None
        try:
            yield Path(folder)
        except DataFileError as problem:  # names the file in the temporary folder
            raise DataFileError(str(problem).replace(f"{folder}/", "")) from None


def _is_local(files: Any) -> bool:
    return "file" in ([files.protocol] if isinstance(files.protocol, str) else files.protocol)


def _is_visible(name: str) -> bool:
    return not any(piece.startswith((".", "_")) for piece in PurePosixPath(name).parts)
