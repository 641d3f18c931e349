"""The model in use: bad models are refused, readiness is right, no file can run code, swaps interrupt no request."""

from __future__ import annotations

import ast
import json
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
from starlette.testclient import TestClient

from fleet_forecast.inference.model_directory import promote, write_manifest
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.referenced_files import ReferencedFiles
from fleet_forecast.serving.settings import Settings
from tests.reliability.finding import Finding
from tests.reliability.traffic import JSON, Probe
from tests.serving.fake_daemon import REPOSITORY, DaemonProcess

ADMIN = "0123456789abcdef"
AS_ADMIN = {**JSON, "authorization": f"Bearer {ADMIN}"}
STEP_SECONDS = 300


def _record(name: str = "ppdb001", steps_ago: int = 1) -> dict[str, object]:
    moment = (int(time.time()) // STEP_SECONDS - steps_ago) * STEP_SECONDS
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
    return {"timestamp": timestamp, "server_name": name, "cpu_pct": 50.0 + steps_ago, "mem_pct": 60.0}


# --- bad models -----------------------------------------------------------------------------------------------------


def _resealed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """The damage with a matching manifest, as another version or an attacker would write it."""

    def damage(model: Path) -> None:
        change(model)
        (model / "manifest.json").unlink()
        write_manifest(model)

    return damage


def _replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        text = (model / name).read_text()
        assert old in text
        (model / name).write_text(text.replace(old, new, 1))

    return damage


def _bit_flipped(name: str, seed: int) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        content = bytearray((model / name).read_bytes())
        place = random.Random(seed).randrange(len(content) * 8)
        content[place // 8] ^= 1 << place % 8
        (model / name).write_bytes(content)

    return damage


def _truncated(name: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        (model / name).write_bytes((model / name).read_bytes()[:-100])

    return damage


def _removed(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def _with_a_pickle(model: Path) -> None:
    (model / "extra.pkl").write_bytes(b"cos\nsystem\n(S'touch /nowhere'\ntR.")


def _linked(model: Path) -> None:
    (model / "model.onnx").rename(model.with_name("elsewhere.onnx"))
    (model / "model.onnx").symlink_to(model.with_name("elsewhere.onnx"))


def _no_network(model: Path) -> None:
    (model / "model.onnx").write_bytes(b"not a network")


def damages_of(model: Path, flips: int) -> dict[str, Callable[[Path], None]]:
    """Each kind of damage by name; `flips` random bits in each file."""
    names = sorted(path.name for path in model.iterdir())
    found: dict[str, Callable[[Path], None]] = {}
    for name in names:
        found[f"{name} truncated"] = _truncated(name)
        found[f"{name} missing"] = _removed(name)
        if name != "manifest.json":  # a change of white space in the manifest has no effect
            found |= {f"{name} with bit flip {n}": _bit_flipped(name, n) for n in range(flips)}
    version = _replaced("config.json", '"contract_version": "', '"contract_version": "9')
    return found | {
        "other version": version,
        "other version, sealed": _resealed(version),
        "unknown field, sealed": _resealed(_replaced("config.json", '"model_id"', '"model_name"')),
        "no network, sealed": _resealed(_no_network),
        "other canary, sealed": _resealed(_replaced("canary.json", '"quantiles": [[[[', '"quantiles": [[[[9')),
        "additional pickle": _with_a_pickle,
        "linked file": _linked,
    }


def bad_models(folder: Path, model: Path, flips: int = 5) -> Finding:
    """Each damaged directory is promoted and a reload is requested; the forecasts stay those of the good model."""
    good, bad, link = folder / "good", folder / "bad", folder / "current"
    shutil.copytree(model.resolve(), good)
    link.symlink_to("good")
    settings = Settings(model=link, history=folder / "h.sqlite", allowed_hosts=("testserver",))
    damages = damages_of(good, flips)
    sent = {"records": [_record()]}  # one record for all: a later one may be of the next step
    wrong = []
    with TestClient(create_app(settings, ReferencedFiles(admin_token=ADMIN.encode()))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)

        def serves() -> tuple[str, object]:
            answer = client.post("/api/v1/forecast", json=sent).json()
            return answer["model"], answer["forecasts"][0]["metrics"]

        expected = serves()
        for name, damage in damages.items():
            shutil.copytree(good, bad)
            damage(bad)
            promote(folder, "bad")
            answer = client.post("/api/v1/reload", headers=AS_ADMIN)
            refused = answer.status_code == 409 and answer.json()["problem"]
            if not refused or serves() != expected or client.get("/readyz").status_code != 200:
                wrong.append(name)
            promote(folder, "good")
            shutil.rmtree(bad)
        again = client.post("/api/v1/reload", headers=AS_ADMIN).status_code == 200
    tried = len(damages)
    shown = f"{tried - len(wrong)} of {tried} damaged model directories refused, forecasts of the old model unchanged"
    return Finding(not wrong and again, shown, {"tried": tried, "accepted": wrong})


# --- readiness ------------------------------------------------------------------------------------------------------


def readiness(folder: Path, model: Path) -> Finding:
    """No model, then a damaged one, then a good one: /readyz gives 503 until the last, /healthz always 200."""
    shutil.copytree(model.resolve(), folder / "good")
    shutil.copytree(model.resolve(), folder / "bad")
    _bit_flipped("model.onnx", 0)(folder / "bad")
    (folder / "bad" / "manifest.json").touch()
    promote(folder, "bad")
    daemon = DaemonProcess(folder, model=folder / "current")
    with daemon.launched():
        daemon.wait_for("/healthz")
        with Probe(daemon.port) as probe, httpx.Client(base_url=daemon.url, timeout=10) as client:
            client.post("/api/v1/metrics", json={"records": [_record()]})
            refused: list[str] = []
            while len(refused) < 20 or "is damaged" not in refused[-1]:
                answer = client.get("/readyz")
                refused.append(f"{answer.status_code} {answer.text}")
                time.sleep(0.05)
            refusals = [text.startswith("503") for text in refused]
            unavailable = client.get("/api/v1/servers/ppdb001/forecast").status_code == 503
            promote(folder, "good")
            seconds = daemon.wait_for("/readyz")
            forecast = client.post("/api/v1/forecast", json={"records": [_record()]}).status_code == 200
        code, _ = daemon.stop()
    shown = (
        f"/readyz 503 in {sum(refusals)} of {len(refused)} requests before a good model, 200 {seconds:.1f} s after it; "
        f"/healthz 200 in {len(probe.taken) - probe.failed} of {len(probe.taken)}"
    )
    kept = all(refusals) and unavailable and forecast and probe.failed == 0 and code == 0
    return Finding(kept, shown, {"requests": len(refused), "probes": len(probe.taken), "seconds_to_ready": seconds})


# --- swaps ----------------------------------------------------------------------------------------------------------

READS = (
    "/api/v1/servers/ppdb001/forecast",
    "/api/v1/forecasts?metric=cpu_pct",
    "/api/v1/model",
    "/api/v1/servers",
    "/readyz",
    "/status",
    "/metrics",
)


def swaps(folder: Path, model: Path, count: int = 24) -> Finding:
    """Models are swapped by request, by signal and by link while clients read, forecast and send: nothing fails."""
    shutil.copytree(model.resolve(), folder / "first")
    shutil.copytree(folder / "first", folder / "second")
    name = json.loads((folder / "first" / "config.json").read_text())["model_id"]
    _resealed(_replaced("config.json", f'"{name}"', '"the_other"'))(folder / "second")
    promote(folder, "first")
    (folder / "admin").write_text(ADMIN)
    daemon = DaemonProcess(folder, "--admin-token-file", folder / "admin", model=folder / "current")
    answers: Counter[tuple[str, int]] = Counter()
    stopped = threading.Event()

    def read() -> None:
        with httpx.Client(base_url=daemon.url, timeout=30) as client:
            while not stopped.is_set():
                for path in READS:
                    answers[path, client.get(path).status_code] += 1
                history = {"records": [_record(steps_ago=n) for n in range(1, 20)]}
                answers["forecast", client.post("/api/v1/forecast", json=history).status_code] += 1
                answers["metrics", client.post("/api/v1/metrics", json=history).status_code] += 1

    with daemon, httpx.Client(base_url=daemon.url, timeout=30) as client:
        client.post("/api/v1/metrics", json={"records": [_record(steps_ago=n) for n in range(1, 20)]})
        daemon.wait_for(READS[0])
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        loads = 1
        for swap in range(count):
            promote(folder, ("second", "first")[swap % 2])
            if swap % 3 == 0:
                client.post("/api/v1/reload", headers=AS_ADMIN)
            elif swap % 3 == 1:
                daemon.process.send_signal(signal.SIGHUP)
            wanted = ("the_other", name)[swap % 2]
            deadline = time.monotonic() + 60
            while client.get("/api/v1/model").json()["model"] != wanted and time.monotonic() < deadline:
                time.sleep(0.02)
            loads += client.get("/api/v1/model").json()["model"] == wanted
        stopped.set()
        for thread in threads:
            thread.join()
        code, _ = daemon.stop()
    failed = {f"{path} {status}": n for (path, status), n in answers.items() if not 200 <= status < 300}
    total = sum(answers.values())
    shown = f"{count} swaps of the model during {total:,} requests: {sum(failed.values())} failed"
    return Finding(not failed and code == 0 and loads == count + 1, shown, {"requests": total, "failed": failed})


# --- no code from files ---------------------------------------------------------------------------------------------

CODE_RUNNING_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "imp"}
CODE_RUNNING_CALLS = {"eval", "exec", "compile", "__import__"}
SERVED_FROM = ("server_profiles.py", "data_contract.py", "tft_inference.py", "fleet_forecast")


def code_running(source: str) -> list[str]:
    """Names in a Python source that could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in CODE_RUNNING_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in CODE_RUNNING_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CODE_RUNNING_CALLS:
            found.append(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) == ("torch", "load"):
                found.append("torch.load")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


def no_code_from_files() -> Finding:
    """No module of the daemon can unpickle or evaluate the content of a file."""
    roots = [REPOSITORY / name for name in SERVED_FROM]
    files = [file for root in roots for file in ([root] if root.suffix else sorted(root.rglob("*.py")))]
    found = {str(file.relative_to(REPOSITORY)): names for file in files if (names := code_running(file.read_text()))}
    uses = sum(map(len, found.values()))
    return Finding(not found and len(files) > 30, f"{len(files)} modules, {uses} ways to run code from a file", found)
