"""Script 1: metrics of a fleet of servers, simulated, streamed live, or pulled from Prometheus.

    python metrics_generator.py                                     # 90 servers, 720 h at 5 min -> ./training/
    python metrics_generator.py --hours 72 --num_web_api 4 --num_database 2 --out_dir /tmp/small
    python metrics_generator.py --start now-72h --hours 72          # simulated history that ends now
    python metrics_generator.py --stream http://127.0.0.1:8000      # live, tick by tick, to a running daemon
    python metrics_generator.py --from_prometheus http://prometheus:9090 --hours 720
    python metrics_generator.py --engine ray --parts 2000 --out_dir s3://fleet/simulated   # on a Ray cluster
    python metrics_generator.py --plot fleet.png                    # one week of one server per profile
    python metrics_generator.py --fleet fleet.toml                  # own profiles and metrics, by their baselines

The same seed and start give the same files, byte for byte. Progress and a summary go to stderr; the last line on stdout
is JSON. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. The format of the data is in DATA_CONTRACT.md.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fleet_forecast.commands.generator.scenario_of_flags import HOURS, START
from fleet_forecast.contract.calendar import DEFAULT_CALENDAR
from fleet_forecast.contract.definitions import PROFILES, use_fleet
from fleet_forecast.contract.fleet.flag import add_fleet_flag, add_moved_flags, fleet_path, load_fleet
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.flag_uses import PLAIN, FlagUses, chosen_flags, only_one, refuse_unused_flags
from fleet_forecast.flags import FlagParser, add_flag, add_version, target_or_address
from fleet_forecast.script import run_script
from fleet_forecast.usage import UsageError

# --- settings: flag, default, unit and effect -----------------------------------------------------------------------

TICK_SECONDS = 300
SEED = 42
OUT_DIR = Path("training")
INCIDENT_RATE = 1.0  # per server and month
BACKFILL_HOURS = 25.0  # of a stream

# Flags that select a command, and flags that others need (fleet_forecast/flag_uses.py).
COMMANDS = {
    "stream": "--stream URL",
    "from_prometheus": "--from_prometheus URL",
    "connections": "--connections FILE",
    "plot": "--plot FILE",
}
STREAM_FLAGS = ("backfill_hours", "speed", "new_server_every", "inject", "position_file")
FORK, RAY = "--fork_at TIME", "--engine ray"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    try:
        with use_fleet(load_fleet(fleet_path(given))):  # before the flags, some of which are of its profiles
            flags = parser()
            return _run(flags, flags.parse_args(given))
    except TomlFileError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


def _run(flags: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    asked_to_stop = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        _refuse_contradictions(flags, arguments)
        result = _command(arguments)(arguments)
    except UsageError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, ValueError) as problem:
        print(f"error: {_in_words(problem, arguments.out_dir)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {_state_of(arguments)}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, asked_to_stop)
    print(json.dumps(result))
    return 0


def _command(arguments: argparse.Namespace) -> Callable[[argparse.Namespace], dict[str, object]]:
    """The command that the flags select. Imported here, so that each command starts without the others' packages."""
    if arguments.from_prometheus is not None or arguments.connections is not None:
        from fleet_forecast.commands.generator.pull_fleet import pull

        return pull
    if arguments.stream is not None:
        from fleet_forecast.commands.generator.stream_fleet import stream

        return stream
    if _writes_parts(arguments):
        from fleet_forecast.commands.generator.generate_parts import generate_parts

        return generate_parts
    from fleet_forecast.commands.generator import generate_fleet

    return generate_fleet.generate if arguments.plot is None else generate_fleet.plot


def _writes_parts(arguments: argparse.Namespace) -> bool:
    """Whether files are written one by one, which needs no folder of this machine."""
    return arguments.engine == "ray" or isinstance(arguments.out_dir, str)


def _state_of(arguments: argparse.Namespace) -> str:
    """What an interrupted run leaves."""
    if _writes_parts(arguments):
        return f"{arguments.out_dir} is not whole, and has no metrics_metadata.json; run the command again"
    return "nothing was changed"


def _raise_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _refuse_contradictions(flags: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse flags that would be ignored."""
    command = only_one(chosen_flags(arguments, COMMANDS))
    more = chosen_flags(arguments, {"fork_at": FORK}) + [RAY] * (arguments.engine == "ray")
    refuse_unused_flags(flags, arguments, flag_uses(), [command, *more])
    if command and isinstance(arguments.out_dir, str):
        raise UsageError(f"--out_dir {arguments.out_dir}: {command} cannot write to an address; give a folder")


def flag_uses() -> FlagUses:
    """Which command uses which flags; the profiles' flags are those of the fleet file."""
    general = ("fleet", "hours", "tick_seconds", "start", "timezone")
    simulation = (*general, "seed", "incident_rate", "fork_at", *(f"num_{profile}" for profile in PROFILES))
    pull = (*general, "out_dir", "probe")
    return {
        PLAIN: (*simulation, "out_dir", "offline_mode", "parts", "engine", "workers"),
        COMMANDS["stream"]: (*simulation, "stream", "offline_mode", "token_file", *STREAM_FLAGS),
        COMMANDS["from_prometheus"]: (*pull, "from_prometheus", "token_file", "prometheus_header"),
        COMMANDS["connections"]: (*pull, "connections"),
        COMMANDS["plot"]: (*simulation, "plot"),
        FORK: ("fork_seed",),
        RAY: ("ray_address",),
    }


def _in_words(problem: Exception, out_dir: Path | str) -> str:
    if not isinstance(problem, OSError) or not problem.strerror:
        return str(problem)
    if problem.errno == errno.ENOSPC:
        return f"{problem.strerror} in {out_dir}; make room, or choose another folder with --out_dir"
    remedy = "check the path and its permissions"
    if str(problem.filename).startswith(str(out_dir)):
        remedy = "choose another folder with --out_dir, or change its permissions"
    return f"{problem.filename}: {problem.strerror}; {remedy}"


# --- flags ----------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line; every flag may be written with underscores or with hyphens."""
    result = FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add_version(result)
    _add_length(result.add_argument_group("length"))
    _add_files(result.add_argument_group("files"))
    _add_fleet(result.add_argument_group("fleet"))
    _add_incidents(result.add_argument_group("incidents"))
    _add_live(result.add_argument_group("live"))
    _add_real_fleet(result.add_argument_group("a real fleet"))
    picture = result.add_argument_group("a picture")
    add_flag(
        picture, "--plot", type=Path, metavar="FILE", help="draw one week of one server per profile, as .png or .svg"
    )
    return result


def _add_fleet(group: argparse._ArgumentGroup) -> None:
    add_fleet_flag(group)
    for profile, spec in PROFILES.items():
        count = spec.default_servers
        add_flag(group, f"--num_{profile}", type=int, default=count, metavar="N", help="servers (%(default)s)")


def _add_length(group: argparse._ArgumentGroup) -> None:
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
    add_flag(group, "--timezone", help=f"business time zone (that of the fleet file, or {DEFAULT_CALENDAR.timezone})")


def _add_files(group: argparse._ArgumentGroup) -> None:
    add_flag(
        group,
        "--out_dir",
        type=target_or_address,
        default=OUT_DIR,
        metavar="DIR",
        help="folder, or an address such as s3://bucket/folder, for metrics and metadata (%(default)s)",
    )
    add_flag(
        group,
        "--offline_mode",
        choices=("dense", "sparse"),
        default="dense",
        help="dense: rows of an offline server have state offline and null metrics; sparse: no rows (%(default)s)",
    )
    add_flag(
        group,
        "--parts",
        type=int,
        metavar="N",
        help="write N files, each with all rows of its servers, for forecasts of fleets in parts; the rows do not "
        "depend on N (one file, or files of some days; at an address or with Ray: one for 500 servers)",
    )
    add_flag(
        group,
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: processes of this machine; ray: workers of a Ray cluster (%(default)s)",
    )
    add_flag(group, "--ray_address", metavar="ADDRESS", help="address of a cluster (this machine's cores)")
    add_flag(
        group,
        "--workers",
        type=int,
        help="processes (one per core, without Ray at most 4 and fewer for few rows, at an address one); the files do "
        "not depend on their number",
    )


def _add_incidents(group: argparse._ArgumentGroup) -> None:
    add_flag(
        group,
        "--incident_rate",
        type=float,
        default=INCIDENT_RATE,
        metavar="RATE",
        help="incidents per server and month, more on a tenth of the servers (%(default)s)",
    )
    add_flag(
        group,
        "--fork_at",
        metavar="TIME",
        help="keep every value before this time, draw new random numbers after it",
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
        "--connections",
        type=Path,
        metavar="FILE",
        help="the same from the Prometheus servers of this TOML file, with their credentials, certificates and queries",
    )
    add_flag(group, "--probe", action="store_true", help="run each query once, print the results, write nothing")
    add_flag(
        group,
        "--prometheus_header",
        action="append",
        default=[],
        metavar="HEADER",
        help="sent with each query, such as 'X-Scope-OrgID: tenant'; may be repeated",
    )
    add_moved_flags(group, "queries", "profiles")


if __name__ == "__main__":
    run_script(main)
