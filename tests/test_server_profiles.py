"""Names, rules files, business time and demand, each held to an independent source."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.contract.calendar import BusinessTime, business_time
from fleet_forecast.contract.profile_rules import load_profile_rules
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.simulation.rhythm import demand_multiplier
from server_profiles import BUILT_IN_RULES, PROFILES, ServerProfile, infer_profile_from_name, match_profile

NAMES = {
    "ml_compute": ("ppml0015", "ppgpu1", "cptrain22"),
    "database": ("ppdb042", "psdb1", "oracle3", "mongo07", "postgres12"),
    "web_api": ("ppweb123", "ppapi4", "nginx9", "tomcat80"),
    "conductor_mgmt": ("ppcon01", "conductor2", "egomgmt3"),
    "data_ingest": ("ppetl001", "ppkafka1", "stream5", "spark12"),
    "risk_analytics": ("pprisk001", "varrisk2", "credit3"),
    "generic": ("ppgen001", "unknown_server"),
}


@pytest.mark.parametrize(("name", "profile"), [(n, p) for p, names in NAMES.items() for n in names])
def test_documented_names_give_their_profile_in_any_case_and_as_a_full_domain_name(name: str, profile: str) -> None:
    for spelling in (name, name.upper(), f"{name}.dc1.example.com"):
        assert infer_profile_from_name(spelling) == profile


@pytest.mark.parametrize("name", ["ppml", "myppml01", "ppdb-x", "database01", "", "ppm l01", "nginx.example1"])
def test_names_without_the_prefix_at_the_start_or_without_digits_are_generic(name: str) -> None:
    assert match_profile(name) == (ServerProfile.GENERIC, None)


def test_the_rule_that_matched_is_named_also_for_generic_servers() -> None:
    assert match_profile("PPML0015").rule == r"pattern ppml\d+ (built-in)"
    assert match_profile("ppgen001").rule == r"pattern ppgen\d+ (built-in)"
    assert match_profile("unknown_server").rule is None


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


ZONES = ("America/New_York", "Europe/London", "Asia/Kolkata", "Australia/Lord_Howe", "UTC")


@given(
    st.sampled_from(ZONES),
    st.lists(st.integers(820_540_800, 2_082_758_400), min_size=1, max_size=20),
)
def test_business_time_agrees_with_the_zone_database(zone: str, instants: list[int]) -> None:
    stamps = np.array(instants, dtype="datetime64[s]")
    when = business_time(stamps, zone)
    for position, stamp in enumerate(stamps):
        local = stamp.astype(object).replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
        assert when.minute_of_day[position] == local.hour * 60 + local.minute
        assert when.day_of_week[position] == local.weekday()


def test_business_time_is_exact_to_the_second_where_daylight_saving_changes() -> None:
    stamps = np.array(["2026-03-08T06:59:59", "2026-03-08T07:00:00", "2026-11-01T05:59:59", "2026-11-01T06:00:00"])
    when = business_time(stamps.astype("datetime64[s]"), "America/New_York")
    assert when.minute_of_day.tolist() == [119, 180, 119, 60]


def test_business_time_keeps_any_shape_also_none_at_all() -> None:
    for shape in ((), (0,), (2, 0), (2, 3)):
        when = business_time(np.full(shape, np.datetime64("2026-09-14T13:30")), "America/New_York")
        assert {array.shape for array in when} == {shape}


def test_the_market_is_open_on_business_days_only() -> None:
    def is_open(stamp: str) -> bool:
        return bool(business_time(np.array(np.datetime64(stamp)), "America/New_York").market_open)

    assert is_open("2026-11-25T14:30")
    assert not is_open("2026-11-25T14:29")
    assert is_open("2026-11-25T20:59")
    assert not is_open("2026-11-25T21:00")
    assert not is_open("2026-11-26T15:00"), "Thanksgiving"
    assert not is_open("2026-11-28T15:00"), "Saturday"
    assert not is_open("2021-12-24T15:00"), "Christmas observed"


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "America", "New York"])
def test_an_unknown_time_zone_is_named_with_the_remedy(zone: str) -> None:
    with pytest.raises(ValueError, match=r"unknown time zone .*; use an IANA name such as America/New_York"):
        business_time(np.array(["2026-01-01"], dtype="datetime64[s]"), zone)


def demand_at(profile: str, clock: str, day_of_week: int = 2, holiday: bool = False) -> float:
    hour, minute = clock.split(":")
    when = BusinessTime(
        np.array([int(hour) * 60 + int(minute)], dtype=np.int16),
        np.array([day_of_week], dtype=np.int8),
        np.array([holiday]),
        np.array([False]),
    )
    return float(demand_multiplier(ServerProfile(profile), when)[0])


@pytest.mark.parametrize(
    ("profile", "clock", "multiplier"),
    [
        ("ml_compute", "23:00", 1.4),
        ("ml_compute", "03:00", 1.4),
        ("ml_compute", "08:00", 1.0),
        ("ml_compute", "18:00", 1.0),
        ("database", "10:00", 1.2),
        ("database", "17:30", 1.4),
        ("database", "22:00", 1.0),
        ("web_api", "14:30", 1.3),
        ("web_api", "06:00", 0.5),
        ("web_api", "21:00", 0.5),
        ("web_api", "08:00", 1.0),
        ("conductor_mgmt", "17:00", 1.4),
        ("conductor_mgmt", "12:00", 1.0),
        ("data_ingest", "10:30", 1.5),
        ("data_ingest", "15:30", 1.5),
        ("risk_analytics", "17:30", 2.0),
        ("risk_analytics", "12:00", 1.0),
        ("generic", "12:00", 1.0),
    ],
)
def test_demand_has_the_documented_uplifts_on_a_business_day(profile: str, clock: str, multiplier: float) -> None:
    assert demand_at(profile, clock) == pytest.approx(multiplier)


def test_demand_has_the_documented_shapes() -> None:
    assert demand_at("ml_compute", "12:00") < demand_at("ml_compute", "08:00"), "lower 09-16"
    assert demand_at("ml_compute", "12:00", day_of_week=5) > demand_at("ml_compute", "12:00"), "weekend batch"
    assert demand_at("database", "13:00") > demand_at("database", "20:00"), "steady high in market hours"
    assert demand_at("web_api", "09:15") > demand_at("web_api", "12:30") > demand_at("web_api", "11:00")
    assert demand_at("conductor_mgmt", "09:15") > demand_at("conductor_mgmt", "17:00")
    assert demand_at("data_ingest", "16:30") > demand_at("data_ingest", "15:00")
    assert demand_at("risk_analytics", "17:30", holiday=True) < 1
    assert demand_at("risk_analytics", "17:30", day_of_week=6) < 1


def test_demand_moves_by_ramps_and_never_jumps() -> None:
    for profile in ServerProfile:
        day = [demand_at(profile, f"{minute // 60 % 24}:{minute % 60}") for minute in range(24 * 60 + 1)]
        assert np.abs(np.diff(day)).max() <= 0.11


def test_every_profile_documents_six_metrics_and_its_incidents_once() -> None:
    assert set(PROFILES) == set(ServerProfile)
    columns = {tuple(spec.baselines) for spec in PROFILES.values()}
    assert columns == {("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms")}
    labels = [label for spec in PROFILES.values() for label in spec.incidents]
    assert len(labels) == len(set(labels)) == 24
    assert PROFILES[ServerProfile.DATABASE].rhythm.maintenance is not None
