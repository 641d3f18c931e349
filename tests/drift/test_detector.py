"""The test of changed losses: no alarm without a change, a few days to find one, and what it says of it."""

import json

import numpy as np
import pytest

from fleet_forecast.drift.advice import changes
from fleet_forecast.drift.detector import QUARTER_DAYS, THRESHOLD, ChangeDetector, Day, Stream, p_values

FIRST_DAY = 20_000  # 2024-10-04
PROFILES, METRICS = ("database", "web_api", "batch"), ("cpu_pct", "mem_pct")


def is_off(number):
    return number % 7 >= 5


def days_of(values):
    """Days with the losses [day, profile, metric]."""
    return [
        Day(
            FIRST_DAY + number,
            {Stream(p, m): float(of_day[i, j]) for i, p in enumerate(PROFILES) for j, m in enumerate(METRICS)},
            is_off(number),
        )
        for number, of_day in enumerate(values)
    ]


def stationary(random, days):
    """Heavy-tailed losses with parts that all streams, or those of a profile, have in common."""
    shape = (days, len(PROFILES), len(METRICS))
    common = random.standard_t(4, (days, 1, 1)) + random.standard_t(4, (days, len(PROFILES), 1))
    return -0.3 + 0.04 * common + 0.05 * random.standard_t(4, shape)


def watched(days, reference):
    """The detector after the last day, and the first day on which it was sure, None if it never was."""
    detector = ChangeDetector.after(days[:reference])
    for day in days[reference:]:
        detector.add(day)
        if detector.changed:
            return detector, day.number - FIRST_DAY
    return detector, None


def test_stationary_quarters_raise_no_alarm():
    random = np.random.default_rng(0)
    for quarter in range(8):
        values = stationary(random, 9 + int(QUARTER_DAYS))
        if quarter % 2:  # days off are harder, and a part lasts from day to day
            values += 0.1 * is_off(np.arange(len(values)))[:, None, None]
            for day in range(1, len(values)):
                values[day] += 0.3 * (values[day - 1] + 0.3)
        assert watched(days_of(values), 9)[1] is None


def test_the_evidence_without_a_change_is_the_number_of_days_at_most():
    random, found = np.random.default_rng(1), []
    for _ in range(60):
        detector = ChangeDetector.after(days_of(stationary(random, 12)))
        for day in days_of(stationary(random, 8)):
            detector.add(day)
        found.append(detector.evidence)
    assert np.mean(found) < 8 + 3 * np.std(found) / np.sqrt(len(found))


def test_ranks_of_exchangeable_days_are_uniform():
    random = np.random.default_rng(2)
    ranks = np.array([p_values(days_of(stationary(random, 10))) for _ in range(300)])
    for level in (0.1, 0.3, 0.5):
        assert (ranks <= level + 1e-9).mean(axis=0) == pytest.approx(level, abs=0.06)


@pytest.mark.parametrize(
    ("size", "where", "most_days"), [(0.3, np.s_[:, :], 5), (0.6, np.s_[0, :], 6), (0.8, np.s_[1, 1], 7)]
)
def test_a_change_is_found_within_days_and_named(size, where, most_days):
    known = 35
    values = stationary(np.random.default_rng(3), known + 20)
    values[(slice(known, None), *where)] += size
    detector, found = watched(days_of(values), 9)
    assert known < found < known + most_days
    (first, *others) = [reason.text for reason in changes(detector)]
    assert "since 2024-11-08 the error is higher than before" in first
    if where == np.s_[0, :]:
        assert first.startswith("profile database: ")
        assert "cpu_pct by " in first
        assert "mem_pct by " in first
        assert others == []
    if where == np.s_[1, 1]:
        assert first.startswith("profile web_api: ")
        assert 90 < int(first.split("mem_pct by ")[1].removesuffix(" %")) < 160  # exp(0.8) is 2.23


def test_an_improvement_and_one_odd_day_raise_no_alarm():
    values = stationary(np.random.default_rng(4), 60)
    values[30] += 50
    values[40:] -= 0.5
    assert watched(days_of(values), 9)[1] is None


def test_a_change_after_days_that_are_all_equal_is_found():
    values = np.zeros((40, len(PROFILES), len(METRICS)))
    values[30:] = 0.1 + 0.01 * np.random.default_rng(7).random((10, 1, 1))
    assert 30 < watched(days_of(values), 9)[1] < 36


def test_a_stream_that_begins_later_and_days_without_losses_are_not_a_change():
    values = stationary(np.random.default_rng(5), 60)
    days = days_of(values)
    for number, day in enumerate(days):
        if number < 30:
            del day.losses[Stream("batch", "cpu_pct")]
    days[40] = Day(days[40].number, {})
    detector, found = watched(days, 9)
    assert found is None
    assert len(detector.days) == 59


def test_a_change_soon_after_another_model_is_found_by_what_the_days_before_have_shown_of_their_variation():
    random = np.random.default_rng(9)
    values = 0.1 * random.standard_normal((54, len(PROFILES), len(METRICS)))
    values[40:] -= 0.4  # the other model is better
    values[52:, 0] += 0.5
    days = days_of(values)
    before = ChangeDetector.after(days[:9])
    for day in days[9:42]:  # two days of both models count once
        before.add(day)
    evidence = {}
    for name, earlier in (("with", before), ("without", None)):
        detector = ChangeDetector.after(days[40:46], earlier)
        for day in days[46:]:
            detector.add(day)
        evidence[name] = detector.evidence
        assert sum(map(len, detector.earlier)) == (40 if earlier else 0)
    assert evidence["with"] > THRESHOLD > evidence["without"]


def test_the_state_before_the_first_day_survives_a_restart():
    again = ChangeDetector.restore(json.loads(json.dumps(ChangeDetector().as_fields())))
    assert (again.days, again.evidence, again.days_since_change) == ([], 0.0, 0)
    again.add(days_of(stationary(np.random.default_rng(6), 1))[0])
    assert not again.changed


def test_the_state_survives_a_restart():
    values = stationary(np.random.default_rng(6), 40)
    values[35:] += 0.3
    days = days_of(values)
    before, _ = watched(days[:20], 9)
    whole = ChangeDetector.after(days[20:28], before)
    for day in days[28:37]:
        whole.add(day)
    again = ChangeDetector.restore(json.loads(json.dumps(whole.as_fields())))
    for detector in (whole, again):
        detector.add(days[37])
    assert again.evidence == whole.evidence > 1
    assert (again.days, again.reference, again.earlier) == (whole.days, 8, [days[:20]])
    assert pytest.approx(9125) == THRESHOLD
