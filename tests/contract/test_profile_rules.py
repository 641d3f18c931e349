"""Profile rules of a TOML file."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from fleet_forecast.contract.toml_file import TomlFileError
from server_profiles import BUILT_IN_RULES, match_profile


def write(folder: Path, text: str) -> Path:
    path = folder / "profiles.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_rules_file_adds_patterns_and_pins_in_front_of_the_built_in_rules(tmp_path: Path) -> None:
    rules = load_profile_rules(
        write(
            tmp_path,
            "[patterns]\ndatabase = ['sql-?\\d+']\nweb_api = [\"ppml9\\\\d\"]\n\n"
            '[servers]\n"Legacy-Host-7" = "risk_analytics"\nppdb001 = "generic"\n',
        )
    )
    assert match_profile("SQL-12.example.com", rules) == ("database", r"pattern sql-?\d+ (profiles file)")
    assert match_profile("ppml90", rules).profile == "web_api"
    assert match_profile("ppml10", rules) == ("ml_compute", r"pattern ppml\d+ (built-in)")
    assert match_profile("legacy-host-7", rules) == ("risk_analytics", "pin legacy-host-7")
    assert match_profile("ppdb001.dc1.example.com", rules).profile == "generic"
    assert BUILT_IN_RULES.pins == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[patterns]\ndatabase = ['sql\\d+',\n  'pg(\\d+']\n",
            r"line 3: pattern 'pg\(.*is not a regular expression.*; ",
        ),
        ('[patterns]\nweb_api = ["w\\\\d[+"]\n', r"line 2: pattern .*is not a regular expression"),
        ("[patterns]\ngeneric = ['x1']\ndatabase = ['.*']\n", r"line 3: .*matches every name; name the beginning"),
        (
            "[patterns]\nmainframe = ['mf\\d+']\n",
            r"line 2: unknown profile 'mainframe'; use one of ml_compute, database",
        ),
        ('[servers]\nhost1 = "database"\nhost2 = "sql"\n', r"line 3: unknown profile 'sql'; use one of"),
        (
            "[patterns]\ndatabase = 'sql\\d+'\n",
            r"line 2: patterns.database is 'sql.*'; write a list, as in database = \['...'\]",
        ),
        ("[pattern]\ndatabase = []\n", r"line 1: unknown key 'pattern'; use patterns, servers"),
        ("patterns = 3\n", r"line 1: patterns is 3; write \[patterns\] on a line of its own"),
        ('[patterns]\ndatabase = ["sql\\d+"]\n', r"not TOML: .*line 2.*; write regular expressions in single quotes"),
    ],
)
def test_a_bad_rules_file_is_refused_with_line_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TomlFileError, match=message) as refused:
        load_profile_rules(path)
    assert str(path) in str(refused.value)


def test_a_rules_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TomlFileError, match="no such file"):
        load_profile_rules(tmp_path / "absent.toml")
    with pytest.raises(TomlFileError, match="cannot be read"):
        load_profile_rules(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(TomlFileError, match="not UTF-8"):
        load_profile_rules(tmp_path / "latin.toml")


def test_a_careless_pattern_is_matched_in_linear_time(tmp_path: Path) -> None:
    rules = load_profile_rules(write(tmp_path, "[patterns]\ndatabase = ['([a-z0-9]+[-.]?)+-db\\d+']\n"))
    started = time.perf_counter()
    assert match_profile("a" * 250 + "_", rules).rule is None  # a backtracking matcher needs 2^250 attempts
    assert time.perf_counter() - started < 1.0
    assert match_profile("Web-1-db3", rules).profile == "database"


@pytest.mark.parametrize("pattern", [r"(?=db)db\d", r"(db)\1", r"(d{999}){999}"])
def test_a_pattern_that_cannot_be_matched_in_linear_time_or_bounded_memory_is_named(
    tmp_path: Path, pattern: str
) -> None:
    with pytest.raises(TomlFileError, match=f"line 2: pattern {re.escape(repr(pattern))}.*in linear time"):
        load_profile_rules(write(tmp_path, f"[patterns]\ndatabase = ['{pattern}']\n"))
