"""Proof of transfer: models that live on growing and changing fleets, trained again by different policies.

    OMP_NUM_THREADS=1 python benchmarks/life/transfer.py                       # all; resumes what a killed run left
    OMP_NUM_THREADS=1 python benchmarks/life/transfer.py --worlds simulated    # one of simulated, fleets, slices
    OMP_NUM_THREADS=1 python benchmarks/life/transfer.py --fresh               # forget what earlier runs stored

simulated: 12 weeks after three weeks of training data, steps of 15 minutes. 38 servers of six profiles; each week three
new ones of these profiles appear and two are removed; in week 8 five servers of a seventh profile appear, in week 10
the daily rhythm of web servers moves by five hours. Three models that differ in how they identify a server:

- live profiles: the product,
- no profiles: trained and served without profiles and peers,
- server id: each server is its own profile, an unknown one has the embedding of the unknown profile. The usual tutorial
  identifies servers in this way; this model also has the product's scaling, which makes it stronger.

Policies: on advice (the daemon's, fleet_forecast/drift: the same test for all, and a new type from three servers on);
for server id also when there is a server with a day of history that no training had, as its users must.

fleets: 46 real servers, 45 days, trained on 20; a quarter of each profile appears on day 30. slices: a part of the
PlanetLab machines, trained on six days, evaluated on four later ones. Never trained again, on advice, and regularly:
each week, or before each day. Trainings are those of tft_trainer.py on the newest days, from the weights of the model
in use, with a fixed number of steps; a model that is worse than the one in use is not put in use. Lives are stored in
models/transfer/. Markdown goes to stdout; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.life.lives import (  # noqa: E402
    NEVER,
    NOTHING,
    ON_ADVICE,
    ON_ADVICE_OR_UNKNOWN,
    PROFILES,
    REGULAR,
    SERVER_ID,
    Identity,
    Life,
    Training,
)
from benchmarks.life.outcome import outcome, tables  # noqa: E402
from benchmarks.life.worlds import World, fleets_world, simulated_world, slices_world  # noqa: E402

MODELS = ROOT / "models/transfer"
Lives = Sequence[tuple[Identity, str]]
WORLDS: dict[str, tuple[Callable[[], World], Lives]] = {
    "simulated": (
        lambda: simulated_world(step_seconds=900),
        (
            (PROFILES, ON_ADVICE),
            (SERVER_ID, ON_ADVICE_OR_UNKNOWN),
            (SERVER_ID, ON_ADVICE),
            (NOTHING, ON_ADVICE),
            (PROFILES, NEVER),
        ),
    ),
    "fleets": (fleets_world, tuple((PROFILES, policy) for policy in (NEVER, ON_ADVICE, REGULAR))),
    "slices": (slices_world, tuple((PROFILES, policy) for policy in (NEVER, ON_ADVICE, REGULAR))),
}


def live(world: World, lives: Lives, training: Training, folder: Path) -> dict[str, Any]:
    """Run the lives of a world; `outcome` by name. All lives of an identity begin with the same training."""
    found = {}
    for identity, policy in lives:
        first = folder / world.name / identity.name.replace(" ", "_") / "first"
        Life(world, identity, NEVER, training, first).begin_only()
        life = Life(world, identity, policy, training, first.with_name(policy.replace(" ", "_")), first)
        life.run()
        found[f"{identity.name}, {policy}"] = outcome(life)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS), help="which ones (all)")
    parser.add_argument("--steps", type=int, default=250, help="of the first training (%(default)s)")
    parser.add_argument("--warm-steps", type=int, default=100, help="of each further training (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="begin anew instead of resuming")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.fresh:
        shutil.rmtree(MODELS, ignore_errors=True)
    result = {}
    for name in arguments.worlds:
        make, lives = WORLDS[name]
        result[name] = live(make(), lives, Training(arguments.steps, arguments.warm_steps), MODELS)
        print(f"## {name}\n\n{tables(result[name])}\n", flush=True)
    print(json.dumps({"steps": arguments.steps, "warm_steps": arguments.warm_steps, "worlds": result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
