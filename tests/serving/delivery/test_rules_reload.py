"""Rules of alerts that are read again while alerts fire."""

import json

import pytest

from fleet_forecast.contract.definitions import use_fleet
from fleet_forecast.contract.fleet.flag import find_fleet
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import alert_rules_of
from fleet_forecast.serving.delivery.outbox import Outbox
from fleet_forecast.serving.delivery.rules_reload import RulesReload
from fleet_forecast.serving.delivery.silence_book import SilenceBook
from tests.serving.alerting.examples import forecast

QUIET = "[alerts]\nfire_forecasts = 1\nresolve_forecasts = 1\n[alerts.profiles.web_api]\ncpu_pct = 99.9\n"
STRICT = QUIET.replace("99.9", "60")


@pytest.fixture
def scene(tmp_path):
    """A reload of fleet.toml and what it changes."""
    path = tmp_path / "fleet.toml"
    path.write_text(QUIET)
    with use_fleet(find_fleet(path)) as fleet:
        book = AlertBook(alert_rules_of(fleet))
        silences = SilenceBook(book.rules.silences, tmp_path / "silences.json", lambda: 0.0)
        yield path, RulesReload(path, book, silences, Outbox(book, silences, False), False)


def test_a_new_threshold_holds_from_the_next_forecast_on_and_ends_again_with_the_old_one(scene):
    path, reload = scene
    assert reload.book.update([forecast(80, 0)], 1.0) == []
    path.write_text(STRICT)
    reload.reload()
    (begun,) = reload.book.update([forecast(80, 1)], 2.0)
    assert (begun.metric, begun.threshold) == ("cpu_pct", 60)
    path.write_text(QUIET)
    reload.reload()
    (ended,) = reload.book.update([forecast(80, 2)], 3.0)
    assert ended.ended_seconds == 3.0


def test_silences_and_shadow_of_the_file_follow_it(scene):
    path, reload = scene
    silence = "[[alerts.silences]]\nprofile = 'web_api'\nfrom = 1970-01-01T00:00:00Z\nuntil = 1970-01-02T00:00:00Z\n"
    path.write_text(QUIET.replace("[alerts]", "[alerts]\nshadow = true", 1) + silence)
    reload.reload()
    assert reload.silences.silenced_now()("ppweb001", "web_api")
    assert reload.outbox.shadow
    path.write_text(QUIET)
    reload.reload()
    assert reload.silences.known == []
    assert not reload.outbox.shadow


def test_a_detector_that_is_switched_off_ends_and_one_switched_on_begins(scene):
    path, reload = scene
    before = list(reload.book._detectors)
    path.write_text(QUIET.replace("[alerts]", "[alerts]\ndepartures = false"))
    reload.reload()
    assert len(reload.book._detectors) == len(before) - 1
    path.write_text(QUIET)
    reload.reload()
    assert [type(each) for each in reload.book._detectors] == [type(each) for each in before]
    assert reload.book._detectors[0] is before[0], "it keeps what it knows"


@pytest.mark.parametrize("text", ["[alerts", "[alerts]\nfire_probability = 2\n", "[alertz]\n"])
def test_a_file_that_cannot_be_used_changes_nothing_and_is_logged(scene, text, caplog):
    path, reload = scene
    rules = reload.book.rules
    path.write_text(text)
    reload.reload()
    assert reload.book.rules is rules
    assert [record.msg for record in caplog.records] == ["fleet file refused"]
    assert "fleet.toml" in caplog.records[0].reason


def test_other_tables_are_not_read_again_and_this_is_logged(scene, caplog):
    path, reload = scene
    path.write_text("[profiles.cache]\npatterns = ['redis']\n" + STRICT)
    reload.reload()
    assert "only the table alerts is read again" in json.dumps([getattr(each, "remedy", "") for each in caplog.records])
    assert reload.book.rules.thresholds_of("x", "web_api")["cpu_pct"].above == 60
