"""The OpenAPI document: its models describe the real responses, and its examples are valid."""

import time

import pytest
from pydantic import ValidationError

from data_contract import METRICS
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.serving.ingest.validation import TimeLimits, check_records
from fleet_forecast.serving.routes.alerts import AlertsResponse, RisksResponse, SummaryResponse
from fleet_forecast.serving.routes.explain import ExplanationResponse
from fleet_forecast.serving.routes.forecast_responses import ForecastResponse
from fleet_forecast.serving.routes.forecasts import FleetForecastsResponse, HistoryForecastsResponse, RefusedHistory
from fleet_forecast.serving.routes.history import HistoryResponse
from fleet_forecast.serving.routes.model import ModelResponse, ReloadResponse
from fleet_forecast.serving.routes.probes import StatusResponse
from fleet_forecast.serving.routes.record_bodies import RECORDS_BODY, IngestResponse, record_model
from fleet_forecast.serving.routes.responses import Refusal
from fleet_forecast.serving.routes.servers import ProfilesResponse, ServersResponse
from fleet_forecast.serving.routes.silences import SilenceInfo, SilencesResponse
from fleet_forecast.serving.views.heat_map import HeatMapResponse
from fleet_forecast.serving.views.model_evaluation import EvaluationResponse
from fleet_forecast.serving.views.past_forecasts import PastForecastsResponse
from fleet_forecast.serving.views.peer_band import PeerBandResponse
from fleet_forecast.serving.views.risks import ServerRisksResponse
from tests.serving.daemon_client import ADMIN, complete_start, daemon, forecast_of, post, record, wait_for

GETS = {
    "/status": StatusResponse,
    "/api/v1/servers/ppml0001/forecast": ForecastResponse,
    "/api/v1/forecasts": FleetForecastsResponse,
    "/api/v1/servers/ppml0001/explain": ExplanationResponse,
    "/api/v1/servers": ServersResponse,
    "/api/v1/profiles": ProfilesResponse,
    "/api/v1/profiles/audit": Refusal,
    "/api/v1/servers/ppml0001/history": HistoryResponse,
    "/api/v1/servers/ppml0001/history?raw=true": HistoryResponse,
    "/api/v1/model": ModelResponse,
    "/api/v1/alerts": AlertsResponse,
    "/api/v1/alerts/summary": SummaryResponse,
    "/api/v1/silences": SilencesResponse,
    "/api/v1/risks": RisksResponse,
    "/api/v1/heat-map": HeatMapResponse,
    "/api/v1/heat-map?value=quantile&metric=cpu_pct&limit=1": HeatMapResponse,
    "/api/v1/servers/ppml0001/risks": ServerRisksResponse,
    "/api/v1/servers/ppml0001/past-forecasts": PastForecastsResponse,
    "/api/v1/servers/ppml0001/peers": PeerBandResponse,
    "/api/v1/model/evaluation": EvaluationResponse,
    "/api/v1/heat-map?value=quantile": Refusal,
    "/api/v1/servers/nobody/forecast": Refusal,
    "/api/v1/forecasts?limit=0": Refusal,
    "/api/v1/forecasts?metric=unknown": Refusal,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with daemon(tmp_path_factory.mktemp("served"), admin_token=ADMIN) as client:
        post(client, record(seconds=complete_start(1)), record("ppweb001", complete_start(1), cpu_pct=99.0))
        forecast_of(client)
        wait_for(lambda: client.get("/api/v1/risks").json()["risks"])
        post(client, record(), record("ppweb001", cpu_pct=99.0))  # an alert begins with the second forecast
        wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])
        yield client


def assert_described(document, model):
    """The model accepts the document without conversion, and has each of its fields."""
    parsed = model.model_validate(document, strict=True)
    assert parsed.model_dump(mode="json", exclude_unset=True) == document


@pytest.mark.parametrize(("path", "model"), GETS.items(), ids=GETS)
def test_a_response_is_what_its_model_describes(served, path, model):
    assert_described(served.get(path).json(), model)


def test_responses_to_records_are_what_their_models_describe(served):
    good, bad = record("ppdb001"), record(cpu_pct=180.0) | {"rack": 7}
    assert_described(post(served, good, bad).json(), IngestResponse)
    history = served.post("/api/v1/forecast", json={"records": [good, bad]}).json()
    assert_described(history, HistoryForecastsResponse)
    assert_described(served.post("/api/v1/forecast", json={"records": [bad]}).json(), RefusedHistory)


def test_a_reload_is_what_its_model_describes(served):
    headers = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
    assert_described(served.post("/api/v1/reload", headers=headers).json(), ReloadResponse)
    refused = served.post("/api/v1/reload", headers=headers, json={"model": "x"})
    assert refused.status_code == 422
    assert_described(refused.json(), Refusal)
    assert "takes no body" in refused.json()["detail"][0]["reason"]


def test_an_added_silence_is_what_its_model_describes(served):
    weekly = {"days": ["sun"], "start": "22:00", "end": "04:00", "timezone": "Europe/Berlin"}
    body = {"profile": "database", "weekly": weekly, "until": "2027-01-01T00:00:00Z"}
    headers = {"authorization": "Bearer " + ADMIN.decode()}
    assert_described(served.post("/api/v1/silences", json=body, headers=headers).json(), SilenceInfo)
    assert_described(served.get("/api/v1/silences").json(), SilencesResponse)


@pytest.mark.parametrize("model", [IngestResponse, ForecastResponse, ExplanationResponse])
def test_the_example_of_a_response_is_valid(model):
    for example in model.model_config["json_schema_extra"]["examples"]:
        assert_described(example, model)


def test_the_example_of_a_request_is_accepted():
    (example,) = RECORDS_BODY["requestBody"]["content"]["application/json"]["example"]["records"]
    assert not check_records([example], TimeLimits(0, 4_102_444_800_000)).rejected


def accepted_by_the_model(values):
    try:
        record_model().model_validate(values)
    except ValidationError:
        return False
    return True


CHANGES = [
    {},
    {"profile": "mainframe", "state": "offline"},
    {"profile": None, "state": None, "cpu_pct": None},
    {"server_name": "x y"},
    {"server_name": "x\ny"},
    {"server_name": ".."},
    {"server_name": " x"},
    {"timestamp": 1_480_843_720},
    {"timestamp": 1_480_843_720_500},
    {"timestamp": 1_480_843_720.5},
    {"timestamp": 12},
    {"timestamp": True},
    {"server_name": None},
    {"timestamp": "yesterday"},
    {"profile": 'main"frame'},
    {"state": "tired"},
    *({name: value} for name in METRICS for value in (METRIC_SPECS[name].lower, METRIC_SPECS[name].upper, -1.0, 2e9)),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_model_of_a_record_accepts_what_the_validation_accepts(change):
    changed = record() | change
    validated = check_records([changed], TimeLimits(0, int(time.time() * 1000) + 1))
    assert accepted_by_the_model(changed) == (not validated.rejected and not validated.left_out)


NOT_JSON = {
    "/healthz": "text/plain",
    "/readyz": "text/plain",
    "/metrics": "text/plain",
    "/api/v1/events": "text/event-stream",
}


def test_what_is_not_json_is_declared_as_what_it_is(served):
    paths = served.get("/openapi.json").json()["paths"]
    for path, media_type in NOT_JSON.items():
        assert paths[path]["get"]["responses"]["200"]["content"].keys() == {media_type}
        if path != "/api/v1/events":
            assert served.get(path).headers["content-type"].startswith(media_type)


def test_every_response_of_200_with_json_has_a_model(served):
    document = served.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation["responses"].get("200", {}).get("content", {}).get("application/json")
            if content is not None:
                assert content["schema"]["$ref"].startswith("#/components/schemas/"), (method, path)
