"""Take pictures of the dashboard's views and of a model's report: `make screenshots`.

    python docs/screenshots.py --model demo_files/models/current --output docs/images

Serves the model on a simulated fleet whose last hours pass in a minute, so that past forecasts and alerts are there.
Needs Chromium, and Playwright of requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import metrics_generator  # noqa: E402
from data_contract import METRICS, read_metrics  # noqa: E402
from fleet_forecast.evaluation.report import REPORT_FILE  # noqa: E402
from fleet_forecast.iso_time import iso  # noqa: E402
from fleet_forecast.serving.alerting.rules import AlertRules  # noqa: E402
from fleet_forecast.serving.app import create_app  # noqa: E402
from fleet_forecast.serving.referenced_files import ReferencedFiles  # noqa: E402
from fleet_forecast.serving.settings import Settings  # noqa: E402
from tests.serving.dashboard.chromium import FLAGS, PROGRAM  # noqa: E402

START = pd.Timestamp("2026-09-14T00:00:00Z")
HOURS, LIVE_HOURS = 40, 9  # of the scene, and of these the last ones step by step
STEP = pd.Timedelta(minutes=5)
FLEET = ("--incident_rate", "30", "--seed", "7")
MISNAMED = {"ppdb015": "ppweb098", "ppml0020": "legacy-box"}  # what the profile audit finds
SILENCE = {
    "pattern": "ppml.*",
    "from": "2026-09-15T12:00:00Z",
    "until": "2026-09-15T20:00:00Z",
    "comment": "memory is being added",
}
WIDE, NARROW = ViewportSize(width=1440, height=1000), ViewportSize(width=420, height=900)
LOOKS = {"": (WIDE, False), "-dark": (WIDE, True), "-narrow": (NARROW, False)}  # end of the file's name: size, dark
DRAWING_MS, TALLEST_PX = 3_000, 3_500
COLOURS = 256  # of the pictures, to keep them small
DEADLINE_SECONDS = 60.0


class SceneClock:
    """Seconds since 1970 in the scene."""

    def __init__(self, now: pd.Timestamp) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now.timestamp()


def simulated(folder: Path) -> pd.DataFrame:
    """Rows of the scene's fleet."""
    flags = ["--start", iso(int(START.timestamp())), "--hours", str(HOURS), "--out_dir", str(folder), *FLEET]
    if metrics_generator.main(flags) != 0:
        raise SystemExit("error: the fleet of the scene could not be simulated; the message is above")
    rows = read_metrics(folder).frame
    return rows.assign(server_name=rows["server_name"].astype(str).replace(MISNAMED))


def send(client: httpx.Client, rows: pd.DataFrame) -> None:
    """Post rows in batches."""
    times = [iso(int(moment.timestamp())) for moment in rows["timestamp"]]
    values = rows[["server_name", "state", *METRICS]].astype(object)
    records = values.replace({np.nan: None}).assign(timestamp=times).to_dict("records")
    for first in range(0, len(records), 5_000):
        client.post("/api/v1/metrics", json={"records": records[first : first + 5_000]}).raise_for_status()


def wait_for_cycle(client: httpx.Client, origin: pd.Timestamp) -> None:
    """Wait until the step of `origin` is forecast."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while client.get("/status").json()["cycle"]["origin"] != iso(int(origin.timestamp())):
        if time.monotonic() > deadline:
            raise SystemExit(f"error: no forecast of {origin} within {DEADLINE_SECONDS:g} s")
        time.sleep(0.02)


@contextlib.contextmanager
def serving(model: Path, folder: Path, clock: SceneClock) -> Iterator[str]:
    """The daemon in a thread; its address."""
    settings = Settings(model=model, history=folder / "history.sqlite", grace_seconds=0.0, recheck_seconds=0.05)
    files = ReferencedFiles(alert_rules=AlertRules.model_validate({"silences": [SILENCE]}))
    server = uvicorn.Server(uvicorn.Config(create_app(settings, files, clock=clock), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def play(client: httpx.Client, rows: pd.DataFrame, clock: SceneClock) -> None:
    """Send the history at once, and the last hours step by step."""
    live = START + pd.Timedelta(hours=HOURS - LIVE_HOURS)
    send(client, rows[rows["timestamp"] < live])
    for moment in pd.date_range(live, rows["timestamp"].max(), freq=STEP):
        send(client, rows[rows["timestamp"] == moment])
        clock.now = moment + STEP + pd.Timedelta(seconds=1)
        wait_for_cycle(client, moment)
    time.sleep(1)  # alerts and the archive follow the last cycle


def troubled_server(client: httpx.Client) -> str:
    """The server with the most probable alert, or with the highest risk."""
    alerts = client.get("/api/v1/alerts").json()["alerts"]
    return str((alerts or client.get("/api/v1/risks").json()["risks"])[0]["server_name"])


@contextlib.contextmanager
def new_page(browser: Browser, look: str) -> Iterator[Page]:
    """A page of one of LOOKS."""
    size, dark = LOOKS[look]
    context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", timezone_id="UTC")
    yield context.new_page()
    context.close()


def take(page: Page, address: str, file: Path, now: pd.Timestamp | None) -> None:
    """A picture of a page after its charts are drawn; now: the time in the scene, None for a report."""
    if now is not None:
        page.clock.set_fixed_time(now.to_pydatetime())
    page.goto(address)
    if now is not None:
        page.wait_for_selector(".view")
    page.wait_for_timeout(DRAWING_MS)
    page.screenshot(path=file, full_page=page.viewport_size == NARROW)
    with Image.open(file) as whole:
        picture = whole.crop((0, 0, whole.width, min(whole.height, TALLEST_PX)))
        picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size // 1024} KiB", file=sys.stderr)


def take_all(browser: Browser, url: str, folder: Path, server: str, now: pd.Timestamp) -> None:
    """All views in all looks."""
    for name, path in {
        "fleet": "fleet",
        "server": f"server/{server}",
        "alerts": "alerts",
        "profiles": "profiles",
        "model": "model",
    }.items():
        for look in LOOKS:
            with new_page(browser, look) as page:
                take(page, f"{url}/#/{path}", folder / f"{name}{look}.png", now)


def main() -> int:
    """Play the scene and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("demo_files/models/current"))
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    if not arguments.model.is_dir():
        print(f"error: {arguments.model}: no model; run make demo first, or give --model", file=sys.stderr)
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    clock = SceneClock(START + pd.Timedelta(hours=HOURS - LIVE_HOURS))
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        rows = simulated(folder / "fleet")
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        with serving(arguments.model, folder, clock) as url, httpx.Client(base_url=url, timeout=60) as client:
            while client.get("/readyz").status_code != httpx.codes.OK:
                time.sleep(0.1)
            play(client, rows, clock)
            take_all(browser, url, arguments.output, troubled_server(client), clock.now)
        with new_page(browser, "") as page:
            take(page, (arguments.model / REPORT_FILE).resolve().as_uri(), arguments.output / "report.png", None)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
