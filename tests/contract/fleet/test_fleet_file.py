"""The fleet file: what it adds to the built-in fleet, what it refuses, and that it is shown as it is read."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path

import pytest

import data_contract
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.definitions import (
    BUILT_IN_FLEET,
    BUILT_IN_METRICS,
    COLUMNS,
    METRIC_SPECS,
    METRICS,
    PROFILES,
    fleet_in_use,
    per_fleet,
    use_fleet,
)
from fleet_forecast.contract.fleet.business_calendar import business_calendar
from fleet_forecast.contract.fleet.fleet_file import fleet_document, read_fleet
from fleet_forecast.contract.fleet.toml_text import toml_text
from fleet_forecast.contract.toml_file import TomlFileError
from server_profiles import match_profile

OWN = r"""
timezone = "Europe/Berlin"
holidays = ["DE", 2026-12-24]
business_hours = "8:00-18:00"
weekend = ["friday"]
early_closes = {2026-12-31 = 14:00:00}

[profiles.cache]
patterns = ['redis\d+', 'pg-cache']
baselines = {cpu_pct = [30, 8], queue_depth = [20, 5], celsius = [-4, 2]}
rhythm = {weekend = 0.5, windows = [{start = "09:00", end = "17:00", multiplier = 1.5}]}
[profiles.database]
patterns = ['pg-']
[servers]
"Legacy-7" = "cache"
[metrics.queue_depth]
unit = "messages"
kind = "rate"
threshold = {above = 1000, below = 1}
[metrics.celsius]
unit = "°C"
kind = "value"
[metrics.cpu_pct]
query = 'cpu{mode!="idle", job=~"[a-z]+"}'
[alerts]
fire_probability = 0.6
[[alerts.silences]]
server = "a"
from = 2026-12-01T22:00:00Z
until = 2026-12-02T02:00:00Z
"""


def written(folder: Path, text: str) -> Path:
    (folder / "fleet.toml").write_text(text.replace("\\\\", "\\"), encoding="utf-8")
    return folder / "fleet.toml"


def test_a_file_adds_profiles_metrics_and_a_calendar(tmp_path: Path) -> None:
    fleet = read_fleet(written(tmp_path, OWN))
    assert fleet.names == (*(spec.name for spec in BUILT_IN_METRICS), "queue_depth", "celsius")
    assert (fleet.specs["queue_depth"].above, fleet.specs["queue_depth"].below) == (1000, 1)
    assert (fleet.specs["celsius"].lower, fleet.specs["celsius"].upper) == (-1e9, 1e9)
    assert fleet.queries == {"cpu_pct": 'cpu{mode!="idle", job=~"[a-z]+"}'}
    assert {*BUILT_IN_FLEET.profiles, "cache"} == set(fleet.profiles)
    assert fleet.calendar == BusinessCalendar(
        "Europe/Berlin", ("DE", "2026-12-24"), (4,), 480, 1080, (("2026-12-31", 840),)
    )
    profiles = {name: match_profile(name, fleet.rules).profile for name in ("pg-cache1", "pg-1", "legacy-7", "ppdb1")}
    assert profiles == {"pg-cache1": "cache", "pg-1": "database", "legacy-7": "cache", "ppdb1": "database"}


@pytest.mark.parametrize("text", ["", OWN, "holidays = false\nhalf_days_close = '13:00'\n"])
def test_a_fleet_is_shown_as_a_file_that_reads_back_equal(tmp_path: Path, text: str) -> None:
    fleet = read_fleet(written(tmp_path, text))
    shown = toml_text(fleet_document(fleet, {"mem_pct": "a built-in query"}))
    again = read_fleet(written(tmp_path, shown))
    assert again == fleet
    assert [(p.pattern, str(name)) for p, name in again.rules.patterns] == [
        (p.pattern, str(name)) for p, name in fleet.rules.patterns
    ]
    assert toml_text(fleet_document(again, {})) == shown
    assert 'description = "CPU in use, all cores together"' in shown


@pytest.mark.parametrize(
    "document",
    [
        {"a": 'quote " and \\ and \x7f\n', "b": [1, 2.5, True, ["x"]], "c d": {"e.f": {"g": {}}, "h": [{"i": "j'k"}]}},
        {"empty": {}, "text": "it's", "pattern": r"a\d+"},
    ],
)
def test_documents_are_written_as_toml(document: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(document)) == document


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("holidays = 'ZZ'", "holidays: 'ZZ' is not known to the package holidays; use the code of a country"),
        ("timezone = 'Mars'", "timezone: unknown time zone 'Mars'; use an IANA name"),
        ("business_hours = '18:00-8:00'", "business_hours is '18:00-8:00'; write the opening and the closing time"),
        ("weekend = ['sun']", "weekend.0 is 'sun'; it should be 'monday', "),
        ("early_closes = {\"2026-13-01\" = '13:00'}", "early_closes: '2026-13-01' is not a date"),
        ("[metrics.x]\nunit = 'x'", "metrics.x.kind is missing; add kind = ... (percent, rate or value)"),
        ("[metrics.x]\nkind = 'rate'", "metrics.x.unit is missing"),
        ("[metrics.x]\nkind = 'count'\nunit = 'x'", "line 2: metrics.x.kind is 'count'; it should be 'percent', "),
        ("[metrics.x]\nkind = 'percent'\nunit = 'x'", "metrics.x.unit is 'x'; a metric of the kind percent has"),
        ("[metrics.cpu_pct]\nunit = 'x'", "metrics.cpu_pct.unit is 'x', that of the built-in metric '%'; omit it"),
        ("[metrics.step]\nkind = 'rate'\nunit = 'x'", "metrics.step: the name is in use for something else"),
        ("[metrics.Queue]\nkind = 'rate'\nunit = 'x'", "metrics.Queue: a name has 1 to 64 of the characters a-z 0-9 _"),
        ("[metrics.cpu_pct_mask]\nkind = 'rate'\nunit = 'x'", "metrics.cpu_pct_mask: the name is in use for cpu_pct"),
        ("[metrics.x]\nkind = 'rate'\nunit = 'x'\nthreshold = {above = 1, below = 2}", "below must be less than above"),
        ("[metrics.x]\nkind = 'rate'\nunit = 'x'\nthreshold = {above = 1, below = 2}", "line 4: metrics.x.threshold"),
        ("[metrics.x]\nkind = 'percent'\nunit = '%'\nthreshold = 900", "metrics.x.threshold is 900, a value that the "),
        ("[metrics.mem_pct]\nthreshold = {below = -1}", "metric never has; give one from 0 to 100 %"),
        ("[profiles.x.baselines]\ncpu_pct = [1]", "baselines.cpu_pct is [1]; it should be mean and spread, as in"),
        ("[profiles.x]\nrhythm = 2", "profiles.x.rhythm is 2; write [profiles.x.rhythm] on a line of its own"),
        ("[profiles.x.baselines]\nqueue = [1, 2]", "profiles.x.baselines: unknown metric 'queue'; use cpu_pct, "),
        ("[profiles.x.baselines]\ncpu_pct = [0, 1]", "profiles.x.baselines.cpu_pct: mean is 0; give a mean above 0"),
        ("[profiles.x]\nfirst_name = 'redis'", "line 2: profiles.x.first_name is 'redis'; it should be letters, "),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TomlFileError) as refused:
        read_fleet(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"fleet file {path}")


def test_the_fleet_in_use_is_what_the_names_of_the_contract_show(tmp_path: Path) -> None:
    calls = []

    @per_fleet
    def counted() -> int:
        calls.append(fleet_in_use())
        return len(METRICS)

    before = counted()
    with use_fleet(pickle.loads(pickle.dumps(read_fleet(written(tmp_path, OWN))))):  # as worker processes get it
        assert METRICS[-2:] == ("queue_depth", "celsius")
        assert (METRIC_SPECS["celsius"].unit, "celsius" in METRICS, "cache" in PROFILES) == ("°C", True, True)
        assert COLUMNS[-2:] == ("celsius", "incident")
        assert (counted(), counted()) == (before + 2, before + 2)
    assert (counted(), counted(), len(calls)) == (before, before, 3)
    assert tuple(spec.name for spec in BUILT_IN_METRICS) == METRICS
    assert fleet_in_use() is BUILT_IN_FLEET


def test_the_file_of_the_working_directory_is_used_and_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, OWN)
    (tmp_path / "m.csv").write_text("timestamp,server_name,queue_depth\n2026-11-23T10:00:00Z,redis1,3\n")
    assert data_contract.main(["m.csv"]) == 0
    shown = capsys.readouterr()
    assert "metrics: queue_depth\n  profiles: cache\n" in shown.out
    assert shown.err == "fleet: fleet.toml\n"
    assert data_contract.main(["--check-fleet", "fleet.toml"]) == 0
    assert "can be used; own metrics: 2, own profiles: 1" in capsys.readouterr().out
    written(tmp_path, "[alerts]\nfires = 1")
    assert data_contract.main(["--show-fleet"]) == 2
    assert "fleet.toml, [alerts], line 2: unknown key 'fires'; use fire_probability" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "earlier", "lines"),
    [
        (
            "--profiles",
            "[patterns]\ndatabase = ['pg-\\\\d+']\n[servers]\n'a.b' = 'generic'",
            '[profiles.database]\npatterns = [\'pg-\\\\d+\']\n\n[servers]\n"a.b" = "generic"\n',
        ),
        (
            "--queries",
            "server_label = 'node'\n[queries]\ncpu_pct = 'x{a=\"b\"}'",
            '[metrics.cpu_pct]\nquery = \'x{a="b"}\'\n\n[prometheus]\nserver_label = "node"\n',
        ),
    ],
)
def test_flags_of_earlier_files_are_refused_with_the_lines_to_move(tmp_path, capsys, flag, earlier, lines) -> None:
    import metrics_generator

    (tmp_path / "old.toml").write_text(earlier.replace("\\\\", "\\"))
    with pytest.raises(SystemExit) as stopped:
        metrics_generator.main([flag, str(tmp_path / "old.toml")])
    assert stopped.value.code == 2
    assert f"put these lines into fleet.toml, and omit it:\n\n{lines}".replace("\\\\", "\\") in capsys.readouterr().err


def test_rules_of_a_prometheus_have_the_queries_of_the_file(tmp_path, capsys) -> None:
    path = written(tmp_path, "[metrics.gpu_pct]\nunit = '%'\nkind = 'percent'\nquery = 'gpu[$window]'\n")
    assert data_contract.main(["--recording-rules", "--fleet", str(path)]) == 0
    rules = capsys.readouterr().out
    assert "      - record: fleet:gpu_pct\n        expr: >-\n          gpu[2m]\n" in rules
    assert rules.count("- record: fleet:") == 7


def test_a_run_uses_the_calendar_that_the_file_names_before_that_of_the_data(tmp_path, capsys) -> None:
    recorded = BusinessCalendar("UTC", ("FR",))
    assert business_calendar(None) == BUILT_IN_FLEET.calendar
    assert business_calendar(None, recorded) == recorded
    assert business_calendar("Asia/Tokyo", recorded) == BusinessCalendar("Asia/Tokyo", ("FR",))
    with use_fleet(read_fleet(written(tmp_path, "[profiles.cache]\n"))):
        assert business_calendar(None, recorded) == recorded, "a file without a calendar"
    assert capsys.readouterr().err == ""
    with use_fleet(read_fleet(written(tmp_path, "holidays = 'DE'"))) as fleet:
        assert business_calendar(None, recorded) == BusinessCalendar(holidays=("DE",))
    assert f"note: the calendar of {fleet.source} is used; the data's metadata record" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("query", "promql", "metricsql"),
    [
        ("sum by (instance) (a{b='c'}", "the bracket ) is missing", "the bracket ) is missing"),
        ("rate(a[$window])", "", ""),
        ("", "", ""),
        ("max_over(a[5m])", "it is not PromQL (unknown function with name 'max_over')", ""),
        ("sum(range_median(a) keep_metric_names) by (instance)", "it is not PromQL", ""),
        ("rate(a{b=')]'}[5m)])", "the bracket ) closes none", "the bracket ) closes none"),
        ("a{b='c}", "the quote ' is not closed", "the quote ' is not closed"),
    ],
)
@pytest.mark.parametrize("dialect", ["promql", "metricsql"])
def test_the_check_reads_each_query_in_its_dialect(tmp_path, capsys, query, promql, metricsql, dialect) -> None:
    text = f'[prometheus]\ndialect = "{dialect}"\n[metrics.cpu_pct]\nquery = "{query}"\n'
    problem = promql if dialect == "promql" else metricsql
    assert data_contract.main(["--check-fleet", str(written(tmp_path, text))]) == (2 if problem else 0)
    shown = capsys.readouterr().err
    assert (f"metrics.cpu_pct.query is {query!r}: {problem}" in shown) == bool(problem)
    assert ("dialect = 'metricsql'" in shown) == ("not PromQL" in problem)
