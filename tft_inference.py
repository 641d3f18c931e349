"""Script 3: forecast servers with a trained model, from a file or as a daemon.

    python tft_inference.py --model models/current --input training/ --output forecasts.parquet --origins last
    python tft_inference.py --input day.csv --output forecasts.parquet --origins every:8h --from 2026-11-20T00:00:00Z
    python tft_inference.py --input training/ --explain ppdb003     # variable and attention weights of its forecast
    python tft_inference.py --input training/ --audit               # servers whose behaviour contradicts their profile
    python tft_inference.py --replay --input training/ --incidents incidents.csv --output replay/   # alerts of the past
    python tft_inference.py --engine ray --input s3://fleet/metrics --output s3://fleet/out   # a fleet in parts
    python tft_inference.py --daemon --port 8000
    curl -s localhost:8000/status

The batch writes one row per server, origin, step and metric, with the quantiles as columns. An origin is the time of
the last measured step that a forecast uses. The daemon receives samples by HTTP, stores them and serves forecasts of
the fleet; its settings can also be in a TOML file (--config).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_contract import ContractError, DataFileError
from fleet_forecast.contract.definitions import use_fleet
from fleet_forecast.contract.fleet.flag import load_fleet
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.features.grid import GridError
from fleet_forecast.flag_uses import PLAIN, chosen_flags, only_one, refuse_unused_flags
from fleet_forecast.flags import (
    FlagParser,
    add_engine_flags,
    add_flag,
    add_version,
    path_or_address,
    target_or_address,
)
from fleet_forecast.inference.batch import OriginError
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.profile_audit.audit import AuditError
from fleet_forecast.script import run_script
from fleet_forecast.serving import settings as daemon_settings
from fleet_forecast.serving.settings import Settings, SettingsError, load_settings
from fleet_forecast.sources.prometheus import PrometheusError
from fleet_forecast.usage import UsageError
from server_profiles import ProfileRules

DONE, FAILED, USAGE = 0, 1, 2  # exit codes
USAGE_ERRORS = (OriginError, PrometheusError, SettingsError, TomlFileError, UsageError)

# Flags that select a command, and the flags that each command uses (fleet_forecast/flag_uses.py).
COMMANDS = {
    "explain": "--explain NAME",
    "audit": "--audit",
    "replay": "--replay",
    "backup": "--backup FILE",
    "check_config": "--check-config",
    "daemon": "--daemon",
}
_READING = ("config", "fleet", "input_timezone", "input")
_MODEL = ("model", "device", "threads")
_FORECASTS = (*_READING, "model", "threads", "output", "origins", "first_origin")
_PULL = ("prometheus", "prometheus_token_file", "prometheus_headers", "connections")
_SETTINGS = ("config", *Settings.model_fields)
USES = {
    PLAIN: (*_FORECASTS, "device"),
    "--explain NAME": (*_READING, *_MODEL, "explain"),
    "--audit": (*_READING, "audit"),
    "--replay": (*_READING, *_MODEL, *_PULL, "replay", "output", "first_origin", "to", "incidents", "label"),
    "--engine parts": (*_FORECASTS, "engine"),
    "--engine ray": (*_FORECASTS, "engine", "ray_address", "workers"),
    "--backup FILE": ("config", "history", "backup"),
    "--check-config": (*_SETTINGS, "check_config", "probe", "daemon"),
    "--daemon": (*_SETTINGS, "daemon"),
}

_MEMORY_REMEDY = "give a part of {path}: fewer servers, or a shorter time"
INPUT_ERRORS = (AuditError, ContractError, DataFileError, GridError, ModelError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the batch or the daemon; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        _refuse_contradictions(parser, arguments)
        settings = load_settings(arguments.config, vars(arguments))
        with use_fleet(load_fleet(settings.fleet)) as fleet:
            return _run(arguments, settings, fleet.rules)
    except USAGE_ERRORS as problem:
        print(f"error: {problem}", file=sys.stderr)
        return USAGE
    except INPUT_ERRORS as problem:
        print(f"error: {problem}", file=sys.stderr)
        return FAILED
    except MemoryError as problem:
        print(f"error: not enough memory ({problem}); {_MEMORY_REMEDY.format(path=arguments.input)}", file=sys.stderr)
        return FAILED


def _run(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> int:
    if arguments.check_config:
        from fleet_forecast.commands.check_settings import check_settings

        return DONE if check_settings(settings, rules, arguments.probe) else FAILED
    if arguments.daemon:
        from fleet_forecast.commands.run_daemon import run_daemon

        return DONE if run_daemon(settings) else FAILED
    _command_on_a_file(arguments)(arguments, settings, rules)
    return DONE


def _command_on_a_file(arguments: argparse.Namespace) -> Callable[[argparse.Namespace, Settings, ProfileRules], None]:
    """The command that the flags select. Imported here, so that each command starts without the others' packages."""
    if arguments.backup is not None:
        from fleet_forecast.commands.back_up_history import back_up_history

        return back_up_history
    if arguments.audit:
        from fleet_forecast.commands.audit_file import audit_file

        return audit_file
    if arguments.replay:
        from fleet_forecast.commands.replay_past import replay_past

        return replay_past
    if arguments.explain is not None:
        from fleet_forecast.commands.explain_server import explain_server

        return explain_server
    if arguments.engine != "memory":
        from fleet_forecast.commands.forecast_parts import forecast_parts

        return forecast_parts
    from fleet_forecast.commands.forecast_file import forecast_file

    return forecast_file


def build_parser() -> argparse.ArgumentParser:
    """The flags; each may be written with hyphens or underscores."""
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_version(parser)
    batch = parser.add_argument_group("batch: forecasts of a file")
    add_flag(batch, "--input", type=path_or_address, metavar="PATH", help="parquet or CSV file, or a folder of them")
    add_flag(
        batch, "--output", type=target_or_address, metavar="PATH", help="parquet file to write; with --replay a folder"
    )
    add_flag(
        batch,
        "--origins",
        default="last",
        metavar="WHEN",
        help="last: each server's last measurement; every:8h: at this interval (default last)",
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
    _add_parts_flags(parser)
    _add_replay_flags(parser)
    daemon = parser.add_argument_group("daemon: settings of the daemon; the batch uses the model's")
    add_flag(daemon, "--daemon", action="store_true", help="receive samples and serve forecasts until stopped")
    add_flag(daemon, "--config", type=Path, metavar="FILE", help="TOML file with these settings; flags override it")
    add_flag(daemon, "--check-config", action="store_true", help="check the settings, print them and exit")
    add_flag(daemon, "--probe", action="store_true", help="with --check-config: run each Prometheus query once")
    add_flag(
        daemon,
        "--backup",
        type=Path,
        metavar="FILE",
        help="write a consistent copy of --history to a new file and exit; the daemon may run meanwhile",
    )
    daemon_settings.add_flags(daemon)
    return parser


def _add_parts_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fleets in parts: --input and --output are folders or addresses (s3://...)")
    add_engine_flags(group)


def _add_replay_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "replay: the daemon's alerts over the past, from --input or --prometheus; settings: --model, --fleet"
    )
    add_flag(group, "--replay", action="store_true", help="report the alerts of a past period in the folder --output")
    add_flag(group, "--to", metavar="TIME", help="end of the replay; its start is --from (all but a day of history)")
    add_flag(
        group,
        "--incidents",
        type=Path,
        metavar="FILE",
        help="CSV or parquet of incidents (server_name or pattern, start, end, type) to evaluate the alerts with (the "
        "column incident of the data, if there is one)",
    )
    add_flag(
        group,
        "--label",
        type=Path,
        metavar="FILE",
        help="alerts.csv of a replay, labelled yes or no: written as incidents.csv to --output, and used",
    )


def _refuse_contradictions(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse flags that would be ignored, and addresses where no fleet in parts is forecast. Raises UsageError."""
    chosen = chosen_flags(arguments, COMMANDS)
    if arguments.check_config and arguments.daemon:  # the daemon's command line with one flag more
        chosen.remove("--daemon")
    if arguments.engine != "memory":
        chosen.append(f"--engine {arguments.engine}")
    refuse_unused_flags(parser, arguments, USES, [only_one(chosen)])
    for flag in ("input", "output"):
        if arguments.engine == "memory" and isinstance(getattr(arguments, flag), str):
            raise UsageError(f"--{flag} {getattr(arguments, flag)}: is an address; add --engine parts or --engine ray")


if __name__ == "__main__":
    run_script(main)
