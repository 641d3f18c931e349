"""Daemons on a fake engine, served to a browser: their time is set by the test."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import httpx
import uvicorn

from fleet_forecast.iso_time import iso
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.forecasts.model_manager import ModelLoading
from fleet_forecast.serving.referenced_files import ReferencedFiles
from fleet_forecast.serving.settings import Settings
from tests.serving.daemon_client import STEP, wait_for
from tests.serving.fake_engine import FakeEngine

PREFIX = "/tools/fleet"


class Scene:
    """A daemon's address and clock; `play` sends samples of one step and waits until it is forecast."""

    def __init__(self, url, token=None):
        self.url = url
        self.client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {token.decode()}"} if token else {})
        self.now = (int(time.time()) // STEP) * STEP

    def clock(self):
        return self.now

    def play(self, steps_back, values, **more):
        """values: cpu_pct by server name."""
        start = (int(time.time()) // STEP - 1 - steps_back) * STEP
        records = [
            {"timestamp": iso(start), "server_name": name, "cpu_pct": cpu, "mem_pct": 60.0, **more}
            for name, cpu in values.items()
        ]
        self.now = start + 1  # samples are not from the future
        for first in range(0, len(records), 500):
            sent = self.client.post("/api/v1/metrics", json={"records": records[first : first + 500]})
            assert sent.json()["rejected"] == []
        self.now = start + STEP + 1
        wait_for(lambda: self.client.get("/status").json()["cycle"]["origin"] == iso(start), 30)
        wait_for(lambda: self.client.get("/status").json()["servers"]["forecast"] >= len(values), 30)


def below(prefix, app):
    """An application as behind a proxy that serves it below a path prefix."""

    async def stripped(scope, receive, send):
        if scope["type"] == "http":
            path = scope["path"]
            scope = {**scope, "path": path.removeprefix(prefix) if path.startswith(prefix) else "/not-here" + path}
        await app(scope, receive, send)

    return stripped


def listening():
    """A socket like those that uvicorn binds: asyncio looks at its protocol, and sends without delay (TCP_NODELAY)."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


@contextlib.contextmanager
def serving(folder, token=None, prefix=""):
    """A daemon with its history in `folder`; the context ends it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(model=folder, history=folder / "history.sqlite", grace_seconds=0.0, recheck_seconds=0.05)
    with listening() as listener:
        scene = Scene(f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}", token)
        loading = ModelLoading(settings.model, lambda _path: FakeEngine())
        app = create_app(settings, ReferencedFiles(token=token), loading, clock=scene.clock)
        config = uvicorn.Config(below(prefix, app), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield scene
        finally:
            app.state.before_shutdown()
            server.should_exit = True
            scene.client.close()
            thread.join()
