"""Files that are replaced as a whole: a reader finds the old content or the new content."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READABLE_BY_ALL = 0o644


def replace_file(path: Path, content: bytes, prefix: str | None = None) -> None:
    """Write `content` to a temporary file in the same folder, flush it to disk and rename it to `path`.

    prefix: of the temporary file's name, by which a later run finds what a killed one left; default: .NAME.
    Raises OSError if the folder cannot be written or the disk is full; `path` is then unchanged.
    """
    with new_file(path, prefix) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_file(path: Path, prefix: str | None = None) -> Iterator[Path]:
    """A temporary file to write in the `with` block; it is then flushed to disk and renamed to `path`.

    After an exception in the block, `path` is unchanged. The arguments and errors are those of `replace_file`.
    """
    handle, name = tempfile.mkstemp(prefix=prefix or f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(READABLE_BY_ALL)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
