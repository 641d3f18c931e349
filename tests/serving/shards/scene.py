"""Shards of one fleet in one process: a daemon each, and a network between them that a test can break."""

import asyncio
import contextlib
import time
from typing import NamedTuple
from unittest.mock import patch

import httpx

from fleet_forecast.serving.shards.neighbours import MAX_RESPONSE_BYTES, neighbours_of
from fleet_forecast.shard import owner_of
from fleet_forecast.sources.bounded_http import BoundedClient, ResponseLimits
from tests.serving.daemon_client import daemon, wait_for

HOST = "http://testserver"
LIMITS = ResponseLimits(MAX_RESPONSE_BYTES, 10.0)


class Between(httpx.AsyncBaseTransport):
    """Requests of one shard to another.

    down: they fail. hangs_seconds: they take so long. answer: what is answered instead. seen: paths and headers.
    """

    def __init__(self, target=None):
        """target: the client of the other daemon; None: it has not started yet."""
        self.target, self.down, self.hangs_seconds, self.answer, self.seen = target, False, 0.0, None, []
        self.open = 0  # requests that the other daemon answers now

    async def handle_async_request(self, request):
        body = await request.aread()
        self.seen.append((request.url.path, dict(request.headers), body))
        await asyncio.sleep(self.hangs_seconds)
        if self.down or self.target is None:
            raise httpx.ConnectError("connection refused")
        if self.answer is not None:
            return httpx.Response(200, content=self.answer)
        headers = {key: value for key, value in request.headers.items() if key not in ("host", "content-length")}
        sent = self.target.request, request.method, str(request.url).replace(HOST, "")
        got = await asyncio.to_thread(self._counted, *sent, content=body, headers=headers)
        return httpx.Response(got.status_code, headers={"content-type": "application/json"}, content=got.content)

    def _counted(self, send, *arguments, **fields):
        self.open += 1
        try:
            return send(*arguments, **fields)
        finally:
            self.open -= 1


class Fleet(NamedTuple):
    """clients: of the daemons, by number of the shard. links: by numbers of the asking and the asked shard."""

    clients: dict
    links: dict

    def daemon(self, number):
        return self.clients[number].app.state.daemon

    def owner(self, name):
        return owner_of(name, len(self.clients))


@contextlib.contextmanager
def fleet(folder, count=2, clock=time.time, changes=None, further=(), **settings):
    """Daemons of a fleet in shards. changes: settings of one daemon, by its number. further: numbers beyond `count`."""
    links = {}

    def linked(own, addresses, token, certificates=None):
        made = neighbours_of(own, addresses, token, certificates)
        for asked, neighbour in made.items():
            link = links[own.number or further[0], asked] = Between()
            neighbour._client = BoundedClient(LIMITS, transport=link)
        return made

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch("fleet_forecast.serving.lifespan.neighbours_of", linked))
        clients = {}
        for number in (*range(1, count + 1), *further):
            place = folder / f"shard{number}"
            place.mkdir(exist_ok=True)
            own = {"shard": f"{number}/{count}", "shard_peers": (HOST,) * count, "shard_seconds": 1.0, **settings}
            own |= (changes or {}).get(number, {})
            clients[number] = stack.enter_context(daemon(place, clock=clock, **own))
        for (_, asked), link in links.items():
            link.target = clients[asked]
        for client in clients.values():
            for neighbour in client.app.state.daemon.neighbours.values():
                neighbour._failed_monotonic = None
        try:
            yield Fleet(clients, links)
        finally:
            for link in links.values():  # a daemon that has ended does not respond
                link.down = True
            wait_for(lambda: not any(link.open for link in links.values()), 30)


def names_of(shard, count, many, prefix="ppdb"):
    """The first names of a shard's servers."""
    names = (f"{prefix}{number:03d}" for number in range(100_000))
    return [next(name for name in names if owner_of(name, count) == shard) for _ in range(many)]
