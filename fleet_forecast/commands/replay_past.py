"""The daemon's alerts over the past: tft_inference.py --replay."""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from fleet_forecast.commands.file_input import load_engine, on_model_grid, read_rows
from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.inference.engine import Engine
from fleet_forecast.intervals.incidents_file import read_incidents
from fleet_forecast.serving.alerting.rules import alert_rules_of
from fleet_forecast.serving.referenced_files import read_referenced_files
from fleet_forecast.serving.replay.labels import write_incidents
from fleet_forecast.serving.replay.replay import ReplayRequest, labelled_incidents, replay, steps_between
from fleet_forecast.serving.replay.report import write_report
from fleet_forecast.serving.settings import Settings
from fleet_forecast.sources.fleet_pull import pull_fleet
from fleet_forecast.sources.prometheus import TimeRange
from fleet_forecast.usage import UsageError, note, time_of
from server_profiles import ProfileRules


def replay_past(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> None:
    """Replay the alerts of the past, write the report, print a summary as JSON."""
    _check_replay_flags(arguments, settings)
    incidents_file = arguments.incidents
    if arguments.label is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        incidents_file = arguments.output / "incidents.csv"
        labelled = write_incidents(arguments.label, incidents_file, note)
        if arguments.input is None and not _has_prometheus(settings):
            print(json.dumps({"output": str(incidents_file), "incidents": labelled}))
            return
    alert_rules = alert_rules_of(fleet_in_use())
    first, last = (
        None if text is None else np.datetime64(int(time_of(text, flag)), "s")
        for flag, text in (("from", arguments.first_origin), ("to", arguments.to))
    )
    engine = load_engine(settings)
    pulled = arguments.input is None
    frame = _pulled(settings, engine, first, last) if pulled else read_rows(arguments.input, settings, rules)
    grid = on_model_grid(frame, engine, rules)
    incidents = labelled_incidents(frame, grid.step_seconds) or None
    if incidents_file is not None:
        incidents = read_incidents(incidents_file, grid.servers, note)
    del frame
    steps = steps_between(grid, first, last, engine.config.context_steps)
    report, speed = replay(engine, ReplayRequest(grid, steps, alert_rules, incidents))
    data = write_report(arguments.output, report)
    overall = {group: scores["all"] for group, scores in data["scores"].items()}
    print(json.dumps({"output": str(arguments.output), **report.facts, **speed, **overall}))


def _check_replay_flags(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.output is None:
        raise UsageError("--output is missing; a replay writes its report into this folder")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise UsageError(f"--output {arguments.output}: is a file; a replay needs a folder")
    if arguments.input is None and not _has_prometheus(settings) and arguments.label is None:
        raise UsageError("--input is missing; a replay needs --input PATH, or --prometheus URL with --from and --to")
    for flag in ("prometheus", "connections"):
        if arguments.input is not None and getattr(arguments, flag) is not None:
            raise UsageError(f"--{flag}: the metrics are those of --input; give one of the two")
    if arguments.incidents is not None and arguments.label is not None:
        raise UsageError("--label: the alerts labelled yes are the incidents; omit --incidents")
    if arguments.input is None and _has_prometheus(settings):
        for flag, given in (("from", arguments.first_origin), ("to", arguments.to)):
            if given is None:
                raise UsageError(f"--{flag} is missing; a replay from Prometheus needs --from and --to")


def _has_prometheus(settings: Settings) -> bool:
    return settings.prometheus is not None or settings.connections is not None


def _pulled(
    settings: Settings, engine: Engine, first: np.datetime64 | None, last: np.datetime64 | None
) -> pd.DataFrame:
    """Rows from Prometheus for the replayed time and the history before it."""
    servers = read_referenced_files(settings, os.environ).prometheus
    if not servers:
        raise UsageError(f"--connections {settings.connections}: has no [prometheus.NAME] to pull from; add one")
    if first is None or last is None:
        raise UsageError("--prometheus: a replay from Prometheus needs --from and --to")
    config = engine.config
    history = np.timedelta64(config.history_steps * config.step_seconds, "s")
    start, end = (datetime.fromtimestamp(int(time.astype(np.int64)), UTC) for time in (first - history, last))
    pulled = pull_fleet(servers, TimeRange(start, end), config.step_seconds)
    for left_out in pulled.left_out:
        note(left_out.sentence)
    return pulled.frame
