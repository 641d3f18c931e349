"""Which metrics of a model a server gets."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers
from fleet_forecast.inference.fleet_match import measured_metrics
from tests.serving.fake_engine import FakeConfig

METRICS = ("cpu_pct", "disk_io_mb_s", "latency_ms")
TRAINED = {"cache": ("cpu_pct",), "database": ("cpu_pct", "disk_io_mb_s")}
NOTHING = (False, False, False)


def chosen(
    profile: str | None, measured: tuple[bool, ...], live: tuple[bool, ...] = NOTHING, trained: dict = TRAINED
) -> list[bool]:
    """The metrics of a server that measured some of them; live: those of another server of its profile."""
    history = np.where(np.array([measured, live])[:, None], np.float32(1), np.float32(np.nan)).repeat(3, axis=1)
    members = ProfileMembers.of(("own", "other"), (None, profile))
    peers = Peers(PeerTable.build(history, members, 0), np.array([False]))
    config = FakeConfig(targets=METRICS, measured_by_profile=trained)
    return measured_metrics(config, history[:1], [profile], peers)[0].tolist()


@pytest.mark.parametrize(
    ("profile", "own", "live", "expected"),
    [
        ("cache", NOTHING, NOTHING, [True, False, False]),  # its profile decides
        ("cache", (False, True, False), NOTHING, [True, True, False]),
        ("cache", (True, False, False), (False, False, True), [True, False, True]),
        ("database", (True, False, False), NOTHING, [True, True, False]),
        ("new", NOTHING, NOTHING, [True, True, True]),
        (None, NOTHING, NOTHING, [True, True, True]),
        ("new", (True, False, False), NOTHING, [True, False, False]),
        ("new", (True, False, False), (False, True, False), [True, True, False]),
    ],
)
def test_a_server_gets_what_it_or_its_profile_measured(profile, own, live, expected):
    assert chosen(profile, own, live) == expected


def test_a_model_that_has_not_recorded_what_its_profiles_measured_forecasts_everything():
    assert chosen("cache", (True, False, False), trained={}) == [True, True, True]


def test_without_a_step_and_without_peers_the_profile_decides():
    config, history = FakeConfig(targets=METRICS, measured_by_profile=TRAINED), np.zeros((2, 0, 3), np.float32)
    assert measured_metrics(config, history, ["cache", "new"], None).tolist() == [[True, False, False], [True] * 3]
