"""Profile of a server: a pinned name, the profile sent with its samples, or a name pattern."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from fleet_forecast.contract.toml_file import read_toml
from fleet_forecast.name_patterns import compile_pattern
from server_profiles import BUILT_IN_RULES, ProfileRules, ServerProfile, match_profile

SENT_WITH_SAMPLES = "sent with the samples"


def profile_of(name: str, sent: str | None, rules: ProfileRules) -> tuple[str, str | None]:
    """Profile of a server and the rule that gave it.

    A pinned name comes first, then the profile sent with the samples, then the name patterns.
    """
    match = match_profile(name, rules)
    pinned = match.rule is not None and match.rule.startswith("pin ")
    if sent is not None and not pinned:
        return sent, SENT_WITH_SAMPLES
    return str(match.profile), match.rule


def load_profile_rules(path: Path) -> ProfileRules:
    """Built-in rules plus those of a TOML file ([patterns] profile = [regex, ...], [servers] name = profile).

    Raises TomlFileError naming the file, the line, the value and the remedy.
    """
    document = read_toml(path, _ProfilesFile, "profiles file")
    added = [(pattern, profile) for profile, patterns in document.patterns.items() for pattern in patterns]
    pins = {server.lower(): profile for server, profile in document.servers.items()}
    return ProfileRules((*added, *BUILT_IN_RULES.patterns), MappingProxyType(pins), len(added))


def _profile(value: object) -> ServerProfile:
    try:
        return ServerProfile(str(value))
    except ValueError:
        raise ValueError(f"unknown profile {value!r}; use one of {', '.join(ServerProfile)}") from None


def _pattern(value: object) -> object:
    if not isinstance(value, str):
        return value  # refused by the field's type
    compiled = compile_pattern(value)
    if compiled.match(""):
        remedy = r"name the beginning, as in 'sql\d+', or pin servers"
        raise ValueError(f"pattern {value!r} matches every name; {remedy}")
    return compiled


_Profile = Annotated[ServerProfile, BeforeValidator(_profile)]
_Pattern = Annotated[Any, BeforeValidator(_pattern)]  # a NamePattern


class _ProfilesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    patterns: dict[_Profile, list[_Pattern]] = {}
    servers: dict[str, _Profile] = {}
