"""What is delivered and recorded: silences, shadow mode, the record of ended alerts, the state over a restart."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fleet_forecast.intervals.silences import Silence
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.delivery.alert_loop import AlertLoop
from fleet_forecast.serving.delivery.alert_record import WEEK_SECONDS, AlertRecord
from fleet_forecast.serving.delivery.silence_book import MAX_SILENCES, SilenceBook, SilencesError
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring.scores import ForecastScores
from tests.serving.alerting.examples import STEP, VIEW, alert, forecast
from tests.serving.delivery.scene import sinks

NIGHT = Silence.model_validate(
    {"profile": "web_api", "from": "1970-01-01T00:00:00Z", "until": "1970-01-01T00:30:00Z", "kind": "exclude"}
)


class Scene:
    """An alert loop whose clock is the end of each origin; `sent` has (severity, state) of what is delivered."""

    def __init__(self, folder, **options):
        self.now, self.sent = 0.0, []
        self.scores = ForecastScores()
        self.book = AlertBook(AlertRules())
        notifier = SimpleNamespace(enqueue=self._enqueue)
        self.sinks = sinks(self.book, folder, notifiers=[notifier], clock=lambda: self.now, **options)
        self.forecasts = SimpleNamespace(listeners=[], snapshot=None)
        self.loop = AlertLoop(self.book, self.scores, self.forecasts, self.sinks, lambda: self.now)
        self.loop._restore()

    def _enqueue(self, changed):
        self.sent += [(each.severity, each.state) for each in changed]

    def cycle(self, origin, cpu):
        self.now = (origin + 1.0) * STEP
        made = forecast(cpu, origin)
        self.forecasts.snapshot = FleetSnapshot({made.server_name: made}, origin * STEP, self.now, VIEW)
        asyncio.run(self.loop._update())


def test_an_alert_of_a_silence_is_recorded_and_delivered_when_the_silence_ends_if_it_goes_on(tmp_path):
    scene = Scene(tmp_path, silences=[NIGHT])
    for origin in (1, 2, 3, 4):
        scene.cycle(origin, 97)
    assert (list(scene.book.firing), scene.sent) == ([("ppweb001", "cpu_pct")], [])
    assert scene.sinks.record.week.silenced == {"page breach": 1}
    scene.cycle(5, 97)  # 00:30
    assert scene.sent == [("page", "firing")]
    for origin in (6, 7, 8):
        scene.cycle(origin, 20)
    assert scene.sent == [("page", "firing"), ("page", "resolved")]


def test_an_alert_that_begins_and_ends_in_a_silence_is_never_delivered(tmp_path):
    scene = Scene(tmp_path, silences=[NIGHT])
    for origin, cpu in enumerate((97, 97, 20, 20, 20)):
        scene.cycle(origin, cpu)
    assert scene.sent == []
    assert [each.key for each in scene.sinks.record.recent] == [("ppweb001", "cpu_pct")]


def test_the_end_of_a_delivered_alert_is_delivered_in_a_silence_too(tmp_path):
    late = NIGHT.model_copy(update={"start": 5.0 * STEP, "until": 1e9})
    scene = Scene(tmp_path, silences=[late])
    for origin, cpu in enumerate((97, 97, 97, 97, 97, 20, 20, 20)):
        scene.cycle(origin, cpu)
    assert scene.sent == [("page", "firing"), ("page", "resolved")]


def test_nothing_is_delivered_in_shadow_mode_and_the_week_counts_what_would_have_been(tmp_path, caplog):
    scene = Scene(tmp_path, shadow=True)
    caplog.set_level("INFO")
    for origin in range(4):
        scene.cycle(origin, 97)
    scene.cycle(WEEK_SECONDS // STEP + 5, 97)
    assert (len(scene.book.firing), scene.sent, scene.sinks.outbox.firing()) == (1, [], [])
    (line,) = [record for record in caplog.records if record.msg == "alerts of the week"]
    assert line.shadow
    assert line.alerts == [{"severity": "page", "reason": "breach", "deliverable": 1, "silenced": 0}]
    assert scene.sinks.record.last_week.deliverable == {"page breach": 1}
    assert scene.sinks.record.week.deliverable == {}


def test_a_restart_delivers_nothing_twice_and_keeps_the_record(tmp_path):
    before = Scene(tmp_path)
    for origin, cpu in enumerate((97, 97, 20, 20, 20, 97, 97)):
        before.cycle(origin, cpu)
    after = Scene(tmp_path)
    assert after.book.firing == before.book.firing
    assert list(after.sinks.record.recent) == list(before.sinks.record.recent)
    assert after.sinks.record.week == before.sinks.record.week
    after.cycle(7, 97)
    assert after.sent == []
    for origin in (8, 9, 10):
        after.cycle(origin, 20)
    assert after.sent == [("page", "resolved")]
    assert after.sinks.record.week.deliverable == {"page breach": 2}


def test_the_state_of_a_version_without_a_record_is_read(tmp_path):
    before = Scene(tmp_path)
    for origin in (1, 2):
        before.cycle(origin, 97)
    state = json.loads((tmp_path / "alerts.json").read_text())
    new = ("severity", "highest_severity", "below", "crossed_seconds")
    old = [{name: value for name, value in state["firing"][0].items() if name not in new}]
    (tmp_path / "alerts.json").write_text(json.dumps(old))
    after = Scene(tmp_path)
    after.cycle(3, 97)
    assert (list(after.book.firing), after.sent) == ([("ppweb001", "cpu_pct")], [])


def test_measurements_of_an_exclusion_are_not_scored(tmp_path):
    for silences, scored in (([], 1), ([NIGHT], 0)):
        scene = Scene(tmp_path / str(scored), silences=silences) if (tmp_path / str(scored)).mkdir() is None else None
        scene.cycle(1, 20)
        scene.cycle(4, 20)  # 15 minutes later, still before 00:30
        assert scene.scores.tallies["cpu_pct", "15m"].scored == scored


def test_the_record_of_ended_alerts_is_bounded(monkeypatch):
    monkeypatch.setattr("fleet_forecast.serving.delivery.alert_record.RECENT_ALERTS", 3)
    record, ended = AlertRecord(), alert(ended=5.0)
    record.add([replace(ended, ended_seconds=float(n)) for n in range(5)], lambda _alert: False, 9.0)
    assert [each.ended_seconds for each in record.recent] == [2.0, 3.0, 4.0]


def test_silences_of_the_api_are_bounded_and_those_that_ended_long_ago_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr("fleet_forecast.serving.delivery.silence_book.MAX_SILENCES", 2)
    now = 0.0
    book = SilenceBook([NIGHT], tmp_path / "s.json", lambda: now)
    first = book.add(NIGHT)
    book.add(NIGHT)
    with pytest.raises(SilencesError, match="there are 2 silences; delete one first"):
        book.add(NIGHT)
    assert MAX_SILENCES > 2
    with pytest.raises(SilencesError, match="file-1 is in the rules file"):
        book.delete("file-1")
    assert (book.delete(first.silence_id), book.delete(first.silence_id)) == (True, False)
    now = 30 * 86_400.0
    book.add(NIGHT)
    assert len(book.known) == 2


def test_a_damaged_file_of_silences_is_reported_and_never_overwritten(tmp_path, caplog):
    (tmp_path / "s.json").write_text("[]")
    book = SilenceBook([], tmp_path / "s.json", lambda: 0.0)
    assert "silences not read" in caplog.messages
    with pytest.raises(SilencesError, match="cannot be read; repair it"):
        book.add(NIGHT)
    assert (tmp_path / "s.json").read_text() == "[]"
