"""PNG pictures of the report's main sections, for documents: drawn by Chromium, if it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = f"no picture of the report: none of the programs {', '.join(PROGRAMS)} is installed"
WIDTH_PX, PIXELS_PER_PX = 1_100, 2
TIMEOUT_SECONDS = 60
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    f"--force-device-scale-factor={PIXELS_PER_PX}",
    "--virtual-time-budget=20000",  # of the page's own time: its charts are drawn before the picture is taken
)


class Picture(NamedTuple):
    """A page, and the height that shows it."""

    page: str
    height_px: int


def browser() -> str | None:
    """Path of the program that draws, None if there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def write_pictures(directory: Path, pictures: Mapping[str, Picture]) -> str | None:
    """Write NAME.png of each picture into a directory. Stops at the first failure and returns the reason."""
    program = browser()
    if program is None:
        return MISSING
    for name, picture in pictures.items():
        if problem := _draw(program, picture, directory / f"{name}.png"):
            return f"no picture {name}.png of the report: {problem}"
    return None


def _draw(program: str, picture: Picture, file: Path) -> str | None:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it cannot run as root otherwise
    with tempfile.TemporaryDirectory() as temporary:
        page, drawn = Path(temporary) / "page.html", Path(temporary) / "page.png"
        page.write_text(picture.page, encoding="utf-8")
        size = f"--window-size={WIDTH_PX},{picture.height_px}"
        own = [f"--user-data-dir={temporary}/profile", f"--screenshot={drawn}", size]
        command = [program, *FLAGS, *sandbox, *own, page.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if not drawn.is_file():
            return f"{program} ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        file.write_bytes(drawn.read_bytes())
    return None
