"""Script 1: metrics of a fleet of servers, simulated, streamed live, or pulled from Prometheus.

    python metrics_generator.py                                     # 90 servers, 720 h at 5 min -> ./training/
    python metrics_generator.py --hours 72 --num_web_api 4 --num_database 2 --out_dir /tmp/small
    python metrics_generator.py --start now-72h --hours 72          # simulated history that ends now
    python metrics_generator.py --stream http://127.0.0.1:8000      # live, tick by tick, to a running daemon
    python metrics_generator.py --from_prometheus http://prometheus:9090 --hours 720
    python metrics_generator.py --plot fleet.png                    # one week of one server per profile

The same seed and start give the same files to the byte. Progress and a summary go to stderr, one JSON line is last on
stdout. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. The format of the data is in DATA_CONTRACT.md.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from tqdm import tqdm

from fleet_forecast.contract.calendar import business_time
from fleet_forecast.flags import add_flag, add_version
from fleet_forecast.iso_time import iso
from fleet_forecast.script import run_script
from fleet_forecast.simulation.fleet import PROFILE_ORDER, Fleet
from fleet_forecast.simulation.incidents import injected_event
from fleet_forecast.simulation.live.feed import Feed
from fleet_forecast.simulation.live.playback import StreamPlan
from fleet_forecast.simulation.live.playback import stream as play
from fleet_forecast.simulation.live.position import Position
from fleet_forecast.simulation.output.tally import metadata_of, summary
from fleet_forecast.simulation.output.writer import MOST_WORKERS, ROWS_PER_WORKER, WriteOptions, write_scenario
from fleet_forecast.simulation.scenario import Scenario
from server_profiles import BUILT_IN_RULES, PROFILES

if TYPE_CHECKING:
    from fleet_forecast.sources.measured import PullRequest

# --- settings: flag, default, unit and effect -----------------------------------------------------------------------

HOURS = 720.0
TICK_SECONDS = 300
START = "2026-09-14T00:00:00Z"  # a Monday, followed by ten weeks without a market holiday
SEED = 42
TIMEZONE = "America/New_York"
OUT_DIR = Path("training")
SERVERS = {profile: spec.default_servers for profile, spec in PROFILES.items()}
INCIDENT_RATE = 1.0  # per server and month
BACKFILL_HOURS = 25.0  # of a stream
LONGEST_STREAM_HOURS = 366 * 24.0
LONGEST_HOURS = 87_660.0
PLOT_HOURS = 168.0


class UsageError(ValueError):
    """A flag's value cannot be used; the message names flag, value and remedy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    arguments = parser().parse_args(argv)
    asked_to_stop = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        _refuse_contradictions(arguments)
        if arguments.from_prometheus is not None:
            result = pull(arguments)
        elif arguments.stream is not None:
            result = stream(arguments)
        elif arguments.plot is not None:
            result = plot(arguments)
        else:
            result = generate(arguments)
    except UsageError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, ValueError) as problem:
        print(f"error: {_in_words(problem, arguments.out_dir)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, asked_to_stop)
    print(json.dumps(result))
    return 0


def _raise_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def generate(arguments: argparse.Namespace) -> dict[str, object]:
    """Simulate a fleet and write its files."""
    began = time.perf_counter()
    hours = HOURS if arguments.hours is None else arguments.hours
    scenario = scenario_of(arguments, hours, arguments.start or START)
    rows = scenario.steps * len(scenario.fleet)
    if arguments.workers is not None and arguments.workers < 1:
        raise _usage("--workers", arguments.workers, "give 1 or more")
    cores = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    workers = min(arguments.workers or cores, 1 + rows // ROWS_PER_WORKER)
    _refuse_unwritable(arguments.out_dir)
    with tqdm(total=rows, unit="row", unit_scale=True, desc="simulating", disable=None, leave=False) as bar:
        path, tally = write_scenario(
            scenario,
            arguments.out_dir,
            lambda world, tally: metadata_of(world, tally, hours),
            WriteOptions(sparse=arguments.offline_mode == "sparse", workers=workers),
            bar.update,
        )
    seconds = time.perf_counter() - began
    print(summary(scenario, tally), file=sys.stderr)
    return _result(int(tally.rows.sum()), len(scenario.fleet), seconds, path)


def _result(rows: int, servers: int, seconds: float, path: Path) -> dict[str, object]:
    return {
        "rows": rows,
        "servers": servers,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds),
        "path": str(path),
    }


def scenario_of(arguments: argparse.Namespace, hours: float, start_text: str) -> Scenario:
    """The scenario of the flags, with this length and start. Raises UsageError."""
    tick = arguments.tick_seconds
    _check_length(hours, tick)
    if not 0 <= arguments.incident_rate <= 100:
        raise _usage("--incident_rate", arguments.incident_rate, "give incidents per server and month, 0 to 100")
    for flag in ("seed", "fork_seed"):
        if getattr(arguments, flag) < 0:
            raise _usage(f"--{flag}", getattr(arguments, flag), "give 0 or more")
    try:
        fleet = Fleet.of({profile: getattr(arguments, f"num_{profile}") for profile in PROFILE_ORDER}, arguments.seed)
        start = instant("--start", start_text, tick)
        business_time(np.array([start]), arguments.timezone)
    except UsageError:
        raise
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    steps = int(hours * 3600 / tick + 1e-6)  # whole steps, in spite of the rounding of hours
    return Scenario(
        fleet,
        start,
        steps,
        tick,
        arguments.timezone,
        incident_rate=arguments.incident_rate,
        fork_step=_fork_step(arguments, start, steps),
        fork_seed=arguments.fork_seed,
    )


def _check_length(hours: float, tick_seconds: int) -> None:
    if tick_seconds <= 0:
        raise _usage("--tick_seconds", tick_seconds, "give a whole number of seconds above 0")
    if not 0 < hours <= LONGEST_HOURS:
        raise _usage("--hours", hours, f"give a number above 0, at most {LONGEST_HOURS:g} (ten years)")
    if tick_seconds > hours * 3600:
        longest = f"{hours:g} h = {hours * 3600:g} s"
        raise _usage("--tick_seconds", tick_seconds, f"give at most the length of the data, {longest}")


def _fork_step(arguments: argparse.Namespace, start: np.datetime64, steps: int) -> int | None:
    """The first step at or after --fork_at."""
    if arguments.fork_at is None:
        return None
    fork = instant("--fork_at", arguments.fork_at, 1)
    tick = arguments.tick_seconds
    step = -int((start - fork).astype("timedelta64[s]").astype(np.int64) // tick)
    if not 0 <= step < steps:
        last = start + np.timedelta64((steps - 1) * tick, "s")
        raise _usage("--fork_at", arguments.fork_at, f"give a time from {iso(start)} to {iso(last)}")
    if arguments.fork_seed == arguments.seed:
        raise _usage(
            "--fork_seed",
            arguments.fork_seed,
            "give another number than --seed",
        )
    return step


_RELATIVE = re.compile(r"now(?:-(\d+(?:\.\d+)?)h)?")


def instant(flag: str, text: str, tick_seconds: int) -> np.datetime64:
    """UTC seconds of "2026-09-14T00:00:00Z", of a date, or of "now-72h" on a whole tick. Raises UsageError."""
    relative = _RELATIVE.fullmatch(text)
    if relative:
        moment = datetime.now(UTC).timestamp() - 3600 * float(relative[1] or 0)
        return np.datetime64(int(moment // tick_seconds * tick_seconds), "s")
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise _usage(flag, text, "give a UTC time such as 2026-09-14T00:00:00Z, a date, or now-72h") from None
    utc = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    if not 1971 <= utc.year < 2199:
        raise _usage(flag, text, "give a time from 1971 to 2198")
    return np.datetime64(int(utc.timestamp()), "s")


def _refuse_unwritable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"folder {folder} cannot be written; choose another with --out_dir, or change its permissions")


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Refuse flags that would be ignored."""
    chosen = [f"--{flag}" for flag in ("stream", "from_prometheus", "plot") if getattr(arguments, flag) is not None]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} are given; choose one of them")
    for mode, flags in (
        ("stream", ("speed", "new_server_every", "inject", "position_file")),
        ("from_prometheus", ("queries", "profiles", "prometheus_header")),
    ):
        for flag in flags:
            value = getattr(arguments, flag)
            if value is not None and value != [] and getattr(arguments, mode) is None:
                raise _usage(f"--{flag}", value, f"it goes with --{mode} URL; add that, or leave it out")


def _usage(flag: str, value: object, remedy: str) -> UsageError:
    return UsageError(f"{flag} is {value}; {remedy}")


def _in_words(problem: Exception, out_dir: Path) -> str:
    if not isinstance(problem, OSError) or not problem.strerror:
        return str(problem)
    if problem.errno == errno.ENOSPC:
        return f"{problem.strerror} in {out_dir}; make room, or choose another folder with --out_dir"
    remedy = "check the path and its permissions"
    if str(problem.filename).startswith(str(out_dir)):
        remedy = "choose another folder with --out_dir, or change its permissions"
    return f"{problem.filename}: {problem.strerror}; {remedy}"


def stream(arguments: argparse.Namespace) -> dict[str, object]:
    """Send a simulated fleet live to a daemon until Ctrl-C, SIGTERM or the end of --hours."""
    plan = stream_plan(arguments)
    token, stopped = _token(arguments.token_file), threading.Event()
    with _until_asked_to_stop(stopped), tqdm(unit="tick", desc="streaming", disable=None, leave=False) as bar:
        feed = Feed(arguments.stream, lambda text: tqdm.write(text, file=sys.stderr), stopped, token)
        try:
            counts = play(plan, feed, lambda timestamp, ticks: _show_ticks(bar, timestamp, ticks))
        finally:
            feed.close()
    return {**counts, "url": arguments.stream}


def stream_plan(arguments: argparse.Namespace) -> StreamPlan:
    """The plan of the flags. Raises UsageError, and ValueError for a damaged position file."""
    tick, position_file = arguments.tick_seconds, arguments.position_file
    hours = LONGEST_STREAM_HOURS if arguments.hours is None else arguments.hours
    _check_length(hours, tick)
    if arguments.speed is not None and not 0 < arguments.speed < float("inf"):
        raise _usage("--speed", arguments.speed, "give how many times faster than real, above 0")
    if not 0 <= arguments.backfill_hours < float("inf"):
        raise _usage("--backfill_hours", arguments.backfill_hours, "give 0 or more")
    start = arguments.start
    if start is None and position_file:
        start = Position.start_of(position_file)
    if start is None:
        start = f"now-{arguments.backfill_hours:f}h"
    elapsed = time.time() - float(instant("--start", start, tick).astype(np.int64))
    if elapsed < 0:
        raise _usage("--start", start, "a stream cannot begin in the future; give an earlier time, or now")
    first = max(0, math.ceil((elapsed - arguments.backfill_hours * 3600) / tick))
    scenario = scenario_of(arguments, first * tick / 3600 + hours, start)
    every = _seconds("--new_server_every", arguments.new_server_every) if arguments.new_server_every else None
    return StreamPlan(
        scenario,
        first,
        scenario.steps,
        arguments.speed,
        new_server_every_steps=max(1, round(every / tick)) if every else None,
        inject=tuple(_injections(scenario, arguments.inject)),
        sparse=arguments.offline_mode == "sparse",
        position_file=position_file,
    )


def _show_ticks(bar: tqdm[NoReturn], timestamp: str, ticks: int) -> None:
    bar.set_postfix_str(timestamp, refresh=False)
    bar.update(ticks)


@contextmanager
def _until_asked_to_stop(stopped: threading.Event) -> Iterator[None]:
    """On Ctrl-C and SIGTERM the current tick is still acknowledged; the earlier handlers are restored afterwards."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _injections(scenario: Scenario, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        server_name, colon, label = text.partition(":")
        if not colon:
            raise _usage("--inject", text, "write SERVER:INCIDENT, such as ppdb003:lock_contention")
        try:
            injected_event(scenario.fleet, server_name, label, 0.0)
        except ValueError as problem:
            raise UsageError(f"--inject {text}: {problem}") from None
        yield server_name, label


_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def _seconds(flag: str, text: str) -> float:
    """Seconds of "90s", "10m" or "1h"."""
    parts = _DURATION.fullmatch(text)
    if not parts or not float(parts[1]):
        raise _usage(flag, text, "write a number above 0 with its unit, such as 90s, 10m or 1h")
    return float(parts[1]) * {"s": 1, "m": 60, "h": 3600}[parts[2]]


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise _usage("--token_file", path, f"it cannot be read ({problem}); give a file with the token") from None


def pull(arguments: argparse.Namespace) -> dict[str, object]:
    """Write metrics of a real fleet from Prometheus."""
    from fleet_forecast.sources.measured import pull_to_folder  # Arrow and HTTP are slow to import
    from fleet_forecast.sources.prometheus import PrometheusClient

    began, request = time.perf_counter(), _pull_request(arguments)
    _refuse_unwritable(arguments.out_dir)
    headers = _headers(arguments.prometheus_header)
    client = PrometheusClient(arguments.from_prometheus, token=_token(arguments.token_file), headers=headers)
    with tqdm(unit="query", desc="pulling", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        written = pull_to_folder(client, request, arguments.out_dir, progress)
    for name, reason in written.left_out.items():
        print(f"note: {name} is left out: {reason}", file=sys.stderr)
    return _result(written.rows, written.servers, time.perf_counter() - began, written.path)


def _headers(texts: Sequence[str]) -> dict[str, str]:
    from fleet_forecast.sources.address import parse_header

    try:
        return dict(map(parse_header, texts))
    except ValueError as problem:
        raise UsageError(f"--prometheus_header: {problem}") from None


def _pull_request(arguments: argparse.Namespace) -> PullRequest:
    from fleet_forecast.sources.measured import PullRequest
    from fleet_forecast.sources.prometheus import NODE_EXPORTER, load_query_set

    tick = arguments.tick_seconds
    hours = HOURS if arguments.hours is None else arguments.hours
    _check_length(hours, tick)
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


def plot(arguments: argparse.Namespace) -> dict[str, object]:
    """Draw a week of the fleet the flags describe."""
    from fleet_forecast.simulation.output.plot import plot_week  # matplotlib is slow to import

    hours = PLOT_HOURS if arguments.hours is None else arguments.hours
    scenario = scenario_of(arguments, hours, arguments.start or START)
    try:
        servers = plot_week(scenario, arguments.plot)
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    return {"path": str(arguments.plot), "servers": servers}


# --- flags ----------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line; every flag may be written with underscores or with hyphens."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_version(result)
    _add_length_and_place(result.add_argument_group("length and place"))
    fleet = result.add_argument_group("fleet")
    for profile, count in SERVERS.items():
        add_flag(fleet, f"--num_{profile}", type=int, default=count, metavar="N", help="servers (%(default)s)")
    _add_incidents(result.add_argument_group("incidents"))
    _add_live(result.add_argument_group("live"))
    _add_real_fleet(result.add_argument_group("a real fleet"))
    picture = result.add_argument_group("a picture")
    add_flag(
        picture, "--plot", type=Path, metavar="FILE", help="draw one week of one server per profile, as .png or .svg"
    )
    return result


def _add_length_and_place(group: argparse._ArgumentGroup) -> None:
    add_flag(group, "--hours", type=float, help=f"length of the data ({HOURS:g}); a stream runs until it is stopped")
    add_flag(
        group, "--tick_seconds", type=int, default=TICK_SECONDS, help="time between two rows of a server (%(default)s)"
    )
    add_flag(
        group,
        "--start",
        metavar="TIME",
        help=f"first time, UTC ({START}), or now-72h; a stream continues the fleet that started then",
    )
    add_flag(group, "--seed", type=int, default=SEED, help="another seed is another fleet (%(default)s)")
    add_flag(group, "--timezone", default=TIMEZONE, help="business time zone of the rhythms (%(default)s)")
    add_flag(group, "--out_dir", type=Path, default=OUT_DIR, help="folder for metrics and metadata (%(default)s)")
    add_flag(
        group,
        "--offline_mode",
        choices=("dense", "sparse"),
        default="dense",
        help="dense: rows of an offline server have state offline and null metrics; sparse: no rows (%(default)s)",
    )
    add_flag(
        group,
        "--workers",
        type=int,
        help="processes (one per core, at most 4, fewer for few rows); the files do not depend on it",
    )


def _add_incidents(group: argparse._ArgumentGroup) -> None:
    add_flag(
        group,
        "--incident_rate",
        type=float,
        default=INCIDENT_RATE,
        metavar="RATE",
        help="incidents per server and month, more on the incident-prone tenth (%(default)s)",
    )
    add_flag(
        group,
        "--fork_at",
        metavar="TIME",
        help="keep every value before this time, draw all random numbers after it anew",
    )
    add_flag(group, "--fork_seed", type=int, default=1, help="seed of the values after --fork_at (%(default)s)")


def _add_live(group: argparse._ArgumentGroup) -> None:
    add_flag(group, "--stream", metavar="URL", help="send the fleet tick by tick to a running daemon")
    add_flag(
        group,
        "--backfill_hours",
        type=float,
        default=BACKFILL_HOURS,
        metavar="H",
        help="first send this much history; the model needs 24 h (%(default)s)",
    )
    add_flag(
        group,
        "--speed",
        type=float,
        help="send the backfill at this multiple of real time, such as 60 (at once); then in real time",
    )
    add_flag(group, "--new_server_every", metavar="10m", help="add a server of a random profile at this interval")
    add_flag(
        group,
        "--inject",
        action="append",
        default=[],
        metavar="SERVER:INCIDENT",
        help="start an incident after the backfill, such as ppdb003:lock_contention; may be repeated",
    )
    add_flag(
        group,
        "--position_file",
        type=Path,
        metavar="FILE",
        help="store the last acknowledged tick; a stream with the same file continues after it",
    )
    add_flag(group, "--token_file", type=Path, metavar="FILE", help="bearer token of the daemon or of Prometheus")


def _add_real_fleet(group: argparse._ArgumentGroup) -> None:
    add_flag(group, "--from_prometheus", metavar="URL", help="write metrics of real servers instead of simulated ones")
    add_flag(
        group,
        "--prometheus_header",
        action="append",
        default=[],
        metavar="HEADER",
        help="sent with each query, such as 'X-Scope-OrgID: tenant'; may be repeated",
    )
    add_flag(
        group,
        "--queries",
        type=Path,
        metavar="FILE",
        help="TOML: [queries] metric = 'PromQL' replaces the default query of a metric; server_label, strip_port",
    )
    add_flag(
        group, "--profiles", type=Path, metavar="FILE", help="TOML file of further name patterns and pinned servers"
    )


if __name__ == "__main__":
    run_script(main)
