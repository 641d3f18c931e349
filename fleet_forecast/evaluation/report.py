"""report.html: one page, readable offline: training, scores, cold start and mean weights of a model."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from fleet_forecast.evaluation.backtest import MEAN
from fleet_forecast.evaluation.scores import AMOUNTS
from fleet_forecast.inference.explanations import WeightTables, label_of

REPORT_FILE = "report.html"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1d2733}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.2rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid #dde}"
    ".number{text-align:right}.weights td:first-child{white-space:nowrap}summary{color:#5d6b78}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fill,20rem);gap:1.2rem}figure{margin:0}figcaption{font-size:13px}"
    "svg{display:block}svg text{font:11px system-ui,sans-serif;fill:#5d6b78}"
)
WEIGHTS_EXPLAINED = (
    "Mean weights of the network on windows of the test period, in percent. The weights of all variables of a group "
    "add up to 100 for each profile; the largest are shown. They are what the network attends to. They do not predict "
    "how a forecast changes if a value changes."
)
SHOWN_VARIABLES = 12  # per group, those with the largest weights
GROUPS = {
    "static": "Server (static variables)",
    "encoder": "Context (encoder variables)",
    "decoder": "Horizon (decoder variables)",
}


@dataclass(frozen=True)
class ModelReport:
    """Content of the page.

    info: the content of training_info.json. scores: tables of Backtest.scores by group of servers. cold_start:
    cold_start_table, or empty.
    """

    title: str
    info: Mapping[str, Any]
    scores: Mapping[str, pd.DataFrame]
    cold_start: pd.DataFrame
    weights: WeightTables


def write_report(directory: Path, report: ModelReport) -> None:
    """Write report.html into a model directory."""
    title, info = html.escape(report.title), report.info
    parts = [f"<h1>{title}</h1>", _facts(info), "<h2>Loss history</h2>", _loss_chart(info["loss_history"])]
    for name, table in report.scores.items():
        is_mean = table["metric"] == MEAN
        parts += [
            f"<h2>Test period,  {html.escape(name)} servers</h2>",
            _table(table[is_mean].drop(columns=["metric", *AMOUNTS])),
            f"<details><summary>by metric</summary>{_table(table[~is_mean].drop(columns='total'))}</details>",
        ]
    if len(report.cold_start):
        parts += ["<h2>New servers, by length of history</h2>", _table(report.cold_start)]
    parts += _risk(info.get("risk_model", {}))
    weights = report.weights
    parts += ["<h2>Variable and attention weights</h2>", *_weights(weights.variables), _attention(weights.attention)]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    (directory / REPORT_FILE).write_text(page + "".join(parts) + "</html>\n", encoding="utf-8")


def _facts(info: Mapping[str, Any]) -> str:
    facts = {
        "data": info["data"],
        "servers": info["servers"],
        "unseen servers": ", ".join(info["unseen_servers"]) or "none",
        "validation servers": ", ".join(info["validation_servers"]) or "none",
        "training period": f"{info['first_timestamp']} to {info['train_end']}",
        "validation period": f"{info['train_end']} to {info['test_start']}",
        "test period": f"{info['test_start']} to {info['last_timestamp']}",
        "parameters": f"{info['parameters']:,}",
        "training": f"{info['minutes']:.1f} minutes, {info['epochs']:.2f} epochs, "
        f"{info['windows_per_second']:.0f} windows/s, ended by {info['stopped_by']}",
    }
    if without := info["comparison"]:
        facts["same model without profiles"] = (
            f"{without['parameters']:,} parameters, {without['windows']:,} windows (the model: {info['windows']:,}), "
            f"{without['windows_per_second']:.0f} windows/s"
        )
    if final_fit := info["final_fit"]:
        facts["final fit"] = (
            f"{final_fit['steps']:,} further steps on all servers and days in {final_fit['minutes']:.1f} minutes; the "
            "scores are those of the model before it"
        )
    rows = "".join(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}" for key, value in facts.items())
    return f"<table>{rows}</table>"


def _risk(risk: Mapping[str, Any]) -> list[str]:
    """The risk model: what it was trained on, its alarms by level, and the reliability diagram as tables."""
    if not risk.get("curve"):
        return []
    source, horizon = html.escape(str(risk["source"])), html.escape(str(risk["alert_horizon"]))
    diagram = pd.DataFrame(risk["reliability"][risk["alert_horizon"]])
    return [
        "<h2>Risk model</h2>",
        f"<p>Trained on {source}. Alarms by level of the risk within {horizon}, on fleets it was not trained on:</p>",
        f"<details><summary>curve</summary>{_table(pd.DataFrame(risk['curve']))}</details>",
        f"<p>Probability of an incident within {horizon}, and how often one came:</p>",
        _table(diagram),
    ]


def _table(table: pd.DataFrame) -> str:
    """Numbers are right-aligned, fractions have three digits, NaN is "-"."""
    right = [' class="number"' if is_numeric_dtype(kind) else "" for kind in table.dtypes]
    head = "".join(f"<th{place}>{html.escape(str(name))}" for place, name in zip(right, table.columns, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{place}>{html.escape(_shown(cell))}" for place, cell in zip(right, row, strict=True))
        for row in table.itertuples(index=False)
    )
    return f"<table><tr>{head}{rows}</table>"


def _shown(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "-" if pd.isna(cell) else f"{cell:.0f}" if cell.is_integer() else f"{cell:.3f}"


def _loss_chart(history: list[dict[str, float]]) -> str:
    """Training and validation loss over epochs as an inline SVG."""
    if len(history) < 2:
        return "<p>Too short to draw.</p>"
    width, height = 640.0, 240.0
    last = history[-1]["epoch"]
    losses = [point[key] for point in history for key in ("loss", "validation_loss")]
    low, high = min(losses), max(losses)

    def line(key: str, colour: str) -> str:
        points = " ".join(
            f"{point['epoch'] / last * width:.1f},{(high - point[key]) / (high - low or 1) * height:.1f}"
            for point in history
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'

    lines = line("loss", "#9bb") + line("validation_loss", "#c40")
    legend = f"<p>grey: training loss, red: validation loss, {low:.4f} to {high:.4f}, over {last:.2f} epochs</p>"
    return f'<svg viewBox="-5 -5 {width + 10} {height + 10}" width="{width}">{lines}</svg>{legend}'


def _weights(variables: pd.DataFrame) -> list[str]:
    """One table per group: the variables with the largest weights, in percent, by profile; shaded by weight."""
    parts = [f"<p>{WEIGHTS_EXPLAINED}</p>"]
    for group, title in GROUPS.items():
        own = variables[variables["group"] == group]
        table = own.pivot_table(index="variable", columns="profile", values="weight", observed=True)
        largest = table.loc[table.mean(axis=1).sort_values(ascending=False).index[:SHOWN_VARIABLES]]
        head = "".join(f'<th class="number">{html.escape(str(profile))}' for profile in largest.columns)
        rows = "".join(
            f"<tr><td>{html.escape(label_of(str(variable)))}{''.join(_shaded(weight) for weight in row)}"
            for variable, row in zip(largest.index, largest.to_numpy(), strict=True)
        )
        parts.append(f"<h3>{title}</h3><table class=weights><tr><th>variable{head}{rows}</table>")
    return parts


def _shaded(weight: float) -> str:
    return f'<td class="number" style="background:rgba(11,107,203,{min(weight, 0.5):.3f})">{100 * weight:.1f}'


def _attention(attention: pd.DataFrame) -> str:
    """One bar chart per profile: attention by lag before the origin. All charts have the same scale."""
    highest = float(attention.loc[attention["on"] == "context", "weight"].max())
    charts = "".join(_attention_of(str(profile), own, highest) for profile, own in attention.groupby("profile"))
    return (
        "<h3>Attention by lag</h3><p>Mean over the steps of the horizon and the heads: on the context (left: its "
        f'start, right: the origin) and on earlier steps of the horizon.</p><div class="charts">{charts}</div>'
    )


def _attention_of(profile: str, attention: pd.DataFrame, highest: float) -> str:
    left, width, height, foot = 38.0, 260.0, 90.0, 16.0
    of_context = attention[attention["on"] == "context"].sort_values("lag_hours", ascending=False)
    ahead = float(attention.loc[attention["on"] == "horizon", "weight"].sum())
    lags = of_context["lag_hours"].to_numpy()
    bar = width / len(lags)
    bars = "".join(
        f'<rect x="{left + place * bar:.1f}" y="{height * (1 - weight / highest):.1f}" width="{bar - 1:.1f}" '
        f'height="{height * weight / highest:.1f}" fill="#0b6bcb"><title>{lag:g} h before: {100 * weight:.1f} %</title>'
        "</rect>"
        for place, (lag, weight) in enumerate(zip(lags, of_context["weight"], strict=True))
    )
    longest = lags[0] + (lags[0] - lags[1] if len(lags) > 1 else 0)
    axes = (
        f'<line x1="{left}" x2="{left + width}" y1="{height}" y2="{height}" stroke="#aab"/>'
        f'<text x="{left - 4}" y="10" text-anchor="end">{100 * highest:.1f} %</text>'
        f'<text x="{left - 4}" y="{height}" text-anchor="end">0</text>'
        f'<text x="{left}" y="{height + foot - 3}">{longest:g} h before</text>'
        f'<text x="{left + width}" y="{height + foot - 3}" text-anchor="end">origin</text>'
    )
    caption = f"<b>{html.escape(profile)}</b>, {100 * ahead:.0f} % on the horizon"
    size = f'viewBox="0 0 {left + width} {height + foot}" width="{left + width}"'
    return f"<figure><figcaption>{caption}</figcaption><svg {size}>{bars}{axes}</svg></figure>"
