r"""The format of server metrics, version 1.1.0; DATA_CONTRACT.md describes it.

Check a file or a folder (parquet or CSV). Every violation is listed with its remedy:

    python data_contract.py training/
    python data_contract.py my_servers.csv --fleet fleet.toml --input-timezone Europe/Berlin
    python data_contract.py s3://fleet/metrics --engine ray   # each file of a fleet in parts
    python data_contract.py --check-fleet fleet.toml   # check a fleet file
    python data_contract.py --show-fleet        # print the fleet as a file, defaults included
    python data_contract.py --recording-rules   # rules of a Prometheus for remote write, own metrics included
    python data_contract.py --document          # the tables of DATA_CONTRACT.md

Exits with 0 if the data meets the contract, 1 if not, 2 for wrong usage. In Python:

    from data_contract import read_metrics
    data = read_metrics(Path("training"))       # raises ContractError or DataFileError
    data.frame, data.metrics, data.notices

Data is validated once: code that receives the result of read_metrics does not check it again. check_metrics validates
data that is too large for one frame and returns it batch by batch. The code is in fleet_forecast/contract/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from fleet_forecast.contract.audit import validate
from fleet_forecast.contract.checks import ContractError, Violation
from fleet_forecast.contract.definitions import BUILT_IN_FLEET, BUILT_IN_METRICS, PROFILES, FleetDefinition, use_fleet
from fleet_forecast.contract.fleet.flag import add_fleet_flag, add_moved_flags, load_fleet
from fleet_forecast.contract.fleet.fleet_file import fleet_document
from fleet_forecast.contract.fleet.toml_text import toml_text
from fleet_forecast.contract.metadata import DataFileError, Metadata, read_metadata, write_metadata
from fleet_forecast.contract.reading import Batch, CheckedMetrics, ContractData, check_metrics, read_metrics
from fleet_forecast.contract.specs import (
    COLUMN_SPECS,
    COLUMNS,
    CONTRACT_VERSION,
    METADATA_FILE,
    METRIC_SPECS,
    METRICS,
    METRICS_FILE,
    METRICS_FOLDER,
    REQUIRED,
    STATES,
    ColumnSpec,
    MetricSpec,
    arrow_schema,
    document_tables,
)
from fleet_forecast.contract.times import add_timezone_flag
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.flag_uses import PLAIN, chosen_flags, only_one, refuse_unused_flags
from fleet_forecast.flags import (
    FlagParser,
    add_engine_flags,
    add_flag,
    add_version,
    path_or_address,
)
from fleet_forecast.iso_time import iso_exact, iso_offset
from fleet_forecast.script import run_script
from fleet_forecast.usage import UsageError
from fleet_forecast.wording import counted

__all__ = [
    "COLUMNS",
    "COLUMN_SPECS",
    "CONTRACT_VERSION",
    "METADATA_FILE",
    "METRICS",
    "METRICS_FILE",
    "METRICS_FOLDER",
    "METRIC_SPECS",
    "REQUIRED",
    "STATES",
    "Batch",
    "CheckedMetrics",
    "ColumnSpec",
    "ContractData",
    "ContractError",
    "DataFileError",
    "Metadata",
    "MetricSpec",
    "Violation",
    "arrow_schema",
    "check_metrics",
    "document_tables",
    "read_metadata",
    "read_metrics",
    "validate",
    "write_metadata",
]

# Flags that select a command, and the flags that each command uses (fleet_forecast/flag_uses.py).
COMMANDS = {
    "check_fleet": "--check-fleet FILE",
    "show_fleet": "--show-fleet",
    "recording_rules": "--recording-rules",
    "document": "--document",
}
USES = {
    PLAIN: ("path", "fleet", "input_timezone", "engine"),
    "--check-fleet FILE": ("check_fleet",),
    "--show-fleet": ("show_fleet", "fleet"),
    "--recording-rules": ("recording_rules", "fleet"),
    "--document": ("document", "fleet"),
    "--engine ray": ("ray_address", "workers"),
}


def _summary(data: CheckedMetrics) -> dict[str, Any]:
    return {
        "path": str(data.path),
        "contract_version": CONTRACT_VERSION,
        "rows": data.rows,
        "servers": len(data.servers),
        "first": iso_offset(pd.Timestamp(data.first, tz="UTC")),
        "last": iso_offset(pd.Timestamp(data.last, tz="UTC")),
        "metrics": list(data.metrics),
        "profiles": sorted(set(data.profiles)),
        "notices": list(data.notices),
        "violations": [],
    }


def _print_summary(summary: Mapping[str, Any]) -> None:
    print(f"{summary['path']} meets the data contract {CONTRACT_VERSION}")
    first, last = (iso_exact(datetime.fromisoformat(summary[name])) for name in ("first", "last"))
    print(f"  {counted(summary['rows'], 'row')} of {counted(summary['servers'], 'server')}, {first} to {last}")
    print(f"  metrics: {', '.join(summary['metrics'])}")
    print(f"  profiles: {', '.join(summary['profiles'])}")
    for notice in summary["notices"]:
        print(f"  notice: {notice}")


def build_parser() -> argparse.ArgumentParser:
    parser = FlagParser(
        prog="data_contract.py",
        description=f"Check server metrics against the data contract {CONTRACT_VERSION}.",
        epilog="example: python data_contract.py training/",
    )
    add_version(parser)
    parser.add_argument("path", nargs="?", type=path_or_address, help="parquet or CSV file, or a folder of them")
    add_fleet_flag(parser)
    add_flag(parser, "--check-fleet", type=Path, metavar="FILE", help="check this fleet file and exit")
    add_flag(parser, "--show-fleet", action="store_true", help="print the fleet as TOML, defaults included, and exit")
    add_flag(
        parser,
        "--recording-rules",
        action="store_true",
        help="print the rules that compute the fleet's metrics in a Prometheus for remote write, and exit",
    )
    add_moved_flags(parser, "profiles")
    add_timezone_flag(parser)
    add_engine_flags(parser)
    add_flag(parser, "--document", action="store_true", help="print the tables of DATA_CONTRACT.md and exit")
    return parser


def main(argv: Iterable[str] | None = None) -> int:
    """Check one path; returns 0 if it meets the contract, 1 if not, 2 for wrong usage."""
    parser = build_parser()
    try:
        arguments = parser.parse_args(None if argv is None else list(argv))
        command = only_one(chosen_flags(arguments, COMMANDS))
        refuse_unused_flags(parser, arguments, USES, [command, f"--engine {arguments.engine}"])
        if command == PLAIN and arguments.path is None:
            parser.error("give the path of a file or folder to check")
        if arguments.engine == "memory" and isinstance(arguments.path, str):
            raise UsageError(f"{arguments.path}: is an address; add --engine parts or --engine ray")
    except SystemExit as stop:
        return int(stop.code or 0)
    except UsageError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    try:
        with use_fleet(load_fleet(arguments.check_fleet or arguments.fleet)) as fleet:
            return _run(arguments, fleet)
    except (TomlFileError, UsageError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace, fleet: FleetDefinition) -> int:
    if arguments.document:
        print(document_tables())
        return 0
    if arguments.recording_rules:
        from fleet_forecast.sources.prometheus import query_set_of  # HTTP is slow to import
        from fleet_forecast.sources.recording_rules import recording_rules

        print(recording_rules(query_set_of(fleet)), end="")
        return 0
    if arguments.check_fleet or arguments.show_fleet:
        return _show_fleet(fleet, checked=arguments.check_fleet is not None)
    return _check_metrics(arguments) if arguments.engine == "memory" else _check_parts(arguments, fleet)


def _show_fleet(fleet: FleetDefinition, checked: bool) -> int:
    """Check what the daemon would check of the fleet; print it, or that it is usable."""
    from fleet_forecast.serving.alerting.rules import alert_rules_of  # imports the daemon's libraries
    from fleet_forecast.serving.monitoring.exposition import check_exposed_names
    from fleet_forecast.sources.prometheus import query_set_of
    from fleet_forecast.sources.promql import check_queries

    alert_rules_of(fleet)
    check_exposed_names(fleet.metrics)
    queries = query_set_of(fleet).queries
    if checked:
        check_queries(fleet)
        added = [
            len(names) - len(built_in)
            for names, built_in in ((METRICS, BUILT_IN_METRICS), (PROFILES, BUILT_IN_FLEET.profiles))
        ]
        print(f"{fleet.source} can be used; own metrics: {added[0]}, own profiles: {added[1]}")
    else:
        print(toml_text(fleet_document(fleet, queries)), end="")
    return 0


def _check_metrics(arguments: argparse.Namespace) -> int:
    try:
        summary = _summary(check_metrics(arguments.path, input_timezone=arguments.input_timezone))
    except ContractError as problem:
        print(f"error: {problem}", file=sys.stderr)
        violations = [dataclasses.asdict(violation) for violation in problem.violations]
        print(json.dumps({"path": str(arguments.path), "violations": violations}))
        return 1
    except MemoryError as problem:
        message = f"{arguments.path}: not enough memory to read it ({problem}); check parts of it"
        print(f"error: {message}", file=sys.stderr)
        print(json.dumps({"path": str(arguments.path), "error": message}))
        return 1
    except DataFileError as problem:
        print(f"error: {problem}", file=sys.stderr)
        print(json.dumps({"path": str(arguments.path), "error": str(problem)}))
        return 1
    _print_summary(summary)
    print(json.dumps(summary))
    return 0


def _check_parts(arguments: argparse.Namespace, fleet: FleetDefinition) -> int:
    """Check a fleet in parts, each file by itself."""
    from fleet_forecast.scale.check_parts import check_fleet  # imports the engine's libraries
    from fleet_forecast.scale.peers_of_parts import Reading
    from fleet_forecast.scale.run import pool_of

    try:
        with pool_of(arguments.engine, arguments.ray_address, arguments.workers, None) as pool:
            summary = check_fleet(pool, str(arguments.path), Reading(fleet.rules, arguments.input_timezone))
    except DataFileError as problem:
        print(f"error: {problem}", file=sys.stderr)
        print(json.dumps({"path": str(arguments.path), "error": str(problem)}))
        return 1
    if violations := summary["violations"]:
        listed = "\n".join(f"  - {each['part']}: {each['problem']}" for each in violations)
        print(f"error: {arguments.path} breaks the data contract {CONTRACT_VERSION}:\n{listed}", file=sys.stderr)
    else:
        _print_summary(summary)
    print(json.dumps(summary))
    return 1 if violations else 0


if __name__ == "__main__":
    run_script(main)
