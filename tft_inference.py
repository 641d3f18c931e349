"""Script 3: forecast servers with a trained model, from a file or as a daemon.

    python tft_inference.py --model models/current --input training/ --output forecasts.parquet --origins last
    python tft_inference.py --input day.csv --output forecasts.parquet --origins every:8h --from 2026-11-20T00:00:00Z
    python tft_inference.py --input training/ --explain ppdb003     # what that server's forecast rests on
    python tft_inference.py --daemon --port 8000
    curl -s localhost:8000/status

The batch writes one row per server, origin, step and metric, with the quantiles as columns. An origin is the time of
the last step with a measurement that is used. The daemon receives samples by HTTP, keeps them and serves the fleet's
forecasts; its settings can also stand in a TOML file (--config).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data_contract import ContractError, DataFileError, read_metrics
from fleet_forecast.contract.profile_rules import ProfileFileError, load_profile_rules, profile_of
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.features.grid import FleetGrid, GridError
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.explanation_document import as_text, weights_document
from fleet_forecast.inference.forecast_table import long_table, schema
from fleet_forecast.inference.model_directory import ModelError
from fleet_forecast.serving import settings as daemon_settings
from fleet_forecast.serving.referenced_files import prometheus_source, read_referenced_files
from fleet_forecast.serving.settings import Settings, SettingsError, load_settings
from fleet_forecast.sources.prometheus import (
    PrometheusError,
    QueryFileError,
)
from server_profiles import BUILT_IN_RULES, ProfileRules

SERVERS_PER_CHUNK = 64  # forecast at once; bounds memory
DONE, FAILED, USAGE = 0, 1, 2
_USER_ERRORS = (ContractError, DataFileError, GridError, ModelError, ProfileFileError)


class UsageError(ValueError):
    """The command line asks for something that cannot be; the message names the flag and the remedy."""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Flags with hyphens or underscores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    batch = parser.add_argument_group("batch: forecasts of a file")
    batch.add_argument("--input", type=Path, metavar="PATH", help="parquet or CSV file, or a folder of them")
    batch.add_argument("--output", type=Path, metavar="FILE", help="parquet file to write")
    batch.add_argument(
        "--origins",
        default="last",
        metavar="WHEN",
        help="last: each server's last measurement; every:8h: that often (default last)",
    )
    batch.add_argument("--from", dest="first_origin", metavar="TIME", help="first origin, such as 2026-11-20T00:00:00Z")
    batch.add_argument(
        "--explain", metavar="NAME", help="print what the forecast of this server rests on; --output is not needed"
    )
    daemon = parser.add_argument_group("daemon: settings of the daemon, and of the batch where they make sense")
    daemon.add_argument("--daemon", action="store_true", help="receive samples and serve forecasts until stopped")
    daemon.add_argument("--config", type=Path, metavar="FILE", help="TOML file with these settings; flags overrule it")
    daemon.add_argument("--check-config", action="store_true", help="check the settings, print them and end")
    daemon_settings.add_flags(daemon)
    return parser.parse_args([_hyphenated(argument) for argument in argv])


def _hyphenated(argument: str) -> str:
    """--max_servers=5 -> --max-servers=5."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if argument.startswith("--") else argument


def main(argv: Sequence[str] | None = None) -> int:
    """Run the batch or the daemon; gives the exit code."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        _refuse_flags_of_the_batch(arguments)
        settings = load_settings(arguments.config, vars(arguments))
        if arguments.check_config:
            read_referenced_files(settings, os.environ)
            print(settings.model_dump_json(indent=2))
            return DONE
        if arguments.daemon:
            return run_daemon(settings)
        rules = load_profile_rules(settings.profiles) if settings.profiles else BUILT_IN_RULES
        if arguments.explain is not None:
            return run_explain(arguments, settings, rules)
        return run_batch(arguments, settings, rules)
    except (SettingsError, UsageError, PrometheusError, QueryFileError, TomlFileError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return USAGE
    except _USER_ERRORS as problem:
        print(f"error: {problem}", file=sys.stderr)
        return FAILED


def _refuse_flags_of_the_batch(arguments: argparse.Namespace) -> None:
    """The daemon and the check of its settings forecast no file."""
    for mode in ("daemon", "check_config"):
        for flag in ("input", "output", "first_origin", "explain"):
            if getattr(arguments, mode) and getattr(arguments, flag) is not None:
                name = {"first_origin": "from"}.get(flag, flag)
                raise UsageError(f"--{name}: --{mode.replace('_', '-')} forecasts no file; give one of the two")


# --- batch ----------------------------------------------------------------------------------------------------------


def run_batch(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> int:
    """Read the file, forecast at each origin, write the table, say what was done."""
    started = time.perf_counter()
    every_seconds, first_origin = _check_batch_flags(arguments)
    engine, grid = _load(arguments, settings, rules)
    origins = choose_origins(grid, every_seconds, first_origin)
    rows = write_forecasts(arguments.output, engine, grid, origins, rules)
    summary = {
        "output": str(arguments.output),
        "model": engine.model_id,
        "rows": rows,
        "servers": len({server for server, _ in origins}),
        "origins": len({step for _, step in origins}),
        "seconds": round(time.perf_counter() - started, 3),
    }
    print(json.dumps(summary))
    return DONE


def _load(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> tuple[Engine, FleetGrid]:
    """The model, and the input on the model's grid."""
    data = read_metrics(arguments.input, rules)
    for notice in data.notices:
        print(f"note: {notice}", file=sys.stderr)
    engine = Engine.load(settings.model, device=settings.device, threads=None)
    frame = _with_missing_metrics(data.frame, engine.config.targets)
    grid = FleetGrid.from_frame(frame, engine.config.targets, engine.config.step_seconds)
    _note_unknown_profiles(engine, grid, rules)
    return engine, grid


def run_explain(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> int:
    """Say what the forecast of one server from its last row rests on."""
    if arguments.input is None:
        raise UsageError("--input is missing; --explain needs the server's metrics")
    for flag, given in (("output", arguments.output), ("from", arguments.first_origin)):
        if given is not None:
            raise UsageError(f"--{flag}: --explain speaks of the forecast from the last row and writes no file")
    if arguments.origins != "last":
        raise UsageError(f"--origins {arguments.origins!r}: --explain speaks of the forecast from the last row")
    engine, grid = _load(arguments, settings, rules)
    of_server = [origin for origin in choose_origins(grid, None, None) if grid.servers[origin[0]] == arguments.explain]
    if not of_server:
        raise UsageError(f"--explain {arguments.explain}: the data has no measurement of a server of this name")
    history, profiles, origins = forecast_inputs(engine, grid, of_server, rules)
    weights = weights_document(engine.explain(history, profiles, origins), engine.variables, grid.step_seconds)
    print(as_text(weights))
    summary = {
        "server_name": arguments.explain,
        "model": engine.model_id,
        "profile": profiles[0],
        "origin": f"{origins[0]}Z",
        **weights,
    }
    print(json.dumps(summary))
    return DONE


def _check_batch_flags(arguments: argparse.Namespace) -> tuple[int | None, np.datetime64 | None]:
    for flag in ("input", "output"):
        if getattr(arguments, flag) is None:
            raise UsageError(f"--{flag} is missing; a batch needs --input and --output, a daemon --daemon")
    if not arguments.output.absolute().parent.is_dir():
        raise UsageError(f"--output {arguments.output}: its folder does not exist; create it")
    if arguments.output.suffix not in ("", ".parquet", ".pq"):
        raise UsageError(f"--output {arguments.output}: the file is parquet; call it {arguments.output.stem}.parquet")
    match = re.fullmatch(r"every:(\d{1,6})([mhd])", arguments.origins)
    if arguments.origins != "last" and (match is None or int(match[1]) == 0):
        raise UsageError(f"--origins {arguments.origins!r} is unknown; use last, or every:8h (m, h and d are known)")
    every_seconds = int(match[1]) * {"m": 60, "h": 3_600, "d": 86_400}[match[2]] if match else None
    if arguments.first_origin is None:
        return every_seconds, None
    if every_seconds is None:
        raise UsageError("--from: the first of several origins; use it with --origins every:8h")
    try:
        moment = datetime.fromisoformat(arguments.first_origin)
    except ValueError:
        raise UsageError(f"--from {arguments.first_origin!r} is no time; write 2026-11-20T00:00:00Z") from None
    if moment.tzinfo is None:
        raise UsageError(f"--from {arguments.first_origin!r} has no time zone; write UTC with a final Z")
    try:
        return every_seconds, np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "s")
    except OverflowError:
        raise UsageError(f"--from {arguments.first_origin!r} is before the year 1 in UTC; give a later time") from None


def _with_missing_metrics(frame: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """A metric the model forecasts and the data lacks is a column of missing values."""
    missing = [metric for metric in targets if metric not in frame.columns]
    if missing:
        print(f"note: the data has no {', '.join(missing)}: forecast as not measured", file=sys.stderr)
    return frame.assign(**dict.fromkeys(missing, np.float32(np.nan)))


def _note_unknown_profiles(engine: Engine, grid: FleetGrid, rules: ProfileRules) -> None:
    """Say which profiles the model never saw, so that their servers are forecast without."""
    if not engine.config.profiles:
        return
    profiles = [profile_of(name, sent, rules)[0] for name, sent in zip(grid.servers, grid.profiles, strict=True)]
    for profile in engine.unknown_profiles(profiles):
        print(
            f"note: the model was not trained on profile {profile!r}: its {profiles.count(profile)} server(s) are "
            "forecast as of unknown profile; train on servers of it",
            file=sys.stderr,
        )


def choose_origins(
    grid: FleetGrid, every_seconds: int | None, first_origin: np.datetime64 | None
) -> list[tuple[int, int]]:
    """(server, step) of each forecast. An origin is a step with a measurement of that server.

    every_seconds None: each server's last one; the data's last step for a server without any, which it says. Otherwise
    the given distance from the first origin on; the first one is `first_origin`, or as far after the data's begin as
    the distance is. A server without a measurement at an origin is left out there. Raises UsageError if none remains.
    """
    measured = ~np.isnan(grid.values).all(axis=2)  # (server, step)
    if every_seconds is None:
        for server in np.flatnonzero(~measured.any(axis=1)):
            name = grid.servers[server]
            print(f"note: {name} has no measurement the model can use: forecast without history", file=sys.stderr)
        return list(enumerate((grid.steps - 1 - np.argmax(measured[:, ::-1], axis=1)).tolist()))
    distance = every_seconds // grid.step_seconds
    if distance == 0 or every_seconds % grid.step_seconds:
        raise UsageError(f"--origins: {every_seconds} s is no multiple of the model's step of {grid.step_seconds} s")
    first = distance if first_origin is None else grid.step_at(first_origin)
    if not 0 <= first < grid.steps:
        begin, end = grid.timestamps()[[0, -1]]
        reach = f"the data, which reaches from {begin}Z to {end}Z"
        if first_origin is None:
            raise UsageError(f"--origins: {every_seconds} s is longer than {reach}; use a shorter distance, or --from")
        raise UsageError(f"--from {first_origin}: outside {reach}")
    chosen = [(int(s), step) for step in range(first, grid.steps, distance) for s in np.flatnonzero(measured[:, step])]
    if not chosen:
        raise UsageError("--origins: no server has a row at any origin; choose another --from")
    return chosen


def write_forecasts(
    path: Path, engine: Engine, grid: FleetGrid, origins: list[tuple[int, int]], rules: ProfileRules
) -> int:
    """Forecast and write chunk by chunk, to a file beside `path` that takes its place when whole; gives the rows."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        with pq.ParquetWriter(beside, schema(engine.config.quantiles), compression="zstd") as writer:
            for chunk in tqdm(list(_chunks(origins)), desc="forecast", unit="chunk", file=sys.stderr, disable=None):
                table = forecast_table(engine, grid, chunk, rules)
                writer.write_table(table)
                rows += table.num_rows
        beside.replace(path)
    except OSError as problem:
        raise DataFileError(f"{path}: cannot be written ({problem.strerror or problem})") from None
    finally:
        beside.unlink(missing_ok=True)
    return rows


def _chunks(origins: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    return (origins[start : start + SERVERS_PER_CHUNK] for start in range(0, len(origins), SERVERS_PER_CHUNK))


def forecast_table(
    engine: Engine, grid: FleetGrid, origins: Sequence[tuple[int, int]], rules: ProfileRules
) -> pa.Table:
    """Forecasts at (server, step) origins, one row per server, origin, step and metric, in this order."""
    config = engine.config
    history, profiles, origin_times = forecast_inputs(engine, grid, origins, rules)
    quantiles = engine.forecast(history, profiles, origin_times)  # (origin, horizon, metric, quantile)
    names = [grid.servers[server] for server, _ in origins]
    horizon_steps = range(1, config.horizon_steps + 1)
    return long_table(
        names, origin_times, horizon_steps, config.step_seconds, config.targets, config.quantiles, quantiles
    )


def forecast_inputs(
    engine: Engine, grid: FleetGrid, origins: Sequence[tuple[int, int]], rules: ProfileRules
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """What the engine is given at (server, step) origins: history, profiles, and the origins' times."""
    servers = np.array([server for server, _ in origins])
    steps = np.array([step for _, step in origins])
    length = min(engine.config.history_steps, int(steps.max()) + 1)
    columns = steps[:, None] - np.arange(length - 1, -1, -1)  # (origin, length)
    history = grid.values[servers[:, None], np.maximum(columns, 0)]
    history[columns < 0] = np.nan
    profiles = [profile_of(grid.servers[server], grid.profiles[server], rules)[0] for server in servers]
    return history, profiles, grid.timestamps()[steps]


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
    # A thread that computes gives way this often, so that the event loop answers within milliseconds.
    sys.setswitchinterval(0.0001)
    logging.getLogger(__name__).info("start", extra={"address": f"http://{settings.host}:{settings.port}"})
    app = create_app(settings, files, prometheus=prometheus_source(settings, files))
    if serve(app, settings, before_shutdown=app.state.before_shutdown):
        return DONE
    print(
        f"error: the daemon could not start on {settings.host}:{settings.port}; the log above says why. "
        "If the address is in use, stop what listens there or give another --port",
        file=sys.stderr,
    )
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
