"""Metrics of a real fleet: metrics_generator.py --from_prometheus URL, or --connections FILE."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime

import numpy as np
from tqdm import tqdm

from fleet_forecast.commands.generator.generate_fleet import result_line
from fleet_forecast.commands.generator.scenario_of_flags import HOURS, check_length, instant, refuse_unwritable
from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.contract.fleet.business_calendar import business_calendar
from fleet_forecast.sources.connections_file import load_connections, only_server, prometheus_servers
from fleet_forecast.sources.measured import PullRequest, pull_to_folder
from fleet_forecast.sources.probe import probe, probe_document, probe_text
from fleet_forecast.sources.prometheus import PrometheusError, PrometheusServer, query_set_of
from fleet_forecast.usage import UsageError, note


def pull(arguments: argparse.Namespace) -> dict[str, object]:
    """Write metrics of a real fleet from Prometheus; with --probe only print what its queries give."""
    began, request = time.perf_counter(), _pull_request(arguments)
    servers = _servers(arguments)
    if arguments.probe:
        found = probe(servers, request.rules, time.time(), request.step_seconds)
        print(probe_text(found), file=sys.stderr)
        if found.failed:
            raise PrometheusError("a query failed or gave nothing; the lines above have the reason")
        return probe_document(found)
    refuse_unwritable(arguments.out_dir)
    with tqdm(unit="query", desc="pulling", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        written = pull_to_folder(servers, request, arguments.out_dir, progress)
    for left_out in written.left_out:
        note(left_out.sentence)
    return result_line(written.rows, written.servers, time.perf_counter() - began, written.path)


def _servers(arguments: argparse.Namespace) -> tuple[PrometheusServer, ...]:
    """Where the flags say to pull from. Raises UsageError."""
    try:
        if arguments.connections is not None:
            tables = load_connections(arguments.connections).prometheus
        else:
            tables = only_server(arguments.from_prometheus, arguments.token_file, arguments.prometheus_header)
        servers = prometheus_servers(tables, query_set_of(fleet_in_use()), os.environ)
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    if not servers:
        raise UsageError(f"--connections {arguments.connections}: has no [prometheus.NAME] to pull from; add one")
    return servers


def _pull_request(arguments: argparse.Namespace) -> PullRequest:
    tick = arguments.tick_seconds
    hours = HOURS if arguments.hours is None else arguments.hours
    check_length(hours, tick)
    start = instant("--start", arguments.start or f"now-{hours}h", tick)
    try:
        fleet = fleet_in_use()
        return PullRequest(
            _utc(start),
            _utc(start + np.timedelta64(round(hours * 3600), "s")),
            tick,
            business_calendar(arguments.timezone),
            fleet.rules,
        )
    except ValueError as problem:
        raise UsageError(str(problem)) from None


def _utc(moment: np.datetime64) -> datetime:
    return datetime.fromtimestamp(int(moment.astype("datetime64[s]").astype(np.int64)), UTC)
