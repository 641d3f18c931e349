"""The silences in use: those of the rules file, and those added by the API, which are stored in a file."""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.intervals.silences import EXCLUDE, Silence, excluded_cells, stored_silences

LOG = logging.getLogger(__name__)
MAX_SILENCES = 1_000  # added by the API
KEPT_SECONDS = 7 * 86_400  # after its end a silence of the API is listed this long


class SilencesError(Exception):
    """A silence cannot be added or deleted now; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class KnownSilence:
    """A silence with its id. of_file: it is in the rules file and cannot be deleted by the API."""

    silence_id: str
    silence: Silence
    of_file: bool


class SilenceBook:
    """All silences; reads need no lock, changes of the API are on disk when they return."""

    def __init__(self, of_file: Sequence[Silence], stored_in: Path, clock: Callable[[], float]) -> None:
        self.use_file(of_file)
        self._path, self._clock = stored_in, clock
        self._changes = threading.Lock()
        self._problem: str | None = None
        self._added = self._read()

    def use_file(self, of_file: Sequence[Silence]) -> None:
        """The silences of the rules file from now on."""
        self._of_file = [KnownSilence(f"file-{number}", each, True) for number, each in enumerate(of_file, start=1)]

    @property
    def known(self) -> list[KnownSilence]:
        """All silences: those of the file, then the others in the order in which they were added."""
        return [*self._of_file, *(KnownSilence(key, silence, False) for key, silence in self._added.items())]

    def add(self, silence: Silence) -> KnownSilence:
        """Store a silence. Raises SilencesError if there are too many or the file cannot be written."""
        with self._changes:
            now = self._clock()
            kept = {key: old for key, old in self._added.items() if old.until is None or old.until + KEPT_SECONDS > now}
            if len(kept) >= MAX_SILENCES:
                raise SilencesError(f"there are {MAX_SILENCES} silences; delete one first")
            new = KnownSilence(secrets.token_hex(8), silence, False)
            self._write({**kept, new.silence_id: silence})
        return new

    def delete(self, silence_id: str) -> bool:
        """Delete a silence; False if there is none of this id. Raises SilencesError for one of the rules file."""
        with self._changes:
            if any(known.silence_id == silence_id for known in self._of_file):
                raise SilencesError(f"{silence_id} is in the rules file; remove it there and send SIGHUP")
            if silence_id not in self._added:
                return False
            self._write({key: silence for key, silence in self._added.items() if key != silence_id})
        return True

    def silenced_now(self) -> Callable[[str, str], bool]:
        """Whether alerts of a server (name, profile) are silenced at this moment."""
        now = self._clock()
        active = [known.silence for known in self.known if known.silence.is_active(now)]
        return lambda server_name, profile: any(silence.concerns(server_name, profile) for silence in active)

    def excluded(self, servers: Iterable[tuple[str, str]], seconds: float) -> set[str]:
        """Names of the servers (name, profile) whose measurements of a time are excluded from scores."""
        active = [each.silence for each in self.known if each.silence.kind == EXCLUDE]
        active = [silence for silence in active if silence.is_active(seconds)]
        if not active:
            return set()
        return {name for name, profile in servers if any(silence.concerns(name, profile) for silence in active)}

    def excluded_cells(self, names: Sequence[str], profiles: Sequence[str], seconds: np.ndarray) -> np.ndarray:
        """Which measurements are excluded from scores, as intervals.silences.excluded_cells."""
        return excluded_cells([each.silence for each in self.known], names, profiles, seconds)

    def _read(self) -> dict[str, Silence]:
        try:
            return stored_silences(self._path)
        except (OSError, ValueError) as problem:
            self._problem = f"{self._path} cannot be read; repair it, or remove it to start without its silences"
            LOG.error("silences not read", extra={"file": str(self._path), "reason": str(problem).splitlines()[0]})
            return {}

    def _write(self, silences: dict[str, Silence]) -> None:
        if self._problem is not None:
            raise SilencesError(self._problem)
        documents = {key: as_fields(silence) for key, silence in silences.items()}
        try:
            replace_file(self._path, json.dumps(documents).encode())
        except OSError as problem:
            raise SilencesError(
                f"not stored: {problem.strerror}; free disk space or allow writing, and repeat"
            ) from None
        self._added = silences


def profile_note(silence: Silence, known: Collection[str]) -> str | None:
    """The note on a silence whose profile is not among the known ones; it may be that of a later server."""
    if silence.profile is None or silence.profile in known:
        return None
    name = silence.profile[:100]
    return f"no server has the profile {name!r}; correct it unless such servers will come: {', '.join(sorted(known))}"


def server_note(silence: Silence, known: Collection[str]) -> str | None:
    """The note on a silence of a server or a pattern that is, or matches, none of the known servers."""
    if silence.server is not None:
        given, is_known = repr(silence.server[:100]), silence.server in known
    elif silence.pattern is not None:
        names = list(known)  # a copy: other threads add servers meanwhile
        given = f"the pattern {silence.pattern[:100]!r}"
        is_known = any(silence.concerns(name, None) for name in names)
    else:
        return None
    return None if is_known else f"{given} matches no known server; correct it unless such servers will come"


def as_fields(silence: Silence) -> dict[str, Any]:
    """The silence in JSON types, without the fields that it does not have."""
    return silence.model_dump(mode="json", exclude_none=True)
