"""Query parameters that a route does not have are refused by name, on every route that reads data."""

import pytest
from fastapi.routing import APIRoute

from fleet_forecast.serving.app import TOPICS
from fleet_forecast.serving.clients import Right
from fleet_forecast.serving.http.access import OPEN_PATHS, needed_right

JSON_KIND = {"content-type": "application/json"}
KINDS = {"/api/v1/write": {"content-type": "application/x-protobuf", "content-encoding": "snappy"}}


def routes_with_data():
    found = [route for topic in TOPICS for route in topic.router.routes if isinstance(route, APIRoute)]
    return [route for route in found if route.path not in OPEN_PATHS and route.methods != {"HEAD"}]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/api/v1/servers/ppml0001/forecast?horizn=1h", "unknown parameter; use metric, quantile, horizon"),
        (
            "/api/v1/servers/ppml0001/forecast?metric=cpu_pct&horizn=1h",
            "unknown parameter; use metric, quantile, horizon",
        ),
        ("/api/v1/servers/ppml0001/explain?horizn=1h", "unknown parameter; use horizon"),
        ("/status?horizn=", "unknown parameter; there is none here"),
    ],
)
def test_a_misspelt_parameter_is_named_with_those_of_the_route(client, path, reason):
    answer = client.get(path)
    assert answer.status_code == 422
    assert answer.json() == {"detail": [{"field": "horizn", "reason": reason}]}


SINGLE = "is given 2 times and takes one value; give it once"


@pytest.mark.parametrize(
    ("path", "field", "reason"),
    [
        ("/api/v1/forecasts?limit=3&limit=4", "limit", SINGLE),
        ("/api/v1/servers/ppml0001/series?metric=cpu_pct&metric=mem_pct", "metric", SINGLE),
        ("/api/v1/heat-map?value=risk&value=breach", "value", SINGLE),
        ("/api/v1/heat-map?value=breach&level=0.5", "level", "applies to value=quantile only; add that, or leave"),
        ("/api/v1/servers/ppml0001/history?hours=1&limit=5", "limit", "applies to samples as received; add raw=true"),
    ],
)
def test_a_parameter_that_would_be_ignored_is_refused(client, path, field, reason):
    answer = client.get(path)
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["field"] == field
    assert reason in problem["reason"]


def test_a_list_may_be_repeated(client):
    for path in ("/api/v1/servers", "/api/v1/heat-map", "/api/v1/forecasts", "/api/v1/alerts"):
        assert client.get(f"{path}?profile=web_api&profile=database").status_code == 200, path
    assert client.get("/api/v1/forecasts?metric=cpu_pct&metric=mem_pct&horizon=5m&horizon=10m").status_code == 200


@pytest.mark.parametrize(
    ("query", "value", "reason"),
    [
        ("limit=100000", "100000", "less than or equal to 1000"),
        ("quantile=high", "high", "a valid number"),
        ("quantile=0.5&quantile=%F0%28", "\ufffd(", "a valid number"),
    ],
)
def test_a_wrong_value_is_named_with_its_parameter(client, query, value, reason):
    answer = client.get(f"/api/v1/forecasts?{query}")
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["field"], problem["value"]) == (query.partition("=")[0], value)
    assert reason in problem["reason"]


@pytest.mark.parametrize(("path", "status"), [("/api/v1/servers/a", 405), ("/api/v1/metrics", 405), ("/nothing", 404)])
def test_a_wrong_path_or_method_is_answered_with_where_to_look(client, path, status):
    answer = client.get(path)
    assert answer.status_code == status
    assert "GET /openapi.json lists" in answer.json()["detail"]
    assert ("allow" in answer.headers) == (status == 405)


def method_of(route):
    return "GET" if "GET" in route.methods else min(route.methods)


@pytest.mark.parametrize("route", routes_with_data(), ids=lambda route: f"{method_of(route)} {route.path}")
def test_every_route_refuses_an_unknown_parameter(client, route):
    path, method = route.path.replace("{name}", "ppml0001"), method_of(route)
    answer = client.request(method, path, params={"x" * 1_000: "1"}, content=b"{}", headers=KINDS.get(path, JSON_KIND))
    if needed_right({"method": method, "path": path}) is Right.ADMIN:
        assert answer.status_code == 403  # no admin token is set
    else:
        assert (answer.status_code, answer.json()["detail"][0]["field"]) == (422, "x" * 100)
