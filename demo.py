"""The three scripts on one machine: simulate a fleet, serve live forecasts, train on the fleet. `make demo` runs it.

    python demo.py                              # until Ctrl-C, which stops everything it started
    python demo.py --port 8001 --minutes 5      # another port, longer training
    python demo.py --once                       # end after the first forecast of the trained model

The daemon serves forecasts of the starter model at once, while the fleet's own model is trained, and changes to that
one when it is published. Files are in demo_files/, which each run empties. The live feed continues the same fleet with
one additional server that is not in the training data. Progress goes to stderr; the last line on stdout is JSON with
seconds by part.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import httpx
from tqdm import tqdm

from fleet_forecast.contract.forecast_spec import SCORED_LEVELS
from fleet_forecast.flags import FlagParser, add_flag, add_version
from fleet_forecast.inference.model_directory import STARTER_DIR
from fleet_forecast.iso_time import iso
from fleet_forecast.script import run_script

ROOT = Path(__file__).resolve().parent

# --- settings -------------------------------------------------------------------------------------------------------

HOST = "127.0.0.1"
FOLDER = Path("demo_files")
TRAINING_DAYS = 14
SERVERS = {  # per profile, in the training data
    "ml_compute": 4,
    "database": 3,
    "web_api": 4,
    "conductor_mgmt": 2,
    "data_ingest": 3,
    "risk_analytics": 2,
    "generic": 2,
}
NEW_SERVER, NEW_SERVER_PROFILE = "ppweb005", "web_api"  # only in the live feed: the next number of its profile
SEED = 42
BACKFILL_HOURS = 25  # of history that the feed sends first; the model needs 24
DAEMON_START_SECONDS = 180  # longest wait until it is ready
FORECAST_SECONDS = 300  # longest wait for the first forecast
STOP_SECONDS = 15  # from SIGTERM to SIGKILL of a child


class DemoError(RuntimeError):
    """A part of the demo failed; the message names it and the remedy."""


class Stopped(Exception):  # noqa: N818 - not an error
    """Ctrl-C, SIGTERM or SIGHUP."""


class StopSignals:
    """Raises Stopped once on SIGINT, SIGTERM or SIGHUP; within `blocked()` only at its end."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._asked = self._blocked = False
        self._before = {number: signal.signal(number, self._on_signal) for number in self.NUMBERS}

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if not self._blocked:
            self.ignore()
            raise Stopped

    def ignore(self) -> None:
        """Ignore the signals from now on, for the clean-up."""
        for number in self.NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Delay a signal until the end of the block."""
        self._blocked = True
        yield
        self._blocked = False
        if self._asked:
            self.ignore()
            raise Stopped


@dataclass
class Children:
    """The processes of the demo, each in its own process group; `stop` ends them all."""

    signals: StopSignals
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, arguments: Sequence[str], output: BinaryIO | int, errors: int | None) -> subprocess.Popen[bytes]:
        """Start one of the project's scripts."""
        with self.signals.blocked():
            command = [sys.executable, *arguments]
            child = subprocess.Popen(  # noqa: S603 - our own scripts
                command, cwd=ROOT, start_new_session=True, stdout=output, stderr=errors
            )
            self.running.append(child)
        return child

    def run(self, arguments: Sequence[str]) -> None:
        """Run a script to its end and print its output without the JSON. Raises DemoError if it failed."""
        child = self.start(arguments, subprocess.PIPE, None)
        assert child.stdout is not None  # noqa: S101 - a pipe was asked for
        with child.stdout as lines:
            for line in lines:
                if not line.startswith(b"{"):
                    _print(line.decode(errors="replace").rstrip("\n"))
        code = child.wait()
        self.running.remove(child)
        if code != 0:
            raise DemoError(f"{arguments[0]} ended with exit code {code}; its message is above")

    def start_logged(self, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a script in the background; its output goes to `log`."""
        with log.open("wb") as output:
            return self.start(arguments, output, subprocess.STDOUT)

    def stop(self) -> None:
        """End all running children: SIGTERM, then SIGKILL after STOP_SECONDS."""
        for child in reversed(self.running):
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for child in reversed(self.running):
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(child, signal.SIGKILL)
                child.wait()
        self.running.clear()


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


# --- the parts of the demo ------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, serve, feed, train; returns 0 if it was stopped or is done, 1 if a part failed."""
    arguments = _parser().parse_args(argv)
    url = f"http://{HOST}:{arguments.port}"
    signals = StopSignals()
    children = Children(signals)
    seconds: dict[str, float] = {}
    try:
        _require_free_port(arguments.port)
        folder = _empty_folder(ROOT / FOLDER)
        end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        with _step("1/4 simulating a fleet", seconds, "simulate"):
            children.run(_generator_command(folder, end))
        with _step("2/4 starting the daemon with the starter model", seconds, "start_daemon"):
            _use_starter(folder / "models")
            daemon = children.start_logged(_daemon_command(folder, arguments.port), folder / "daemon.log")
            _wait_until_ready(url, daemon, folder)
        with _step("3/4 feeding it live telemetry", seconds, "first_forecast"):
            serving = {"daemon": daemon, "feed": children.start_logged(_feed_command(url, end), folder / "feed.log")}
            forecast = _first_forecast(url, serving, folder)
        _print(_first_words(url, forecast, sum(seconds.values())))
        with _step(f"4/4 training on the fleet, {arguments.minutes:g} min and an evaluation", seconds, "train"):
            children.run(_trainer_command(folder, arguments.minutes))
            forecast = _first_forecast(url, serving, folder, of_starter=False)
        _print(_where_to_look(url, forecast))
        if not arguments.once:
            _watch(serving, folder)
    except Stopped:
        _print("\nstopping")
    except DemoError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    finally:
        signals.ignore()
        children.stop()
        signals.restore()
    print(json.dumps({"url": url, "seconds": seconds, "total_seconds": round(sum(seconds.values()), 1)}))
    return 0


def _generator_command(folder: Path, end: datetime) -> list[str]:
    hours = TRAINING_DAYS * 24
    start = end - timedelta(hours=hours)
    return [
        "metrics_generator.py",
        *_fleet_flags(SERVERS),
        *("--hours", str(hours), "--start", iso(start), "--out_dir", str(folder / "training")),
    ]


def _trainer_command(folder: Path, minutes: float) -> list[str]:
    return [
        "tft_trainer.py",
        *("--training-dir", str(folder / "training"), "--models-dir", str(folder / "models")),
        *("--max-minutes", f"{minutes:g}", "--no-comparison", "--no-risk-model"),
    ]


def _use_starter(models_dir: Path) -> None:
    """The starter model as models_dir/current, until the trainer publishes another one."""
    models_dir.mkdir()
    (models_dir / "current").symlink_to(STARTER_DIR)


def _daemon_command(folder: Path, port: int) -> list[str]:
    return [
        "tft_inference.py",
        *("--daemon", "--host", HOST, "--port", str(port)),
        *("--model", str(folder / "models" / "current"), "--history", str(folder / "history.sqlite")),
    ]


def _feed_command(url: str, end: datetime) -> list[str]:
    fleet = {**SERVERS, NEW_SERVER_PROFILE: SERVERS[NEW_SERVER_PROFILE] + 1}
    start = end - timedelta(hours=TRAINING_DAYS * 24)
    flags = ["--start", iso(start), "--stream", url, "--backfill_hours", str(BACKFILL_HOURS)]
    return ["metrics_generator.py", *_fleet_flags(fleet), *flags]


def _fleet_flags(servers: dict[str, int]) -> list[str]:
    counts = [text for profile, count in servers.items() for text in (f"--num_{profile}", str(count))]
    return [*counts, "--seed", str(SEED)]


# --- waiting --------------------------------------------------------------------------------------------------------


def _wait_until_ready(url: str, daemon: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for /readyz. Raises DemoError if the daemon ends, cannot use the model or takes too long."""
    for _ in _ticks("waiting for the daemon", DAEMON_START_SECONDS):
        _require_running({"daemon": daemon}, folder)
        response = _get(f"{url}/readyz")
        if response is not None and response.status_code == httpx.codes.OK:
            return
        if response is not None and "still loading" not in response.text:
            raise DemoError(f"the daemon is {response.text.strip()}")
    raise DemoError(f"the daemon was not ready within {DAEMON_START_SECONDS} s; see {_relative(folder / 'daemon.log')}")


def _first_forecast(
    url: str, children: dict[str, subprocess.Popen[bytes]], folder: Path, of_starter: bool = True
) -> dict[str, Any]:
    """The first forecast, by the starter or by the trained model, of the server that is not in the training data."""
    for _ in _ticks("waiting for the first forecast", FORECAST_SECONDS):
        _require_running(children, folder)
        response = _get(f"{url}/api/v1/servers/{NEW_SERVER}/forecast")
        if response is not None and response.status_code == httpx.codes.OK:
            forecast: dict[str, Any] = response.json()
            if forecast["starter"] == of_starter:
                return forecast
    raise DemoError(f"no forecast within {FORECAST_SECONDS} s; see {_relative(folder / 'daemon.log')} and feed.log")


def _watch(children: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait until Ctrl-C; raises DemoError if the daemon or the feed ends by itself."""
    while True:
        _require_running(children, folder)
        time.sleep(0.5)


def _require_running(children: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    for name, child in children.items():
        if child.poll() is not None:
            log = folder / f"{name}.log"
            last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise DemoError(f"the {name} ended with exit code {child.returncode}; the end of {_relative(log)}:\n{last}")


def _ticks(what: str, most_seconds: int) -> Iterator[None]:
    """Yields every half second for at most `most_seconds`, with a progress bar."""
    with tqdm(total=most_seconds, desc=what, bar_format="{desc}: {elapsed}", leave=False) as bar:
        started = time.monotonic()
        while (passed := time.monotonic() - started) < most_seconds:
            yield
            time.sleep(0.5)
            bar.update(int(passed) - bar.n)


def _get(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, timeout=5)
    except httpx.TransportError:
        return None


# --- set-up and messages --------------------------------------------------------------------------------------------


def _require_free_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as problem:
            raise DemoError(
                f"port {port} on {HOST} cannot be used ({problem.strerror}); "
                f"stop what uses it, or take another one: make demo PORT={port + 1 if port < 65535 else 8001}"
            ) from None


def _empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        raise DemoError(f"{_relative(folder)} cannot be written ({problem.strerror}); make it writable") from None
    return folder


@contextmanager
def _step(title: str, seconds: dict[str, float], name: str) -> Iterator[None]:
    _print(f"\n== {title}")
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)


def _last_cpu(forecast: dict[str, Any]) -> str:
    cpu = forecast["metrics"]["cpu_pct"]
    low, median, high = (cpu[f"q{level:g}"][-1] for level in SCORED_LEVELS)
    return f"CPU at {forecast['timestamps'][-1]}: {median:.0f} %, in 8 of 10 cases {low:.0f} to {high:.0f} %."


def _first_words(url: str, forecast: dict[str, Any], seconds: float) -> str:
    return f"""
First forecast after {seconds:.1f} s, by the starter model, which was not trained on this fleet. {NEW_SERVER}:
{_last_cpu(forecast)}
The dashboard is at {url}/. The fleet's own model is trained now, and replaces the starter model when it is ready."""


def _where_to_look(url: str, forecast: dict[str, Any]) -> str:
    return f"""
The trained model has replaced the starter model.
{NEW_SERVER} was not in the training data; its profile is {forecast["profile"]} ({forecast["profile_rule"]}).
Its {_last_cpu(forecast)}

Where to look:
  {url}/                    the dashboard
  {url}/status              state of the daemon
  {url}/openapi.json        its API
  {_relative(ROOT / FOLDER)}/models/current/report.html     accuracy of the model

  curl -s '{url}/api/v1/servers/{NEW_SERVER}/forecast?metric=cpu_pct&horizon=8h'
  curl -s '{url}/api/v1/forecasts?profile=database&quantile=0.5&horizon=1h'
  curl -s {url}/api/v1/forecast -H 'Content-Type: application/json' \\
       -d '{{"records": [{{"timestamp": "{forecast["origin"]}", "server_name": "some-new-box", "cpu_pct": 42}}]}}'

The fleet is forecast every 5 minutes. Ctrl-C stops everything."""


def _relative(path: Path) -> str:
    return os.path.relpath(path, ROOT)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _port(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 to 65535")
    return number


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1440:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0 and at most 1440")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(prog="demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_version(parser)
    add_flag(parser, "--port", type=_port, default=8000, help="port of the daemon (%(default)s)")
    add_flag(parser, "--minutes", type=_minutes, default=2.5, help="minutes of training (%(default)s)")
    add_flag(parser, "--once", action="store_true", help="end after the first forecast of the trained model")
    return parser


if __name__ == "__main__":
    run_script(main)
