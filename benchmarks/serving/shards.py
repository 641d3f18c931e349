"""The exchange of peers between shards: bytes and processor time of a step and of a start, and the error of the tables.

    OMP_NUM_THREADS=1 python benchmarks/serving/shards.py --servers 10000 --shards 2 8 32

Every shard offers its servers, reads what the others offer, and makes the table of peers. The oracle is the table of
one daemon with all servers. Values are random; six metrics, seven profiles of the same size, a week of 5 minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.features.peers import ProfileMembers, member_order, order_statistics
from fleet_forecast.flags import add_flag
from fleet_forecast.serving.shards.foreign_peers import ForeignPeers
from fleet_forecast.serving.shards.peer_offer import Candidates, PeerOffer
from fleet_forecast.serving.shards.peer_page import Position, page_bytes, read_page
from fleet_forecast.serving.storage.ring_buffer import RingBuffer
from fleet_forecast.serving.storage.samples import StepMeans
from fleet_forecast.shard import Shard, owner_of
from server_profiles import ServerProfile

STEPS, STEP_SECONDS, FIRST = 2016, 300, 6_000_000


class OneShard:
    """What a daemon has of the exchange."""

    def __init__(self, shard: Shard, names: dict[str, list[str]], ids: dict[str, int]) -> None:
        self.shard, self.offer, self.foreign = shard, PeerOffer(), ForeignPeers()
        own = {profile: [name for name in of if shard.has(name)] for profile, of in names.items()}
        ordered = {profile: sorted(of, key=member_order)[:128] for profile, of in own.items()}
        self.candidates = {p: Candidates(tuple(of), tuple(ids[name] for name in of)) for p, of in ordered.items()}
        self.buffer = RingBuffer(STEPS, len(METRICS))
        self.offer.reset(METRICS, STEP_SECONDS)
        self.foreign.reset(STEPS, METRICS)
        self.ids = np.array(sorted(each for of in self.candidates.values() for each in of.ids), dtype=np.int32)

    def put(self, step: int, values: np.ndarray) -> None:
        self.buffer.put(StepMeans(step, self.ids, values[self.ids]))

    def observe(self, last_step: int, changed: set[int], count: int) -> None:
        names = {profile: each.names for profile, each in self.candidates.items()}
        self.foreign.present = frozenset(range(1, count + 1)) - {self.shard.number}
        self.foreign.advance(last_step, names)
        steps = range(last_step + 1 - STEPS, last_step + 1)
        self.offer.update(self.candidates, self.foreign.counts(names), changed, steps)


def ask(asking: OneShard, asked: OneShard, last_step: int) -> int:
    """Take all pages that one shard has for another; returns their bytes."""
    received = 0
    while True:
        after: Position | None = asking.foreign.positions.get(asked.shard.number)
        body = page_bytes(asked.offer.page(asked.buffer, after, last_step))
        received += len(body)
        page = read_page(body, asked.shard)
        asking.foreign.take(asked.shard.number, page)
        if not page.more:
            return received


def measure(servers: int, count: int) -> dict[str, float]:
    """Bytes that shard 1 receives at a start and in a step, seconds of the processor, and the error of its table."""
    random = np.random.default_rng(0)
    profiles = [str(profile) for profile in ServerProfile][:7]
    names = {p: [f"{p}-{n:06d}" for n in range(servers // len(profiles))] for p in profiles}
    ids = {name: place for place, name in enumerate(name for of in names.values() for name in of)}
    shards = [OneShard(Shard(number, count), names, ids) for number in range(1, count + 1)]
    for step in range(FIRST, FIRST + STEPS):
        values = random.uniform(1, 99, (len(ids), len(METRICS))).astype(np.float32)
        for each in shards:
            each.put(step, values)
    last = FIRST + STEPS - 1
    first = shards[0]
    found: dict[str, float] = {}
    for cycle, label in enumerate(("lists", "start", "step")):
        changed = {last} if cycle == 2 else set()
        for each in shards:
            each.observe(last, changed, count)
        if label == "lists":  # what the others know of each other after their first exchange, without its cells
            for asking in shards:
                offered = {other.shard.number: dict(other.offer._offered) for other in shards if other is not asking}
                asking.foreign._offered = offered
            continue
        started = time.process_time()
        found[f"{label}_bytes"] = sum(ask(first, other, last) for other in shards[1:])
        found[f"{label}_cpu_seconds"] = round(time.process_time() - started, 3)
    error = 0.0
    for profile in profiles:
        (rows,) = ProfileMembers.of(names[profile], [profile] * len(names[profile])).rows
        oracle = order_statistics(values[[ids[names[profile][row]] for row in rows]][:, None])
        chosen = first.foreign.choose(profile)
        own = values[list(first.candidates[profile].ids[: chosen.own])][:, None]
        table = order_statistics(np.concatenate([own, first.foreign.values(chosen.others, last, 1)]))
        error = max([error, *(float(np.abs(a - b).max()) for a, b in zip(table, oracle, strict=True))])
    return {"shards": count, **found, "largest_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flag(parser, "--servers", type=int, default=10_000, metavar="N", help="of the fleet (%(default)s)")
    add_flag(parser, "--shards", type=int, nargs="+", default=[2, 8, 32], metavar="N", help="numbers of shards")
    arguments = parser.parse_args()
    rows = []
    for count in arguments.shards:
        rows.append(measure(arguments.servers, count))
        print(rows[-1], file=sys.stderr)
    started = time.process_time()
    for number in range(10_000):
        owner_of(f"benchmark-{number}", 8)
    hash_us = round((time.process_time() - started) * 100, 2)
    print(json.dumps({"servers": arguments.servers, "exchange": rows, "owner_of_8_microseconds": hash_us}))


if __name__ == "__main__":
    main()
