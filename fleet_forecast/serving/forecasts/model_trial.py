"""Tries a model in a process of its own before the daemon loads it.

A file can make the loader hang or take any amount of memory, although its checksum is right. The process has limits of
both, and the daemon loads only what passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import fleet_forecast
from fleet_forecast.atomic_write import replace_file
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import MANIFEST_FILE, read_regular
from fleet_forecast.serving.daemon_thread import on_daemon_thread
from fleet_forecast.serving.settings import Settings

LOG = logging.getLogger(__name__)
ROOT = Path(fleet_forecast.__file__).parents[1]
REASON_CHARACTERS = 2_000


class _Model(NamedTuple):
    """A directory with links resolved; digest: of its manifest, None if that cannot be read."""

    path: Path
    digest: str | None


class _Trial(NamedTuple):
    model: _Model
    process: subprocess.Popen[bytes]


class ModelTrial:
    """Runs inference.trial; a model that passed is recorded in a file and not tried again."""

    def __init__(self, mib: float, seconds: float, record: Path) -> None:
        """mib: memory that the model may take. record: contains the sha256 of the manifest of the last good model."""
        self._mib, self._seconds, self._record = mib, seconds, record
        self._begun: _Trial | None = None

    @classmethod
    def of(cls, settings: Settings) -> ModelTrial:
        """The trial with these limits; its record is beside the history."""
        return cls(settings.model_mib, settings.model_seconds, settings.beside_history(".checked-model"))

    def begin(self, model_dir: Path) -> None:
        """Begin a trial that `run` of the same model waits for: the caller has other work meanwhile."""
        model = _identity(model_dir)
        if not self._passed(model):
            self._begun = _Trial(model, self._start(model))

    def close(self) -> None:
        """End a trial that nothing waits for."""
        if self._begun is not None:
            _end(self._begun.process)
            self._begun.process.communicate()
            self._begun = None

    async def run(self, model_dir: Path) -> None:
        """Raise ModelError if the model cannot be used."""
        model = await on_daemon_thread(_identity, model_dir)
        if await on_daemon_thread(self._passed, model):
            return
        if self._begun is not None and self._begun.model != model:  # the model changed in between
            await on_daemon_thread(self.close)
        begun, self._begun = self._begun, None
        await self._result(model, begun.process if begun else self._start(model))
        if model.digest is not None:
            await on_daemon_thread(self._keep, model.digest)

    def _passed(self, model: _Model) -> bool:
        try:
            return model.digest is not None and model.digest == self._record.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return False

    def _start(self, model: _Model) -> subprocess.Popen[bytes]:
        limits = ("--mib", str(self._mib), "--seconds", str(self._seconds))
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "fleet_forecast.inference.trial", str(model.path), *limits],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    async def _result(self, model: _Model, process: subprocess.Popen[bytes]) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                output, _ = await on_daemon_thread(process.communicate)
        except TimeoutError:
            raise ModelError(f"{model.path}: not checked within {self._seconds:g} s; raise model_seconds") from None
        finally:
            _end(process)
        if process.returncode == 1:
            raise ModelError(output.decode(errors="replace").strip()[-REASON_CHARACTERS:])
        if process.returncode:
            raise ModelError(f"{model.path}: its check was ended by {_cause(process.returncode)}; {self._remedy()}")

    def _remedy(self) -> str:
        return f"if it needs more than {self._mib:g} MiB of memory, raise model_mib"

    def _keep(self, digest: str) -> None:
        try:
            replace_file(self._record, digest.encode() + b"\n")
        except OSError as problem:  # the next start tries the model again
            LOG.warning("checked model not recorded", extra={"file": str(self._record), "reason": str(problem)})


def _identity(model_dir: Path) -> _Model:
    resolved = model_dir.resolve()
    try:
        return _Model(resolved, hashlib.sha256(read_regular(resolved / MANIFEST_FILE)).hexdigest())
    except (OSError, ModelError):  # the trial gives the reason
        return _Model(resolved, None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, unless it has ended; one that a broken disk holds is not waited for."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def _cause(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
