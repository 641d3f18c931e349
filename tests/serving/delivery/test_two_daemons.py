"""High availability: two daemons with the same servers send the same alerts; the real Alertmanager has each once."""

import shutil
import time

import pytest

from tests.serving.daemon_client import complete_start, daemon, post, record, wait_for
from tests.serving.delivery.test_alertmanager import RealAlertmanager
from tests.serving.shards.scene import names_of

OWN = names_of(1, 2, 2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus-alertmanager") is None, reason="prometheus-alertmanager is not installed")
def test_two_daemons_of_one_shard_are_one_alert_in_the_alertmanager_and_the_end_of_one_ends_none(tmp_path):
    receiver = RealAlertmanager(tmp_path)
    receiver.start()
    now = [complete_start(4) + 1.0]
    flags = {"shard": "1/2", "alertmanager": receiver.url, "alert_seconds": 0.5, "clock": lambda: now[0]}
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        with daemon(tmp_path / "a", **flags) as first:
            with daemon(tmp_path / "b", **flags) as second:
                for ago in (4, 3, 2, 1):
                    now[0] = complete_start(ago) + 1.0
                    for client in (first, second):  # as one agent that sends to both
                        post(client, *(record(name, complete_start(ago), cpu_pct=99.0, mem_pct=50.0) for name in OWN))
                    now[0] = complete_start(ago) + 301.0
                    for client in (first, second):
                        wait_for(lambda: settled(client), 30)  # noqa: B023
                for client in (first, second):
                    wait_for(lambda: len(client.get("/api/v1/alerts").json()["alerts"]) == len(OWN), 30)  # noqa: B023
                wait_for(lambda: sent(first) and sent(second), 30)
                both = receiver.alerts()
                assert sorted(each["labels"]["server"] for each in both) == sorted(OWN)
            time.sleep(3.0)  # longer than the end that the second one gave: four intervals
            assert fingerprints(receiver.alerts()) == fingerprints(both)
            assert len(fingerprints(both)) == len(OWN)
    finally:
        receiver.stop()


def settled(client):
    answer = client.get(f"/api/v1/servers/{OWN[0]}/forecast")
    return answer.status_code == 200 and answer.json()["history_steps"] > 0


def fingerprints(alerts):
    return {each["fingerprint"] for each in alerts}


def sent(client):
    return client.app.state.daemon.notifiers[0].sent >= len(OWN)
