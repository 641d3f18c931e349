"""A real Prometheus writes to a real daemon over a restart of each: what it counts as sent is stored."""

import json
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from data_contract import METRICS
from tests.serving.daemon_client import wait_for
from tests.serving.fake_daemon import FakeDaemon
from tests.test_from_prometheus import answers, free_port

SERVERS = ("ppdb001", "ppweb001", "ppml0001")
ATTEMPTED, FAILED, RETRIED = (f"prometheus_remote_storage_samples{part}_total" for part in ("", "_failed", "_retried"))
ROUND = len(SERVERS) * len(METRICS)  # samples of one evaluation

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="the program prometheus is not installed")


class Exporter(BaseHTTPRequestHandler):
    """A gauge per server and metric that changes with each scrape."""

    scrapes, servers = 0, SERVERS

    def do_GET(self):
        type(self).scrapes += 1
        lines = [
            f'load{{server="{server}:9100",metric="{metric}"}} {(self.scrapes * 7 + 11 * n + m) % 100}.25'
            for n, server in enumerate(self.servers)
            for m, metric in enumerate(METRICS)
        ]
        body = ("\n".join(lines) + "\n").encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Prometheus:
    """A Prometheus with short intervals that records fleet: series and writes them to a daemon."""

    def __init__(self, folder, exporter_port, write_url):
        self.folder, self.address = folder, f"127.0.0.1:{free_port()}"
        scrape = {"job_name": "fleet", "scrape_interval": "200ms", "scrape_timeout": "150ms"}
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{exporter_port}"]}]
        scrape["metric_relabel_configs"] = [{"source_labels": ["server"], "target_label": "instance"}]
        rules = [
            {"record": f"fleet:{metric}", "expr": f'max by (instance) (load{{metric="{metric}"}})'}
            for metric in METRICS
        ]
        queue = {"batch_send_deadline": "200ms", "min_backoff": "30ms", "max_backoff": "200ms"}
        keep = {"source_labels": ["__name__"], "regex": "fleet:.*", "action": "keep"}
        write = {"url": write_url, "queue_config": queue, "write_relabel_configs": [keep]}
        config = {"scrape_configs": [scrape], "rule_files": ["rules.yml"], "remote_write": [write]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        group = {"name": "fleet", "interval": "200ms", "rules": rules}
        (folder / "rules.yml").write_text(json.dumps({"groups": [group]}))

    def start(self):
        command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        command += [f"--web.listen-address={self.address}", "--log.level=error"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        wait_for(lambda: answers(f"http://{self.address}/-/ready"), 30)

    def stop(self):
        """End it; it sends what is waiting first."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def sent(self):
        """Samples that it counts as sent; it counts attempts, failed and repeated ones too, which are taken off."""
        counts = dict.fromkeys((ATTEMPTED, FAILED, RETRIED), 0.0)
        for line in httpx.get(f"http://{self.address}/metrics").text.splitlines():
            name = line.partition("{")[0]
            if name in counts:
                counts[name] += float(line.split()[-1])
        return counts[ATTEMPTED] - counts[FAILED] - counts[RETRIED]

    def recorded(self):
        """Values of the fleet: series by (server, metric, ms) in its own database."""
        query = {"query": '{__name__=~"fleet:.+"}[10m]'}
        found = httpx.get(f"http://{self.address}/api/v1/query", params=query).json()["data"]["result"]
        return {
            (series["metric"]["instance"][:-5], series["metric"]["__name__"][6:], round(float(second) * 1000)): value
            for series in found
            for second, value in series["values"]
        }


def stored(daemon):
    """Values by (server, metric, ms) in the daemon's history."""

    found = {}
    for server in SERVERS:
        page = httpx.get(f"{daemon.url}/api/v1/servers/{server}/history", params={"raw": True, "hours": 1}).json()
        for metric, values in page["metrics"].items():
            for text, value in zip(page["timestamps"], values, strict=True):
                if value is not None:
                    found[server, metric, round(datetime.fromisoformat(text).timestamp() * 1000)] = value
    return found


@pytest.fixture
def exporter_port():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Exporter.servers = SERVERS
    yield server.server_port
    server.shutdown()
    server.server_close()


def not_measured(daemon):
    """Stale markers that the daemon counted."""
    counted = re.search(r'reason="not_measured"} (\d+)', httpx.get(f"{daemon.url}/metrics").text)
    return int(counted[1]) if counted else 0


def recorded_and_sent(prometheus, rounds=4):
    """After some scrapes: what it recorded, when that is sent, and the samples that it counts as sent then."""
    scrapes, before = Exporter.scrapes, prometheus.sent()
    wait_for(lambda: Exporter.scrapes >= scrapes + rounds, 30)  # five seconds after a start
    wait_for(lambda: prometheus.sent() >= before + rounds * ROUND, 30)
    recorded, so_far = prometheus.recorded(), prometheus.sent()
    wait_for(lambda: prometheus.sent() >= so_far + 3 * ROUND, 30)
    return recorded, prometheus.sent()


def test_every_sample_that_prometheus_counts_as_sent_is_stored_over_a_restart_of_each(tmp_path, exporter_port):
    with ExitStack() as stack:
        daemon = stack.enter_context(FakeDaemon(tmp_path))
        prometheus = Prometheus(tmp_path, exporter_port, f"{daemon.url}/api/v1/write")
        prometheus.start()
        stack.callback(lambda: prometheus.stop())
        recorded_and_sent(prometheus)
        daemon.stop(signal.SIGKILL)
        time.sleep(1)  # samples wait in Prometheus
        daemon.start()
        recorded, sent = recorded_and_sent(prometheus)
        prometheus.stop()

        started_ms = time.time() * 1000
        prometheus.start()
        later, sent_later = recorded_and_sent(prometheus)
        Exporter.servers = SERVERS[:2]
        wait_for(lambda: not_measured(daemon) >= len(METRICS), 30)  # the stale markers of the third one
        sent_later = prometheus.sent()
        prometheus.stop()

        found = stored(daemon)
        expected = recorded | {key: value for key, value in later.items() if key[2] > started_ms + 1000}
        wrong = {key for key, value in expected.items() if found.get(key) != float(value)}
        assert not wrong
        assert len(found) + not_measured(daemon) >= sent + sent_later >= 10 * ROUND
        times = sorted(instant for server, metric, instant in recorded if (server, metric) == (SERVERS[0], METRICS[0]))
        assert max(np.diff(times)) < 600, "Prometheus recorded while the daemon was down"
