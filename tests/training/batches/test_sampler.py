"""Batches of an epoch: each server-hour once, no other server, no target after the end."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from fleet_forecast.training.batches.source import WindowSelection
from tests.training.fleets import LAST_STEP, SPEC, RecordingSource, batches_of, recording_source, sampler_of


@pytest.fixture
def source() -> RecordingSource:
    return recording_source()


def test_an_epoch_visits_every_server_hour_with_a_target_once(source: RecordingSource) -> None:
    batches = batches_of(source, [0, 1], seed=0)
    hours = [
        (int(row), int(origin) // 12)
        for selection in source.selections
        for row, origin in zip(selection.rows, selection.origins, strict=True)
    ]
    assert sorted(hours) == [(row, hour) for row in (0, 1) for hour in range((LAST_STEP - 12) // 12 + 1)]
    assert len(batches) == sampler_of(source, [0, 1]).batches_per_epoch()


def test_an_epoch_entered_later_continues_with_the_same_batches(source: RecordingSource) -> None:
    sampler = sampler_of(source, [0, 1])
    whole, rest = (list(sampler.epoch(np.random.default_rng(0), first)) for first in (0, 3))
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert one.number == other.number
        np.testing.assert_array_equal(one.position_noise, other.position_noise)
        np.testing.assert_array_equal(one.metric_order, other.metric_order)
        for field in fields(WindowSelection):
            ours, theirs = (getattr(plan.selection, field.name) for plan in (one, other))
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


def test_other_servers_are_in_no_batch_and_no_target_lies_after_the_end(source: RecordingSource) -> None:
    batches_of(source, [0, 2], seed=1)
    assert set(np.concatenate([selection.rows for selection in source.selections])) == {0, 2}
    origins = np.concatenate([selection.origins for selection in source.selections])
    assert origins.max() + SPEC.horizon_steps <= LAST_STEP


def test_windows_without_a_single_target_are_not_visited(source: RecordingSource) -> None:
    batches = batches_of(source, [3], seed=2)
    assert all((~np.isnan(batch.targets)).any(axis=(1, 2)).all() for batch in batches)
    visited = sum(len(batch.targets) for batch in batches)
    assert 0 < visited < (LAST_STEP - 12) // 12 + 1


def test_targets_are_the_standardised_future(source: RecordingSource) -> None:
    origins = np.array([300, 301])
    batch = source.batch(WindowSelection(np.array([0, 1]), origins, 48, np.full(2, 1000)))
    target_scale = batch.windows.target_scale
    transformed = target_scale.loc + np.sinh(batch.targets) * target_scale.scale[:, None]
    for window in range(2):
        expected = source.transformed[window, origins[window] + 1 : origins[window] + 13]
        np.testing.assert_allclose(transformed[window], expected, rtol=1e-3, atol=1e-3)
    assert source.scaling.bounds.inverse(transformed).min() >= 0


def test_masked_profiles_are_category_zero(source: RecordingSource) -> None:
    masked = np.array([True, False])
    selection = WindowSelection(np.array([0, 0]), np.array([300, 300]), 48, np.full(2, 1000), masked)
    assert source.batch(selection).windows.inputs.profile.tolist() == [0, 1]


def test_another_calendar_origin_changes_the_calendar_only(source: RecordingSource) -> None:
    rows, origins, known, masked = np.array([0, 1]), np.array([300, 301]), np.full(2, 1000), np.ones(2, dtype=bool)
    own = source.batch(WindowSelection(rows, origins, 48, known, masked))
    other = source.batch(WindowSelection(rows, origins, 48, known, masked, np.array([400, 310])))
    of_that_time = source.batch(WindowSelection(rows, np.array([400, 310]), 48, known, masked))
    for name, made in other.windows.fields().items():
        expected = of_that_time if name.endswith(("calendar", "market")) else own
        np.testing.assert_array_equal(made, expected.windows.fields()[name], err_msg=name)
    np.testing.assert_array_equal(other.targets, own.targets)


def test_a_level_shift_equals_a_shift_of_all_transformed_values_of_the_server(source: RecordingSource) -> None:
    rows, origins = np.array([0, 1, 2]), np.array([300, 310, 320])
    shift = np.array([[3.0, -2.0], [0.0, 7.0], [-4.0, 0.5]], dtype=np.float32)
    other = recording_source()
    other.transformed[:3] += shift[:, None]
    masked = np.array([False, True, False])
    for encoder_steps, known in ((48, [1000, 1000, 48]), (12, [7, 12, 9]), (1, [0, 1, 0])):
        asked = (rows, origins, encoder_steps, np.array(known), masked)
        made = source.batch(WindowSelection(*asked, level_shift=shift))
        expected = other.batch(WindowSelection(*asked))
        for name, field in made.windows.fields().items():
            np.testing.assert_allclose(field, expected.windows.fields()[name], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(made.targets, expected.targets, rtol=1e-6)
