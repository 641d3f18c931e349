"""A picture of a simulated fleet: one week of one server per profile, incidents shaded."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.dates import DateFormatter, DayLocator
from matplotlib.figure import Figure
from PIL import Image

from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.incident_kinds import LABELS
from fleet_forecast.simulation.incidents import Events
from fleet_forecast.simulation.metric_model import profile_order, simulated
from fleet_forecast.simulation.scenario import Scenario, World
from fleet_forecast.simulation.simulator import simulate
from fleet_forecast.simulation.states import MAINTENANCE, OFFLINE

WEEK_SECONDS = 7 * 86_400
# Of the metrics in the contract's order; distinguishable for colour-blind readers (Okabe & Ito 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#444444", "#f0e442", "#d55e00")


def _panels() -> dict[str, dict[str, str]]:
    """The panels of a row: unit -> metrics with their colours."""
    panels: dict[str, dict[str, str]] = {}
    for metric, colour in zip(simulated().names, cycle(COLOURS), strict=False):
        panels.setdefault(METRIC_SPECS[metric].unit, {})[metric] = colour
    return panels


def plot_week(scenario: Scenario, path: Path) -> list[str]:
    """Draw the first week of a scenario (less if it is shorter) to a file; returns the servers drawn.

    Of each profile the server with the most incidents in that week is shown. Raises ValueError for an unknown format.
    """
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        msg = f"--plot is {path}; name a file that ends with one of .{', .'.join(sorted(formats))}"
        raise ValueError(msg)
    week = replace(scenario, steps=min(scenario.steps, WEEK_SECONDS // scenario.step_seconds))
    trace, events = simulate(week), World.of(week).events
    servers, panels = _servers_with_most_incidents(week.fleet, events), _panels()
    with mpl.rc_context({"font.size": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6}):
        figure = Figure(figsize=(13, 1.55 * len(servers) + 0.5), layout="constrained")
        grid = figure.subplots(len(servers), len(panels), squeeze=False, sharex=True)
        for row, server in zip(grid, servers, strict=True):
            for axes, (unit, colours) in zip(row, panels.items(), strict=True):
                for name, colour in colours.items():
                    values = trace.metrics[server, :, simulated().positions[name]]
                    axes.plot(trace.timestamps, values, color=colour, linewidth=0.5, label=name)
                _shade_incidents(axes, week, events, server, labelled=unit == "%")
                _shade_states(axes, week, trace.states[server])
                axes.set_ylabel(unit)
                axes.set_ylim(0, 100 if unit == "%" else None)
                axes.margins(x=0)
            row[0].set_title(f"{week.fleet.names[server]} · {week.fleet.profile(server)}", loc="left", fontsize=8)
        for axes in grid[0]:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3, frameon=False, fontsize=6)
        for axes in grid[-1]:
            axes.xaxis.set_major_formatter(DateFormatter("%a %d", tz=week.calendar.timezone))
            axes.xaxis.set_major_locator(DayLocator(tz=week.calendar.timezone))
            axes.set_xlabel(f"midnight, {week.calendar.timezone}")
        _save(figure, path)
    return [week.fleet.names[server] for server in servers]


def _save(figure: Figure, path: Path) -> None:
    """Save the figure; a PNG gets a palette of 64 colours, which makes it four times smaller."""
    if path.suffix != ".png":
        figure.savefig(path)
        return
    canvas = io.BytesIO()
    figure.savefig(canvas, format="png", dpi=100)
    with Image.open(canvas) as image:
        image.convert("RGB").quantize(64).save(path, optimize=True)


def _servers_with_most_incidents(fleet: Fleet, events: Events) -> list[int]:
    """The server with the most incidents of each profile in the fleet."""
    counts = np.bincount(events.server, minlength=len(fleet))
    chosen = []
    for code in range(len(profile_order())):
        servers = np.flatnonzero(fleet.profile_codes == code)
        if servers.size:
            chosen.append(int(servers[np.argmax(counts[servers])]))
    return chosen


def _shade_incidents(axes: Any, week: Scenario, events: Events, server: int, labelled: bool) -> None:
    """Shade precursors (light red) and incidents (red)."""
    at = partial(_time_in, week)
    for number, event in enumerate(np.flatnonzero(events.server == server)):
        onset, start, end = (float(times[event]) for times in (events.onset, events.start, events.end))
        axes.axvspan(at(onset), at(start), color="#d55e00", alpha=0.12, linewidth=0)
        axes.axvspan(at(start), at(end), color="#d55e00", alpha=0.35, linewidth=0)
        if labelled:
            place = (at(end), 3 + 9 * (number % 2))
            axes.annotate(LABELS[events.kind[event]], place, xytext=(2, 0), textcoords="offset points", fontsize=6)


def _shade_states(axes: Any, week: Scenario, states: npt.NDArray[np.int8]) -> None:
    """Shade maintenance (blue) and offline times (grey)."""
    at = partial(_time_in, week)
    for state, colour in ((MAINTENANCE, "#56b4e9"), (OFFLINE, "#888888")):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], states == state, [0]]).astype(np.int8)))
        for first, last in edges.reshape(-1, 2):
            axes.axvspan(
                at(first * week.step_seconds), at(last * week.step_seconds), color=colour, alpha=0.35, linewidth=0
            )


def _time_in(week: Scenario, seconds: float) -> np.datetime64:
    """A time of the drawing; not later than its end."""
    return week.start + np.timedelta64(int(min(seconds, week.seconds)), "s")
