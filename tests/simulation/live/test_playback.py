"""The live feed: no tick is lost, no tick is stored twice."""

import json
import threading

import httpx
import numpy as np
import pytest

from data_contract import METRICS
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.live import feed as feed_module
from fleet_forecast.simulation.live import playback
from fleet_forecast.simulation.live.feed import Feed, FeedError
from fleet_forecast.simulation.live.live_fleet import LiveFleet
from fleet_forecast.simulation.live.playback import Pace, StreamPlan, stream
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.simulation.simulator import simulate

START = np.datetime64("2026-09-14T04:00:00", "s")
LONG_AGO = 4_000_000_000.0  # a clock at which every tick is past


def scenario(steps=40, **options):
    fleet = Fleet.of({"web_api": 2, "database": 2}, seed=5)
    return Scenario(**{"fleet": fleet, "start": START, "steps": steps, "step_seconds": 300, **options})


class Daemon:
    """Stores what it is sent, one row a server and time; `answers`: its behaviour request by request."""

    def __init__(self, *answers):
        self.answers, self.requests, self.rows, self.order = list(answers), 0, {}, []
        self.tokens, self.doubles = set(), 0

    def __call__(self, request):
        self.requests += 1
        answer = self.answers.pop(0) if self.answers else "ok"
        self.tokens.add(request.headers.get("authorization"))
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        records = json.loads(request.content)["records"]
        for record in records:
            key = record["server_name"], record["timestamp"]
            self.doubles += key in self.rows
            self.rows[key] = record
            self.order.append(key)
        if answer == "stored but the answer is lost":
            raise httpx.ReadTimeout("timed out")
        return httpx.Response(200, json={"accepted": len(records), "rejected": []})


class Waits(threading.Event):
    """An event that notes how long it was waited for instead of waiting."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return self.is_set()


def feed_to(daemon, **options):
    messages = []
    stopped = options.pop("stopped", Waits())
    feed = Feed("http://daemon:8000", messages.append, stopped, transport=httpx.MockTransport(daemon), **options)
    return feed, messages, stopped


def play(daemon, plan=None, feed=None, on_ticks=lambda *_: None, clock=lambda: LONG_AGO):
    feed = feed or feed_to(daemon)[0]
    return stream(plan or StreamPlan(scenario(), 0, 40, 1e9), feed, on_ticks, clock)


def expected_rows(simulated, first=0):
    trace = simulate(simulated)
    stamps = [f"{stamp}Z" for stamp in trace.timestamps]
    return {(name, stamp) for name in simulated.fleet.names for stamp in stamps[first:]}


def test_a_stream_sends_exactly_what_the_files_would_hold():
    daemon = Daemon()
    counts = play(daemon)
    assert counts["records"] == counts["accepted"] == 160
    assert (counts["ticks"], counts["rejected"], daemon.doubles) == (40, 0, 0)
    trace = simulate(scenario())
    for position, name in enumerate(scenario().fleet.names):
        for step, stamp in enumerate(trace.timestamps):
            row = daemon.rows[name, f"{stamp}Z"]
            sent = [np.nan if row[metric] is None else row[metric] for metric in METRICS]
            assert np.allclose(sent, trace.metrics[position, step], atol=1e-3, equal_nan=True)
            assert row["profile"] == scenario().fleet.profile(position)


def test_the_daemon_accepts_every_field_of_a_record():
    from fleet_forecast.serving.ingest.validation import TimeLimits, check_records

    records = LiveFleet(scenario(), 0).tick()
    now = int(START.astype("datetime64[ms]").astype(np.int64))
    checked = check_records(records, TimeLimits(now - 1000, now + 1000))
    assert (len(checked.samples), checked.rejected, checked.ignored_fields) == (4, [], set())


TROUBLE = [
    (httpx.ConnectError("refused"), httpx.ConnectError("refused")),
    (httpx.Response(503, headers={"retry-after": "7"}), httpx.Response(500), httpx.Response(429)),
    ("ok", "stored but the answer is lost", "ok"),
    ("ok", httpx.RemoteProtocolError("server disconnected"), httpx.Response(502)),
]


@pytest.mark.parametrize("answers", TROUBLE)
def test_nothing_is_lost_and_nothing_is_stored_twice_when_requests_fail(answers):
    daemon = Daemon(*answers)
    counts = play(daemon)
    assert daemon.rows.keys() == expected_rows(scenario())
    assert counts["retries"] == sum(answer != "ok" for answer in answers)
    stamps = [stamp for _, stamp in daemon.order]
    assert stamps == sorted(stamps), "ticks arrive in order"


def test_pauses_double_and_a_requested_pause_is_kept():
    daemon = Daemon("ok", *[httpx.Response(500)] * 9, httpx.Response(503, headers={"retry-after": "7"}))
    feed, messages, stopped = feed_to(daemon)
    play(daemon, StreamPlan(scenario(), 0, 2, 1e9), feed)
    pauses = [seconds for seconds in stopped.waits if seconds > 0.1]  # the rest is the pace of the ticks
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 7]
    assert messages == ["http://daemon:8000: status 500; trying again until it accepts the samples"]


def test_an_outage_is_reported_with_its_reason_at_first_and_once_a_minute(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("tenacity.time.monotonic", lambda: seconds[0])
    stopped = Waits()
    monkeypatch.setattr(stopped, "wait", lambda _timeout: seconds.__setitem__(0, seconds[0] + 1.0) or False)
    refusal = httpx.Response(503, text="shard 3/3 does not respond", headers={"retry-after": "1"})
    feed, messages, _ = feed_to(Daemon("ok", *[refusal] * 130), stopped=stopped)
    play(None, StreamPlan(scenario(), 0, 2, 1e9), feed)
    outage = "http://daemon:8000: status 503 shard 3/3 does not respond"
    assert messages == [
        f"{outage}; trying again until it accepts the samples",
        f"{outage} for 60 s; trying again until it accepts the samples",
        f"{outage} for 120 s; trying again until it accepts the samples",
    ]


def test_a_daemon_that_never_responded_ends_the_stream_soon_with_address_and_remedy(monkeypatch):
    times = iter(range(0, 10_000, 4))
    monkeypatch.setattr("tenacity.time.monotonic", lambda: float(next(times)))
    daemon = Daemon(*[httpx.ConnectError("[Errno 111] Connection refused")] * 100)
    with pytest.raises(FeedError, match=r"http://daemon:8000 does not accept samples: ConnectError.*start the daemon"):
        play(daemon)
    assert daemon.requests < 10


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(401, text="token needed"), "refuses the samples with status 401: token needed"),
        (httpx.Response(404, text="nothing here"), "status 404"),
        (httpx.Response(302), "status 302"),
        (httpx.Response(200, text="<html>"), "does not respond like this project's daemon: '<html>'"),
        (httpx.Response(200, json={"ok": True}), "does not respond like this project's daemon"),
        (httpx.Response(200, json=[]), "does not respond like this project's daemon"),
    ],
)
def test_refusals_and_unknown_responses_end_the_stream_with_the_reason(answer, message):
    with pytest.raises(FeedError, match=message):
        play(Daemon(answer))


def test_rejected_records_are_counted_and_the_first_reason_is_shown():
    reason = {"index": 1, "field": "timestamp", "value": "x", "reason": "too old"}
    feed, messages, _ = feed_to(Daemon(httpx.Response(200, json={"accepted": 3, "rejected": [reason]})))
    counts = play(None, StreamPlan(scenario(), 0, 1, None), feed)
    assert (counts["accepted"], counts["rejected"], counts["records"]) == (3, 1, 4)
    assert "too old" in messages[0]


def test_overdue_ticks_are_sent_together_without_a_change_of_the_samples(monkeypatch):
    together, one_by_one, progress = Daemon(), Daemon(), []
    play(one_by_one)
    monkeypatch.setattr(playback, "RECORDS_IN_ONE_BACKFILL", 50)
    counts = play(together, StreamPlan(scenario(), 0, 40, None), on_ticks=lambda *ticks: progress.append(ticks))
    assert (one_by_one.requests, together.requests) == (40, 4)
    assert (together.rows, together.order, counts["ticks"]) == (one_by_one.rows, one_by_one.order, 40)
    assert [ticks for _, ticks in progress] == [13, 13, 13, 1]
    assert progress[-1][0] == max(stamp for _, stamp in together.rows)


def test_large_fleets_are_sent_in_requests_of_bounded_size(monkeypatch):
    monkeypatch.setattr(feed_module, "RECORDS_IN_ONE_REQUEST", 3)
    daemon = Daemon()
    play(daemon, StreamPlan(scenario(), 0, 5, 1e9))
    assert daemon.requests == 10
    assert len(daemon.rows) == 20


def test_a_token_is_sent_as_bearer():
    daemon = Daemon()
    feed, _, _ = feed_to(daemon, token="s3cret")
    play(daemon, StreamPlan(scenario(), 0, 1, None), feed)
    assert daemon.tokens == {"Bearer s3cret"}


def test_sparse_streams_send_no_rows_of_offline_servers():
    simulated = scenario(outage_rate=300)
    dense, sparse = Daemon(), Daemon()
    play(dense, StreamPlan(simulated, 0, 40, None))
    play(sparse, StreamPlan(simulated, 0, 40, None, sparse=True))
    offline = {key for key, row in dense.rows.items() if row["state"] == "offline"}
    assert offline
    assert sparse.rows.keys() == dense.rows.keys() - offline
    assert all(dense.rows[key][metric] is None for key in offline for metric in METRICS)


# --- stopping and resuming ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 7, 39])
@pytest.mark.parametrize("every", [None, 5])
def test_a_stopped_stream_continues_without_lost_or_repeated_ticks(tmp_path, stop_after, every):
    position = tmp_path / "position.json"
    plan = StreamPlan(scenario(), 0, 40, 1e9, new_server_every_steps=every, position_file=position)
    daemon, whole = Daemon(), Daemon()
    play(whole, StreamPlan(scenario(), 0, 40, 1e9, new_server_every_steps=every))
    feed, _, stopped = feed_to(daemon)
    ticks = []
    play(daemon, plan, feed, lambda stamp, _: (ticks.append(stamp), len(ticks) == stop_after and stopped.set()))
    assert len(ticks) == stop_after
    play(daemon, plan)
    assert daemon.doubles == 0
    if every is None:
        assert daemon.rows == whole.rows
    else:
        own = expected_rows(scenario())
        assert {key: row for key, row in daemon.rows.items() if key in own} == {
            key: row for key, row in whole.rows.items() if key in own
        }
        added = {name for name, _ in daemon.rows} - {name for name, _ in own}
        assert added
        for name in added:
            mine = sorted(stamp for other, stamp in daemon.rows if other == name)
            last = sorted({stamp for _, stamp in daemon.rows})[-len(mine) :]
            assert mine == last, "an added server stays without a gap"


def test_an_injected_incident_continues_after_a_restart(tmp_path):
    position = tmp_path / "position.json"
    plan = StreamPlan(
        scenario(incident_rate=0), 0, 40, 1e9, inject=(("ppdb001", "lock_contention"),), position_file=position
    )
    whole, daemon = Daemon(), Daemon()
    play(whole, StreamPlan(plan.scenario, 0, 40, 1e9, inject=plan.inject))
    feed, _, stopped = feed_to(daemon)
    play(daemon, plan, feed, lambda stamp, _: stamp.startswith("2026-09-14T04:15") and stopped.set())
    play(daemon, StreamPlan(plan.scenario, 0, 40, 1e9, position_file=position))
    assert daemon.rows == whole.rows
    assert any(row["incident"] == "lock_contention" for row in whole.rows.values())


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"stream": {}}', "\x00"])
def test_a_damaged_position_file_is_refused_with_the_remedy(tmp_path, content):
    position = tmp_path / "position.json"
    position.write_text(content)
    with pytest.raises(
        ValueError, match=r"position\.json is damaged or has another format; give another path, or remove it"
    ):
        play(Daemon(), StreamPlan(scenario(), 0, 40, None, position_file=position))


def test_a_position_file_of_another_stream_is_refused(tmp_path):
    position = tmp_path / "position.json"
    play(Daemon(), StreamPlan(scenario(), 0, 2, None, position_file=position))
    other = StreamPlan(scenario(step_seconds=60), 0, 2, None, position_file=position)
    with pytest.raises(ValueError, match="is of another stream"):
        play(Daemon(), other)


def test_a_stream_that_is_stopped_while_the_daemon_is_unreachable_ends_at_once():
    daemon = Daemon("ok", *[httpx.ConnectError("gone")] * 1_000)
    feed, _, stopped = feed_to(daemon)
    feed.report = lambda text: stopped.set()
    counts = play(daemon, feed=feed)
    assert counts["ticks"] == 1
    assert daemon.requests == 2


# --- time -----------------------------------------------------------------------------------------------------------


def test_without_speed_the_past_is_due_at_once_and_the_future_at_its_time():
    began = 1_000_000.0
    pace = Pace(np.datetime64(900_000, "s"), None, began)
    assert pace.due(np.datetime64(990_000, "s")) <= began
    assert pace.due(np.datetime64(1_000_300, "s")) == 1_000_300


def test_with_speed_the_past_is_replayed_faster_up_to_the_present():
    began = 1_000_000.0
    pace = Pace(np.datetime64(999_400, "s"), 60, began)
    assert [pace.due(np.datetime64(999_400 + 300 * step, "s")) for step in range(3)] == [began, began + 5, began + 10]
    assert pace.due(np.datetime64(1_000_300, "s")) == 1_000_300
    for seconds in range(999_400, 1_010_000, 300):
        assert pace.due(np.datetime64(seconds, "s")) >= min(seconds, began + (seconds - 999_400) / 60)


def test_a_stream_waits_for_each_tick_of_the_future():
    now = float(START.astype(np.int64)) + 900.0
    daemon = Daemon()
    feed, _, stopped = feed_to(daemon)
    stream(StreamPlan(scenario(), 0, 6, None), feed, lambda *_: None, clock=lambda: now)
    assert stopped.waits == [300, 600]
    assert len(daemon.rows) == 24


# --- new servers and incidents --------------------------------------------------------------------------------------


def test_new_servers_are_added_live_with_the_next_number_of_their_profile():
    daemon = Daemon()
    feed, messages, _ = feed_to(daemon)
    counts = play(daemon, StreamPlan(scenario(), 0, 40, 1e9, new_server_every_steps=4), feed)
    assert counts["servers"] == 4 + 9
    assert sum("added" in text for text in messages) == 9
    names = {name for name, _ in daemon.rows}
    assert len(names) == 13
    larger = Fleet.of({"web_api": 9, "database": 9}, seed=5)
    for name in names & set(larger.names) - set(scenario().fleet.names):
        grown = simulate(scenario(fleet=larger, incident_rate=0, outage_rate=0))
        stamp = max(stamp for other, stamp in daemon.rows if other == name)
        step = np.flatnonzero(np.char.add(grown.timestamps.astype(str), "Z") == stamp)[0]
        sent = daemon.rows[name, stamp]["mem_pct"]
        assert sent is None or sent == pytest.approx(grown.metrics[larger.names.index(name), step, 1], abs=0.01)


def test_a_new_server_shares_the_demand_of_its_profile_also_after_a_fork():
    options = {"fork_step": 20, "fork_seed": 9, "incident_rate": 0, "outage_rate": 0}
    live = LiveFleet(scenario(**options), 10)
    name = live.add_server("web_api")
    larger = Fleet.of({"web_api": 9, "database": 9}, seed=5)
    expected = simulate(scenario(fleet=larger, **options)).metrics[larger.names.index(name), 10:]
    sent = [next(record for record in live.tick() if record["server_name"] == name) for _ in range(30)]
    assert [[record[metric] for metric in METRICS] for record in sent] == pytest.approx(expected[:30], abs=0.01)


def test_new_servers_and_incidents_wait_until_the_backfill_is_over():
    now = float(START.astype(np.int64)) + 3_000.0
    daemon = Daemon()
    feed, messages, _ = feed_to(daemon)
    plan = StreamPlan(
        scenario(incident_rate=0), 0, 20, None, new_server_every_steps=2, inject=(("ppdb002", "lock_contention"),)
    )
    stream(plan, feed, lambda *_: None, clock=lambda: now)
    assert "2026-09-14T04:55:00Z: lock_contention begins on ppdb002" in messages[0]
    assert all(stamp >= "2026-09-14T05:05" for name, stamp in daemon.rows if name not in scenario().fleet.names)
    labelled = [stamp for (_, stamp), row in daemon.rows.items() if row["incident"]]
    assert labelled
    assert min(labelled) > "2026-09-14T04:55"
