"""The split: every server is in exactly one group, and the periods follow each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.training.split import MIN_SERVERS_FOR_VALIDATION, Split, TrainingError, split_fleet

SPEC = WindowSpec(("cpu_pct",), 3600, BusinessCalendar("UTC"), 24, 8)


def fleet(profiles: list[str | None]) -> FleetGrid:
    values = np.ones((len(profiles), 100, 1), dtype=np.float32)
    names = tuple(f"server{row}" for row in range(len(profiles)))
    start = np.datetime64("2026-03-02T00:00:00", "s")
    return FleetGrid(names, tuple(profiles), SPEC.metrics, start, SPEC.step_seconds, values)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["database", "web_api", "generic", None]), min_size=2, max_size=60),
    st.sampled_from(["0", "0.1", "0.25", "server1"]),
    st.integers(0, 5),
)
def test_each_server_is_in_exactly_one_group(profiles: list[str | None], holdout: str, seed: int) -> None:
    split = split_fleet(fleet(profiles), SPEC, 0.7, holdout, seed)
    together = np.concatenate([split.training_servers, split.validation_servers, split.unseen_servers])
    assert sorted(together.tolist()) == list(range(len(profiles)))
    assert len(split.training_servers)
    training, validation = (
        Counter(profiles[row] for row in rows) for rows in (split.training_servers, split.validation_servers)
    )
    for profile, count in validation.items():
        assert training[profile] + count >= MIN_SERVERS_FOR_VALIDATION
        assert count <= training[profile] / 4
    again = split_fleet(fleet(profiles), SPEC, 0.7, holdout, seed)
    assert again.validation_servers.tolist() == split.validation_servers.tolist()


@pytest.mark.parametrize(("servers", "validation"), [(7, 0), (8, 1), (16, 2), (72, 9)])
def test_an_eighth_of_the_servers_of_a_large_profile_is_for_validation(servers: int, validation: int) -> None:
    split = split_fleet(fleet(["database"] * servers), SPEC, 0.7, "0", 42)
    assert (len(split.validation_servers), len(split.training_servers)) == (validation, servers - validation)


@pytest.mark.parametrize("holdout", ["0.6", "server0,server1"])
def test_holding_out_every_server_is_refused(holdout: str) -> None:
    with pytest.raises(TrainingError, match=f"--holdout-servers {holdout}: every server is held out"):
        split_fleet(fleet(["database", "web_api"]), SPEC, 0.7, holdout, 42)


@pytest.mark.parametrize("horizon_steps", [2, 8, 16])
def test_the_validation_period_follows_training_and_has_more_than_one_origin(horizon_steps: int) -> None:
    spec = WindowSpec(SPEC.metrics, 3600, BusinessCalendar("UTC"), 24, horizon_steps)
    split = split_fleet(fleet(["database"] * 3), spec, 0.7, "0", 42)
    assert split.train_end + horizon_steps < split.test_start <= 70


@pytest.mark.parametrize("train_fraction", [0.5, 0.7, 0.9])
def test_data_that_are_too_short_are_refused_with_the_length_that_is_enough(train_fraction: float) -> None:
    whole = fleet(["database"] * 3)

    def split_of(steps: int) -> Split:
        return split_fleet(replace(whole, values=whole.values[:, :steps]), SPEC, train_fraction, "0", 42)

    with pytest.raises(TrainingError, match="rows: 10 time steps are too few: 0 of them") as refused:
        split_of(10)
    enough = int(str(refused.value).partition("provide at least ")[2].split()[0])
    assert split_of(enough).test_start < enough
    with pytest.raises(TrainingError, match=f"provide at least {enough} hours"):
        split_of(enough - 1)


@pytest.mark.parametrize("gap", [(0, 300), (40, 340), (70, 370)])
def test_the_split_goes_by_measured_time(gap: tuple[int, int]) -> None:
    whole = split_fleet(fleet(["database"] * 3), SPEC, 0.7, "0", 42)
    grid = fleet(["database"] * 3)
    values = np.full((3, 400, 1), np.nan, dtype=np.float32)
    measured = np.r_[: gap[0], gap[1] : 400]
    values[:, measured] = grid.values
    split = split_fleet(replace(grid, values=values), SPEC, 0.7, "0", 42)
    assert (split.train_end, split.test_start) == (measured[whole.train_end], measured[whole.test_start])


def test_a_gap_of_some_servers_or_of_less_than_a_day_does_not_change_the_split() -> None:
    whole = split_fleet(fleet(["database"] * 3), SPEC, 0.7, "0", 42)
    values = fleet(["database"] * 3).values
    values[:, 30:53] = np.nan
    values[:2, 10:90] = np.nan
    split = split_fleet(replace(fleet(["database"] * 3), values=values), SPEC, 0.7, "0", 42)
    assert (split.train_end, split.test_start) == (whole.train_end, whole.test_start)
