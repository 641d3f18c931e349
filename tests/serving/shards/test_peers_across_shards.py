"""Peers across shards: the table of each shard is that of one daemon with all servers; broken neighbours do no harm."""

import asyncio
import contextlib

import httpx
import numpy as np
import orjson
import pytest

from data_contract import METRICS
from fleet_forecast.features.peers import MAX_MEMBERS
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.shards.exchange import PEERS_PATH, PeerExchange
from fleet_forecast.serving.shards.foreign_peers import ForeignPeers
from fleet_forecast.serving.shards.neighbours import Neighbour
from fleet_forecast.serving.shards.peer_page import Position, page_bytes, read_page
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.shard import Shard, owner_of
from fleet_forecast.sources.bounded_http import BoundedClient, ResponseLimits
from tests.serving.fake_engine import FakeConfig, FakeEngine
from tests.serving.forecasts.scene import CPU, STEP, Scene
from tests.serving.shards.scene import names_of

SMALL = FakeConfig(profiles=("database", "ml_compute"), context_steps=24, history_steps=36)


class Network(httpx.AsyncBaseTransport):
    """The exchange between scenes of one process, without HTTP servers; `down`: numbers of shards."""

    def __init__(self):
        self.scenes, self.down, self.answers, self.bytes = {}, set(), {}, []

    async def handle_async_request(self, request):
        number = int(request.url.host.removeprefix("shard"))
        if number in self.down:
            raise httpx.ConnectError("connection refused")
        if number in self.answers:
            return httpx.Response(200, content=self.answers[number])
        document = orjson.loads(await request.aread())
        after = None if document["after"] is None else Position(**document["after"])
        scene = self.scenes[number]
        page = scene.forecasts.peers.offered_page(after, document["last_step"])
        assert request.url.path == PEERS_PATH
        if page is None:
            return httpx.Response(503, content=b"{}")
        body = page_bytes(page)
        self.bytes.append(len(body))
        return httpx.Response(200, content=body)


class Shards:
    """Scenes of all shards, and of one daemon that has all servers."""

    def __init__(self, folder, count, engine=None):
        self.count, self.network = count, Network()
        self.whole = Scene(self._folder(folder, "whole"), engine or FakeEngine(SMALL))
        self.parts = {}
        for number in range(1, count + 1):
            scene = Scene(self._folder(folder, number), engine or FakeEngine(SMALL))
            others = [k for k in range(1, count + 1) if k != number]
            client = BoundedClient(ResponseLimits(10**7, 5.0), transport=self.network)
            neighbours = {k: Neighbour(Shard(k, count), f"http://shard{k}", client, lambda: None) for k in others}
            exchange = PeerExchange(neighbours, 1.0, stale_steps=3)
            forecasts = scene.forecasts
            forecasts._exchange, forecasts.peers._foreign = exchange, exchange.peers
            self.parts[number] = self.network.scenes[number] = scene

    @staticmethod
    def _folder(folder, name):
        place = folder / str(name)
        place.mkdir()
        return place

    def exchange(self, number):
        return self.parts[number].forecasts._exchange

    def measure(self, name, steps_ago, cpu, **fields):
        self.whole.measure(name, steps_ago, cpu, **fields)
        self.parts[owner_of(name, self.count)].measure(name, steps_ago, cpu, **fields)

    def measure_all(self, cells):
        """Store (name, steps ago, cpu) at once."""
        samples = []
        for name, steps_ago, cpu in cells:
            instant = (int(self.whole.now) // STEP - steps_ago) * STEP * 1000
            values = tuple(cpu if index == CPU else None for index in range(len(METRICS)))
            samples.append(Sample(name, instant, None, None, values))
        self.whole.store.append(samples).result(5)
        for number, scene in self.parts.items():
            scene.store.append([s for s in samples if owner_of(s.server_name, self.count) == number]).result(5)

    def cycle(self, step=0):
        """A cycle of all at the same time, as after each step; first all observe, then each asks."""
        scenes = [self.whole, *self.parts.values()]
        for scene in self.parts.values():
            for neighbour in scene.forecasts._exchange._neighbours.values():
                neighbour._failed_monotonic = None
        for scene in scenes:
            scene.now += step * STEP
            scene.forecasts._next_recheck = 0.0

        async def together():
            waiting = asyncio.Barrier(len(self.parts))
            for number, scene in self.parts.items():
                run = scene.forecasts._exchange.run

                async def after_all(last_step, seconds, run=run):
                    await waiting.wait()
                    await run(last_step, seconds)
                    await waiting.wait()

                self.parts[number].forecasts._exchange.run = after_all
            await asyncio.gather(*(scene.forecasts.forecast_due() for scene in scenes))
            for scene in self.parts.values():
                del scene.forecasts._exchange.run

        asyncio.run(together())

    def tables(self):
        return {number: scene.forecasts.peers._table for number, scene in self.parts.items()}

    def assert_exact(self):
        expected = self.whole.forecasts.peers._table
        for number, table in self.tables().items():
            assert (table.first_step, table.profiles) == (expected.first_step, expected.profiles), number
            for field, oracle in zip(table.statistics, expected.statistics, strict=True):
                np.testing.assert_array_equal(field, oracle)
        found = {name: f for scene in self.parts.values() for name, f in scene.forecasts.snapshot.forecasts.items()}
        whole = self.whole.forecasts.snapshot.forecasts
        assert found.keys() == whole.keys()
        assert {name: f.peers for name, f in found.items()} == {name: f.peers for name, f in whole.items()}

    def close(self):
        for scene in (self.whole, *self.parts.values()):
            scene.close()


@contextlib.contextmanager
def shards_of(folder, count, engine=None):
    made = Shards(folder, count, engine)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def three(tmp_path):
    with shards_of(tmp_path, 3) as made:
        yield made


def fill(shards, names, steps=12):
    random = np.random.default_rng(0)
    shards.measure_all([(name, ago, float(random.uniform(5, 95))) for name in names for ago in range(1, steps)])


def test_the_table_of_each_shard_is_that_of_one_daemon_through_changes(three):
    names = [f"ppdb{n}" for n in range(9)] + [f"ppml{n}" for n in range(4)]
    fill(three, names)
    three.cycle()
    three.assert_exact()
    for name in names[:-1]:
        three.measure(name, 0, 33.0)
    three.cycle(step=1)
    three.assert_exact()
    three.measure(names[0], 5, 77.0, seconds_in=30)  # late
    three.measure(names[1], 0, 20.0, profile="ml_compute")
    three.measure("ppdb77", 3, 12.0)  # joins, with a step before
    three.cycle(step=2)
    three.assert_exact()
    three.cycle(step=1)
    three.assert_exact()


def test_forecasts_are_those_of_one_daemon_but_for_the_rounding_of_other_batches(tmp_path, tiny_model_dir):
    """Relative tolerance 1e-4: the engine sums in another order for other batches."""
    names = [f"ppdb{n}" for n in range(7)] + [f"ppweb{n}" for n in range(5)]
    with shards_of(tmp_path, 2, Engine.load(tiny_model_dir, device="cpu")) as two:
        random = np.random.default_rng(0)
        two.measure_all([(name, ago, float(random.uniform(20, 80))) for name in names[:-1] for ago in range(1, 40)])
        two.measure_all([(names[-1], 1, 50.0)])  # a new server rests on its peers
        two.cycle()
        two.assert_exact()
        whole = two.whole.forecasts.snapshot.forecasts
        for scene in two.parts.values():
            for name, forecast in scene.forecasts.snapshot.forecasts.items():
                np.testing.assert_allclose(forecast.quantiles, whole[name].quantiles, rtol=1e-4, atol=1e-3)
        owner = two.parts[owner_of(names[-1], 2)]
        alone = owner.engine.forecast(
            np.full((1, 48, 3), np.nan, np.float32), ["web_api"], np.array(["2027-01-15T08:00:00"], "datetime64[s]")
        )
        assert np.abs(alone[0].transpose(1, 2, 0) - whole[names[-1]].quantiles).max() > 0.5


def test_of_more_servers_than_a_table_has_the_same_are_chosen(tmp_path):
    with shards_of(tmp_path, 2) as two:
        names = [f"ppdb{n:03d}" for n in range(MAX_MEMBERS + 60)]
        two.measure_all([(name, 1, float(n % 90)) for n, name in enumerate(names)])
        two.cycle()
        two.assert_exact()
        kept = {number: len(two.exchange(number).peers._rows) for number in (1, 2)}
        assert all(count <= MAX_MEMBERS for count in kept.values())
        two.measure_all([(name, 0, 50.0) for name in names[: MAX_MEMBERS // 2]])
        two.cycle(step=1)
        two.assert_exact()
        for _ in range(3):  # some fall silent, and others take their places
            two.measure_all([(name, 0, 60.0) for name in names[20:]])
            two.cycle(step=10)
        two.cycle(step=1)
        two.assert_exact()
        assert all(len(two.exchange(number).peers._rows) <= MAX_MEMBERS for number in (1, 2))


def test_a_restarted_shard_has_the_whole_table_after_one_cycle(three):
    names = [f"ppdb{n}" for n in range(9)]
    fill(three, names)
    three.cycle()
    for number in three.parts:
        three.parts[number].forecasts.peers.offer.reset(METRICS, STEP)  # as at a start: all numbers are new
        three.parts[number].forecasts.peers.forget()
    three.measure(names[0], 0, 20.0)
    three.cycle(step=1)
    three.assert_exact()


def test_a_missing_shard_loses_its_peers_and_is_reported(three):
    names = {number: names_of(number, 3, 2) for number in (1, 2, 3)}
    fill(three, [name for each in names.values() for name in each])
    three.cycle()
    (probe,) = names[1][:1]
    assert three.parts[1].forecasts.snapshot.forecasts[probe].peers.count == 5
    three.network.down = {3}
    for step in range(1, 5):
        three.measure_all([(name, 0, 40.0) for each in names.values() for name in each])
        three.cycle(step=1)
        found = three.parts[1].forecasts.snapshot.forecasts[probe]
        missing = three.exchange(1).missing
        assert missing == ([] if step < 3 else [3])
        assert found.peers.count == (5 if step < 3 else 3)
        assert not three.exchange(1).exchanged[3].responded
        lacking = "the latest values of its servers are missing" if step < 3 else "its servers are not among the peers"
        assert found.warnings == (f"shard 3/3 does not respond: {lacking}",)
    table, steps = three.tables()[1], slice(-4, None)
    row = table.profiles.index("database")
    assert table.statistics.counts[row, steps, CPU].tolist() == [4, 4, 4, 4]
    three.network.down = set()
    three.cycle(step=1)
    three.assert_exact()
    assert three.exchange(1).missing == []
    assert three.parts[1].forecasts.snapshot.forecasts[probe].warnings == ()


def test_no_shard_needs_another_to_start(three):
    three.network.down = {2, 3}
    names = names_of(1, 3, 3)
    fill(three, names)
    three.cycle()
    assert three.parts[1].forecasts.snapshot.forecasts.keys() == set(names)
    assert three.exchange(1).missing == [2, 3]


HOSTILE = [
    b"",
    b"\n",
    b"{}\n",
    b"[" * 100_000 + b"\n",
    b'{"metrics": "cpu_pct"}\n',
    b"\x00" * 1000,
]


def test_a_response_that_is_not_a_page_counts_as_missing(three):
    names = names_of(1, 3, 2)
    for answer in HOSTILE:
        fill(three, names, 3)
        three.network.answers[3] = answer
        three.cycle(step=1)
        assert three.exchange(1).missing == [3]
        assert "its peers cannot be used" in three.exchange(1)._neighbours[3].problem
        assert three.parts[1].forecasts.snapshot.forecasts.keys() == set(names)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of shard 3."""
    with shards_of(tmp_path_factory.mktemp("shards"), 3) as three:
        fill(three, names_of(3, 3, 2), 3)
        three.cycle()
        return three.parts[3].forecasts.peers.offered_page(None, 10**9)


def cells_with(page, **changes):
    return page._replace(cells=page.cells._replace(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: cells_with(p, values=p.cells.values * np.float32(1e30)), "beyond 0 to 100"),
        (lambda p: cells_with(p, values=p.cells.values - np.float32(200)), "beyond 0 to 100"),
        (lambda p: cells_with(p, values=np.full_like(p.cells.values, np.inf)), "not finite"),
        (lambda p: cells_with(p, steps=p.cells.steps + 1000), "not complete"),
        (lambda p: cells_with(p, profiles=p.cells.profiles + 9), "no member"),
        (lambda p: cells_with(p, members=p.cells.members + 200), "no member"),
        (lambda p: cells_with(p, values=p.cells.values[:, :3]), "bytes"),
        (lambda p: p._replace(metrics=("cpu_pct",) * 6), "different ones"),
        (lambda p: p._replace(offered={"database": p.offered["database"]._replace(with_cells=99)}), "not in order"),
        (
            lambda p: p._replace(offered={"database": p.offered["database"]._replace(names=("b", "a"))}),
            "not a server of|order",
        ),
        (
            lambda p: p._replace(offered={"database": p.offered["database"]._replace(names=("ppdb001", "\n"))}),
            "not a server|order",
        ),
    ],
)
def test_a_page_with_what_a_shard_cannot_have_is_refused(page, change, message):
    assert read_page(page_bytes(page), Shard(3, 3)).offered == page.offered
    with pytest.raises(ValueError, match=message):
        read_page(page_bytes(change(page)), Shard(3, 3))


def test_servers_of_another_shard_are_not_taken_from_a_page(page):
    with pytest.raises(ValueError, match="is not a server of shard 2/3"):
        read_page(page_bytes(page), Shard(2, 3))


def test_truncated_and_changed_pages_do_no_harm(page):
    body = page_bytes(page)
    random = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(body[: random.integers(len(body) + 1)])
        for at in random.integers(max(len(bad), 1), size=3):
            if bad:
                bad[at] = random.integers(256)
        peers = ForeignPeers()
        peers.reset(36, METRICS)
        peers.advance(page.last_step, {"database": ()})
        with contextlib.suppress(ValueError):
            peers.take(3, read_page(bytes(bad), Shard(3, 3)))
        assert len(peers._rows) <= MAX_MEMBERS
