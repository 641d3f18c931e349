"""report.html: one page, readable offline, with the scores and errors of a model and the data it was trained on."""

from __future__ import annotations

import html
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from plotly.offline import get_plotlyjs

from fleet_forecast.evaluation import report_charts as charts
from fleet_forecast.evaluation.backtest import MEAN, MODEL, best_baseline
from fleet_forecast.evaluation.examples import Example
from fleet_forecast.evaluation.report_pictures import Picture
from fleet_forecast.evaluation.scores import AMOUNTS
from fleet_forecast.evaluation.tables import Evaluation, GroupEvaluation
from fleet_forecast.evaluation.weight_tables import WeightTables
from fleet_forecast.inference.explanations import label_of
from fleet_forecast.wording import counted

REPORT_FILE = "report.html"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:74rem;margin:2rem auto;padding:0 1rem;color:#1d2733}"
    "h1{overflow-wrap:anywhere}h3{margin:1.2rem 0 .2rem}"
    "h2{margin:2.4rem 0 .3rem;border-top:1px solid #dce2e8;padding-top:1rem}"
    "table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}.wide,pre{overflow-x:auto}"
    "td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #dce2e8}"
    ".number{text-align:right}.model{font-weight:600}.lead{font-size:1.15rem}.hint,summary,figcaption{color:#56636f}"
    "figcaption b{color:#1d2733}"
    ".weights td:first-child,.facts td:first-child{white-space:nowrap}.facts td:last-child{overflow-wrap:anywhere}"
    "figure{margin:0;min-width:0}figure>svg{max-width:100%;height:auto}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,30rem),1fr));gap:1rem}"
    ".fans{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:.4rem 1rem}"
    "@media(max-width:60rem){.fans{grid-template-columns:1fr}}@media print{figure,table{break-inside:avoid}}"
)
PICTURE_STYLE = "<style>body{margin:0 auto}h2{border:0;margin:0}details{display:none}</style>"
SCORES_EXPLAINED = (
    "Forecasts of the test period, mean over the metrics. WQL (weighted quantile loss), MASE and WAPE: smaller is "
    "better. coverage_80 and coverage_96: percentage of the measurements within the band, ideally 80 and 96."
)
CHAMPION_EXPLAINED = (
    "Both models before their final fit, on the same forecasts of the newest days. ratio: WQL of this model (the "
    "challenger) divided by that of the champion; ratio_upper_95: upper end of its interval (bootstrap over servers)."
)
CALIBRATION_EXPLAINED = "Share of the measurements below each quantile; the dotted line is perfect calibration."
WEIGHTS_EXPLAINED = (
    "Mean weights of the network on windows of the test period, in percent. The weights of all variables of a group "
    "add up to 100 for each profile; the largest are shown. They show what the network attends to, not how a forecast "
    "would change with a value."
)
FANS_EXPLAINED = (
    "Test windows of each profile by their error: the smallest, the middle and the largest one. Blue: the median with "
    "the 80 % and the 96 % band. Black: the measured values. The model received those up to the dotted line."
)
FANS_IN_A_ROW = 3
# Heights on a wide page, for pictures of it: two lines under a heading, a fan chart and a chart with their captions.
HEADING_PX, FAN_PX, CHART_PX, CAPTION_PX, TABLE_PX = 120, 268, charts.HEIGHT_PX, 60, 400
SHOWN_VARIABLES = 12  # per group, those with the largest weights
GROUPS = {
    "static": "Server (static variables)",
    "encoder": "Context (encoder variables)",
    "decoder": "Horizon (decoder variables)",
}
PACKAGES = ("torch", "pytorch-forecasting", "onnxruntime", "numpy", "pandas", "plotly")


@dataclass(frozen=True)
class ModelReport:
    """Content of the page.

    info: the content of training_info.json. data: servers and silence by profile (publish.data_summary).
    """

    title: str
    info: Mapping[str, Any]
    evaluation: Evaluation
    weights: WeightTables
    data: pd.DataFrame


def write_report(directory: Path, report: ModelReport) -> None:
    """Write report.html into a model directory."""
    title, evaluation = html.escape(report.title), report.evaluation
    parts = [
        f"<h1>{title}</h1>{_summary(report)}",
        *_scores(evaluation),
        *_champion(report.info.get("champion")),
        *_cold_start(evaluation.cold_start),
        *_calibration(evaluation),
        *_errors(evaluation),
        *_loss(report.info["loss_history"]),
        *_fans(evaluation),
        *_risk(report.info.get("risk_model", {})),
        *_weights(report.weights),
        "<h2>Data</h2>",
        _table(report.data),
        "<h2>Settings and versions</h2>",
        _facts(report.info),
    ]
    (directory / REPORT_FILE).write_text(_page(title, parts), encoding="utf-8")


def page_head(title: str) -> str:
    """The beginning of a report; title: escaped."""
    meta = '<meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">'
    return f"<!doctype html><html lang=en>{meta}<title>{title}</title><style>{STYLE}</style>"


def _page(title: str, parts: Sequence[str]) -> str:
    """title: escaped."""
    return f"{page_head(title)}<script>{get_plotlyjs()}</script>{''.join(parts)}</html>\n"


def report_pictures(report: ModelReport) -> dict[str, Picture]:
    """The main sections of the report as pages of their own, by name of the picture."""
    evaluation = report.evaluation
    shown = _shown_group(evaluation)
    fan_rows = math.ceil(len(shown[1].examples) / FANS_IN_A_ROW) if shown else 0
    risk = report.info.get("risk_model", {})
    sections = {
        "cold_start": (_cold_start(evaluation.cold_start), HEADING_PX + charts.COLD_START_HEIGHT_PX),
        "calibration": (_calibration(evaluation), HEADING_PX + CHART_PX),
        "errors": (_errors(evaluation), HEADING_PX + 2 * (CHART_PX + CAPTION_PX)),
        "forecasts": (_fans(evaluation), HEADING_PX + FAN_PX * fan_rows),
        "risk": (_risk(risk), 2 * HEADING_PX + CHART_PX + TABLE_PX),
    }
    title = html.escape(report.title)
    return {
        name: Picture(_page(title, [PICTURE_STYLE, *parts]), height)
        for name, (parts, height) in sections.items()
        if parts
    }


# --- summary and scores ---------------------------------------------------------------------------------------------


def _summary(report: ModelReport) -> str:
    """The model and its error in three sentences."""
    info, scores = report.info, report.evaluation.scores
    times = f"trained on {info['first_timestamp']} to {info['train_end']} and tested from {info['test_start']} on"
    sentences = [
        f"A forecast model of {counted(len(report.data), 'profile')} and {counted(info['servers'], 'server')}, {times}."
    ]
    for group, who in (("unseen", "servers that it was not trained on"), ("training", "its training servers")):
        if group in scores:
            means = scores[group][scores[group]["metric"] == MEAN].set_index("method")
            best = best_baseline(scores[group])
            own, other = float(means["wql"][MODEL]), float(means["wql"][best])
            if np.isnan(own) or np.isnan(other):
                sentences.append(f"On {who} it could not be scored: no point of the test period has all forecasts.")
                continue
            sentences.append(
                f"On {who} its error (WQL) is {own:.3f}, {own / other:.2f} times that of the best baseline "
                f"({best}: {other:.3f})."
            )
    return f'<p class="lead">{html.escape(" ".join(sentences))}</p>'


def _scores(evaluation: Evaluation) -> list[str]:
    parts = ["<h2>Scores</h2>", f'<p class="hint">{SCORES_EXPLAINED}</p>']
    for name in sorted(evaluation.scores, reverse=True):  # unseen servers first
        table = evaluation.scores[name]
        is_mean = table["metric"] == MEAN
        parts += [
            f"<h3>Test period, {html.escape(name)} servers</h3>",
            _table(table[is_mean].drop(columns=["metric", *AMOUNTS])),
            f"<details><summary>by metric</summary>{_table(table[~is_mean].drop(columns='total'))}</details>",
        ]
    return parts


def _champion(champion: Mapping[str, Any] | None) -> list[str]:
    """The comparison with the model that was in use; nothing without one."""
    if not champion:
        return []
    name = champion["model"]
    verdict = f"It is worse: {'; '.join(champion['worse'])}." if champion["worse"] else "It is not worse."
    remark = f" Note: {champion['remark']}." if champion["remark"] else ""
    columns = [each for each in champion["groups"][0] if each != "group"] if champion["groups"] else []
    rows = [{"servers of": group["group"], **{name: group[name] for name in columns}} for group in champion["groups"]]
    return [
        "<h2>Comparison with the previous model</h2>",
        f'<p class="hint">{CHAMPION_EXPLAINED}</p>',
        f"<p>{html.escape(f'The champion was {name}. {verdict}{remark}')}</p>",
        *([_table(pd.DataFrame(rows).astype({"ratio_upper_95": float}))] if rows else []),
    ]


def _cold_start(table: pd.DataFrame) -> list[str]:
    if not len(table):
        return []
    return [
        "<h2>New servers, by length of history</h2>",
        '<p class="hint">Unseen servers; the model receives only their last steps.</p>',
        charts.as_html(charts.cold_start_chart(table)),
        f"<details><summary>as a table</summary>{_table(table)}</details>",
    ]


# --- errors ---------------------------------------------------------------------------------------------------------


def _shown_group(evaluation: Evaluation) -> tuple[str, GroupEvaluation] | None:
    """The unseen servers if there are some, else the training servers; None without a scored window."""
    name = "unseen" if "unseen" in evaluation.groups else "training"
    return (name, evaluation.groups[name]) if name in evaluation.groups else None


def _calibration(evaluation: Evaluation) -> list[str]:
    shown = _shown_group(evaluation)
    if shown is None:
        return []
    return [
        f"<h2>Calibration, {shown[0]} servers</h2>",
        f'<p class="hint">{CALIBRATION_EXPLAINED}</p>',
        charts.as_html(charts.calibration_chart(shown[1].breakdown["calibration"])),
    ]


def _errors(evaluation: Evaluation) -> list[str]:
    """Errors by horizon, hour of the day, profile and metric."""
    shown = _shown_group(evaluation)
    if shown is None:
        return []
    name, group = shown
    found, baseline = group.breakdown, group.breakdown["baseline"]
    profiles = [row["profile"] for row in found["by_profile"]]
    model, other = ([row[key] for row in found["by_profile"]] for key in ("model", "baseline_wql"))
    by_metric = group.scores[group.scores["metric"] != MEAN].pivot(index="metric", columns="method", values="wql")
    hours = [found["by_horizon"]["hours"], found["by_hour"]["hours"]]
    figures = {
        "By horizon": charts.comparison_lines(hours[0], found["by_horizon"], baseline, "hours ahead"),
        "By hour of the day": charts.comparison_lines(hours[1], found["by_hour"], baseline, "business time"),
        "By profile": charts.comparison_bars(profiles, model, other, baseline),
        "By metric": charts.comparison_bars(
            [str(metric) for metric in by_metric.index], [*by_metric[MODEL]], [*by_metric[baseline]], baseline
        ),
    }
    return [
        f'<h2>Errors, {name} servers</h2><div class="charts">',
        *(
            _figure(title, "WQL of the model and of the best baseline", charts.as_html(figure))
            for title, figure in figures.items()
        ),
        "</div>",
    ]


def _loss(history: list[dict[str, float]]) -> list[str]:
    if len(history) < 2:
        return ["<h2>Loss</h2><p>Too short to draw.</p>"]
    return ["<h2>Loss</h2>", charts.as_html(charts.loss_chart(history))]


def _fans(evaluation: Evaluation) -> list[str]:
    shown = _shown_group(evaluation)
    if shown is None or not shown[1].examples:
        return []
    fans = (_figure(*_captions(example), charts.as_html(charts.fan_chart(example))) for example in shown[1].examples)
    return [
        f"<h2>Forecasts, {shown[0]} servers</h2>",
        f'<p class="hint">{FANS_EXPLAINED}</p><div class="fans">',
        *fans,
        "</div>",
    ]


def _captions(example: Example) -> tuple[str, str]:
    return f"{example.profile}, {example.place}", f"{example.metric} of {example.server_name}, WQL {example.error:.3f}"


def _risk(risk: Mapping[str, Any]) -> list[str]:
    """The risk model: what it was trained on, its alarms by level, and its reliability; nothing without one."""
    if not risk.get("curve"):
        return []
    source, horizon = html.escape(str(risk["source"])), html.escape(str(risk["alert_horizon"]))
    return [
        "<h2>Risk of incidents</h2>",
        f'<p class="hint">Recall and false alarms by level of the risk within {horizon}.</p>',
        f"<p>Trained on {source}.</p>",
        charts.as_html(charts.risk_chart(risk["curve"])),
        f"<details><summary>as a table</summary>{_table(pd.DataFrame(risk['curve']))}</details>",
        f'<p class="hint">Predicted probability of an incident within {horizon}, and observed frequency:</p>',
        _table(pd.DataFrame(risk["reliability"][risk["alert_horizon"]])),
    ]


# --- weights --------------------------------------------------------------------------------------------------------


def _weights(weights: WeightTables) -> list[str]:
    """One table per group: the variables with the largest weights, in percent, by profile; and attention by lag."""
    parts = ["<h2>Variable and attention weights</h2>", f'<p class="hint">{WEIGHTS_EXPLAINED}</p>']
    for group, title in GROUPS.items():
        own = weights.variables[weights.variables["group"] == group]
        table = own.pivot_table(index="variable", columns="profile", values="weight", observed=True)
        largest = table.loc[table.mean(axis=1).sort_values(ascending=False).index[:SHOWN_VARIABLES]]
        head = "".join(f'<th class="number">{html.escape(str(profile))}' for profile in largest.columns)
        rows = "".join(
            f"<tr><td>{html.escape(label_of(str(variable)))}{''.join(_shaded(weight) for weight in row)}"
            for variable, row in zip(largest.index, largest.to_numpy(), strict=True)
        )
        parts.append(
            f'<h3>{title}</h3><div class="wide"><table class=weights><tr><th>variable{head}{rows}</table></div>'
        )
    ahead = weights.attention[weights.attention["on"] == "horizon"].groupby("profile", observed=True)["weight"].sum()
    shares = ", ".join(f"{profile} {100 * share:.0f} %" for profile, share in ahead.items())
    explained = f"Mean over the steps of the horizon and the heads. On earlier steps of the horizon: {shares}."
    return [
        *parts,
        "<h3>Attention by lag</h3>",
        f'<p class="hint">{html.escape(explained)}</p>',
        charts.as_html(charts.attention_chart(weights.attention)),
    ]


def _shaded(weight: float) -> str:
    return f'<td class="number" style="background:rgba(11,107,203,{min(weight, 0.5):.3f})">{100 * weight:.1f}'


# --- facts and tables -----------------------------------------------------------------------------------------------


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
    flags = {key: value for key, value in info["settings"].items() if value not in (None, False)}
    facts["flags"] = ", ".join(f"{key} {value}" for key, value in flags.items())
    facts["versions"] = ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in PACKAGES)]
    )
    rows = "".join(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}" for key, value in facts.items())
    return f"<table class=facts>{rows}</table>"


def _figure(title: str, detail: str, chart: str) -> str:
    caption = f"<b>{html.escape(title)}</b><br>{html.escape(detail)}"
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _table(table: pd.DataFrame) -> str:
    """Numbers are right-aligned, fractions have three digits, NaN is "-"; rows of the model are bold."""
    right = [' class="number"' if is_numeric_dtype(kind) else "" for kind in table.dtypes]
    head = "".join(f"<th{place}>{html.escape(str(name))}" for place, name in zip(right, table.columns, strict=True))
    rows = "".join(
        ("<tr class=model>" if MODEL in row else "<tr>")
        + "".join(f"<td{place}>{html.escape(_shown(cell))}" for place, cell in zip(right, row, strict=True))
        for row in table.itertuples(index=False)
    )
    return f'<div class="wide"><table><tr>{head}{rows}</table></div>'


def _shown(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "-" if pd.isna(cell) else f"{cell:.0f}" if cell.is_integer() else f"{cell:.3f}"
