"""Asks the other shards for their servers' means before a cycle, all at once and within a bounded time.

A shard that does not respond delays the cycle by that time once, and by a second in later cycles. Its servers remain
peers for `stale_steps` steps, without values of the missing steps; then they are left out until it responds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fleet_forecast.serving.shards.foreign_peers import ForeignPeers
from fleet_forecast.serving.shards.neighbours import Neighbour, ShardError
from fleet_forecast.serving.shards.peer_page import read_page
from fleet_forecast.serving.storage.ring_buffer import NEVER

LOG = logging.getLogger(__name__)
PEERS_PATH = "/api/v1/shard/peers"
SECONDS_OF_MISSING = 1.0  # for a shard that did not respond in the cycle before
MAX_PAGES = 64  # in one cycle; the rest follows in the next one


@dataclass
class Exchanged:
    """Data from one shard.

    last_step: of the last cycle in which it responded. bytes_received: since the start. missing: its servers are not
    among the peers. responded: in the last cycle.
    """

    last_step: int = NEVER
    bytes_received: int = 0
    missing: bool = True
    responded: bool = False


class PeerExchange:
    """The exchange with all other shards. Used on the event loop."""

    def __init__(self, neighbours: Mapping[int, Neighbour], seconds: float, stale_steps: int) -> None:
        """seconds: that a cycle waits. stale_steps: for so long a shard that does not respond has peers."""
        self.peers = ForeignPeers()
        self.exchanged = {number: Exchanged() for number in neighbours}
        self._neighbours, self._seconds, self._stale_steps = neighbours, seconds, stale_steps

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards whose servers are not among the peers."""
        return [number for number, each in self.exchanged.items() if each.missing]

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings of forecasts that lack the peers of a shard, or their latest values."""
        lacks = {True: "its servers are not among the peers", False: "the latest values of its servers are missing"}
        return tuple(
            f"shard {self._neighbours[number].shard} does not respond: {lacks[each.missing]}"
            for number, each in self.exchanged.items()
            if each.missing or not each.responded
        )

    async def run(self, last_step: int, step_seconds: int) -> None:
        """Bring the other shards' peers to a step, as far as they respond. Raises nothing."""
        await asyncio.gather(*(self._ask(number, last_step, step_seconds) for number in self._neighbours))
        for number, each in self.exchanged.items():
            was_missing = each.missing
            each.missing = each.last_step == NEVER or last_step - each.last_step >= self._stale_steps
            if each.missing and not was_missing:
                LOG.error("shard missing", extra={"shard": number, "reason": self._neighbours[number].problem})
        self.peers.present = frozenset(number for number, each in self.exchanged.items() if not each.missing)
        self.peers.need_again()

    async def _ask(self, number: int, last_step: int, step_seconds: int) -> None:
        neighbour, each = self._neighbours[number], self.exchanged[number]
        seconds = self._seconds if neighbour.problem is None else min(SECONDS_OF_MISSING, self._seconds)
        deadline = time.monotonic() + seconds
        try:
            for _ in range(MAX_PAGES):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not await self._take_page(number, last_step, step_seconds, remaining):
                    break
        except ShardError as problem:
            LOG.warning("peers of a shard not received", extra={"reason": str(problem)})
            each.responded = False
        else:
            each.last_step, each.responded = last_step, True

    async def _take_page(self, number: int, last_step: int, step_seconds: int, seconds: float) -> bool:
        """Ask for one page; whether there are more. Raises ShardError."""
        neighbour, position = self._neighbours[number], self.peers.positions.get(number)
        after = None if position is None else position._asdict()
        # The other waits for its own step a little less long, so that its response comes in time.
        document = {"after": after, "last_step": last_step, "wait_seconds": 0.8 * seconds}
        body = await neighbour.post(PEERS_PATH, document, seconds)
        self.exchanged[number].bytes_received += len(body)
        try:
            page = read_page(body, neighbour.shard)
            if page.step_seconds != step_seconds:
                raise ValueError(f"steps of {page.step_seconds} s, not {step_seconds} s: its model has another step")
            self.peers.take(number, page)
        except ValueError as problem:
            self.peers.positions.pop(number, None)
            raise neighbour.failed(f"its peers cannot be used: {problem}") from None
        return page.more
