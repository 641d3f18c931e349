"""report.html: one page, readable offline, that says how a model was trained and how it did."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

REPORT_FILE = "report.html"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2733}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #dde}"
    "td:first-child,th:first-child{text-align:left}svg{border:1px solid #dde}"
)


def write_report(
    directory: Path, title: str, info: Mapping[str, Any], scores: Mapping[str, pd.DataFrame], cold_start: pd.DataFrame
) -> None:
    """Write report.html into a model directory: data, course of the training, scores with baselines, cold start."""
    facts = {
        "data": info["data"],
        "servers": info["servers"],
        "held-out servers": ", ".join(info["holdout_servers"]) or "none",
        "trained on": f"{info['first_timestamp']} to {info['train_end']}",
        "judged on": f"{info['train_end']} to {info['last_timestamp']}",
        "parameters": info["parameters"],
        "training": f"{info['minutes']:.1f} minutes, {info['epochs']:.2f} epochs, "
        f"{info['windows_per_second']:.0f} windows/s, ended by {info['stopped_by']}",
    }
    parts = [f"<h1>{html.escape(title)}</h1>", _facts(facts), "<h2>Course</h2>", _course(info["course"])]
    for name, table in scores.items():
        parts += [f"<h2>Later days, {html.escape(name)} servers</h2>", _table(table)]
    if len(cold_start):
        parts += ["<h2>New servers, by length of history</h2>", _table(cold_start)]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    (directory / REPORT_FILE).write_text(page + "".join(parts) + "</html>\n", encoding="utf-8")


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}" for key, value in facts.items())
    return f"<table>{rows}</table>"


def _table(table: pd.DataFrame) -> str:
    return table.to_html(index=False, border=0, na_rep="-", float_format=lambda value: f"{value:.3f}")


def _course(course: list[dict[str, float]]) -> str:
    """Training and validation loss over epochs as an inline SVG."""
    if len(course) < 2:
        return "<p>Too short to draw.</p>"
    width, height = 640.0, 240.0
    last = course[-1]["epoch"]
    losses = [point[key] for point in course for key in ("loss", "validation_loss")]
    low, high = min(losses), max(losses)

    def line(key: str, colour: str) -> str:
        points = " ".join(
            f"{point['epoch'] / last * width:.1f},{(high - point[key]) / (high - low or 1) * height:.1f}"
            for point in course
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'

    lines = line("loss", "#9bb") + line("validation_loss", "#c40")
    legend = f"<p>grey: training loss, red: validation loss, {low:.4f} to {high:.4f}, over {last:.2f} epochs</p>"
    return f'<svg viewBox="-5 -5 {width + 10} {height + 10}" width="{width}">{lines}</svg>{legend}'
