"""The model in use: readiness, reload, a changed link."""

import shutil
import time
from functools import partial
from typing import Any

from starlette.testclient import TestClient

from fleet_forecast.inference.fleet_match import load_for_fleet
from fleet_forecast.inference.model_directory import promote
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.forecasts.model_manager import ModelLoading
from fleet_forecast.serving.referenced_files import ReferencedFiles
from fleet_forecast.serving.settings import Settings
from tests.serving.daemon_client import ADMIN, TOKEN, complete_start, daemon, forecast_of, post, record, wait_for
from tests.serving.fake_engine import FakeConfig, FakeEngine


def test_without_a_usable_model_the_daemon_is_not_ready_but_stores_samples(tmp_path):
    def broken(_path):
        raise OSError("model.onnx: sha256 differs")

    with daemon(tmp_path, load=broken) as client:
        wait_for(lambda: "sha256 differs" in client.get("/readyz").text)
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert post(client, record()).json()["accepted"] == 1
        assert client.get("/api/v1/servers/ppml0001/forecast").status_code == 503
        refused = client.post("/api/v1/forecast", json={"records": [record()]})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_reload_requires_the_admin_token_and_a_bad_model_leaves_the_previous_one_in_use(tmp_path):
    models = [FakeEngine(model_id="first"), FakeEngine(model_id="second"), OSError("bad manifest")]

    def load(_path):
        model = models.pop(0)
        if isinstance(model, OSError):
            raise model
        return model

    with daemon(tmp_path, load=load, token=TOKEN, admin_token=ADMIN) as client:
        as_admin = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        as_client = {"authorization": "Bearer " + TOKEN.decode(), "content-type": "application/json"}
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/api/v1/reload", headers=as_client).status_code == 401
        assert client.post("/api/v1/reload", headers=as_admin).json()["model"] == "second"
        refused = client.post("/api/v1/reload", headers=as_admin)
        assert (refused.status_code, refused.json()["problem"]) == (409, "bad manifest")
        assert client.get("/api/v1/model", headers=as_client).json()["model"] == "second"
        assert client.get("/readyz").status_code == 200


def test_the_paths_that_prometheus_has_for_probes_and_reload_do_the_same(tmp_path):
    models = [FakeEngine(model_id=name) for name in ("first", "second", "third")]
    with daemon(tmp_path, load=lambda _: models.pop(0), token=TOKEN, admin_token=ADMIN) as client:
        wait_for(lambda: client.get("/-/ready").status_code == 200)
        assert client.get("/-/healthy", headers={"host": "10.0.0.7"}).text == client.get("/healthz").text
        assert client.head("/-/healthy").status_code == client.head("/-/ready").status_code == 200
        headers = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        assert client.post("/-/reload").status_code == 401
        assert client.post("/-/reload", headers=headers).json()["model"] == "second"
        assert client.put("/-/reload", headers=headers).json()["model"] == "third"


def test_without_an_admin_token_reload_over_http_is_off(client):
    assert client.post("/api/v1/reload", headers={"content-type": "application/json"}).status_code == 403


def test_a_changed_link_is_loaded_and_the_fleet_is_forecast_again(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    link = tmp_path / "current"
    link.symlink_to("one")
    chosen = Settings(
        model=link,
        history=tmp_path / "h.sqlite",
        grace_seconds=0.0,
        recheck_seconds=0.05,
        allowed_hosts=("testserver",),
    )

    def load(path) -> Any:
        return FakeEngine(model_id=path.resolve().name)

    with TestClient(create_app(chosen, loading=ModelLoading(chosen.model, load))) as client:
        post(client, record())
        assert forecast_of(client)["model"] == "one"
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(link)
        wait_for(lambda: forecast_of(client)["model"] == "two")


def test_a_link_to_itself_is_a_refused_model_and_a_corrected_link_is_loaded(tmp_path):
    (tmp_path / "one").mkdir()
    link = tmp_path / "current"
    link.symlink_to("current")
    chosen = Settings(model=link, history=tmp_path / "h.sqlite", allowed_hosts=("testserver",))

    def load(path) -> Any:
        return FakeEngine(model_id=path.resolve().name)

    with TestClient(create_app(chosen, ReferencedFiles(admin_token=ADMIN), ModelLoading(chosen.model, load))) as client:
        headers = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        refused = client.post("/api/v1/reload", headers=headers)
        assert refused.status_code == 409
        assert "cannot be loaded" in refused.json()["problem"]
        (tmp_path / "next").symlink_to("one")
        (tmp_path / "next").rename(link)
        wait_for(lambda: client.get("/readyz").status_code == 200)


def test_a_model_with_another_step_gets_the_samples_averaged_on_that_step(tmp_path):
    engines = [FakeEngine(model_id="first"), FakeEngine(FakeConfig(step_seconds=60), model_id="second")]
    with daemon(tmp_path, load=lambda _path: engines.pop(0), admin_token=ADMIN) as client:
        start = complete_start()
        minutes = range(int((time.time() - start) // 60))
        post(client, *(record(seconds=start + 60 * n, cpu_pct=10.0 * n) for n in minutes))
        forecast_of(client)
        headers = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        client.post("/api/v1/reload", headers=headers)
        got = wait_for(lambda: (found := forecast_of(client))["step_seconds"] == 60 and found)
        assert got["metrics"]["cpu_pct"]["current"] == 10.0 * minutes[-1]


def test_the_status_shows_the_last_cycle_that_had_something_to_forecast(client):
    post(client, record(), record("ppdb001"))
    wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 2)
    time.sleep(0.2)  # a few re-checks with nothing to do
    assert client.get("/status").json()["cycle"]["servers"] == 2


def test_the_starter_model_serves_until_there_is_another_and_every_response_says_so(
    tmp_path, tiny_model_dir, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    chosen = Settings(
        history=tmp_path / "h.sqlite", grace_seconds=0.0, recheck_seconds=0.05, allowed_hosts=("testserver",)
    )
    loading = ModelLoading(
        chosen.model, partial(load_for_fleet, device="cpu", threads=1), chosen=chosen.model_is_chosen
    )
    with TestClient(create_app(chosen, loading=loading)) as client:
        post(client, record())
        own = forecast_of(client)
        answers = [own, client.get("/api/v1/forecasts").json(), client.get("/status").json()]
        answers.append(client.post("/api/v1/forecast", json={"records": [record()]}).json())
        answers.append(client.get("/api/v1/servers/ppml0001/explain").json())
        answers.append(client.get("/api/v1/model").json())
        assert [(answer["model"], answer["starter"]) for answer in answers] == [("starter", True)] * len(answers)
        assert "--warm-start starter" in answers[-1]["notice"]
        assert 'model="starter",starter="true"' in client.get("/metrics").text
        (tmp_path / "models").mkdir()
        shutil.copytree(tiny_model_dir, tmp_path / "models" / tiny_model_dir.name)
        promote(tmp_path / "models", tiny_model_dir.name)
        wait_for(lambda: not forecast_of(client)["starter"])
        assert client.get("/api/v1/model").json()["notice"] is None
        (tmp_path / "models" / "current").unlink()
        wait_for(lambda: client.get("/status").json()["last_load_problem"])
        assert client.get("/status").json()["model"] == tiny_model_dir.name, "the starter does not replace an own model"
