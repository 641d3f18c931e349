"""Forecasts of servers and of the fleet, from the last cycle."""

import io
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.tables import ARROW_STREAM, PARQUET, wanted_table
from tests.serving.daemon_client import ADMIN, STEP, complete_start, daemon, forecast_of, post, record, wait_for
from tests.serving.fake_engine import FakeConfig, FakeEngine


def test_a_posted_server_is_forecast_from_the_step_it_was_measured_in(client):
    assert post(client, record(cpu_pct=64.0)).json() == {"accepted": 1, "rejected": []}
    got = forecast_of(client)
    assert got["origin"] == iso(complete_start())
    assert got["profile"] == "ml_compute"
    assert "ppml" in got["profile_rule"]
    assert got["model"] == "tft_model_fake"
    assert got["history_steps"] == 1
    assert got["cold_start"] is False
    assert got["steps"] == list(range(1, 97))
    assert got["timestamps"][0] == iso(complete_start() + STEP)
    assert got["metrics"]["cpu_pct"]["q0.5"] == [64.0] * 96
    assert got["metrics"]["cpu_pct"]["current"] == 64.0
    assert got["metrics"]["latency_ms"]["current"] is None


def test_samples_of_a_step_are_averaged(client):
    start = complete_start()
    post(client, record(seconds=start, cpu_pct=10.0), record(seconds=start + 60, cpu_pct=20.0))
    assert forecast_of(client)["metrics"]["cpu_pct"]["current"] == 15.0


def test_late_samples_change_the_forecast_without_waiting_for_the_next_step(client):
    post(client, record(cpu_pct=10.0))
    assert forecast_of(client)["metrics"]["cpu_pct"]["current"] == 10.0
    post(client, record(seconds=complete_start() + 30, cpu_pct=30.0))
    wait_for(lambda: forecast_of(client)["metrics"]["cpu_pct"]["current"] == 20.0)


def test_the_running_step_of_a_new_server_is_forecast_at_once_as_provisional(client):
    post(client, record("ppdb007", seconds=int(time.time()), cpu_pct=33.0))
    got = wait_for(lambda: [f for f in [forecast_of(client, "ppdb007")] if f["provisional"]])[0]
    assert got["metrics"]["cpu_pct"]["current"] == 33.0
    assert got["history_steps"] == 1
    assert got["cold_start"] is False
    (server,) = client.get("/api/v1/servers").json()["servers"]
    assert (server["provisional"], server["peers"]) == (True, {"count": 0, "weight": 0.0})
    servers = client.get("/status").json()["servers"]
    assert (servers["forecast"], servers["with_risks"]) == (1, 0), "risks and alerts follow a complete step"


def test_a_server_without_a_measurement_is_forecast_with_a_cold_start_warning(client):
    post(client, record("ppdb007", seconds=int(time.time()), cpu_pct=None))
    got = forecast_of(client, "ppdb007")
    assert got["cold_start"] is True
    assert got["history_steps"] == 0
    assert "from the profile alone" in got["warnings"][0]


def test_a_name_no_rule_matches_is_generic_with_a_warning(client):
    post(client, record("frontdoor"))
    got = forecast_of(client, "frontdoor")
    assert (got["profile"], got["profile_rule"]) == ("generic", None)
    assert "no rule matches" in got["warnings"][0]


def test_the_profile_sent_with_the_samples_takes_precedence_over_the_patterns(client):
    post(client, record("ppml0001") | {"profile": "database"})
    got = forecast_of(client)
    assert (got["profile"], got["profile_rule"]) == ("database", "sent with the samples")


def test_a_profile_outside_the_seven_is_kept_and_forecast_as_unknown(client):
    post(client, record("mf1") | {"profile": "mainframe"})
    got = forecast_of(client, "mf1")
    assert (got["profile"], got["profile_rule"]) == ("mainframe", "sent with the samples")
    assert "the model was not trained on profile 'mainframe'" in got["warnings"][0]
    (listed,) = [each for each in client.get("/api/v1/profiles").json()["profiles"] if each["profile"] == "mainframe"]
    assert (listed["servers"], listed["trained"]) == (1, False)
    assert 'fleet_servers{profile="other"} 1' in client.get("/metrics").text
    refused = post(client, record("mf2") | {"profile": 'main"frame'}).json()["rejected"]
    assert (refused[0]["field"], refused[0]["value"]) == ("profile", 'main"frame')


def test_a_profile_the_model_was_not_trained_on_gives_a_warning(client):
    post(client, record("ppweb001"))
    assert any("not trained on profile 'web_api'" in warning for warning in forecast_of(client, "ppweb001")["warnings"])


def test_the_fleet_is_paged_in_the_order_of_names(client):
    names = [f"ppml{n:04d}" for n in range(5)]
    post(client, *(record(name) for name in reversed(names)))
    wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 5)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get("/api/v1/forecasts", params={"limit": 2, "after": after}).json()
        seen += [forecast["server_name"] for forecast in page["forecasts"]]
        after = page["next"]
    assert seen == names


def test_a_query_selects_servers_profiles_metrics_quantiles_and_horizons(client):
    post(client, record("ppml0001"), record("ppdb001"), record("ppdb002"))
    wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 3)
    query = {"profile": "database", "metric": "cpu_pct", "quantile": [0.5, 0.9], "horizon": ["15m", "8h"]}
    page = client.get("/api/v1/forecasts", params=query).json()["forecasts"]
    assert [forecast["server_name"] for forecast in page] == ["ppdb001", "ppdb002"]
    assert page[0]["steps"] == [3, 96]
    assert page[0]["metrics"] == {
        "cpu_pct": {
            "unit": page[0]["metrics"]["cpu_pct"]["unit"],
            "current": 70.0,
            "q0.5": [70.0, 70.0],
            "q0.9": [74.0, 74.0],
        }
    }
    for path in ("/api/v1/forecasts", "/api/v1/servers/ppdb001/forecast"):
        beyond = client.get(path, params={"horizon": ["1h", "9h"]})
        assert beyond.status_code == 422
        assert beyond.json()["detail"].startswith("horizon: 540m is asked for; the forecast reaches")
    only = client.get("/api/v1/forecasts", params={"server": "ppdb002"}).json()["forecasts"]
    assert [forecast["server_name"] for forecast in only] == ["ppdb002"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"metric": "cpu"}, "metric"),
        ({"horizon": "soon"}, "horizon"),
        ({"horizon": "99999999999999h"}, "horizon"),
        ({"horizon": "²h"}, "horizon"),
        ({"horizon": "7m"}, "horizon: 7m is not a whole number of the model's steps of 5m; use 5m or 10m"),
        ({"quantile": "0.55"}, "quantile"),
        ({"quantile": "nan"}, "quantile"),
        ({"limit": "0"}, "limit"),
    ],
)
def test_a_wrong_query_is_refused_by_name(client, query, named):
    post(client, record())
    forecast_of(client)
    answer = client.get("/api/v1/forecasts", params=query)
    assert answer.status_code == 422
    assert named in answer.text


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (PARQUET, PARQUET),
        (f"{PARQUET};q=0", None),
        (f"{PARQUET}; q=0.5, application/json", None),
        (f"{PARQUET};q=0.5, {ARROW_STREAM}", ARROW_STREAM),
        (f"{ARROW_STREAM}, {PARQUET}, */*;q=0.1", ARROW_STREAM),
        (f"{PARQUET};q=high", None),
        ("*/*", None),
        ("", None),
    ],
)
def test_the_format_is_the_one_with_the_highest_weight(accept, wanted):
    assert wanted_table(accept) == wanted


def test_a_table_without_a_forecast_has_the_columns_of_one_with_forecasts(client):
    def table():
        answer = client.get("/api/v1/forecasts", params=query, headers={"accept": PARQUET})
        assert answer.status_code == 200
        return pq.read_table(io.BytesIO(answer.content))

    query = {"quantile": 0.5, "profile": "nosuch"}
    before = table()
    post(client, record())
    forecast_of(client)
    empty, query = table(), {"quantile": 0.5}
    assert before.schema == empty.schema == table().schema
    assert (before.num_rows, empty.num_rows) == (0, 0)


def test_an_unknown_server_is_404(client):
    answer = client.get("/api/v1/servers/nobody%00/forecast")
    assert answer.status_code == 404
    assert answer.json()["detail"] == r"no such server 'nobody\x00': no sample of this name was received"


def test_a_forecast_that_is_not_finite_keeps_the_last_one(tmp_path):
    engine = FakeEngine()
    with daemon(tmp_path, engine) as client:
        post(client, record(cpu_pct=10.0))
        made_at = forecast_of(client)["made_at"]
        engine.bad_output = True
        post(client, record(cpu_pct=30.0))
        calls = len(engine.calls)
        wait_for(lambda: len(engine.calls) > calls)
        assert forecast_of(client)["made_at"] == made_at


def test_a_silent_server_becomes_stale_and_then_has_no_forecast(tmp_path):
    with daemon(tmp_path, stale_steps=3, drop_steps=6) as client:
        post(client, record(seconds=complete_start(2)), record("ppml0002", seconds=complete_start(4)))
        assert forecast_of(client)["stale"] is False
        assert client.get("/api/v1/servers/ppml0002/forecast").status_code == 404
        listed = client.get("/api/v1/servers").json()["servers"]
        assert [(one["server_name"], one["state"]) for one in listed] == [
            ("ppml0001", "forecast"),
            ("ppml0002", "silent"),
        ]
        assert client.get("/status").json()["servers"]["newest_step"] == iso(complete_start(2))


def test_a_model_of_some_metrics_forecasts_those(tmp_path):
    with daemon(tmp_path, FakeEngine(FakeConfig(targets=("mem_pct",)))) as client:
        post(client, record(cpu_pct=1.0, mem_pct=33.0))
        got = forecast_of(client)
        assert set(got["metrics"]) == {"mem_pct"}
        assert got["metrics"]["mem_pct"]["current"] == 33.0


def test_a_server_that_measured_nothing_is_forecast_before_and_after_a_restart(tmp_path):
    start = complete_start()
    for sent in (record("ppweb9", seconds=start, cpu_pct=None) | {"state": "offline"}, record("ppdb1", seconds=start)):
        with daemon(tmp_path) as client:
            post(client, sent)
            assert forecast_of(client, "ppweb9")["history_steps"] == 0


def test_acknowledged_samples_survive_a_restart(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record(cpu_pct=42.0))
    with daemon(tmp_path) as client:
        assert forecast_of(client)["metrics"]["cpu_pct"]["current"] == 42.0


def test_a_table_omits_forecasts_of_an_earlier_model(tmp_path):
    engines = [FakeEngine(model_id="first"), FakeEngine(model_id="second")]
    now = [time.time()]
    with daemon(tmp_path, load=lambda _path: engines.pop(0), admin_token=ADMIN, clock=lambda: now[0]) as client:
        post(client, record())
        assert forecast_of(client)["model"] == "first"
        now[0] += 4 * STEP  # the server fell silent: its forecast is stale, and the new model makes none
        headers = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        client.post("/api/v1/reload", headers=headers)
        wait_for(lambda: client.get("/api/v1/forecasts").json()["model"] == "second")
        assert forecast_of(client)["model"] == "first"
        answer = client.get("/api/v1/forecasts", headers={"accept": "application/vnd.apache.parquet"})
        assert (answer.status_code, answer.headers["x-next"]) == (200, "")
        assert pq.read_table(io.BytesIO(answer.content)).num_rows == 0


@pytest.mark.parametrize("kind", ["application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"])
def test_tables_have_the_values_of_the_json(client, kind):
    post(client, *(record(name, cpu_pct=30.0) for name in ("ppml0001", "ppdb002", "ppdb003")))
    wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 3)
    query = {"metric": ["cpu_pct", "mem_pct"], "quantile": [0.1, 0.9], "horizon": ["15m", "1h"]}
    answer = client.get("/api/v1/forecasts", params=query, headers={"accept": kind})
    assert answer.headers["content-type"] == kind
    read = pq.read_table if "parquet" in kind else lambda source: pa.ipc.open_stream(source).read_all()
    rows = read(pa.BufferReader(answer.content)).to_pylist()
    by_name = {f["server_name"]: f for f in client.get("/api/v1/forecasts", params=query).json()["forecasts"]}
    assert len(rows) == 3 * 2 * 2
    assert {row["server_name"]: row["peers"] for row in rows} == {"ppml0001": 0, "ppdb002": 1, "ppdb003": 1}
    for row in rows:
        forecast = by_name[row["server_name"]]
        place = forecast["steps"].index(row["step"])
        assert row["timestamp"].strftime("%Y-%m-%dT%H:%M:%SZ") == forecast["timestamps"][place]
        assert row["origin"].strftime("%Y-%m-%dT%H:%M:%SZ") == forecast["origin"]
        assert row["q0.9"] == forecast["metrics"][row["metric"]]["q0.9"][place]
        assert (row["peers"], row["peer_weight"]) == tuple(forecast["peers"].values())
        assert "q0.5" not in row


DAY = FakeConfig(horizon_steps=288, quantiles=(0.05, 0.5, 0.95), targets=("mem_pct", "cpu_pct"))


def test_a_model_with_a_day_of_horizon_and_other_levels_is_served_in_whole(tmp_path):
    with daemon(tmp_path, FakeEngine(DAY)) as client:
        post(client, record())
        forecast = forecast_of(client, horizon=["15m", "1d"], quantile=[0.05, 0.95])
    assert forecast["steps"] == [3, 288]
    assert forecast["metrics"]["cpu_pct"] == {"unit": "%", "current": 70.0, "q0.05": [65.5] * 2, "q0.95": [74.5] * 2}
    assert list(forecast["metrics"]) == ["mem_pct", "cpu_pct"]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"quantile": 0.9}, "quantile: 0.9 is not forecast; use 0.05, 0.5, 0.95"),
        ({"metric": "latency_ms"}, "metric: 'latency_ms' is not forecast; use mem_pct, cpu_pct"),
        ({"horizon": "25h"}, "horizon: 1500m is asked for; the forecast reaches from its first step to 1440m"),
        ({"horizon": "0m"}, "horizon: 0m is asked for; the forecast reaches from its first step to 1440m"),
    ],
)
def test_a_query_is_checked_against_what_the_model_forecasts(tmp_path, query, detail):
    with daemon(tmp_path, FakeEngine(DAY)) as client:
        post(client, record())
        forecast_of(client)
        for path in ("/api/v1/forecasts", "/api/v1/servers/ppml0001/forecast"):
            refused = client.get(path, params=query)
            assert (refused.status_code, refused.json()["detail"]) == (422, detail)
