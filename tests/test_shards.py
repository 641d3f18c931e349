"""A fleet in shards as processes behind nginx: each server has one shard; a kill and a third shard lose nothing."""

import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from fleet_forecast.iso_time import iso
from fleet_forecast.shard import owner_of
from tests.serving.daemon_client import complete_start, wait_for
from tests.serving.fake_daemon import FakeDaemon
from tests.test_from_prometheus import free_port

CONFIGURATION = Path(__file__).parent.parent / "deploy" / "nginx" / "shards.conf"
NAMES = [f"ppml{n:04d}" for n in range(30)]
ADMIN = "0123456789abcdef-admin"
FRAME = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/shards.conf;
}}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="the program nginx is not installed"),
]


class Nginx:
    """nginx with the configuration of deploy/nginx for so many shards; what a shard has there is repeated for more."""

    def __init__(self, folder, ports):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "nginx.conf").write_text(FRAME.format(folder=folder))
        self.write(ports)

    def write(self, ports):
        text = CONFIGURATION.read_text().replace("listen 8080", f"listen {self.port}")
        for number in range(3, len(ports) + 1):
            text = re.sub(r"( *)server 127.0.0.1:8002;\n", rf"\g<0>\1server 127.0.0.1:800{number};\n", text, count=1)
            for block in (r"upstream shard2 .*\n", r" *location @shard2 .*\n", r" *location /shards/2/ \{[^}]*\}\n"):
                found = re.search(block, text)
                further = found[0].replace("shard2", f"shard{number}").replace("/2/", f"/{number}/")
                text = text.replace(found[0], found[0] + further.replace(":8002", f":800{number}"))
        for number, port in ports.items():
            text = text.replace(f"127.0.0.1:800{number};", f"127.0.0.1:{port};")
        (self.folder / "shards.conf").write_text(text)

    def __enter__(self):
        self.process = subprocess.Popen(["nginx", "-p", self.folder, "-c", self.folder / "nginx.conf"])
        wait_for(lambda: "200" in self.answer("/healthz"), 60)
        return self

    def answer(self, path):
        try:
            return str(httpx.get(self.url + path).status_code)
        except httpx.TransportError:
            return "none"

    def reload(self, ports):
        self.write(ports)
        self.process.send_signal(signal.SIGHUP)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)


class Fleet:
    """Daemons of a fleet in shards, on files that stay when their number changes."""

    def __init__(self, folder, most):
        (folder / "admin-token").write_text(ADMIN)
        flags = ["--recheck-seconds", 0.1, "--admin-token-file", folder / "admin-token"]
        self.daemons = {number: FakeDaemon(folder / f"shard{number}", *flags) for number in range(1, most + 1)}
        self.base = {number: list(daemon.command) for number, daemon in self.daemons.items()}
        self.urls = {number: daemon.url for number, daemon in self.daemons.items()}

    def ports(self, count):
        return {number: self.daemons[number].port for number in range(1, count + 1)}

    def start(self, number, count):
        daemon = self.daemons[number]
        peers = [self.urls[each] for each in range(1, count + 1)]
        daemon.command = [*self.base[number], "--shard", f"{number}/{count}", "--forward", "--shard-peers", *peers]
        daemon.start()

    def kill(self):
        for daemon in self.daemons.values():
            if hasattr(daemon, "process"):
                daemon.kill()


class Sender(threading.Thread):
    """Sends a record of each server again and again through nginx; `stored`: values that were acknowledged."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.stored, self.end, self.refused = url, {}, threading.Event(), 0

    def run(self):
        second, first = 0, complete_start(2)
        with httpx.Client(timeout=20) as client:
            while not self.end.is_set():
                instant, second = iso(first + second), second + 1
                records = [
                    {"timestamp": instant, "server_name": name, "cpu_pct": (7.0 * n + second) % 100}
                    for n, name in enumerate(NAMES)
                ]
                while not self.end.is_set() and not self._sent(client, records):
                    self.refused += 1
                    time.sleep(0.1)
                time.sleep(0.1)

    def _sent(self, client, records):
        try:
            answer = client.post(self.url + "/api/v1/metrics", json={"records": records})
        except httpx.TransportError:
            return False
        if answer.status_code != 200:
            return False
        assert answer.json() == {"accepted": len(records), "rejected": []}
        self.stored.update({(each["server_name"], each["timestamp"]): each["cpu_pct"] for each in records})
        return True

    def stop(self):
        self.end.set()
        self.join(30)


def history(url, name):
    """The raw samples of a server: value by time."""
    answer = httpx.get(f"{url}/api/v1/servers/{name}/history", params={"raw": "true", "hours": 1})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return dict(zip(document["timestamps"], document["metrics"]["cpu_pct"], strict=True)), answer.headers


def assert_each_server_has_one_shard(fleet, nginx, count):
    for name in NAMES:
        statuses = {
            number: httpx.get(f"{fleet.urls[number]}/api/v1/servers/{name}/forecast").status_code
            for number in range(1, count + 1)
        }
        owner = owner_of(name, count)
        assert {number for number, status in statuses.items() if status == 200} == {owner}, (name, statuses)
        assert {status for number, status in statuses.items() if number != owner} <= {421}
        answer = httpx.get(f"{nginx.url}/api/v1/servers/{name}/forecast")
        assert (answer.status_code, answer.headers["x-fleet-shard"]) == (200, f"{owner}/{count}")


def assert_nothing_is_lost(nginx, sender):
    for name in NAMES:
        found, _ = history(nginx.url, name)
        for (of_name, instant), value in sender.stored.items():
            if of_name == name:
                assert found.get(instant) == value, (name, instant)


def leaving(fleet, count):
    return [
        httpx.get(f"{fleet.urls[number]}/status").json()["shard"]["leaving_servers"] for number in range(1, count + 1)
    ]


def test_a_kill_and_a_third_shard_lose_nothing_and_each_server_is_answered_by_one_shard(tmp_path):
    fleet = Fleet(tmp_path, 3)
    with ExitStack() as stack:
        stack.callback(fleet.kill)
        for number in (1, 2):
            fleet.start(number, 2)
        nginx = stack.enter_context(Nginx(tmp_path, fleet.ports(2)))
        sender = Sender(nginx.url)
        sender.start()
        stack.callback(sender.stop)
        wait_for(lambda: len(sender.stored) > 100, 60)
        wait_for(lambda: all(httpx.get(f"{nginx.url}/api/v1/servers/{n}/forecast").is_success for n in NAMES), 60)
        assert_each_server_has_one_shard(fleet, nginx, 2)

        fleet.daemons[2].stop(signal.SIGKILL)
        time.sleep(1.0)
        fleet.daemons[2].start()
        before = len(sender.stored)
        wait_for(lambda: len(sender.stored) > before + 100, 60)
        assert sender.refused > 0
        assert_nothing_is_lost(nginx, sender)

        fleet.start(3, 3)  # a third shard, then the others with its address
        nginx.reload(fleet.ports(3))
        for number in (1, 2):
            fleet.daemons[number].stop()
            fleet.start(number, 3)
        wait_for(lambda: leaving(fleet, 3) == [0, 0, 0], 60)
        before = len(sender.stored)
        wait_for(lambda: len(sender.stored) > before + 100, 60)
        sender.stop()
        assert_nothing_is_lost(nginx, sender)
        assert_each_server_has_one_shard(fleet, nginx, 3)
        moved = [name for name in NAMES if owner_of(name, 3) != owner_of(name, 2)]
        assert {owner_of(name, 3) for name in moved} == {3}
        assert len(NAMES) / 6 < len(moved) < len(NAMES) / 2

        assert httpx.get(f"{nginx.url}/shards/3/status").json()["shard"]["number"] == 3
        gone = httpx.delete(
            f"{nginx.url}/api/v1/servers/{moved[0]}", headers={"authorization": f"Bearer {ADMIN}"}
        )  # nginx keeps the method when it follows a shard's answer
        assert gone.status_code in (200, 204), gone.text
        assert httpx.get(f"{nginx.url}/api/v1/servers/{moved[0]}/history").status_code == 404
