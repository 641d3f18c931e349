"""Tries a model in a process of its own before the daemon loads it.

A file can make the loader hang or take any amount of memory, although its checksum is right. The process has limits of
both, and the daemon loads only what passed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
import sys
from pathlib import Path

import fleet_forecast
from fleet_forecast.atomic_write import replace_file
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import MANIFEST_FILE, read_regular
from fleet_forecast.serving.daemon_thread import on_daemon_thread

LOG = logging.getLogger(__name__)
ROOT = Path(fleet_forecast.__file__).parents[1]
REASON_CHARACTERS = 2_000


class ModelTrial:
    """Runs inference.trial; a model that passed is recorded in a file and not tried again."""

    def __init__(self, mib: float, seconds: float, record: Path) -> None:
        """mib: memory that the model may take. record: contains the sha256 of the manifest of the last good model."""
        self._mib, self._seconds, self._record = mib, seconds, record

    async def run(self, model_dir: Path) -> None:
        """Raise ModelError if the model cannot be used."""
        resolved, digest = await on_daemon_thread(_resolved_with_digest, model_dir)
        if digest is not None and digest == await on_daemon_thread(self._recorded):
            return
        await self._try(resolved)
        if digest is not None:
            await on_daemon_thread(self._keep, digest)

    async def _try(self, resolved: Path) -> None:
        command = ("-m", "fleet_forecast.inference.trial", str(resolved), "--mib", str(self._mib))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            "--seconds",
            str(self._seconds),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(self._seconds):
                output, _ = await process.communicate()
        except TimeoutError:
            raise ModelError(f"{resolved}: not checked within {self._seconds:g} s; raise model_seconds") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 1:
            raise ModelError(output.decode(errors="replace").strip()[-REASON_CHARACTERS:])
        if process.returncode:
            raise ModelError(f"{resolved}: its check was ended by {_cause(process.returncode)}; {self._remedy()}")

    def _remedy(self) -> str:
        return f"if it needs more than {self._mib:g} MiB of memory, raise model_mib"

    def _recorded(self) -> str | None:
        try:
            return self._record.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None

    def _keep(self, digest: str) -> None:
        try:
            replace_file(self._record, digest.encode() + b"\n")
        except OSError as problem:  # the next start tries the model again
            LOG.warning("checked model not recorded", extra={"file": str(self._record), "reason": str(problem)})


def _resolved_with_digest(model_dir: Path) -> tuple[Path, str | None]:
    resolved = model_dir.resolve()
    try:
        return resolved, hashlib.sha256(read_regular(resolved / MANIFEST_FILE)).hexdigest()
    except (OSError, ModelError):  # the trial gives the reason
        return resolved, None


def _cause(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
