"""A test client of the daemon's application on a fake engine; records to send and waits for forecasts."""

import contextlib
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.forecasts.model_manager import ModelLoading
from fleet_forecast.serving.referenced_files import ReferencedFiles
from fleet_forecast.serving.settings import Settings
from server_profiles import BUILT_IN_RULES
from tests.serving.fake_engine import FakeEngine

STEP = 300


TOKEN, ADMIN, SHARD = b"0123456789abcdef-client", b"0123456789abcdef-admin", b"0123456789abcdef-shards"


def complete_start(steps_back=0):
    """Start of the last complete step, or of one before it."""
    return (int(time.time()) // STEP - 1 - steps_back) * STEP


def record(name="ppml0001", seconds=None, **values):
    return {
        "timestamp": iso(complete_start() if seconds is None else seconds),
        "server_name": name,
        **(values or {"cpu_pct": 70.0, "mem_pct": 80.0}),
    }


@contextlib.contextmanager
def daemon(
    folder,
    engine=None,
    token=None,
    admin_token=None,
    shard_token=None,
    load=None,
    clock=time.time,
    rules=None,
    clients=None,
    profile_rules=BUILT_IN_RULES,
    **changes,
):
    chosen = Settings(
        model=Path(folder),
        history=Path(folder) / "history.sqlite",
        grace_seconds=0.0,
        recheck_seconds=0.05,
        allowed_hosts=("testserver",),
        **changes,
    )

    def load_fake(_path) -> Any:
        return engine or FakeEngine()

    files = ReferencedFiles(
        token=token,
        admin_token=admin_token,
        shard_token=shard_token,
        clients=clients or {},
        alert_rules=rules or AlertRules(),
        profile_rules=profile_rules,
    )
    app = create_app(chosen, files, ModelLoading(chosen.model, load or load_fake), clock=clock)
    with TestClient(app) as client:
        yield client


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)
    return found


def post(client, *records):
    return client.post("/api/v1/metrics", json={"records": list(records)})


def forecast_of(client, name="ppml0001", **query):
    def answer():
        got = client.get(f"/api/v1/servers/{name}/forecast", params=query)
        return got if got.status_code == 200 else None

    return wait_for(answer).json()
