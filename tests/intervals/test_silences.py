"""Silences: which servers and when, weekly hours over daylight saving and midnight, errors with their remedy."""

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from pydantic import ValidationError

from fleet_forecast.contract.toml_file import TomlFileError, first_problem
from fleet_forecast.intervals.silences import DAYS, Silence, Weekly, excluded_cells, load_silences

DAY = 86_400


@pytest.mark.parametrize(("start", "end"), [("02:30", "03:30"), ("22:00", "04:15"), ("00:00", "00:00")])
def test_weekly_hours_are_those_of_the_wall_clock(start, end):
    weekly = Weekly(days=["sat", "sun"], start=start, end=end, timezone="Europe/Berlin")
    first = datetime(2026, 3, 26, tzinfo=ZoneInfo("UTC")).timestamp()  # daylight saving begins on the 29th
    times = np.arange(first, first + 6 * DAY, 300)

    def slow(seconds):
        local = datetime.fromtimestamp(seconds, ZoneInfo("Europe/Berlin"))
        clock, today, yesterday = f"{local:%H:%M}", DAYS[local.weekday()], DAYS[local.weekday() - 1]
        if end > start:
            return today in weekly.days and start <= clock < end
        return (today in weekly.days and clock >= start) or (yesterday in weekly.days and clock < end)

    found = weekly.covers(times)
    assert 0 < found.sum() < len(times)
    assert found.tolist() == [slow(seconds) for seconds in times]


def test_a_silence_concerns_a_server_a_profile_or_the_names_of_a_pattern():
    once = {"from": "2026-12-01T00:00:00Z", "until": "2026-12-01T01:00:00+00:00"}
    servers = [("web1", "web_api"), ("web10", "web_api"), ("db1", "database")]
    for selector, value, expected in (
        ("server", "web1", [True, False, False]),
        ("profile", "database", [False, False, True]),
        ("pattern", "WEB.", [True, False, False]),
    ):
        silence = Silence.model_validate({selector: value, **once})
        assert [silence.concerns(*server) for server in servers] == expected
    start = silence.start
    assert [silence.is_active(start + offset) for offset in (-1, 0, 3599, 3600)] == [False, True, True, False]


def test_the_weekly_hours_end_with_the_silence():
    weekly = {"days": DAYS, "start": "00:00", "end": "00:00", "timezone": "UTC"}
    silence = Silence.model_validate({"server": "a", "until": "1970-01-02T00:00:00Z", "weekly": weekly})
    assert silence.covers(np.array([0.0, DAY - 1.0, DAY])).tolist() == [True, True, False]


def test_a_file_of_silences_and_the_measurements_it_excludes(tmp_path):
    (tmp_path / "x.toml").write_text(
        "[[silences]]\nserver = 'a'\nfrom = 1970-01-01T00:00:10Z\nuntil = 1970-01-01T00:00:30Z\nkind = 'exclude'\n"
        "[[silences]]\nserver = 'b'\nfrom = 1970-01-01T00:00:10Z\nuntil = '1970-01-01T00:00:30Z'\n"
    )
    silences = load_silences(tmp_path / "x.toml")
    excluded = excluded_cells(silences, ["a", "b"], ["p", None], np.arange(0, 50, 10))
    assert excluded.tolist() == [[False, True, True, False, False], [False] * 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("comment = 'x'", "a silence has no servers; give one of server, profile, pattern"),
        ("server = 'a'\nprofile = 'b'", "a silence has server and profile; give one"),
        ("server = 'a'", "silence of server 'a': from or until is missing; give both, or weekly"),
        ("server = 'a'\nfrom = 2026-01-01T00:00:00\nuntil = 2026-01-02T00:00:00Z", "has no time zone"),
        ("server = 'a'\nfrom = 'noon'\nuntil = 2026-01-02T00:00:00Z", "the time 'noon' is not a time"),
        ("server = 'a'\nfrom = 2026-01-03T00:00:00Z\nuntil = 2026-01-02T00:00:00Z", "until is not after from"),
        ("pattern = 'a('", "is not a regular expression"),
        ("server = 'a'\nweekly = {days = ['sun'], start = '2:00', end = '03:00', timezone = 'UTC'}", "'2:00' is not a"),
        ("server = 'a'\nweekly = {days = ['sun'], start = '02:00', end = '03:00', timezone = 'Mars'}", "zone 'Mars'"),
        ("server = 'a'\nweekly = {days = ['so'], start = '02:00', end = '03:00', timezone = 'UTC'}", "'so'"),
        (f"server = 'a'\nweekly = {{days = {['sun'] * 8}, start = '', end = '', timezone = ''}}", "at most 7"),
        ("servers = 'a'", "unknown key 'servers'; use server, profile, pattern, from"),
    ],
)  # fmt: skip
def test_a_wrong_silence_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "x.toml").write_text("[[silences]]\n" + text)
    with pytest.raises(TomlFileError) as problem:
        load_silences(tmp_path / "x.toml")
    assert message in str(problem.value)


def test_a_silence_in_json_is_read_again():
    silence = Silence.model_validate({"server": "a", "from": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"})
    text = silence.model_dump_json(exclude_none=True)
    assert '"from":"2026-01-01T00:00:00.000Z"' in text
    assert Silence.model_validate_json(text) == silence
    with pytest.raises(ValidationError) as problem:
        Silence.model_validate_json('{"server": "a", "from": 5}')
    assert "the time 5 is not a time" in first_problem(problem.value, Silence)
