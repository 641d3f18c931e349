"""Metrics of a real fleet from Prometheus: metrics_generator.py --from_prometheus URL."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from tqdm import tqdm

from fleet_forecast.commands.generate_fleet import result_line
from fleet_forecast.commands.scenario_of_flags import HOURS, check_length, instant, read_token, refuse_unwritable
from fleet_forecast.commands.usage import UsageError, note
from fleet_forecast.contract.calendar import business_time
from fleet_forecast.contract.profile_rules import load_profile_rules
from fleet_forecast.sources.address import parse_header
from fleet_forecast.sources.measured import PullRequest, pull_to_folder
from fleet_forecast.sources.prometheus import NODE_EXPORTER, PrometheusClient, load_query_set
from server_profiles import BUILT_IN_RULES


def pull(arguments: argparse.Namespace) -> dict[str, object]:
    """Write metrics of a real fleet from Prometheus."""
    began, request = time.perf_counter(), _pull_request(arguments)
    refuse_unwritable(arguments.out_dir)
    headers = _headers(arguments.prometheus_header)
    client = PrometheusClient(arguments.from_prometheus, token=read_token(arguments.token_file), headers=headers)
    with tqdm(unit="query", desc="pulling", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        written = pull_to_folder(client, request, arguments.out_dir, progress)
    for name, reason in written.left_out.items():
        note(f"{name} is left out: {reason}")
    return result_line(written.rows, written.servers, time.perf_counter() - began, written.path)


def _headers(texts: Sequence[str]) -> dict[str, str]:
    try:
        return dict(map(parse_header, texts))
    except ValueError as problem:
        raise UsageError(f"--prometheus_header: {problem}") from None


def _pull_request(arguments: argparse.Namespace) -> PullRequest:
    tick = arguments.tick_seconds
    hours = HOURS if arguments.hours is None else arguments.hours
    check_length(hours, tick)
    start = instant("--start", arguments.start or f"now-{hours}h", tick)
    try:
        business_time(np.array([start]), arguments.timezone)
        return PullRequest(
            _utc(start),
            _utc(start + np.timedelta64(round(hours * 3600), "s")),
            tick,
            arguments.timezone,
            load_query_set(arguments.queries).with_defaults(NODE_EXPORTER) if arguments.queries else NODE_EXPORTER,
            load_profile_rules(arguments.profiles) if arguments.profiles else BUILT_IN_RULES,
        )
    except ValueError as problem:
        raise UsageError(str(problem)) from None


def _utc(moment: np.datetime64) -> datetime:
    return datetime.fromtimestamp(int(moment.astype("datetime64[s]").astype(np.int64)), UTC)
