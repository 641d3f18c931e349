"""Script 3: forecast servers with a trained model, from a file or as a daemon.

    python tft_inference.py --model models/current --input training/ --output forecasts.parquet --origins last
    python tft_inference.py --input day.csv --output forecasts.parquet --origins every:8h --from 2026-11-20T00:00:00Z
    python tft_inference.py --input training/ --explain ppdb003     # variable and attention weights of its forecast
    python tft_inference.py --input training/ --audit               # servers whose behaviour contradicts their profile
    python tft_inference.py --replay --input training/ --incidents incidents.csv --output replay/   # alerts of the past
    python tft_inference.py --daemon --port 8000
    curl -s localhost:8000/status

The batch writes one row per server, origin, step and metric, with the quantiles as columns. An origin is the time of
the last measured step that a forecast uses. The daemon receives samples by HTTP, stores them and serves forecasts of
the fleet; its settings can also be in a TOML file (--config).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from data_contract import ContractError, DataFileError, read_metrics
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.features.grid import FleetGrid, GridError, infer_step_seconds
from fleet_forecast.flags import add_flag, add_version
from fleet_forecast.inference.batch import (
    Origin,
    OriginError,
    engine_inputs,
    grid_for,
    last_origins,
    missing_metrics,
    regular_origins,
    servers_without_measurement,
    write_forecasts,
)
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.explanation_document import as_text, weights_document
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.intervals.incidents_file import read_incidents
from fleet_forecast.iso_time import utc_seconds
from fleet_forecast.profile_audit.audit import (
    AuditedFleet,
    AuditError,
    audit_document,
    audit_profiles,
    audit_text,
    steps_of_day,
)
from fleet_forecast.script import run_script
from fleet_forecast.serving import settings as daemon_settings
from fleet_forecast.serving.alerting.rules import AlertRules, load_alert_rules
from fleet_forecast.serving.alerting.severity import SEVERITIES
from fleet_forecast.serving.referenced_files import prometheus_source, read_referenced_files
from fleet_forecast.serving.replay.labels import write_incidents
from fleet_forecast.serving.replay.replay import ReplayRequest, labelled_incidents, replay, steps_between
from fleet_forecast.serving.replay.report import write_report
from fleet_forecast.serving.settings import Settings, SettingsError, load_settings
from fleet_forecast.sources.prometheus import (
    PrometheusError,
)
from server_profiles import BUILT_IN_RULES, ProfileRules, profile_of

DONE, FAILED, USAGE = 0, 1, 2  # exit codes
UNIT_SECONDS = {"m": 60, "h": 3_600, "d": 86_400}  # of --origins every:8h


class UsageError(ValueError):
    """The command line cannot be followed; the message names the flag and the remedy."""


USAGE_ERRORS = (OriginError, PrometheusError, SettingsError, TomlFileError, UsageError)
_MEMORY_REMEDY = "give a part of {path}: fewer servers, or a shorter time"
INPUT_ERRORS = (AuditError, ContractError, DataFileError, GridError, ModelError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the batch or the daemon; returns the exit code."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        _refuse_batch_flags(arguments)
        settings = load_settings(arguments.config, vars(arguments))
        rules = load_profile_rules(settings.profiles) if settings.profiles else BUILT_IN_RULES
        if arguments.check_config:
            read_referenced_files(settings, os.environ)
            print(settings.model_dump_json(indent=2))
            return DONE
        if arguments.daemon:
            return run_daemon(settings)
        if arguments.audit:
            return run_audit(arguments, settings, rules)
        if arguments.replay:
            return run_replay(arguments, settings, rules)
        if arguments.explain is not None:
            return run_explain(arguments, settings, rules)
        return run_batch(arguments, settings, rules)
    except USAGE_ERRORS as problem:
        print(f"error: {problem}", file=sys.stderr)
        return USAGE
    except INPUT_ERRORS as problem:
        print(f"error: {problem}", file=sys.stderr)
        return FAILED
    except MemoryError as problem:
        print(f"error: not enough memory ({problem}); {_MEMORY_REMEDY.format(path=arguments.input)}", file=sys.stderr)
        return FAILED


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; each may be written with hyphens or underscores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_version(parser)
    batch = parser.add_argument_group("batch: forecasts of a file")
    add_flag(batch, "--input", type=Path, metavar="PATH", help="parquet or CSV file, or a folder of them")
    add_flag(batch, "--output", type=Path, metavar="PATH", help="parquet file to write; with --replay a folder")
    add_flag(
        batch,
        "--origins",
        default="last",
        metavar="WHEN",
        help="last: each server's last measurement; every:8h: at this distance (default last)",
    )
    add_flag(batch, "--from", dest="first_origin", metavar="TIME", help="first origin, such as 2026-11-20T00:00:00Z")
    add_flag(
        batch,
        "--explain",
        metavar="NAME",
        help="print the variable and attention weights of this server's forecast; --output is not needed",
    )
    add_flag(
        batch,
        "--audit",
        action="store_true",
        help="print the servers whose behaviour in the last day of the data contradicts their profile; needs no model",
    )
    _add_replay_flags(parser)
    daemon = parser.add_argument_group("daemon: settings of the daemon; the batch uses the model's")
    add_flag(daemon, "--daemon", action="store_true", help="receive samples and serve forecasts until stopped")
    add_flag(daemon, "--config", type=Path, metavar="FILE", help="TOML file with these settings; flags override it")
    add_flag(daemon, "--check-config", action="store_true", help="check the settings, print them and exit")
    daemon_settings.add_flags(daemon)
    return parser.parse_args(argv)


def _add_replay_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "replay: the daemon's alerts over the past, from --input or --prometheus; settings: --model, --alert-rules"
    )
    add_flag(group, "--replay", action="store_true", help="report the alerts of a past time in the folder --output")
    add_flag(
        group, "--to", metavar="TIME", help="end of the replay; its beginning is --from (all but a day of history)"
    )
    add_flag(
        group,
        "--incidents",
        type=Path,
        metavar="FILE",
        help="CSV or parquet of incidents (server_name or pattern, start, end, type) that judge the alerts; without it "
        "the column incident of the data does, if there is one",
    )
    add_flag(
        group,
        "--label",
        type=Path,
        metavar="FILE",
        help="alerts.csv of a replay, answered with yes or no: written as incidents.csv to --output, and used",
    )


def _refuse_batch_flags(arguments: argparse.Namespace) -> None:
    """Neither the daemon nor --check-config reads or writes a file of metrics; some flags are of a replay only."""
    for mode in ("daemon", "check_config"):
        for flag in ("input", "output", "first_origin", "explain", "audit"):
            if getattr(arguments, mode) and getattr(arguments, flag):
                name = {"first_origin": "from"}.get(flag, flag)
                raise UsageError(f"--{name}: --{mode.replace('_', '-')} forecasts no file; give one of the two")
    for flag in ("to", "incidents", "label"):
        if getattr(arguments, flag) is not None and not arguments.replay:
            raise UsageError(f"--{flag}: is of a replay; add --replay")
    for flag in ("daemon", "audit", "explain"):
        if arguments.replay and getattr(arguments, flag):
            raise UsageError(f"--{flag}: --replay does something else; give one of the two")


# --- batch ----------------------------------------------------------------------------------------------------------


def run_batch(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> int:
    """Forecast a file from each origin, write the forecasts, print a summary as JSON."""
    started = time.perf_counter()
    _check_output(arguments)
    every_seconds = _distance_of_origins(arguments.origins)
    first_origin = _first_origin(arguments.first_origin, every_seconds)
    engine, grid = _load(arguments.input, settings, rules)
    origins = _choose_origins(grid, every_seconds, first_origin)
    rows = write_forecasts(arguments.output, engine, grid, origins)
    summary = {
        "output": str(arguments.output),
        "model": engine.model_id,
        "rows": rows,
        "servers": len({origin.server for origin in origins}),
        "origins": len({origin.step for origin in origins}),
        "seconds": round(time.perf_counter() - started, 3),
    }
    print(json.dumps(summary))
    return DONE


def run_explain(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> int:
    """Print the variable and attention weights of one server's forecast from its last measurement."""
    _check_explain_flags(arguments)
    engine, grid = _load(arguments.input, settings, rules)
    origins = [
        origin for origin in _choose_origins(grid, None, None) if grid.servers[origin.server] == arguments.explain
    ]
    if not origins:
        raise UsageError(
            f"--explain {arguments.explain}: the data has no measurement of a server of this name; use another"
        )
    inputs = engine_inputs(engine, grid, grid.peers(), origins)
    found = engine.explain(inputs.history, inputs.profiles, inputs.origins, peers=inputs.peers)
    weights = weights_document(found, engine.variables, grid.step_seconds)
    print(as_text(weights))
    summary = {
        "server_name": arguments.explain,
        "model": engine.model_id,
        "profile": inputs.profiles[0],
        "origin": f"{inputs.origins[0]}Z",
        **weights,
    }
    print(json.dumps(summary))
    return DONE


def run_audit(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> int:
    """Print the servers and profiles of the profile audit, the lines that accept it, and the audit as JSON."""
    _check_audit_flags(arguments)
    data = read_metrics(arguments.input, rules, settings.input_timezone)
    for notice in data.notices:
        _note(notice)
    step_seconds = data.metadata.step_seconds if data.metadata else infer_step_seconds(data.frame)
    grid = FleetGrid.from_frame(data.frame, data.metrics, step_seconds)
    sent = grid.profiles if data.has_profile_column else (None,) * len(grid.servers)
    matches = [profile_of(name, profile, rules) for name, profile in zip(grid.servers, sent, strict=True)]
    audit = audit_profiles(
        AuditedFleet(
            grid.servers,
            [profile for profile, _ in matches],
            [rule is not None for _, rule in matches],
            grid.metrics,
            grid.values[:, -steps_of_day(step_seconds) :],
        )
    )
    print(audit_text(audit))
    print(json.dumps(audit_document(audit)))
    return DONE


def _load(path: Path, settings: Settings, rules: ProfileRules) -> tuple[Engine, FleetGrid]:
    """The model, and the input on the model's grid; prints notes about the input."""
    frame = _read(path, settings, rules)
    engine = _engine(settings)
    return engine, _on_grid(frame, engine, rules)


def _engine(settings: Settings) -> Engine:
    return Engine.load(settings.model, device=settings.device, threads=settings.threads or None)


def _read(path: Path, settings: Settings, rules: ProfileRules) -> pd.DataFrame:
    """The rows of the input; prints notes about them."""
    data = read_metrics(path, rules, settings.input_timezone)
    for notice in data.notices:
        _note(notice)
    return data.frame


def _on_grid(frame: pd.DataFrame, engine: Engine, rules: ProfileRules) -> FleetGrid:
    """Rows on the model's grid; prints notes about what it does not know."""
    if missing := missing_metrics(frame, engine.config):
        _note(f"the data has no {', '.join(missing)}: forecast as not measured")
    grid = grid_for(frame, engine.config, rules)
    if engine.config.profiles:
        for profile in engine.unknown_profiles(grid.profiles):
            _note(
                f"the model was not trained on profile {profile!r}: its {grid.profiles.count(profile)} server(s) are "
                "forecast as of unknown profile; train on servers of it"
            )
    return grid


def _choose_origins(grid: FleetGrid, every_seconds: int | None, first_origin: np.datetime64 | None) -> list[Origin]:
    """Regular origins, or without a distance each server's last one."""
    if every_seconds is not None:
        return regular_origins(grid, every_seconds, first_origin)
    for name in servers_without_measurement(grid):
        _note(f"{name} has no measurement the model can use: forecast without history")
    return last_origins(grid)


def _check_output(arguments: argparse.Namespace) -> None:
    for flag in ("input", "output"):
        if getattr(arguments, flag) is None:
            raise UsageError(f"--{flag} is missing; a batch needs --input and --output, a daemon --daemon")
    output = arguments.output
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: its folder does not exist; create it")
    if output.suffix not in ("", ".parquet", ".pq"):
        raise UsageError(f"--output {output}: the file is parquet; call it {output.stem}.parquet")


def _check_explain_flags(arguments: argparse.Namespace) -> None:
    if arguments.input is None:
        raise UsageError("--input is missing; --explain needs the server's metrics")
    for flag, given in (("output", arguments.output), ("from", arguments.first_origin)):
        if given is not None:
            raise UsageError(f"--{flag}: --explain is about the forecast from the last row and writes no file; omit it")
    if arguments.origins != "last":
        raise UsageError(f"--origins {arguments.origins!r}: --explain is about the forecast from the last row; omit it")


def _check_audit_flags(arguments: argparse.Namespace) -> None:
    if arguments.input is None:
        raise UsageError("--input is missing; --audit needs the metrics of a fleet")
    for flag, given in (("output", arguments.output), ("from", arguments.first_origin), ("explain", arguments.explain)):
        if given is not None:
            raise UsageError(f"--{flag}: --audit forecasts nothing and writes no file; omit it")
    if arguments.origins != "last":
        raise UsageError(f"--origins {arguments.origins!r}: --audit is about the last day of the data; omit it")


def _distance_of_origins(text: str) -> int | None:
    """Seconds between origins of `every:8h`, None for `last`."""
    if text == "last":
        return None
    match = re.fullmatch(r"every:(\d{1,6})([mhd])", text)
    if match is None or int(match[1]) == 0:
        raise UsageError(f"--origins {text!r} is unknown; use last, or every:8h (m, h and d are known)")
    return int(match[1]) * UNIT_SECONDS[match[2]]


def _first_origin(text: str | None, every_seconds: int | None) -> np.datetime64 | None:
    """The time of --from in UTC."""
    if text is None:
        return None
    if every_seconds is None:
        raise UsageError("--from: the first of several origins; use it with --origins every:8h")
    return np.datetime64(int(_seconds(text, "from")), "s")


def _seconds(text: str, flag: str) -> float:
    """Seconds since 1970 of a flag's time."""
    try:
        return utc_seconds(text)
    except ValueError as problem:
        raise UsageError(f"--{flag} {text!r} {problem}") from None


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


# --- replay ---------------------------------------------------------------------------------------------------------


def run_replay(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> int:
    """Replay the alerts of the past, write the report, print a summary as JSON."""
    _check_replay_flags(arguments, settings)
    incidents_file = arguments.incidents
    if arguments.label is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        incidents_file = arguments.output / "incidents.csv"
        labelled = write_incidents(arguments.label, incidents_file, _note)
        if arguments.input is None and settings.prometheus is None:
            print(json.dumps({"output": str(incidents_file), "incidents": labelled}))
            return DONE
    alert_rules = load_alert_rules(settings.alert_rules) if settings.alert_rules else AlertRules()
    first, last = (
        None if text is None else np.datetime64(int(_seconds(text, flag)), "s")
        for flag, text in (("from", arguments.first_origin), ("to", arguments.to))
    )
    engine = _engine(settings)
    pulled = arguments.input is None
    frame = _pulled(settings, engine, first, last) if pulled else _read(arguments.input, settings, rules)
    grid = _on_grid(frame, engine, rules)
    incidents = labelled_incidents(frame, grid.step_seconds) or None
    if incidents_file is not None:
        incidents = read_incidents(incidents_file, grid.servers, _note)
    del frame
    steps = steps_between(grid, first, last, engine.config.context_steps)
    report, speed = replay(engine, ReplayRequest(grid, steps, alert_rules, incidents))
    data = write_report(arguments.output, report)
    overall = {severity: data["scores"][severity]["all"] for severity in SEVERITIES}
    print(json.dumps({"output": str(arguments.output), **report.facts, **speed, **overall}))
    return DONE


def _check_replay_flags(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.output is None:
        raise UsageError("--output is missing; a replay writes its report into this folder")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise UsageError(f"--output {arguments.output}: is a file; a replay needs a folder")
    if arguments.input is None and settings.prometheus is None and arguments.label is None:
        raise UsageError("--input is missing; a replay needs --input PATH, or --prometheus URL with --from and --to")
    if arguments.incidents is not None and arguments.label is not None:
        raise UsageError("--label: its answers are the incidents; omit --incidents")
    if arguments.input is None and settings.prometheus is not None:
        for flag, given in (("from", arguments.first_origin), ("to", arguments.to)):
            if given is None:
                raise UsageError(f"--{flag} is missing; a replay from Prometheus needs --from and --to")


def _pulled(
    settings: Settings, engine: Engine, first: np.datetime64 | None, last: np.datetime64 | None
) -> pd.DataFrame:
    """Rows from Prometheus for the replayed time and the history before it."""
    from fleet_forecast.sources.prometheus import TimeRange, pull_range  # HTTP is slow to import

    source = prometheus_source(settings, read_referenced_files(settings, os.environ))
    if source is None or first is None or last is None:
        raise UsageError("--prometheus: a replay from Prometheus needs --from and --to")
    client, queries = source
    config = engine.config
    history = np.timedelta64(config.history_steps * config.step_seconds, "s")
    start, end = (datetime.fromtimestamp(int(time.astype(np.int64)), UTC) for time in (first - history, last))
    pulled = pull_range(client, queries, TimeRange(start, end), config.step_seconds)
    for name, reason in pulled.left_out.items():
        _note(f"{name}: left out, {reason}")
    return pulled.frame


# --- daemon ---------------------------------------------------------------------------------------------------------


def run_daemon(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from fleet_forecast.serving.app import create_app
    from fleet_forecast.serving.http.server import serve
    from fleet_forecast.serving.monitoring.log import log_as_json

    files = read_referenced_files(settings, os.environ)
    if not settings.model.exists():
        raise SettingsError(
            f"model: {settings.model} does not exist; train one with tft_trainer.py, or give --model DIR"
        )
    log_as_json()
    # The interpreter switches threads at this interval, so that the event loop answers within milliseconds.
    sys.setswitchinterval(0.0001)
    scheme = "http" if settings.tls_certificate is None else "https"
    logging.getLogger(__name__).info(
        "start", extra={"address": f"{scheme}://{_in_address(settings.host)}:{settings.port}"}
    )
    app = create_app(settings, files, prometheus=prometheus_source(settings, files))
    if serve(app, settings, app.state.before_shutdown, app.state.http_counters):
        return DONE
    print(
        f"error: the daemon could not start on {settings.host}:{settings.port}; the log above has the reason. "
        "If the address is in use, stop what listens there or give another --port",
        file=sys.stderr,
    )
    return FAILED


def _in_address(host: str) -> str:
    """A host name as addresses have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    run_script(main)
