"""Profiles by name patterns and pins of a fleet file."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.contract.toml_file import TomlFileError
from server_profiles import BUILT_IN_RULES, ProfileRules, match_profile


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return path


def rules_of(path: Path) -> ProfileRules:
    return read_fleet(path).rules


def test_a_rules_file_adds_patterns_and_pins_in_front_of_the_built_in_rules(tmp_path: Path) -> None:
    rules = rules_of(
        write(
            tmp_path,
            "[profiles.database]\npatterns = ['sql-?\\d+']\n[profiles.web_api]\npatterns = [\"ppml9\\\\d\"]\n\n"
            '[servers]\n"Legacy-Host-7" = "risk_analytics"\nppdb001 = "generic"\n',
        )
    )
    assert match_profile("SQL-12.example.com", rules) == ("database", r"pattern sql-?\d+ (fleet file)")
    assert match_profile("ppml90", rules).profile == "web_api"
    assert match_profile("ppml10", rules) == ("ml_compute", r"pattern ppml\d+ (built-in)")
    assert match_profile("legacy-host-7", rules) == ("risk_analytics", "pin legacy-host-7")
    assert match_profile("ppdb001.dc1.example.com", rules).profile == "generic"
    assert BUILT_IN_RULES.pins == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[profiles.database]\npatterns = ['sql\\d+',\n  'pg(\\d+']\n",
            r"line 3: pattern 'pg\(.*is not a regular expression.*; ",
        ),
        ('[profiles.web_api]\npatterns = ["w\\\\d[+"]\n', r"line 2: pattern .*is not a regular expression"),
        (
            "[profiles.generic]\npatterns = ['x1']\n[profiles.database]\npatterns = ['.*']\n",
            r"line 4: .*matches every name; name the beginning",
        ),
        ('[profiles."main frame"]\n', r"profiles.main frame: a name has 1 to 64 of the characters"),
        (
            '[servers]\nhost1 = "database"\nhost2 = "sql"\n',
            r"servers: 'host2' has the unknown profile 'sql'; use .*generic",
        ),
        (
            "[profiles.database]\npatterns = 'sql\\d+'\n",
            r"line 2: profiles.database.patterns is 'sql.*'; write a list, as in patterns = \['...'\]",
        ),
        ("[profile.x]\n", r"line 1: unknown key 'profile'; use timezone, .*profiles, servers"),
        ("profiles = 3\n", r"line 1: profiles is 3; write \[profiles\] on a line of its own"),
        (
            '[profiles.database]\npatterns = ["sql\\d+"]\n',
            r"not TOML: .*line 2.*; write regular expressions in single quotes",
        ),
    ],
)
def test_a_bad_rules_file_is_refused_with_line_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TomlFileError, match=message) as refused:
        rules_of(path)
    assert str(path) in str(refused.value)


def test_a_rules_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TomlFileError, match="no such file"):
        rules_of(tmp_path / "absent.toml")
    with pytest.raises(TomlFileError, match="cannot be read"):
        rules_of(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(TomlFileError, match="not UTF-8"):
        rules_of(tmp_path / "latin.toml")


def test_a_careless_pattern_is_matched_in_linear_time(tmp_path: Path) -> None:
    rules = rules_of(write(tmp_path, "[profiles.database]\npatterns = ['([a-z0-9]+[-.]?)+-db\\d+']\n"))
    started = time.perf_counter()
    assert match_profile("a" * 250 + "_", rules).rule is None  # a backtracking matcher needs 2^250 attempts
    assert time.perf_counter() - started < 1.0
    assert match_profile("Web-1-db3", rules).profile == "database"


@pytest.mark.parametrize("pattern", [r"(?=db)db\d", r"(db)\1", r"(d{999}){999}"])
def test_a_pattern_that_cannot_be_matched_in_linear_time_or_bounded_memory_is_named(
    tmp_path: Path, pattern: str
) -> None:
    with pytest.raises(TomlFileError, match=f"line 2: pattern {re.escape(repr(pattern))}.*in linear time"):
        rules_of(write(tmp_path, f"[profiles.database]\npatterns = ['{pattern}']\n"))
