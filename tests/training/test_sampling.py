"""Which windows training visits: each server-hour once, no held-out server, no target after the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import STATISTICS, fit_scaling
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.training.sampling import (
    HANDICAPS,
    NEWEST_SHARE,
    Batch,
    Handicaps,
    WindowSource,
    batches_per_epoch,
    draw_history,
    epoch,
    exchange_metrics,
)

METRICS = ("cpu_pct", "mem_pct")
DOUBT = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)  # [profile, metric], row 0 of all servers
SPEC = WindowSpec(METRICS, 300, "UTC", context_steps=48, horizon_steps=12)
LAST_STEP = 599


class RecordingSource(WindowSource):
    """Remembers which windows it was asked for."""

    values: np.ndarray
    asked: list[tuple[Any, ...]]

    def batch(self, rows, origins, encoder_steps, known_steps, hidden, clock_origins=None, raised=None):
        self.asked.append((rows, origins, encoder_steps, known_steps, hidden))
        return super().batch(rows, origins, encoder_steps, known_steps, hidden, clock_origins, raised)


@pytest.fixture
def source() -> RecordingSource:
    values = np.random.default_rng(0).uniform(5, 90, (4, 700, 2)).astype(np.float32)
    values[3, 200:420] = np.nan
    start = np.datetime64("2026-03-02T00:00:00", "s")
    grid = FleetGrid(tuple("abcd"), ("database", "web_api") * 2, METRICS, start, 300, values)
    scaling = fit_scaling(values, METRICS, np.array([True, True]), grid.profiles, 48)
    source = RecordingSource(grid, SPEC, scaling)
    source.values, source.asked = values, []
    return source


def batches_of(source: WindowSource, rows: list[int], seed: int, handicaps: Handicaps = HANDICAPS) -> list[Batch]:
    """All batches of an epoch."""
    plans = epoch(source, np.array(rows), LAST_STEP, 16, np.random.default_rng(seed), DOUBT, handicaps)
    return [source.cut(plan) for plan in plans]


def test_an_epoch_visits_every_server_hour_with_a_target_once(source: RecordingSource) -> None:
    batches = batches_of(source, [0, 1], seed=0)
    hours = [
        (int(row), int(origin) // 12)
        for rows, origins, *_ in source.asked
        for row, origin in zip(rows, origins, strict=True)
    ]
    assert sorted(hours) == [(row, hour) for row in (0, 1) for hour in range((LAST_STEP - 12) // 12 + 1)]
    assert len(batches) == batches_per_epoch(source, np.arange(2), LAST_STEP, 16)


def test_an_epoch_entered_later_goes_on_with_the_same_batches(source: RecordingSource) -> None:
    whole = list(epoch(source, np.array([0, 1]), LAST_STEP, 16, np.random.default_rng(0), DOUBT))
    rest = list(epoch(source, np.array([0, 1]), LAST_STEP, 16, np.random.default_rng(0), DOUBT, first_batch=3))
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        for name, field in vars(one).items():
            np.testing.assert_array_equal(field, getattr(other, name), err_msg=name)


def test_other_servers_are_in_no_batch_and_no_target_lies_after_the_end(source: RecordingSource) -> None:
    batches_of(source, [0, 2], seed=1)
    rows = np.concatenate([rows for rows, *_ in source.asked])
    origins = np.concatenate([origins for _, origins, *_ in source.asked])
    assert set(rows) == {0, 2}
    assert origins.max() + SPEC.horizon_steps <= LAST_STEP


def test_windows_without_a_single_target_are_not_visited(source: RecordingSource) -> None:
    batches = batches_of(source, [3], seed=2)
    assert all((~np.isnan(batch.targets)).any(axis=(1, 2)).all() for batch in batches)
    visited = sum(len(batch.targets) for batch in batches)
    assert 0 < visited < (LAST_STEP - 12) // 12 + 1


def test_targets_are_the_future_in_window_units(source: RecordingSource) -> None:
    origins = np.array([300, 301])
    none = np.zeros(2, dtype=bool)
    batch = source.batch(np.array([0, 1]), origins, 48, np.full(2, 1000), none)
    scaling = source.scaling
    linked = batch.windows.centre + np.sinh(batch.targets) * batch.windows.spread[:, None]
    for window in range(2):
        expected = source.linked[window, origins[window] + 1 : origins[window] + 13]
        np.testing.assert_allclose(linked[window], expected, rtol=1e-3, atol=1e-3)
    assert scaling.from_link(linked).min() >= 0


def test_hidden_profiles_become_category_zero(source: RecordingSource) -> None:
    hidden = np.array([True, False])
    windows = source.batch(np.array([0, 0]), np.array([300, 300]), 48, np.full(2, 1000), hidden).windows
    assert windows.profile.tolist() == [0, 1]


def test_histories_from_nothing_to_the_whole_past_are_drawn() -> None:
    random = np.random.default_rng(0)
    draws = [draw_history(SPEC, 64, random) for _ in range(400)]
    lengths = {encoder_steps for encoder_steps, _ in draws}
    assert lengths == set(SPEC.encoder_lengths)
    assert min(known.min() for _, known in draws) == 0
    assert max(known.max() for _, known in draws) == SPEC.history_steps
    for encoder_steps, known in draws:
        assert encoder_steps == SPEC.context_steps or known.max() <= encoder_steps
    new = np.mean([known.max() <= 1 for _, known in draws])
    assert new == pytest.approx(HANDICAPS.short_history_share * NEWEST_SHARE, rel=0.25)


def test_a_context_of_a_single_step_has_no_other_short_history_than_none() -> None:
    spec = replace(SPEC, context_steps=1)
    draws = [draw_history(spec, 8, np.random.default_rng(seed)) for seed in range(50)]
    assert {encoder_steps for encoder_steps, _ in draws} == {1}
    assert {0, 1, spec.history_steps} <= set(np.concatenate([known for _, known in draws]).tolist())


def test_without_handicaps_the_network_is_told_all_there_is(source: RecordingSource) -> None:
    off = Handicaps(short_history_share=0, one_day_share=0, hidden_profile_share=0, position_noise=0)
    batches = batches_of(source, [0, 1], 4, off)
    for (rows, origins, encoder_steps, known_steps, hidden), batch in zip(source.asked, batches, strict=True):
        assert encoder_steps == SPEC.context_steps
        assert (known_steps == SPEC.history_steps).all()
        assert not hidden.any()
        as_cut = WindowSource.batch(source, rows, origins, encoder_steps, known_steps, hidden).windows.static
        np.testing.assert_array_equal(batch.windows.static, as_cut)


def seen(batch: Batch) -> list[np.ndarray]:
    """What the network is shown and asked for, and the scale on which its answer is read."""
    return [*batch.windows[:8], batch.windows.shape, batch.targets]


def test_exchanged_metrics_are_those_of_a_fleet_whose_columns_are_exchanged(source: RecordingSource) -> None:
    rows, origins, known, none = np.arange(32) % 3, np.arange(300, 332), np.full(32, 1000), np.zeros(32, dtype=bool)
    batch = source.batch(rows, origins, 48, known, none)
    of = {name: getattr(source.scaling, name)[:, ::-1] for name in STATISTICS}
    start = np.datetime64("2026-03-02T00:00:00", "s")
    values = source.values[..., ::-1]
    grid = FleetGrid(tuple("abcd"), ("database", "web_api") * 2, METRICS, start, 300, values)
    other = WindowSource(grid, SPEC, replace(source.scaling, **of))
    swapped = other.batch(rows, origins, 48, known, none)

    chosen = np.arange(32) % 4 > 0
    order = np.tile(np.arange(2), (32, 1))
    order[chosen] = np.random.default_rng(0).permuted(order[chosen], axis=1)
    made = exchange_metrics(batch, order)
    exchanged, kept = (
        [
            all(np.array_equal(ours[window], theirs[window]) for ours, theirs in zip(fields, wanted, strict=True))
            for window in range(32)
        ]
        for fields, wanted in ((seen(made), seen(swapped)), (seen(made), seen(batch)))
    )
    assert [a != b for a, b in zip(exchanged, kept, strict=True)] == [True] * 32
    assert not np.array(exchanged)[~chosen].any()
    assert 6 < sum(exchanged) < 18  # of 24 that drew one of two orders


@pytest.mark.parametrize("field", ["encoder", "encoder_calendar"])
def test_fictional_servers_are_made_only_where_no_profile_says_what_is_usual(
    source: RecordingSource, field: str
) -> None:
    def fields(hidden: float, fictional: float) -> list[np.ndarray]:
        source.asked = []
        handicaps = Handicaps(hidden_profile_share=hidden, fictional_servers=fictional, level_doubt=0)
        return [getattr(batch.windows, field) for batch in batches_of(source, [0, 1], 5, handicaps)]

    for with_it, without in zip(fields(0, 1e9), fields(0, 0), strict=True):
        np.testing.assert_array_equal(with_it, without)
    pairs = list(zip(fields(1, 1e9), fields(1, 0), strict=True))
    shows_itself = [(known >= SPEC.context_steps).any() for _, _, _, known, _ in source.asked]
    assert [not np.array_equal(*pair) for pair in pairs] == shows_itself
    assert set(shows_itself) == {True, False}


def test_the_more_servers_there_are_the_fewer_windows_are_of_fictional_ones() -> None:
    handicaps = Handicaps(fictional_servers=8)
    assert [handicaps.fictional_share(servers) for servers in (2, 8, 72)] == [0.8, 0.5, 0.1]
    assert Handicaps(fictional_servers=0).fictional_share(5) == 0


def test_another_clock_changes_the_calendar_and_nothing_else(source: RecordingSource) -> None:
    rows, origins, known, hidden = np.array([0, 1]), np.array([300, 301]), np.full(2, 1000), np.ones(2, dtype=bool)
    own = source.batch(rows, origins, 48, known, hidden)
    other = source.batch(rows, origins, 48, known, hidden, np.array([400, 310]))
    of_that_time = source.batch(rows, np.array([400, 310]), 48, known, hidden)
    for name, made in other.windows._asdict().items():
        expected = of_that_time if name.endswith(("calendar", "market")) else own
        np.testing.assert_array_equal(made, getattr(expected.windows, name), err_msg=name)
    np.testing.assert_array_equal(other.targets, own.targets)


def test_the_more_servers_there_are_the_less_their_position_is_blurred(source: WindowSource) -> None:
    def blur(servers: list[int], fictional: float) -> float:
        handicaps = Handicaps(fictional_servers=fictional)
        plans = epoch(source, np.array(servers), LAST_STEP, 16, np.random.default_rng(6), DOUBT, handicaps)
        return float(np.concatenate([plan.noise for plan in plans]).std())

    assert blur([0], 8) == pytest.approx(2 * 8 / 9, rel=0.1)
    assert blur([0, 1, 2], 8) == pytest.approx(2 * 8 / 11, rel=0.1)
    assert blur([0, 1], 0) == 0


def test_a_raised_server_is_one_that_measures_that_much_more_in_link_space(source: RecordingSource) -> None:
    rows, origins = np.array([0, 1, 2]), np.array([300, 310, 320])
    raised = np.array([[3.0, -2.0], [0.0, 7.0], [-4.0, 0.5]], dtype=np.float32)
    other = RecordingSource.__new__(RecordingSource)
    other.__dict__.update(source.__dict__)
    other.linked = source.linked.copy()
    other.linked[:3] += raised[:, None]
    for encoder_steps, known in ((48, [1000, 1000, 48]), (12, [7, 12, 9]), (1, [0, 1, 0])):
        asked = (rows, origins, encoder_steps, np.array(known), np.array([False, True, False]))
        made, expected = source.batch(*asked, raised=raised), other.batch(*asked)
        for name, field in made.windows._asdict().items():
            np.testing.assert_allclose(field, getattr(expected.windows, name), rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(made.targets, expected.targets, rtol=1e-6)


def test_levels_are_in_doubt_the_more_the_less_history_is_shown(source: RecordingSource) -> None:
    handicaps = Handicaps(short_history_share=1.0, hidden_profile_share=0.5, level_doubt=0.5)
    plans = [
        plan
        for seed in range(60)
        for plan in epoch(source, np.array([0, 1, 2]), LAST_STEP, 16, np.random.default_rng(seed), DOUBT, handicaps)
    ]
    known, hidden, rows, raised = (
        np.concatenate([getattr(plan, name) for plan in plans]) for name in ("known_steps", "hidden", "rows", "raised")
    )
    assert raised.dtype == np.float32
    assert not raised[known == SPEC.context_steps].any()
    usual = 0.5 * DOUBT[np.where(hidden, 0, source.profile_rows[rows])] * (1 - known / SPEC.context_steps)[:, None]
    some = known < SPEC.context_steps
    score = raised[some] / usual[some]
    for few in (known[some] == 0, known[some] > 24):
        for unknown in (False, True):
            chosen = score[few & (hidden[some] == unknown)]
            assert len(chosen) > 100
            assert chosen.std() == pytest.approx(1, rel=0.15)
            assert abs(chosen.mean()) < 0.2
