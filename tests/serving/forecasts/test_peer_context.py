"""The peer table of the forecast loop: which servers and steps are in it, and when it changes."""

import numpy as np

from fleet_forecast.features.peers import PeerTable, ProfileMembers
from tests.serving.fake_engine import FakeConfig, FakeEngine
from tests.serving.forecasts.scene import CPU, NOON, STEP, Scene


def table_of(scene):
    return scene.forecasts.peers._table


def assert_table_is_that_of_the_store(scene):
    """Oracle: the table of all stored means, built at once."""
    table, store = table_of(scene), scene.store
    servers = sorted(store.servers.values(), key=lambda server: server.name)
    values = np.full((len(servers), table.steps, len(store.metrics)), np.nan, dtype=np.float32)
    for row, server in enumerate(servers):
        last = table.first_step + table.steps - 1
        for step, means in store.server_step_means(server.server_id, table.first_step, last).result(5).items():
            values[row, step - table.first_step] = means
    names, profiles = [s.name for s in servers], [scene.forecasts.peers._profile(s) for s in servers]
    expected = PeerTable.build(values, ProfileMembers.of(names, profiles), table.first_step)
    found = table.part(expected.profiles, table.first_step, table.first_step + table.steps)
    for field, oracle in zip(found.statistics, expected.statistics, strict=True):
        np.testing.assert_array_equal(field, oracle)
    others = [row for row, name in enumerate(table.profiles) if name not in expected.profiles]
    assert not table.statistics.counts[others].any()


def test_the_table_follows_new_steps_late_samples_and_servers_that_join_leave_or_change_profile(scene):
    random = np.random.default_rng(0)

    def measure(name, steps_ago, **fields):
        scene.measure(name, steps_ago, float(random.uniform(5, 95)), **fields)

    for name in ("ppdb1", "ppdb2", "ppdb3", "ppml1", "odd"):
        for steps_ago in range(1, 20):
            measure(name, steps_ago)
    scene.cycle()
    assert_table_is_that_of_the_store(scene)
    measure("ppdb1", 0)
    measure("ppml1", 0)
    scene.cycle(step=1)
    assert_table_is_that_of_the_store(scene)
    measure("ppdb2", 7, seconds_in=10)  # late
    for steps_ago in (0, 1, 4):
        measure("ppdb4", steps_ago)  # joins
    scene.cycle(step=3)
    assert_table_is_that_of_the_store(scene)
    measure("ppdb3", 0, profile="ml_compute")
    scene.cycle(step=1)
    assert_table_is_that_of_the_store(scene)
    assert scene.forecasts.peers.counts == {"database": 3, "ml_compute": 2, "generic": 1}
    for number in range(12):  # many join at once
        measure(f"ppml9{number}", 0)
    scene.cycle(step=1)
    assert_table_is_that_of_the_store(scene)
    assert scene.forecasts.peers.counts["ml_compute"] == 14


def test_a_server_silent_for_the_models_context_is_no_peer(scene):
    scene.measure("ppdb1", 1)
    scene.measure("ppdb2", 1)
    scene.cycle()
    for _ in range(2):
        scene.now += 150 * STEP
        scene.measure("ppdb2", 1)
        scene.cycle()
    assert scene.forecasts.peers.counts == {"database": 1}


def test_the_peers_of_a_server_follow_its_profile_and_exclude_its_own_values(scene):
    for name in ("ppdb1", "ppdb2", "ppml1"):
        scene.measure(name, 1)
    found = scene.cycle()
    (call,) = scene.engine.calls
    assert call["peers"].members.all()
    assert {name: forecast.peers.count for name, forecast in found.items()} == {"ppdb1": 1, "ppdb2": 1, "ppml1": 0}
    assert found["ppdb1"].peers.weight == 0.5
    assert found["ppml1"].peers.weight == 0.0


def test_between_two_cycles_the_table_stays_and_a_new_server_has_peers_at_once(scene):
    for name in ("ppdb1", "ppdb2"):
        scene.measure(name, 1)
    scene.cycle()
    before = table_of(scene)
    scene.measure("ppdb1", 1, 90.0, seconds_in=100)
    scene.measure("ppdb3", 1)
    found = scene.cycle()
    assert table_of(scene) is before
    assert found["ppdb3"].peers.count == 2
    assert scene.cycle(step=1)["ppdb3"].peers.count == 2
    assert scene.forecasts.peers.counts == {"database": 3}


def test_a_fleet_that_doubles_between_two_steps_is_forecast_again_with_its_peers(scene):
    assert scene.cycle() == {}
    scene.measure("ppdb1", 1)
    assert scene.cycle()["ppdb1"].peers.count == 0
    for name in ("ppdb2", "ppdb3"):
        scene.measure(name, 1)
    found = scene.cycle()
    assert {name: forecast.peers.count for name, forecast in found.items()} == {"ppdb1": 2, "ppdb2": 2, "ppdb3": 2}
    assert_table_is_that_of_the_store(scene)
    before = table_of(scene)
    scene.measure("ppdb4", 1)  # one more is no doubling
    assert scene.cycle()["ppdb4"].peers.count == 3
    assert table_of(scene) is before


def test_samples_too_old_for_a_peer_do_not_repeat_the_cycle_of_the_fleet(scene):
    scene.cycle()
    cycles = scene.forecasts.statistics.cycles
    for minute in range(3):
        scene.measure(f"ppdb{minute}", FakeConfig().context_steps + 1)
        scene.cycle()
    assert scene.forecasts.statistics.cycles == cycles


def test_a_server_that_changed_its_profile_since_the_cycle_is_not_excluded_from_its_new_peers(scene):
    for name in ("ppdb1", "ppml1", "ppml2"):
        scene.measure(name, 1)
    scene.cycle()
    scene.measure("ppdb1", 1, 90.0, seconds_in=100, profile="ml_compute")
    scene.cycle()
    assert scene.engine.calls[-1]["peers"].members.tolist() == [False]
    assert scene.forecasts.snapshot.forecasts["ppdb1"].peers.count == 2


def test_stored_values_of_a_posted_name_are_taken_out_of_its_own_peers_only(scene):
    for name, cpu in (("ppdb1", 10.0), ("ppdb2", 20.0), ("ppdb3", 30.0)):
        scene.measure(name, 1, cpu)
    scene.cycle()
    last_steps = np.array([NOON // STEP - 1] * 3)
    names, profiles = ["ppdb1", "elsewhere", "ppdb2"], ["database", "database", "ml_compute"]
    peers = scene.forecasts.peers_of_posted(scene.engine, names, profiles, last_steps)
    assert peers.members.tolist() == [True, False, False]  # the third is stored with another profile
    assert peers.values[0, -1, CPU] == 10.0
    assert np.isnan(peers.values[1:]).all()


def test_a_model_of_other_profiles_or_metrics_gets_a_table_of_its_own(scene):
    scene.measure("ppdb1", 1, 10.0)
    scene.measure("ppml1", 1, 20.0)
    scene.cycle()
    old = scene.engine
    following = FakeEngine(FakeConfig(profiles=("database",), targets=("mem_pct", "cpu_pct")), model_id="next")
    scene.forecasts.engine = following
    assert scene.forecasts.peers_of_posted(following, ["x"], ["database"], np.array([NOON // STEP])) is None
    scene.cycle()
    assert table_of(scene).profiles == ("database",)
    assert table_of(scene).statistics.middle[0, -1].tolist()[1] == 10.0
    assert scene.forecasts.peers_of_posted(old, ["x"], ["database"], np.array([NOON // STEP])) is None


def test_a_restart_builds_the_table_of_the_stored_steps(tmp_path):
    first = Scene(tmp_path)
    for steps_ago in range(1, 6):
        for name in ("ppdb1", "ppdb2", "ppdb3"):
            first.measure(name, steps_ago, float(steps_ago * len(name)))
    first.cycle()
    before = table_of(first)
    first.close()
    second = Scene(tmp_path)
    second.cycle()
    for field, again in zip(before.statistics, table_of(second).statistics, strict=True):
        np.testing.assert_array_equal(field, again)
    second.close()
