"""Acknowledged samples are kept: kills, fsync, failing disks, full disks, damaged files."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from data_contract import METRICS
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.store import HistoryStore
from tests.reliability.finding import Finding, not_tried
from tests.reliability.traffic import Ingest, Ledger, nothing_lost
from tests.serving.fake_daemon import FakeDaemon


def kills(folder: Path, count: int = 200) -> Finding:
    """kill -9 at random moments of a running ingest, each time followed by a start on the same history."""
    dice, ledger = random.Random(1), Ledger()
    daemon = FakeDaemon(folder)
    for _ in range(count):
        with daemon, Ingest(daemon, ledger) as ingest:
            before = ingest.answers[200]
            ingest.until(lambda so_far, least=before: so_far.answers[200] > least)
            time.sleep(dice.random() * 0.2)
            daemon.stop(signal.SIGKILL)
    found = ledger.missing(daemon.history)
    shown = (
        f"{count} kills during ingest: {found['lost']} of {found['acknowledged']:,} acknowledged records lost, "
        f"{found['torn_batches']} torn batches, integrity check {found['damage'] or 'ok'}"
    )
    return Finding(nothing_lost(found) and found["acknowledged"] > 0, shown, {"kills": count, **found})


# --- fsync ----------------------------------------------------------------------------------------------------------


def can_trace() -> bool:
    """Whether strace is installed and permitted."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def acknowledged_after_sync(folder: Path, batches: int = 300) -> Finding:
    """Under strace: an fdatasync of the log starts and ends between the arrival of a batch and its 2xx."""
    if not can_trace():
        return not_tried("strace is not installed or not permitted")
    trace = folder / "trace"
    ledger, daemon = Ledger(), FakeDaemon(folder)
    calls = "trace=recvfrom,sendto,sendmsg,fdatasync,fsync"
    # -D: strace runs as a grandchild, so that the daemon remains the child process.
    daemon.prefix = ["strace", "-D", "-f", "-y", "-s", "64", "-e", calls, "-o", str(trace)]
    with daemon:
        with Ingest(daemon, ledger, threads=4) as ingest:
            ingest.until(lambda so_far: so_far.answers[200] >= batches)
        daemon.stop()
    answers, after_sync = _answers_after_sync(trace)
    shown = f"strace of {answers} acknowledgements: {after_sync} came after the fdatasync of their batch"
    return Finding(answers >= batches and answers == after_sync, shown, {"2xx": answers, "after_fdatasync": after_sync})


def _answers_after_sync(trace: Path) -> tuple[int, int]:
    """(2xx to a batch, those of them with a whole fdatasync of the log since the batch began to arrive)."""
    unfinished: dict[str, tuple[int, str]] = {}  # thread -> line at which its call began
    syncs: list[tuple[int, int]] = []  # (begun, ended), lines of the trace
    arrived: dict[str, int] = {}  # socket -> line at which its batch began to arrive
    answers = after_sync = 0
    for place, line in enumerate(trace.read_text(errors="replace").splitlines()):
        thread, _, call = line.partition(" ")
        begun, call = place, call.strip()
        if call.endswith("<unfinished ...>"):
            unfinished[thread] = (place, call.removesuffix("<unfinished ...>"))
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", call):
            begun, head = unfinished.pop(thread)
            call = head + resumed[1]
        descriptor = re.match(r"\w+\((\d+)<", call)
        if call.startswith(("fdatasync(", "fsync(")) and "-wal>" in call and call.endswith("= 0"):
            syncs.append((begun, place))
        elif descriptor and "POST /api/v1/metrics" in call:
            arrived[descriptor[1]] = begun
        elif descriptor and '"HTTP/1.1 200' in call and descriptor[1] in arrived:
            since = arrived.pop(descriptor[1])
            answers += 1
            after_sync += any(since < start and end < begun for start, end in syncs[-50:])
    return answers, after_sync


# Calls are counted by thread: the thread that opens the file makes fewer than these, the writing thread makes more.
FAULTS = {
    "fdatasync gives EIO": "inject=fdatasync:error=EIO:when=30..36",
    "fdatasync gives ENOSPC": "inject=fdatasync:error=ENOSPC:when=30..36",
    "pwrite64 gives ENOSPC": "inject=pwrite64:error=ENOSPC:when=300..360",
    "pwrite64 gives EIO": "inject=pwrite64:error=EIO:when=300..360",
    "every 101st pwrite64 gives EIO": "inject=pwrite64:error=EIO:when=300+101",
}


def failing_system_calls(folder: Path, faults: tuple[str, ...] = tuple(FAULTS)) -> Finding:
    """Some disk writes fail: 503, no acknowledged record is lost, and the same process continues."""
    if not can_trace():
        return not_tried("strace is not installed or not permitted")
    figures, kept = {}, True
    for number, fault in enumerate(faults):
        place = folder / str(number)
        place.mkdir()
        ledger, daemon = Ledger(), FakeDaemon(place)
        call = FAULTS[fault].split("=")[1].split(":")[0]
        trace = place / "trace"
        inject = ["-e", f"trace={call}", "-e", FAULTS[fault]]
        daemon.prefix = ["strace", "-D", "-f", *inject, "-o", str(trace)]
        with daemon:
            with Ingest(daemon, ledger) as ingest:
                ingest.until(lambda so_far: so_far.answers[503] >= 1)
                least = ingest.answers[200] + 50
                ingest.until(lambda so_far, least=least: so_far.answers[200] >= least)
                answering = httpx.get(daemon.url + "/healthz").status_code == 200
            code, _ = daemon.stop()
        injected = trace.read_text().count("(INJECTED)")
        found = ledger.missing(daemon.history)
        statuses = set(ingest.answers) - {200, 503}
        good = nothing_lost(found) and answering and code == 0 and not statuses and not ingest.without_retry_after
        figures[fault] = {"injected": injected, "503": ingest.answers[503], "lost": found["lost"], "kept": good}
        kept = kept and good and injected > 0
    refused = sum(figure["503"] for figure in figures.values())
    injected = sum(figure["injected"] for figure in figures.values())
    lost = sum(figure["lost"] for figure in figures.values())
    shown = (
        f"{len(faults)} kinds of failing writes ({injected} failures): {refused} answers of 503, "
        f"{lost} records lost, each daemon recovered without a restart"
    )
    return Finding(kept, shown, figures)


# --- full disk ------------------------------------------------------------------------------------------------------

_SMALL_DISK = 'mount -t tmpfs -o size=6m tmpfs "$0" && head -c 2000000 /dev/zero > "$0/filler" && exec "$@"'


def full_disk(folder: Path) -> Finding:
    """A tmpfs of 6 MB fills up: 503, reads continue; after space is freed the same process stores samples again."""
    small = folder / "small"
    small.mkdir()
    in_own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    trial = [*in_own_mounts, _SMALL_DISK, str(small), "true"]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True, check=False).returncode:
        return not_tried("mounting a tmpfs is not permitted")
    ledger, daemon = Ledger(), FakeDaemon(folder, history=small / "h.sqlite")
    daemon.prefix = [*in_own_mounts, _SMALL_DISK, str(small)]
    with daemon, httpx.Client(base_url=daemon.url, timeout=30) as client:
        inside = Path(f"/proc/{daemon.process.pid}/root{small}")
        now = {"records": [{"timestamp": _iso_now(), "server_name": "reader", "cpu_pct": 5}]}
        client.post("/api/v1/metrics", json=now)
        with Ingest(daemon, ledger) as ingest:
            ingest.until(lambda so_far: so_far.answers[503] >= 20)
            full_after = ingest.answers[200]
            paths = ("/healthz", "/status", "/api/v1/forecasts", "/api/v1/servers/reader/history", "/metrics")
            reads = {path: client.get(path).status_code for path in paths}
            reported = "fleet_history_writable 0.0" in client.get("/metrics").text
            (inside / "filler").unlink()
            freed = time.monotonic()
            ingest.until(lambda so_far: so_far.answers[200] >= full_after + 5)
            recovery_seconds = time.monotonic() - freed
        held = os.open(inside, os.O_RDONLY)  # the disk outlives the process that mounted it
        code, _ = daemon.stop()
    shutil.copy(f"/proc/self/fd/{held}/h.sqlite", folder / "saved.sqlite")
    os.close(held)
    found = ledger.missing(folder / "saved.sqlite")
    correctly_refused = ingest.answers[503] > 0 and not ingest.without_retry_after
    kept = nothing_lost(found) and set(reads.values()) == {200} and reported and code == 0 and correctly_refused
    shown = (
        f"tmpfs of 6 MB: full after {full_after} batches, then {ingest.answers[503]} answers of 503 and all reads 200; "
        f"space freed: stored again after {recovery_seconds:.1f} s in the same process, {found['lost']} lost"
    )
    return Finding(kept, shown, {"reads": reads, "recovery_seconds": round(recovery_seconds, 2), **found})


def _iso_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# --- damage ---------------------------------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def _overwritten_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * 8192 + content[12288:])


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _damaged_version(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = 99 WHERE key = 'schema_version'")
    database.close()


def _first_page_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096] + os.urandom(path.stat().st_size - 4096))


DAMAGES = (_garbage, _overwritten_pages, _truncated, _damaged_version, _first_page_alone)


def damaged_history(
    folder: Path, rows: int = 200_000, damages: tuple[Callable[[Path], None], ...] = DAMAGES
) -> Finding:
    """Histories damaged in several ways: the daemon starts, reports it, sets the file aside and stores samples."""
    whole = folder / "whole.sqlite"
    store, values = HistoryStore(whole, 300), (50.0,) * len(METRICS)
    first = (int(time.time()) // 300 - rows // 500) * 300
    for step in range(rows // 500):
        store.append([Sample(f"s{n}", (first + step * 300) * 1000, None, None, values) for n in range(500)]).result(60)
    store.close()
    seconds, reported, stored = [], 0, 0
    for damage in damages:
        place = folder / damage.__name__
        place.mkdir()
        daemon = FakeDaemon(place)
        shutil.copy(whole, daemon.history)
        damage(daemon.history)
        started = time.monotonic()
        with daemon:
            seconds.append(time.monotonic() - started)
            reported += "fleet_history_set_aside 1.0" in httpx.get(daemon.url + "/metrics").text
            new_name = httpx.get(daemon.url + "/status").json()["history"]["damaged_file_set_aside"]
            sample = {"records": [{"timestamp": _iso_now(), "server_name": "a", "cpu_pct": 5}]}
            answer = httpx.post(daemon.url + "/api/v1/metrics", json=sample)
            stored += answer.json()["accepted"] == 1 and Path(new_name).exists()
    tried = len(damages)
    shown = (
        f"{tried} kinds of damage to {whole.stat().st_size / 1e6:.0f} MB: started within {max(seconds):.1f} s, "
        f"{reported} of {tried} reported by a metric, {stored} of {tried} set aside, with samples stored again"
    )
    figures = {"slowest_seconds": round(max(seconds), 2), "bytes": whole.stat().st_size}
    return Finding(max(seconds) < 10 and reported == stored == tried, shown, figures)
