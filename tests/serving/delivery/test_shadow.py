"""Shadow mode of the whole daemon: the same alerts, recorded and not delivered."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.serving.daemon_client import complete_start, daemon, post, record, wait_for


@pytest.fixture
def webhook():
    """Address of a receiver, and the alerts that it received."""
    received = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            received.extend(json.loads(self.rfile.read(int(self.headers["content-length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("shadow", [False, True])
def test_in_shadow_mode_alerts_are_recorded_and_not_delivered(tmp_path, webhook, shadow):
    url, received = webhook
    with daemon(tmp_path, webhook=url, shadow=shadow) as client:
        for steps_back in (1, 0):
            post(client, record("ppweb001", complete_start(steps_back), cpu_pct=99.0))
            wait_for(lambda: client.get("/api/v1/risks").json()["risks"])
            time.sleep(0.3)
        (alert,) = wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])
        assert (alert["severity"], alert["silenced"]) == ("page", False)
        summary = client.get("/api/v1/alerts/summary").json()
        assert summary["shadow"] == shadow
        assert [each["deliverable"] for each in summary["this_week"]["alerts"]] == [1]
        if shadow:
            time.sleep(0.5)
            assert "fleet_alerts_sent_total 0" in client.get("/metrics").text
        else:
            wait_for(lambda: received)
    assert [each["state"] for each in received] == ([] if shadow else ["firing"])
