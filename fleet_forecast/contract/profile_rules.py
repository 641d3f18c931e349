"""Which profile a server has: a pinned name, what its samples say, name patterns."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from server_profiles import BUILT_IN_RULES, ProfileRules, ServerProfile, match_profile

SENT_WITH_SAMPLES = "sent with the samples"


def profile_of(name: str, sent: str | None, rules: ProfileRules) -> tuple[str, str | None]:
    """Profile of a server and what gave it: a pinned name first, then what its samples say, then the patterns."""
    match = match_profile(name, rules)
    pinned = match.rule is not None and match.rule.startswith("pin ")
    if sent is not None and not pinned:
        return sent, SENT_WITH_SAMPLES
    return str(match.profile), match.rule


class ProfileFileError(ValueError):
    """A profile rules file cannot be used; the message names file, line, value and remedy."""


def load_profile_rules(path: Path) -> ProfileRules:
    """Built-in rules plus those of a TOML file ([patterns] profile = [regex, ...], [servers] name = profile).

    Raises ProfileFileError naming the file, the line, the value and the remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"profiles file {path}: no such file; give the path of a TOML file"
        raise ProfileFileError(msg) from None
    except UnicodeDecodeError as problem:
        msg = f"profiles file {path}: not UTF-8 text ({problem.reason}); save it as UTF-8"
        raise ProfileFileError(msg) from None
    except OSError as problem:
        msg = f"profiles file {path}: cannot be read ({problem.strerror})"
        raise ProfileFileError(msg) from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:  # its message ends with the line
        hint = "write regular expressions in single quotes, which take backslashes as they are"
        msg = f"profiles file {path}: not TOML: {problem}; {hint}"
        raise ProfileFileError(msg) from None

    source = _RulesSource(path, text.splitlines())
    for key in document:
        if key not in ("patterns", "servers"):
            raise source.error(key, f"unknown table or key {key!r}", "use [patterns] and [servers] only")
    added = [
        (_compiled(pattern, source), source.profile(profile))
        for profile, patterns in source.table(document, "patterns").items()
        for pattern in source.strings(profile, patterns)
    ]
    pins = {
        server.lower(): source.profile(profile, server) for server, profile in source.table(document, "servers").items()
    }
    return ProfileRules((*added, *BUILT_IN_RULES.patterns), MappingProxyType(pins), len(added))


def _compiled(pattern: str, source: _RulesSource) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as problem:
        raise source.error(
            pattern,
            f"pattern {pattern!r} is not a regular expression ({problem})",
            r"correct it, or put a backslash before a character meant literally, as in 'db\.\d+'",
        ) from None
    if compiled.match(""):
        raise source.error(
            pattern, f"pattern {pattern!r} matches every name", r"name the beginning, as in 'sql\d+', or pin servers"
        )
    return compiled


@dataclass(frozen=True)
class _RulesSource:
    """The text of a rules file, to say in which line a refused value stands."""

    path: Path
    lines: list[str]

    def error(self, value: str, what: str, remedy: str) -> ProfileFileError:
        spellings = (value, value.replace("\\", "\\\\"))
        line = next((n for n, text in enumerate(self.lines, 1) if any(s and s in text for s in spellings)), 1)
        return ProfileFileError(f"profiles file {self.path}, line {line}: {what}; {remedy}")

    def table(self, document: dict[str, object], name: str) -> dict[str, object]:
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise self.error(name, f"{name} is not a table", f"write [{name}] on a line of its own")
        return table

    def strings(self, key: str, values: object) -> Iterable[str]:
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.error(key, f"{key} is not a list of strings", f"write {key} = ['name\\d+']")
        return values

    def profile(self, value: object, server: str | None = None) -> ServerProfile:
        try:
            return ServerProfile(str(value))
        except ValueError:
            raise self.error(
                server or str(value), f"unknown profile {value!r}", f"use one of {', '.join(ServerProfile)}"
            ) from None
