"""The daemon as a process, with the fake engine (`python -m tests.serving.fake_daemon FLAGS`) or a real one."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


class DaemonProcess:
    """A daemon with a model directory and its history in `folder`; a context manager.

    prefix: a command that runs it, such as strace. All are one process group, which ends with the block, and with a
    start that fails.
    """

    program: tuple[str, ...] = ("tft_inference.py", "--daemon")

    def __init__(self, folder: Path, *flags: object, model: Path, history: Path | None = None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.history = history or folder / "h.sqlite"
        fixed = ["--model", model, "--history", self.history, "--port", self.port]
        fixed += ["--grace-seconds", 0, "--recheck-seconds", 0.1]
        self.command = [sys.executable, *self.program, *map(str, [*fixed, *flags])]
        self.prefix: Sequence[str] = ()
        self.log = folder / "daemon.log"
        self.use_checkout(REPOSITORY)

    def use_checkout(self, checkout: Path) -> None:
        """Run the code of this checkout."""
        self.checkout, self.environment = checkout, {**os.environ, "PYTHONPATH": str(checkout)}

    def __enter__(self):
        self.start()
        return self

    def launch(self):
        """Start the process without waiting."""
        command = [*self.prefix, *self.command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stderr=log, cwd=self.checkout, env=self.environment, start_new_session=True
            )

    def start(self):
        """Start the process and wait until it is ready."""
        self.launch()
        try:
            self.wait_for("/readyz")
        except BaseException:
            self.kill()
            raise

    @contextlib.contextmanager
    def launched(self):
        """The process from its launch on, ready or not."""
        self.launch()
        try:
            yield self
        finally:
            self.kill()

    def kill(self):
        """End the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, path, seconds=60.0):
        """Wait until `path` answers 200; returns the seconds."""
        started = time.monotonic()
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)  # httpx loads CA files
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return time.monotonic() - started
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - started < seconds, self.log.read_text()
            time.sleep(0.02)

    def memory_mib(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def open_files(self):
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def stop(self, number=signal.SIGTERM):
        """Send a signal; returns the exit code and the seconds until the end."""
        started = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(30), time.monotonic() - started

    def __exit__(self, *_):
        self.kill()


class FakeDaemon(DaemonProcess):
    """A daemon with the fake engine; a call of it takes `seconds_per_call`, loading it `seconds_per_load`.

    keep_alive_seconds: instead of the daemon's own, which has no flag.
    """

    program = ("-m", "tests.serving.fake_daemon")

    def __init__(
        self,
        folder: Path,
        *flags: object,
        seconds_per_call=0.0,
        seconds_per_load=0.0,
        keep_alive_seconds=None,
        history=None,
    ):
        # A folder of its own: history and log beside the model would look like a new model at every write.
        model = folder / "model"
        model.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, *flags, model=model, history=history)
        self._seconds = {"FAKE_SECONDS": str(seconds_per_call), "FAKE_LOAD_SECONDS": str(seconds_per_load)}
        if keep_alive_seconds is not None:
            self._seconds["FAKE_KEEP_ALIVE_SECONDS"] = str(keep_alive_seconds)

    def launch(self):
        """Start the process without waiting."""
        self.environment |= self._seconds
        super().launch()


def main() -> int:
    import tft_inference
    from fleet_forecast.inference.engine import Engine
    from fleet_forecast.serving.forecasts.model_trial import ModelTrial
    from fleet_forecast.serving.http import server
    from tests.serving.fake_engine import FakeEngine

    def load(*_arguments, **_flags):
        time.sleep(float(os.environ["FAKE_LOAD_SECONDS"]))
        return FakeEngine(seconds_per_call=float(os.environ["FAKE_SECONDS"]))

    async def pass_trial(*_arguments):
        pass

    if "FAKE_KEEP_ALIVE_SECONDS" in os.environ:
        server.KEEP_ALIVE_SECONDS = int(os.environ["FAKE_KEEP_ALIVE_SECONDS"])
    Engine.load = load  # type: ignore[method-assign]
    ModelTrial.run = pass_trial  # type: ignore[method-assign]
    ModelTrial.begin = lambda *_: None  # type: ignore[method-assign]
    return tft_inference.main(["--daemon", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
