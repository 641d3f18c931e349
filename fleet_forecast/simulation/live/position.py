"""Position of a stream in a file, from which a stopped stream continues after its last acknowledged tick."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.iso_time import iso
from fleet_forecast.simulation.scenario import Scenario


@dataclass
class Position:
    """Position of a stream; the file is replaced as a whole after each acknowledged tick."""

    path: Path
    document: dict[str, Any]

    @classmethod
    def read(cls, path: Path, scenario: Scenario) -> Position:
        """The position in the file, or the start of the stream without a file. Raises ValueError for another stream."""
        own = {
            "start": iso(scenario.start),
            "step_seconds": scenario.step_seconds,
            "seed": scenario.fleet.seed,
            "fleet": scenario.fleet.composition(),
        }
        if not path.exists():
            return cls(path, {"stream": own, "next_step": None, "added": [], "injected": []})
        document = _position_document(path)
        if document["stream"] != own:
            msg = f"position file {path} is of another stream ({document['stream']}); use the same flags, or remove it"
            raise ValueError(msg)
        return cls(path, document)

    @staticmethod
    def start_of(path: Path) -> str | None:
        """Start of the stream in the file, None without a file. Raises ValueError if the file is damaged."""
        return str(_position_document(path)["stream"]["start"]) if path.exists() else None

    def write(self) -> None:
        replace_file(self.path, json.dumps(self.document).encode())


def _position_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        known = {"stream", "next_step", "added", "injected"} <= document.keys() and "start" in document["stream"]
    except (ValueError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        msg = f"position file {path} is damaged or has another format; give another path, or remove it"
        raise ValueError(msg)
    return dict(document)
