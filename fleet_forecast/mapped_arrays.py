"""Large arrays of a run: in memory, or in mapped files.

A mapped file may be larger than the memory, because the system writes parts of it to disk and reads them again. The
processes of a machine share it. It is unlinked once all processes have opened it, so nothing is left when they end or
are killed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

Shape = tuple[int, ...]


class ArraysInMemory:
    """Arrays of this process alone."""

    def new(self, shape: Shape, fill: Callable[[np.ndarray], None]) -> np.ndarray:
        """A float32 array that `fill` is called with."""
        array = np.empty(shape, dtype=np.float32)
        fill(array)
        return array

    def zeros(self, size: int, dtype: type) -> np.ndarray:
        """An array of zeros for intermediate results of `fill`: [size]."""
        return np.zeros(size, dtype=dtype)


IN_MEMORY = ArraysInMemory()


class MappedArrays(ArraysInMemory):
    """Arrays in files of a folder, which several processes may share: the first one fills them, the others read.

    prefix: path of the files, which is completed; the same in all processes of a machine, and used by nothing else.
    first: whether this process is the machine's first one. wait: returns when all processes have called it.
    """

    def __init__(self, prefix: Path, first: bool = True, wait: Callable[[], object] = lambda: None) -> None:
        self._prefix, self._first, self._wait = prefix, first, wait

    def new(self, shape: Shape, fill: Callable[[np.ndarray], None]) -> np.ndarray:
        """As of ArraysInMemory; the first process fills it. Raises OSError if the folder has too little space."""
        path = self._path("array")
        if self._first:
            array = _mapped(path, shape, np.float32)
            fill(array)
        self._wait()
        if not self._first:
            array = np.asarray(np.memmap(path, np.float32, "c", shape=shape))
        self._wait()
        if self._first:
            path.unlink()
        return array

    def zeros(self, size: int, dtype: type) -> np.ndarray:
        """As of ArraysInMemory. Raises OSError."""
        path = self._path("zeros")
        array = _mapped(path, (size,), dtype)
        path.unlink()
        return array

    def _path(self, name: str) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}-{name}")


def _mapped(path: Path, shape: Shape, dtype: type) -> np.ndarray:
    """A new file of zeros as an array. Its space is reserved: a full disk would end the process at a later write."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with path.open("xb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as problem:
            path.unlink()
            if problem.errno != errno.ENOSPC:
                raise
            raise OSError(
                f"{path.parent}: has no space for {size / 1e9:.1f} GB of data; give another folder with --grid-folder"
            ) from None
    return np.asarray(np.memmap(path, dtype, "r+", shape=shape))
