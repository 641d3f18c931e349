"""Silences and recent alerts over HTTP."""

import re
import time

import pytest

from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.rules import AlertRules
from tests.serving.daemon_client import ADMIN, TOKEN, complete_start, daemon, post, record, wait_for

AS_ADMIN = {"authorization": "Bearer " + ADMIN.decode()}
FILE_RULES = AlertRules.model_validate(
    {"silences": [{"server": "x", "from": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}]}
)


def until_tomorrow(**selector):
    now = time.time()
    return {**selector, "from": iso(now - 60), "until": iso(now + 86_400), "comment": "move"}


def alerts(client, state="firing"):
    return client.get("/api/v1/alerts", params={"state": state}).json()["alerts"]


def test_a_silence_of_the_api_covers_an_alert_and_holds_over_a_restart(tmp_path):
    with daemon(tmp_path, admin_token=ADMIN, rules=FILE_RULES) as client:
        added = client.post("/api/v1/silences", json=until_tomorrow(pattern="ppweb.*"), headers=AS_ADMIN).json()
        assert (added["source"], added["active"], added["pattern"]) == ("api", True, "ppweb.*")
        for steps_back in (1, 0):
            post(client, record("ppweb001", complete_start(steps_back), cpu_pct=99.0))
            wait_for(lambda: client.get("/api/v1/risks").json()["risks"])
            time.sleep(0.3)  # a cycle of each step
        (alert,) = wait_for(lambda: alerts(client))
        assert (alert["silenced"], alert["severity"], alert["reason"]) == (True, "page", "breach")
        assert alerts(client, "silenced") == [alert]
        summary = client.get("/api/v1/alerts/summary").json()
        assert (summary["shadow"], summary["last_week"]) == (False, None)
        assert summary["this_week"]["alerts"] == [
            {"severity": "page", "reason": "breach", "deliverable": 0, "silenced": 1}
        ]
    with daemon(tmp_path, admin_token=ADMIN, rules=FILE_RULES) as client:
        from_file, again = client.get("/api/v1/silences").json()["silences"]
        assert (from_file["source"], from_file["active"], again) == ("file", False, added | {"note": None})
        (alert,) = wait_for(lambda: alerts(client, "silenced"))
        assert client.delete(f"/api/v1/silences/{added['id']}", headers=AS_ADMIN).json() == {"deleted": added["id"]}
        assert alerts(client, "silenced") == []
        assert alerts(client)[0]["silenced"] is False
        assert client.delete(f"/api/v1/silences/{added['id']}", headers=AS_ADMIN).status_code == 404
        assert client.delete(f"/api/v1/silences/{from_file['id']}", headers=AS_ADMIN).status_code == 409


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with daemon(tmp_path_factory.mktemp("guarded"), token=TOKEN, admin_token=ADMIN) as client:
        yield client


def test_silences_are_read_with_the_token_and_changed_with_the_admin_token(guarded):
    as_client = {"authorization": "Bearer " + TOKEN.decode()}
    assert guarded.get("/api/v1/silences", headers=as_client).status_code == 200
    assert guarded.post("/api/v1/silences", json=until_tomorrow(server="a"), headers=as_client).status_code == 401
    assert guarded.delete("/api/v1/silences/x", headers=as_client).status_code == 401
    assert guarded.post("/api/v1/silences", json=until_tomorrow(server="a"), headers=AS_ADMIN).status_code == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "a silence has no servers"),
        ({"server": "a"}, "from or until is missing"),
        ({"server": "a", "from": "today", "until": "2026-01-01T00:00:00Z"}, "the time 'today' is not a time"),
        (until_tomorrow() | {"pattern": "a("}, "not a regular expression"),
        ({"server": "a", "rack": 7}, "unknown field; use server, profile, pattern, from, until, weekly, comment, kind"),
        ([1], 'is not a JSON object; write {"name": value, ...}'),
        ({"server": "a", "weekly": {"days": ["sun"], "start": "2:00", "end": "03:00"}}, "'2:00' is not a time of day"),
        ({"server": "a", "weekly": {"days": ["sun"], "start": "02:00", "end": "03:00"}}, "is missing; add it"),
        ({"server": "a", "kind": "mute"}, "it should be 'silence' or 'exclude'"),
        ({"server": "a", "weekly": {"day": ["sun"]}}, "unknown field; use days, start, end, timezone"),
        ({"server": "a", "from": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00Z"}, "is in the past; give a la"),
    ],
)  # fmt: skip
def test_a_wrong_silence_is_refused_with_its_reason(guarded, body, reason):
    got = guarded.post("/api/v1/silences", json=body, headers=AS_ADMIN)
    assert got.status_code == 422
    problems = got.json()["detail"]
    assert any(reason in problem["reason"] for problem in problems)
    for problem in problems:
        assert problem["field"]
        assert not re.search("Input|String|Value error|Field|Extra", problem["reason"])


@pytest.mark.parametrize("body", [b'{"server": "\\ud800"}', b'{"server": "a", "from": NaN}', b"[" * 100_000])
def test_a_hostile_body_is_refused(guarded, body):
    headers = AS_ADMIN | {"content-type": "application/json"}
    assert guarded.post("/api/v1/silences", content=body, headers=headers).status_code in (400, 422)


def test_an_alert_that_ended_is_recent(tmp_path):
    with daemon(tmp_path, admin_token=ADMIN) as client:
        for steps_back in (1, 0):
            post(client, record("ppweb001", complete_start(steps_back), cpu_pct=99.0))
            wait_for(lambda: client.get("/api/v1/risks").json()["risks"])
            time.sleep(0.3)
        (firing,) = wait_for(lambda: alerts(client))
        assert client.delete("/api/v1/servers/ppweb001", headers=AS_ADMIN).status_code == 200
        post(client, record("ppml0001"))
        (recent,) = wait_for(lambda: alerts(client, "recent"))
        assert (recent["state"], recent["started_at"]) == ("resolved", firing["started_at"])
        assert "fell silent" in recent["sentence"]
        assert alerts(client) == []


def test_a_profile_that_no_server_has_is_noted_and_the_silence_is_kept(guarded):
    added = guarded.post("/api/v1/silences", json=until_tomorrow(profile="databse"), headers=AS_ADMIN).json()
    assert added["note"].startswith(
        "no server has the profile 'databse'; correct it unless such servers will come: conductor_mgmt,"
    )
    sample = {"records": [record("ppdb001")]}
    as_client = {"authorization": "Bearer " + TOKEN.decode()}
    assert guarded.post("/api/v1/metrics", json=sample, headers=as_client).json()["accepted"] == 1
    for known in ({"profile": "database"}, {"server": "ppdb001"}, {"pattern": "ppdb.*"}):
        assert guarded.post("/api/v1/silences", json=until_tomorrow(**known), headers=AS_ADMIN).json()["note"] is None
    for unknown, named in (({"server": "ppdb01"}, "'ppdb01'"), ({"pattern": "ppbd.*"}, "the pattern 'ppbd.*'")):
        added = guarded.post("/api/v1/silences", json=until_tomorrow(**unknown), headers=AS_ADMIN).json()
        assert added["note"] == f"{named} matches no known server; correct it unless such servers will come"
