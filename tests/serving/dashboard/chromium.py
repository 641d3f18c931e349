"""Debian's Chromium, driven by Playwright: no browser is downloaded."""

import shutil

PROGRAM = shutil.which("chromium")
FLAGS = (  # without them it cannot run as root, and asks for Google's hosts
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def drawn(page, charts=1):
    """Wait until so many charts are there."""
    page.wait_for_function("n => document.querySelectorAll('.js-plotly-plot .main-svg').length >= n", arg=charts)
