"""Augmentation: histories of any length, masked profiles, synthetic servers, level shifts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fleet_forecast.features.scaling import STATISTICS
from fleet_forecast.training.batches.augmentation import (
    DEFAULT_AUGMENTATION,
    SHORTEST_SHARE,
    Augmentation,
    draw_history,
    exchange_metrics,
)
from fleet_forecast.training.batches.source import TrainingBatch, WindowSelection, WindowSource
from tests.training.fleets import (
    SPEC,
    RecordingSource,
    batches_of,
    grid_of,
    plans_of,
    recording_source,
    sampler_of,
)


@pytest.fixture
def source() -> RecordingSource:
    return recording_source()


def test_histories_from_none_to_the_whole_past_are_drawn() -> None:
    random = np.random.default_rng(0)
    draws = [draw_history(SPEC, 64, random)[:2] for _ in range(400)]
    lengths = {encoder_steps for encoder_steps, _ in draws}
    assert lengths == set(SPEC.encoder_lengths)
    assert min(known.min() for _, known in draws) == 0
    assert max(known.max() for _, known in draws) == SPEC.history_steps
    for encoder_steps, known in draws:
        assert encoder_steps == SPEC.context_steps or known.max() <= encoder_steps
    new = np.mean([known.max() <= 1 for _, known in draws])
    assert new == pytest.approx(DEFAULT_AUGMENTATION.short_history_share * SHORTEST_SHARE, rel=0.25)


def test_with_a_context_of_a_single_step_the_only_short_history_is_none() -> None:
    spec = replace(SPEC, context_steps=1)
    draws = [draw_history(spec, 8, np.random.default_rng(seed))[:2] for seed in range(50)]
    assert {encoder_steps for encoder_steps, _ in draws} == {1}
    assert {0, 1, spec.history_steps} <= set(np.concatenate([known for _, known in draws]).tolist())


def test_without_augmentation_windows_are_unchanged(source: RecordingSource) -> None:
    off = Augmentation(short_history_share=0, one_day_share=0, masked_profile_share=0, position_noise=0)
    batches = batches_of(source, [0, 1], 4, off)
    for selection, batch in zip(source.selections, batches, strict=True):
        assert selection.encoder_steps == SPEC.context_steps
        assert (selection.known_steps == SPEC.history_steps).all()
        assert not selection.masked_profile.any()
        unchanged = WindowSource.batch(source, selection).windows.inputs.static
        np.testing.assert_array_equal(batch.windows.inputs.static, unchanged)


def compared(batch: TrainingBatch[np.ndarray]) -> list[np.ndarray]:
    """All that depends on the order of the metrics, in standardised units."""
    return [*batch.windows.inputs, batch.windows.target_scale.window_quantiles, batch.targets]


def test_exchanged_metrics_are_those_of_a_fleet_whose_columns_are_exchanged(source: RecordingSource) -> None:
    selection = WindowSelection(np.arange(32) % 3, np.arange(300, 332), 48, np.full(32, 1000))
    batch = source.batch(selection)
    of = {name: getattr(source.scaling, name)[:, ::-1] for name in STATISTICS}
    other = WindowSource(grid_of(source.values[..., ::-1]), SPEC, replace(source.scaling, **of))
    swapped = other.batch(selection)

    chosen = np.arange(32) % 4 > 0
    order = np.tile(np.arange(2), (32, 1))
    order[chosen] = np.random.default_rng(0).permuted(order[chosen], axis=1)
    made = TrainingBatch(*exchange_metrics(batch.windows, batch.targets, order))
    exchanged, kept = (
        [
            all(np.array_equal(ours[window], theirs[window]) for ours, theirs in zip(fields, wanted, strict=True))
            for window in range(32)
        ]
        for fields, wanted in ((compared(made), compared(swapped)), (compared(made), compared(batch)))
    )
    assert [a != b for a, b in zip(exchanged, kept, strict=True)] == [True] * 32
    assert not np.array(exchanged)[~chosen].any()
    assert 6 < sum(exchanged) < 18  # of 24 that drew one of two orders


@pytest.mark.parametrize("field", ["encoder", "encoder_calendar"])
def test_synthetic_servers_have_an_unknown_profile_and_a_whole_context(source: RecordingSource, field: str) -> None:
    def fields(masked: float, synthetic: float) -> list[np.ndarray]:
        source.selections = []
        augmentation = Augmentation(masked_profile_share=masked, synthetic_servers=synthetic, level_uncertainty=0)
        return [getattr(batch.windows.inputs, field) for batch in batches_of(source, [0, 1], 5, augmentation)]

    for with_it, without in zip(fields(0, 1e9), fields(0, 0), strict=True):
        np.testing.assert_array_equal(with_it, without)
    pairs = list(zip(fields(1, 1e9), fields(1, 0), strict=True))
    whole_context = [(selection.known_steps >= SPEC.context_steps).any() for selection in source.selections]
    assert [not np.array_equal(*pair) for pair in pairs] == whole_context
    assert set(whole_context) == {True, False}


def test_the_share_of_synthetic_servers_falls_with_the_number_of_servers() -> None:
    augmentation = Augmentation(synthetic_servers=8)
    assert [augmentation.synthetic_share(servers) for servers in (2, 8, 72)] == [0.8, 0.5, 0.1]
    assert Augmentation(synthetic_servers=0).synthetic_share(5) == 0


def test_the_position_noise_falls_with_the_number_of_servers(source: WindowSource) -> None:
    def deviation(servers: list[int], synthetic: float) -> float:
        plans = plans_of(source, servers, 6, Augmentation(synthetic_servers=synthetic))
        return float(np.concatenate([plan.position_noise for plan in plans]).std())

    assert deviation([0], 8) == pytest.approx(2 * 8 / 9, rel=0.1)
    assert deviation([0, 1, 2], 8) == pytest.approx(2 * 8 / 11, rel=0.1)
    assert deviation([0, 1], 0) == 0


def test_the_level_shift_falls_with_the_length_of_history(source: RecordingSource) -> None:
    augmentation = Augmentation(short_history_share=1.0, masked_profile_share=0.5, level_uncertainty=0.5)
    sampler = sampler_of(source, [0, 1, 2], augmentation)
    sampler.__dict__["level_uncertainty"] = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)
    selections = [plan.selection for seed in range(60) for plan in sampler.epoch(np.random.default_rng(seed))]
    names = ("known_steps", "masked_profile", "rows", "level_shift")
    known, masked, rows, shift = (
        np.concatenate([getattr(selection, name) for selection in selections]) for name in names
    )
    assert shift.dtype == np.float32
    assert not shift[known == SPEC.context_steps].any()
    profiles = source.profiles_of(rows, masked)
    deviation = 0.5 * sampler.level_uncertainty[profiles] * (1 - known / SPEC.context_steps)[:, None]
    some = known < SPEC.context_steps
    score = shift[some] / deviation[some]
    for few in (known[some] == 0, known[some] > 24):
        for is_masked in (False, True):
            chosen = score[few & (masked[some] == is_masked)]
            assert len(chosen) > 100
            assert chosen.std() == pytest.approx(1, rel=0.15)
            assert abs(chosen.mean()) < 0.2
