"""The limit of connections follows the limit of open files."""

import resource

import pytest

from fleet_forecast.serving.http import descriptors
from fleet_forecast.serving.http.descriptors import accepts_per_turn, allowed_connections

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "soft_after"),
    [
        (4096, 4096, 1000, None),
        (1024, 1024, 896, 1024),
        (1024, 4096, 1000, 1128),
        (1024, UNLIMITED, 1000, 1128),
        (64, 64, 32, 64),
        (UNLIMITED, UNLIMITED, 1000, None),
    ],
)
def test_connections_fit_into_the_limit_of_open_files(monkeypatch, soft, hard, allowed, soft_after):
    changed = []
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, limits: changed.append(limits))
    assert allowed_connections(1000) == allowed
    assert changed == ([] if soft_after is None else [(soft_after, hard)])


def test_connections_accepted_at_once_fit_into_the_reserve():
    assert (accepts_per_turn(32), accepts_per_turn(1000)) == (1, 31)
    assert 3 * accepts_per_turn(1000) < descriptors.RESERVED_DESCRIPTORS
