"""Precision and recall of the profile audit: fleets whose names are wrong for 5 % of the servers and unknown for 10 %.

    python benchmarks/profile_audit.py                                  # simulated and real fleets, 20 draws each
    python benchmarks/profile_audit.py --model models/current           # and the benefit of accepting: needs a model
    python benchmarks/profile_audit.py --data ../shared/data/fleets_public.parquet --draws 5

In each draw other servers get a wrong profile, or none, and another day is audited. A suggestion is right if it is the
true profile. The simulated fleets are the generator's default ones of other seeds. Then the servers of two profiles get
one name, for every pair, and the audit has to find two groups. With a model, the affected servers of the simulated
fleets are forecast for the 8 hours after the day with the wrong, the suggested and the true profile. Tables go to
stdout; the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_contract import ContractError, DataFileError, read_metrics  # noqa: E402
from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import ModelError  # noqa: E402
from fleet_forecast.profile_audit.audit import AuditedFleet, ProfileAudit, audit_profiles, steps_of_day  # noqa: E402
from fleet_forecast.simulation.fleet import Fleet  # noqa: E402
from fleet_forecast.simulation.metric_model import simulated  # noqa: E402
from fleet_forecast.simulation.scenario import Scenario  # noqa: E402
from fleet_forecast.simulation.simulator import simulate  # noqa: E402
from server_profiles import PROFILES  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

WRONG_SHARE, UNKNOWN_SHARE = 0.05, 0.10
UNKNOWN = "generic"  # profile of a name that no rule matches
NO_ROLE = ("generic", "single")  # profiles of servers that have nothing in common: they keep their names
STEP_SECONDS = 300
SIMULATED_SEEDS = tuple(range(501, 506))
SIMULATED_HOURS, START = 120, np.datetime64("2026-09-14T00:00:00", "s")
HISTORY_STEPS = 288
PAIR_DAYS = 4


class Draw(NamedTuple):
    """A fleet with wrong names. profiles, matched: by server; changed: rows of the servers with a wrong or no name."""

    profiles: list[str]
    matched: list[bool]
    changed: list[int]


# --- fleets ---------------------------------------------------------------------------------------------------------


def simulated_fleet(seed: int) -> FleetGrid:
    """A default fleet."""
    fleet = Fleet.of({str(name): spec.default_servers for name, spec in PROFILES.items()}, seed)
    trace = simulate(Scenario(fleet, START, SIMULATED_HOURS * 3600 // STEP_SECONDS, STEP_SECONDS))
    profiles = tuple(str(fleet.profile(server)) for server in range(len(fleet)))
    return FleetGrid(fleet.names, profiles, simulated().names, START, STEP_SECONDS, trace.metrics)


def real_fleet(path: Path) -> FleetGrid:
    """The servers of a file; raises ContractError or DataFileError."""
    data = read_metrics(path)
    return FleetGrid.from_frame(data.frame, data.metrics, STEP_SECONDS)


def wrong_names(grid: FleetGrid, random: np.random.Generator) -> Draw:
    """Give some servers another profile, and some no name that a rule matches."""
    profiles = [profile or UNKNOWN for profile in grid.profiles]
    roles = sorted(set(profiles).difference(NO_ROLE))
    servers = [int(row) for row in random.permutation(len(profiles)) if profiles[row] in roles]
    wrong = servers[: max(1, round(WRONG_SHARE * len(profiles)))]
    unknown = servers[len(wrong) :][: max(1, round(UNKNOWN_SHARE * len(profiles)))]
    matched = [row not in unknown for row in range(len(profiles))]
    for row in wrong:
        profiles[row] = str(random.choice([role for role in roles if role != profiles[row]]))
    for row in unknown:
        profiles[row] = UNKNOWN
    return Draw(profiles, matched, wrong + unknown)


def audit_at(grid: FleetGrid, profiles: Sequence[str], matched: Sequence[bool], end: int) -> ProfileAudit:
    """Audit the day before step `end`."""
    day = grid.values[:, end - steps_of_day(STEP_SECONDS) : end]
    return audit_profiles(AuditedFleet(grid.servers, profiles, matched, grid.metrics, day))


# --- measurements ---------------------------------------------------------------------------------------------------


def count_suggestions(grid: FleetGrid, draw: Draw, audit: ProfileAudit) -> Counter[str]:
    """Suggestions and changed servers, by whether a rule matched."""
    found: Counter[str] = Counter()
    for row, server in enumerate(audit.servers):
        kind = "wrong" if draw.matched[row] else "unknown"
        found[f"{kind} changed"] += row in draw.changed
        found[f"{kind} suggested"] += server.suggested is not None
        found[f"{kind} right"] += row in draw.changed and server.suggested == grid.profiles[row]
    return found


def ratios(counts: Counter[str]) -> dict[str, Any]:
    """Precision and recall, in total and for wrong and unknown names."""
    results: dict[str, Any] = {}
    for kind in ("wrong", "unknown"):
        results[f"precision_{kind}"] = _ratio(counts[f"{kind} right"], counts[f"{kind} suggested"])
        results[f"recall_{kind}"] = _ratio(counts[f"{kind} right"], counts[f"{kind} changed"])
    right, suggested, changed = (
        counts[f"wrong {what}"] + counts[f"unknown {what}"] for what in ("right", "suggested", "changed")
    )
    return {"precision": _ratio(right, suggested), "recall": _ratio(right, changed), **results, "servers": changed}


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 3) if whole else None


def joined_profiles(grid: FleetGrid) -> dict[str, int]:
    """Pairs of profiles under one name: how often two groups are found, and how often in a profile that is one."""
    profiles = [profile or UNKNOWN for profile in grid.profiles]
    sizes = Counter(profiles)
    roles = sorted(name for name, size in sizes.items() if name not in NO_ROLE and size >= 3)
    ends = np.linspace(steps_of_day(STEP_SECONDS), grid.steps, PAIR_DAYS, dtype=int)
    found: Counter[str] = Counter()
    for (one, other), end in itertools.product(itertools.combinations(roles, 2), ends):
        joined = [one if profile == other else profile for profile in profiles]
        named = {each.profile for each in audit_at(grid, joined, [True] * len(joined), int(end)).two_in_one}
        found["pairs"] += 1
        found["found"] += one in named
        found["profiles that are one"] += len(set(joined) - {one, *NO_ROLE})
        found["found in them"] += len(named - {one, *NO_ROLE})
    return dict(found)


def accepted_gain(engine: Engine, grid: FleetGrid, draw: Draw, audit: ProfileAudit, end: int) -> np.ndarray:
    """Pinball loss of the changed servers with the wrong, the suggested and the true profile: float64 [3]."""
    rows = np.array(draw.changed)
    columns = [grid.metrics.index(metric) for metric in engine.config.targets]
    horizon = engine.config.horizon_steps
    truth = grid.values[rows, end : end + horizon][:, :, columns]
    scale = np.nanmean(np.abs(grid.values[:, :, columns]), axis=(0, 1))
    suggested = [server.suggested or server.profile for server in audit.servers]
    losses = []
    for profiles in (draw.profiles, suggested, [str(profile) for profile in grid.profiles]):
        named = FleetGrid(grid.servers, tuple(profiles), grid.metrics, grid.start, STEP_SECONDS, grid.values)
        fleet = FleetGrid(
            named.servers, named.profiles, engine.config.targets, grid.start, STEP_SECONDS, grid.values[:, :, columns]
        )
        peers = fleet.peers()
        history = fleet.values[rows, max(0, end - HISTORY_STEPS) : end]
        origins = np.full(len(rows), fleet.timestamps()[end - 1])
        of_rows = peers._replace(members=peers.members[rows])
        quantiles = engine.forecast(history, [profiles[row] for row in rows], origins, peers=of_rows)
        error = truth[:, :, :, None] - quantiles
        loss = np.maximum(np.array(QUANTILE_LEVELS) * error, (np.array(QUANTILE_LEVELS) - 1) * error)
        losses.append(np.nanmean(loss.mean(axis=3), axis=(0, 1)) / scale)
    return np.mean(losses, axis=1)


# --- main -----------------------------------------------------------------------------------------------------------


def measure(grids: Sequence[FleetGrid], draws: int, engine: Engine | None) -> dict[str, Any]:
    """All measurements on some fleets."""
    counts: Counter[str] = Counter()
    losses = []
    for number in range(draws):
        grid, random = grids[number % len(grids)], np.random.default_rng(number)
        draw = wrong_names(grid, random)
        horizon = 0 if engine is None else engine.config.horizon_steps
        end = int(random.integers(steps_of_day(STEP_SECONDS), grid.steps - horizon))
        audit = audit_at(grid, draw.profiles, draw.matched, end)
        counts += count_suggestions(grid, draw, audit)
        if engine is not None:
            losses.append(accepted_gain(engine, grid, draw, audit, end))
    results = {**ratios(counts), "draws": draws, "joined": joined_profiles(grids[0])}
    if losses:
        named = dict(zip(("wrong", "suggested", "true"), np.mean(losses, axis=0), strict=True))
        results["pinball_loss_by_profile"] = {name: round(float(loss), 4) for name, loss in named.items()}
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Audit, count, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT / "../shared/data/fleets_public.parquet", help="a real fleet (%(default)s)")
    add("--draws", type=int, default=20, help="draws of wrong names for each kind of fleet (%(default)s)")
    add("--model", type=Path, help="model directory; without one, the forecasts are left out")
    arguments = parser.parse_args(argv)
    try:
        engine = None if arguments.model is None else Engine.load(arguments.model, threads=1)
        real = real_fleet(arguments.data)
    except (ContractError, DataFileError, ModelError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    results = {
        "simulated": measure([simulated_fleet(seed) for seed in SIMULATED_SEEDS], arguments.draws, engine),
        arguments.data.stem: measure([real], arguments.draws, None),
    }
    print("| fleet | precision | recall | wrong names: precision | recall | unknown names: precision | recall |")
    print("|---|---|---|---|---|---|---|")
    for name, found in results.items():
        kinds = ("precision", "recall", "precision_wrong", "recall_wrong", "precision_unknown", "recall_unknown")
        print(f"| {name} | {' | '.join(str(found[kind]) for kind in kinds)} |")
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
