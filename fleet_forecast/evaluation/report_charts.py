"""Charts of report.html as Plotly figures. Colours are those of viridis, which colour-blind people can tell apart."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io

from fleet_forecast.contract.forecast_spec import BAND_80, BAND_96, MEDIAN_LEVEL
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.evaluation.examples import Example

MODEL_COLOUR, BASELINE_COLOUR, MEASURED_COLOUR, BAND_COLOUR = "#21918c", "#8a8f98", "#17212b", "11, 102, 194"
LINES = ("#440154", "#3b528b", "#21918c", "#5ec962", "#b8860b", "#d95f02", "#7f7f7f", "#a0479b")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
FONT = {"family": "system-ui, sans-serif", "size": 12, "color": "#3b4753"}
HEIGHT_PX, FAN_HEIGHT_PX = 340, 210
COLD_START_HEIGHT_PX = 440  # with a line of the legend for each method on a narrow page


def as_html(figure: go.Figure) -> str:
    """A figure as markup for a page that has Plotly's script. Its data cannot end the script element."""
    options = {"displayModeBar": False, "responsive": True}
    return str(plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=options))


def _figure(traces: Sequence[Any], y_title: str, x_title: str = "", height: int = HEIGHT_PX) -> go.Figure:
    grid = {"gridcolor": "#dce2e8", "zeroline": False, "fixedrange": True}
    return go.Figure(
        traces,
        layout={
            "height": height,
            "font": FONT,
            "plot_bgcolor": "white",
            "paper_bgcolor": "white",
            "margin": {"l": 56, "r": 12, "t": 12, "b": 46},
            "legend": {
                "orientation": "h",
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 11},
            },  # rows added on a narrow page go up
            "xaxis": {**grid, "title": {"text": x_title}},
            "yaxis": {**grid, "title": {"text": y_title}},
        },
    )


def _line(x: Sequence[Any], y: Sequence[Any], name: str, number: int) -> go.Scatter:
    style = {"color": LINES[number % len(LINES)], "dash": DASHES[number % len(DASHES)]}
    return go.Scatter(
        x=list(x), y=list(y), name=html.escape(name), mode="lines+markers", line=style, marker={"size": 5}
    )


def cold_start_chart(table: pd.DataFrame) -> go.Figure:
    """WQL by length of history, a line for each method; table: that of cold_start_table."""
    methods = list(dict.fromkeys(table["method"]))
    lines = []
    for number, method in enumerate(methods):
        own = table[table["method"] == method]
        lines.append(_line(own["history"], own["wql"], method.replace("_", " "), number))
    figure = _figure(lines, "WQL", "length of the server's own history", COLD_START_HEIGHT_PX)
    return figure.update_yaxes(rangemode="tozero")


def calibration_chart(calibration: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Share of values below each quantile, a line for each profile."""
    ideal = go.Scatter(
        x=[0, 100], y=[0, 100], name="ideal", mode="lines", line={"color": "#8a8f98", "dash": "dot", "width": 1}
    )
    lines = [
        _line([100 * level for level in own["levels"]], own["below"], own["profile"], number)
        for number, own in enumerate(calibration)
    ]
    return _figure([ideal, *lines], "values below it, %", "quantile, %")


def comparison_lines(x: Sequence[float], errors: Mapping[str, Any], baseline: str, x_title: str) -> go.Figure:
    """WQL of model and baseline over hours."""
    lines = [_line(x, errors["model"], "model", 2), _line(x, errors["baseline"], baseline, 6)]
    return _figure(lines, "WQL", x_title).update_yaxes(rangemode="tozero")


def comparison_bars(names: Sequence[str], model: Sequence[Any], other: Sequence[Any], baseline: str) -> go.Figure:
    """WQL of model and baseline by name."""
    escaped = [html.escape(name) for name in names]
    bars = [
        go.Bar(x=escaped, y=list(model), name="model", marker_color=MODEL_COLOUR),
        go.Bar(x=escaped, y=list(other), name=html.escape(baseline), marker_color=BASELINE_COLOUR),
    ]
    return _figure(bars, "WQL").update_layout(barmode="group")


def loss_chart(history: Sequence[Mapping[str, float]]) -> go.Figure:
    """Training and validation loss by epoch."""
    epochs = [point["epoch"] for point in history]
    lines = [
        _line(epochs, [point["loss"] for point in history], "training", 6),
        _line(epochs, [point["validation_loss"] for point in history], "validation", 2),
    ]
    return _figure(lines, "pinball loss", "epoch")


def attention_chart(attention: pd.DataFrame) -> go.Figure:
    """Attention to the context by the time before the origin, a line for each profile."""
    lines = []
    for number, (profile, own) in enumerate(attention[attention["on"] == "context"].groupby("profile", observed=True)):
        ordered = own.sort_values("lag_hours")
        lines.append(_line([*-ordered["lag_hours"]], [*100 * ordered["weight"]], str(profile), number))
    return _figure(lines, "attention, %", "hours before the origin")


def risk_chart(curve: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Share of incidents that are found by rate of false alarms."""
    rates = [point["false_alarms_per_server_month"] for point in curve]
    kinds = {
        "recall_long_precursor": "incidents with a long precursor",
        "ahead": "of these before the harm",
        "recall_other": "other incidents",
    }
    lines = [
        _line(rates, [None if point[key] is None else 100 * point[key] for point in curve], name, number)
        for number, (key, name) in enumerate(kinds.items())
    ]
    figure = _figure(lines, "found, %", "false alarms per server and month")
    return figure.update_xaxes(type="log")


def fan_chart(example: Example) -> go.Figure:
    """History, forecast with its bands, and measured values."""
    step = np.timedelta64(example.step_seconds, "s")
    origin = example.origin.astype("datetime64[s]")
    before = origin - step * np.arange(len(example.history) - 1, -1, -1)
    ahead = origin + step * np.arange(1, len(example.actual) + 1)
    traces: list[Any] = []
    for (low, high), opacity in ((BAND_96, 0.16), (BAND_80, 0.3)):
        if {low, high} <= set(example.levels):
            traces += _band(ahead, example, (low, high), f"rgba({BAND_COLOUR}, {opacity})")
    median = example.quantiles[:, example.levels.index(MEDIAN_LEVEL)]
    traces += [
        go.Scatter(x=ahead, y=median, mode="lines", line={"color": f"rgb({BAND_COLOUR})", "width": 2}, name="median"),
        go.Scatter(
            x=[*before, *ahead],
            y=[*example.history, *example.actual],
            mode="lines",
            line={"color": MEASURED_COLOUR, "width": 1.1},
            name="measured",
        ),
    ]
    figure = _figure(traces, METRIC_SPECS[example.metric].unit, height=FAN_HEIGHT_PX)
    figure.update_layout(showlegend=False, margin={"l": 50, "r": 8, "t": 8, "b": 34})
    return figure.add_vline(x=origin, line={"color": MEASURED_COLOUR, "width": 1, "dash": "dot"})


def _band(x: np.ndarray, example: Example, levels: tuple[float, float], colour: str) -> list[go.Scatter]:
    low, high = (example.quantiles[:, example.levels.index(level)] for level in levels)
    edge: dict[str, Any] = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    return [go.Scatter(y=low, **edge), go.Scatter(y=high, fill="tonexty", fillcolor=colour, **edge)]
