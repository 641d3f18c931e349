"""`--fleet FILE` of every script, and the flags that it replaces."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fleet_forecast.contract.definitions import BUILT_IN_FLEET, FleetDefinition
from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.contract.fleet.toml_text import toml_text
from fleet_forecast.flags import add_flag

DEFAULT_FILE = Path("fleet.toml")
FLEET_HELP = f"TOML file of profiles, metrics, calendar and alert rules ({DEFAULT_FILE}, if there is one)"
# Files that the fleet file replaces, by the name of their flag or setting.
MOVED = ("profiles", "queries", "prometheus_queries", "alert_rules")


def add_fleet_flag(group: argparse._ActionsContainer) -> None:
    """The flag."""
    add_flag(group, "--fleet", type=Path, metavar="FILE", help=FLEET_HELP)


def add_moved_flags(group: argparse._ActionsContainer, *names: str) -> None:
    """Flags that are refused with the lines of fleet.toml that replace them."""
    for name in names:
        add_flag(group, f"--{name.replace('_', '-')}", dest=f"moved_{name}", action=_Moved, help=argparse.SUPPRESS)


class _Moved(argparse.Action):
    """Refuses a flag."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        value: str | Sequence[Any] | None,
        option: str | None = None,
    ) -> NoReturn:
        parser.error(f"{option} {value}: {moved_advice(self.dest.removeprefix('moved_'), Path(str(value)))}")


def moved_advice(name: str, path: Path) -> str:
    """Where the content of a file of an earlier version moves: the lines of the fleet file.

    name: one of MOVED.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = {}
    lines = toml_text(moved_tables(name, document)) if document else "[profiles], [servers], [metrics] and [alerts]\n"
    return f"is part of the fleet file now; put these lines into {DEFAULT_FILE}, and omit it:\n\n{lines}"


def moved_tables(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A profiles file, query file or alert rules as tables of the fleet file."""
    if name == "profiles":
        patterns = {profile: {"patterns": texts} for profile, texts in document.get("patterns", {}).items()}
        return {"profiles": patterns, "servers": document.get("servers", {})}
    if name == "alert_rules":
        return {"alerts": document}
    queries = {metric: {"query": query} for metric, query in document.get("queries", {}).items()}
    settings = {key: document[key] for key in ("server_label", "strip_port") if key in document}
    return {"metrics": queries, **({"prometheus": settings} if settings else {})}


def fleet_path(arguments: Sequence[str]) -> Path | None:
    """The path that --fleet gives, before the other flags are read, some of which depend on the file; else None."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_fleet_flag(parser)
    try:
        found, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:  # refused when all flags are read
        return None
    given: Path | None = found.fleet
    return given


def load_fleet(path: Path | None) -> FleetDefinition:
    """find_fleet; prints on stderr which file is used."""
    fleet = find_fleet(path)
    if fleet.source is not None:
        print(f"fleet: {fleet.source}", file=sys.stderr)
    return fleet


def find_fleet(path: Path | None) -> FleetDefinition:
    """The fleet of a file; without a path of fleet.toml in the working directory, else the built-in one.

    Raises TomlFileError.
    """
    if path is None and not DEFAULT_FILE.exists():
        return BUILT_IN_FLEET
    return read_fleet(path or DEFAULT_FILE)
