"""Other services, model directories and disks that misbehave: their effect on the daemon is bounded."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from fleet_forecast.inference.model_directory import promote
from fleet_forecast.serving.storage.store import HistoryStore
from tests.reliability.finding import Finding, milliseconds, not_tried
from tests.reliability.traffic import Probe
from tests.serving.fake_daemon import DaemonProcess, FakeDaemon

GROWTH_LIMIT_MIB = 100
PROBE_LIMIT_MS = 500


class _Bomb(BaseHTTPRequestHandler):
    """Answers each request with a gzip file that unpacks to a gigabyte."""

    protocol_version = "HTTP/1.1"
    content = b""
    answers = 0

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).answers += 1
        self.send_response(200)
        self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(self.content)))
        self.end_headers()
        try:
            self.wfile.write(self.content)
        except OSError:
            self.close_connection = True


def compressed_bomb(folder: Path, seconds: float = 15.0, mebibytes: int = 1024) -> Finding:
    """A Prometheus sends a gzip bomb and its address has a password: memory stays, probes go on, no log has it."""
    _Bomb.content, _Bomb.answers = gzip.compress(b" " * (mebibytes << 20), 1), 0
    with ThreadingHTTPServer(("127.0.0.1", 0), _Bomb) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://me:hunter2@127.0.0.1:{server.server_port}"
        with FakeDaemon(folder, "--prometheus", address) as daemon:
            before = daemon.memory_mib()
            with Probe(daemon.port) as probe:
                time.sleep(seconds)
            growth = daemon.memory_mib() - before
            shown_password = "hunter2" in httpx.get(daemon.url + "/status").text + daemon.log.read_text()
            code, _ = daemon.stop()
        server.shutdown()
    worst = milliseconds(probe.taken, 1.0)
    kept = growth < GROWTH_LIMIT_MIB and worst < PROBE_LIMIT_MS and code == 0 and not shown_password
    shown = (
        f"{_Bomb.answers} answers that unpack to {mebibytes} MiB: memory grew by {growth:.0f} MiB, /healthz at most "
        f"{worst} ms, password {'shown' if shown_password else 'not shown'}"
    )
    return Finding(kept and _Bomb.answers > 0, shown, {"growth_mib": round(growth, 1), "max_ms": worst})


def hanging_and_partial_models(folder: Path, model: Path) -> Finding:
    """A directory with pipes in place of files, then one that is copied while it is read, then SIGTERM."""
    shutil.copytree(model.resolve(), folder / "good")
    promote(folder, "good")
    (folder / "pipes").mkdir()
    os.mkfifo(folder / "pipes" / "manifest.json")
    with DaemonProcess(folder, model=folder / "current") as daemon:
        promote(folder, "pipes")
        pipes_refused = _wait_for_log(daemon, "is not a plain file")
        (folder / "copied").mkdir()
        promote(folder, "copied")
        for path in sorted(model.resolve().iterdir(), key=lambda path: path.name != "manifest.json"):
            shutil.copy(path, folder / "copied" / path.name)
            time.sleep(0.3)
        started = time.monotonic()
        loaded = _wait_for_log(daemon, "model loaded", times=2)
        seconds = time.monotonic() - started
        ready = httpx.get(daemon.url + "/readyz").status_code == 200
        promote(folder, "pipes")
        code, ending = daemon.stop()
    kept = pipes_refused and loaded and ready and code == 0 and ending < 10
    shown = f"pipes refused, a copied directory in use {seconds:.1f} s after its last file, SIGTERM took {ending:.1f} s"
    return Finding(kept, shown, {"seconds_to_load": round(seconds, 2), "seconds_to_end": round(ending, 2)})


def _wait_for_log(daemon: DaemonProcess, text: str, times: int = 1, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while daemon.log.read_text().count(text) < times:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def passing_read_errors(folder: Path) -> Finding:
    """All reads of a good history fail: the start is refused, the file stays, and the next start has all of it."""
    strace = shutil.which("strace")
    if strace is None:
        return not_tried("the program strace is not installed")
    daemon = FakeDaemon(folder)
    with daemon:
        sample = {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "server_name": "a", "cpu_pct": 5.0}
        httpx.post(daemon.url + "/api/v1/metrics", json={"records": [sample]})
        daemon.stop()
    fault = ("-e", "trace=pread64", "-e", "inject=pread64:error=EIO")
    daemon.prefix = (strace, "-f", "-qq", "-o", "/dev/null", "-P", str(daemon.history), *fault)
    with daemon.launched():
        refused = daemon.process.wait(60) != 0 and "the disk fails" in daemon.log.read_text()
    aside = list(folder.glob("*.damaged-*"))
    store = HistoryStore(daemon.history, 300)
    whole = set(store.servers) == {"a"}
    store.close()
    shown = f"EIO on every read: start refused, {len(aside)} files set aside, history {'whole' if whole else 'LOST'}"
    return Finding(refused and not aside and whole, shown, {"set_aside": len(aside)})
