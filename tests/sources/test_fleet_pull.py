"""One fleet from several Prometheus servers, and the probe of their queries."""

from datetime import UTC, datetime

import httpx
import pytest

from data_contract import METRICS
from fleet_forecast.sources.connection import Access
from fleet_forecast.sources.fleet_pull import Owners, pull_fleet
from fleet_forecast.sources.probe import probe, probe_document, probe_text
from fleet_forecast.sources.prometheus import PrometheusClient, PrometheusServer, QuerySet, TimeRange
from server_profiles import BUILT_IN_RULES

STEP = 300
RANGE = TimeRange(datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 20, 1, tzinfo=UTC))


def server(name, value, *instances, metrics=("cpu_pct", "mem_pct"), fails=()):
    """A Prometheus that has one value for its instances; its queries are the metrics' names."""

    def handle(request):
        form = dict(httpx.QueryParams(request.content.decode()))
        if form["query"] in fails:
            return httpx.Response(400, json={"error": "bad query"})
        times = range(int(form["start"]), int(form["end"]) + 1, STEP)
        points = [[second, value] for second in times]
        found = [{"metric": {"instance": instance}, "values": points} for instance in instances]
        return httpx.Response(200, json={"data": {"result": found}})

    client = PrometheusClient(Access(f"http://{name}:9090"), transport=httpx.MockTransport(handle))
    return PrometheusServer(name, client, QuerySet(queries={metric: metric for metric in metrics}))


def test_owners_follow_the_order_of_the_servers_and_pass_on_what_is_gone():
    owners = Owners(["eu", "us"])
    assert owners.claim("us", ["a", "b"]) == {}
    assert owners.claim("eu", ["b", "c"]) == {}, "the first one takes over"
    assert owners.claim("us", ["a", "b"]) == {"b": "eu"}
    assert (owners.count("eu"), owners.count("us"), owners.of_server("b")) == (2, 1, "eu")
    assert owners.claim("eu", ["c"]) == {}
    assert owners.claim("us", ["a", "b"]) == {}, "`eu` has b no longer"
    owners.release("us")
    assert owners.of_server("a") is None
    assert owners.conflicts == {"eu": 0, "us": 1}


def test_a_fleet_of_two_servers_is_in_one_frame_and_a_name_of_both_is_taken_from_the_first():
    reported = []
    eu = server("eu", "1", "b:9100", "a", metrics=("cpu_pct",))
    us = server("us", "2", "b:1", "c", "d:1", "d:2", metrics=("cpu_pct", "mem_pct"))
    frame, owners, left_out = pull_fleet([eu, us], RANGE, STEP, lambda done, total: reported.append((done, total)))
    means = frame.groupby("server_name")[["cpu_pct", "mem_pct"]].mean().to_dict("index")
    assert {name: tuple(map(str, row.values())) for name, row in means.items()} == {
        "a": ("1.0", "nan"),
        "b": ("1.0", "nan"),
        "c": ("2.0", "2.0"),
    }
    assert frame["timestamp"].min() == RANGE.start
    assert len(frame) == 3 * 12
    assert [(each.prometheus, each.server) for each in left_out] == [("us", "d"), ("us", "b")]
    assert "taken from prometheus eu" in left_out[1].sentence
    assert {name: owners.of_server(name) for name in "abc"} == {"a": "eu", "b": "eu", "c": "us"}
    assert all(done <= total for done, total in reported)


def test_a_fleet_without_values_is_an_empty_frame():
    assert pull_fleet([server("eu", "1"), server("us", "1")], RANGE, STEP).frame.empty


@pytest.fixture
def probed():
    eu = server("eu", "1", "ppdb001:9100", "host7", metrics=("cpu_pct", "mem_pct"), fails=("mem_pct",))
    us = server("us", "2", "host7", "x:1", "x:2", metrics=("cpu_pct",))
    return probe([eu, us], BUILT_IN_RULES, RANGE.end.timestamp() + 17, STEP)


def test_a_probe_names_servers_profiles_missing_metrics_and_what_is_left_out(probed):
    document = probe_document(probed)
    assert {name: each["prometheus"] for name, each in document["servers"].items()} == {"host7": "eu", "ppdb001": "eu"}
    assert document["servers"]["ppdb001"]["profile"] == "database"
    assert [(q["prometheus"], q["metric"], q["series"], q["servers"]) for q in document["queries"]] == [
        ("eu", "cpu_pct", 2, 2),
        ("eu", "mem_pct", 0, 0),
        ("us", "cpu_pct", 3, 1),
    ]
    assert document["missing"] == {metric: ["host7", "ppdb001"] for metric in METRICS if metric != "cpu_pct"}
    assert [(each["prometheus"], each["server"]) for each in document["left_out"]] == [("us", "x"), ("us", "host7")]
    assert probed.failed


def test_a_prometheus_without_a_series_fails_the_probe_and_is_named():
    found = probe([server("eu", "1", "a:9100"), server("us", "1")], BUILT_IN_RULES, RANGE.end.timestamp(), STEP)
    assert (found.failed, found.silent) == (True, ["us"])
    lines = probe_text(found).splitlines()
    assert lines[lines.index("prometheus us (http://us:9090): 0 servers are taken from it") + 3].startswith(
        "  no query gives a series of the last 60 minutes; a series needs a whole step (300 s): wait, if the exporters"
    )
    assert not probe([server("eu", "1", "a:9100")], BUILT_IN_RULES, RANGE.end.timestamp(), STEP).failed


def test_the_text_of_a_probe_counts_one_server_as_one():
    lines = probe_text(probe([server("eu", "1", "a:9100")], BUILT_IN_RULES, RANGE.end.timestamp(), STEP)).splitlines()
    assert lines[0] == "prometheus eu (http://eu:9090): 1 server is taken from it"


def test_the_text_of_a_probe_has_a_line_for_each(probed):
    lines = probe_text(probed).splitlines()
    assert lines[:2] == [
        "prometheus eu (http://eu:9090): 2 servers are taken from it",
        "  cpu_pct: 2 series, 2 servers",
    ]
    assert "bad query" in lines[2]
    assert "profile database: 1: ppdb001" in lines
    assert "no profile rule matches: 1: host7" in lines
    assert "no mem_pct: 2: host7, ppdb001" in lines
    assert any(line.startswith("host7 of prometheus us is left out: it is taken from prometheus eu") for line in lines)
