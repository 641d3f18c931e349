r"""Draw forecasts with the measurements before and after the origin: the picture of README.

    python tft_inference.py --input training/ --output forecasts.parquet --origins every:8h
    python docs/draw_forecast.py --data training/ --forecasts forecasts.parquet --servers ppweb003 ppdb002 \
        --metric cpu_pct --output docs/forecast.png

One panel per server: the day before the origin, the median, the 80 % and the 96 % band, and the measurements of the
horizon, which the model did not receive. The default origin is the last one with measurements for its whole horizon.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_contract import METRIC_SPECS, ContractError, DataFileError, read_metrics  # noqa: E402

HISTORY = pd.Timedelta(hours=24)
MEASURED_COLOUR, FORECAST_COLOUR = "#333333", "#1f6fb2"
PANEL_INCHES = (11, 2.9)


def draw_panel(axes: Axes, measured: pd.Series, forecast: pd.DataFrame, title: str, unit: str) -> None:
    """One server. measured: by timestamp; forecast: by timestamp, the quantiles as columns."""
    origin = forecast["origin"].iloc[0]
    shown = measured.loc[origin - HISTORY : forecast.index[-1]]
    for low, high, alpha, label in (("q0.02", "q0.98", 0.18, "96 % band"), ("q0.1", "q0.9", 0.32, "80 % band")):
        axes.fill_between(
            forecast.index, forecast[low], forecast[high], color=FORECAST_COLOUR, alpha=alpha, lw=0, label=label
        )
    axes.plot(forecast.index, forecast["q0.5"], color=FORECAST_COLOUR, lw=1.8, label="median forecast")
    axes.plot(shown.index, shown, color=MEASURED_COLOUR, lw=0.9, label="measured")
    axes.axvline(origin, color="#888888", lw=1, ls="--")
    axes.annotate("now", (origin, 1), xycoords=("data", "axes fraction"), xytext=(3, -11), textcoords="offset points")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def choose_origin(forecasts: pd.DataFrame, last_measured: pd.Timestamp) -> pd.Timestamp:
    """The last origin with measurements for its whole horizon, or the last one."""
    ends = forecasts.groupby("origin")["timestamp"].max()
    complete = ends[ends <= last_measured]
    return pd.Timestamp(complete.index[-1] if len(complete) else ends.index[-1])


def draw(data: Path, forecasts: Path, servers: Sequence[str], metric: str, origin: str | None) -> Figure:
    """The picture. Raises DataFileError if a server or an origin is not in the files."""
    frame = read_metrics(data).frame
    table = pd.read_parquet(forecasts)
    table = table[table["metric"] == metric]
    width, height = PANEL_INCHES
    figure, panels = plt.subplots(len(servers), 1, figsize=(width, height * len(servers)), squeeze=False)
    for axes, server in zip(panels[:, 0], servers, strict=True):
        measured = frame[frame["server_name"] == server].set_index("timestamp")[metric]
        own = table[table["server_name"] == server]
        if own.empty or measured.empty:
            raise DataFileError(f"--servers {server}: not in {forecasts if own.empty else data}; choose another one")
        chosen = choose_origin(own, measured.index[-1]) if origin is None else pd.Timestamp(origin)
        forecast = own[own["origin"] == chosen].set_index("timestamp").sort_index()
        if forecast.empty:
            raise DataFileError(f"--origin {origin}: no forecast of {server} was made then; leave it out, or choose")
        spec = METRIC_SPECS[metric]
        draw_panel(axes, measured, forecast, f"{server}: {spec.description}", spec.unit)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", fontsize=9, frameon=False, ncols=4)
    figure.tight_layout(rect=(0, 0.25 / (height * len(servers)), 1, 1))
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one picture; returns 0 when it is written, 1 if input is missing, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="measurements: file or folder")
    parser.add_argument("--forecasts", type=Path, required=True, help="parquet file of tft_inference.py")
    parser.add_argument("--servers", nargs="+", required=True, metavar="NAME", help="one panel for each")
    parser.add_argument("--metric", choices=tuple(METRIC_SPECS), default="cpu_pct", help="metric to draw (%(default)s)")
    parser.add_argument("--origin", metavar="TIME", help="origin, such as 2026-11-20T08:00:00Z")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    arguments = parser.parse_args(argv)
    try:
        figure = draw(arguments.data, arguments.forecasts, arguments.servers, arguments.metric, arguments.origin)
        figure.savefig(arguments.output, dpi=110, metadata={"Software": None})
    except (ContractError, DataFileError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
