"""The daemon as a process, on the fake engine: `python -m tests.fake_daemon FLAGS`, and a handle for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).parent.parent


class FakeDaemon:
    """A running daemon; use it as a context manager."""

    def __init__(self, folder: Path, *flags: object, seconds_per_call: float = 0.0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        fixed = ["--model", folder, "--history", folder / "h.sqlite", "--port", self.port]
        fixed += ["--grace-seconds", 0, "--recheck-seconds", 0.1]
        self.command = [sys.executable, "-m", "tests.fake_daemon", *map(str, [*fixed, *flags])]
        self.log = folder / "daemon.log"
        self.environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "FAKE_SECONDS": str(seconds_per_call)}

    def __enter__(self):
        self.start()
        return self

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log, cwd=REPOSITORY, env=self.environment)
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx.get(self.url + "/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def memory_mib(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self, number=signal.SIGTERM):
        """Signal it; gives the exit code and the seconds it took."""
        started = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(30), time.monotonic() - started

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def main() -> int:
    import tft_inference
    from forecasting.engine import Engine
    from tests.fake_engine import FakeEngine

    engine = FakeEngine(seconds_per_call=float(os.environ["FAKE_SECONDS"]))
    Engine.load = classmethod(lambda *_args, **_flags: engine)  # type: ignore[assignment]
    return tft_inference.main(["--daemon", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
