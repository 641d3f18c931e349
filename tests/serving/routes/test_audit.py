"""GET /api/v1/profiles/audit: the audit of what the store holds."""

from datetime import datetime

import numpy as np

from fleet_forecast.profile_audit.audit import AuditedFleet, audit_document, audit_profiles
from fleet_forecast.serving.routes.servers import AuditResponse
from tests.serving.daemon_client import complete_start, daemon, forecast_of, post, record

STEP = 300
STEPS = 100
SERVERS = {**{f"ppdb00{n}": "database" for n in range(1, 5)}, **{f"ppweb00{n}": "web_api" for n in range(1, 5)}}


def cpu_of(row, behaves_like):
    """A day of one server: databases are quiet, web servers swing."""
    random = np.random.default_rng(row)
    swing = 5 if behaves_like == "database" else 30
    wave = np.sin(2 * np.pi * np.arange(STEPS) / STEPS)
    return np.clip(45 + swing * wave + random.normal(0, 2, STEPS) + random.normal(0, 1), 1, 99).round(2)


def test_the_daemon_audits_what_it_stored_as_the_file_would_be(tmp_path):
    behaviours = SERVERS | {"ppdb004": "web_api"}
    days = {name: cpu_of(row, behaviours[name]) for row, name in enumerate(SERVERS)}
    start = complete_start()
    with daemon(tmp_path) as client:
        for name, cpu in days.items():
            post(client, *(record(name, start - n * STEP, cpu_pct=float(cpu[-1 - n])) for n in range(STEPS)))
        forecast_of(client, "ppweb004")
        got = client.get("/api/v1/profiles/audit").json()
        again = client.get("/api/v1/profiles/audit").json()
    AuditResponse.model_validate(got, strict=True)
    assert again == got
    day = np.full((len(SERVERS), 288, 1), np.nan, dtype=np.float32)
    newest = 288 - (datetime.fromisoformat(got["origin"]).timestamp() - start) // STEP
    day[:, int(newest) - STEPS : int(newest), 0] = list(days.values())
    fleet = AuditedFleet(list(SERVERS), list(SERVERS.values()), [True] * len(SERVERS), ["cpu_pct"], day)
    expected = audit_document(audit_profiles(fleet))
    assert [each["server_name"] for each in got["suggestions"]] == ["ppdb004"]
    assert got == {"origin": got["origin"], **expected}


def test_one_server_has_nothing_to_be_compared_with(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record())
        forecast_of(client)
        answer = client.get("/api/v1/profiles/audit")
    assert answer.status_code == 409
    assert "nothing to compare with" in answer.json()["detail"]
