"""Alarms against hand-written cases."""

import numpy as np
import pytest

from fleet_forecast.risk.alarms import (
    Incidents,
    Scene,
    begins_within,
    curve,
    evaluate_alarms,
    persistent,
    signs_begun,
)

STEP = 300.0


def scene_of(*incidents, servers=2, steps=100, rate=4.0):
    columns = list(zip(*incidents, strict=True)) or [(), (), (), (), ()]
    arrays = [np.array(column, dtype=object if index == 4 else None) for index, column in enumerate(columns)]
    arrays[0] = arrays[0].astype(np.int64)
    return Scene(servers, STEP * np.arange(1, steps + 1), Incidents(*arrays), rate)


def firing_at(scene, *spans):
    firing = np.zeros((scene.servers, len(scene.seconds)), dtype=bool)
    for server, first, last in spans:
        firing[server, first:last] = True
    return firing


LONG = (0, 10 * STEP, 30 * STEP, 40 * STEP, "oom")


def test_an_alarm_begins_after_two_high_risks_and_ends_after_three_low_ones():
    risk = np.array([[0.1, 0.5, 0.1, 0.5, 0.6, 0.3, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.5, np.nan, 0.5, 0.5]])
    on = persistent(risk, 0.5)
    np.testing.assert_array_equal(np.flatnonzero(on[0]), [4, 5, 6, 7, 8, 9, 10, 15])


@pytest.mark.parametrize(
    ("first", "false_alarms", "lead"),
    [(8, 1, np.nan), (9, 0, 20 * STEP), (29, 0, 0.0), (35, 0, -6 * STEP), (45, 0, -16 * STEP), (46, 1, np.nan)],
)
def test_an_alarm_from_the_onset_to_half_an_hour_after_the_end_is_a_hit(first, false_alarms, lead):
    scene = scene_of(LONG)
    found = evaluate_alarms(firing_at(scene, (0, first, first + 2)), scene)
    assert found.false_alarms == false_alarms
    np.testing.assert_array_equal(found.lead_seconds, [lead])
    assert found.has_long_precursor.tolist() == [True]


def test_alarms_of_another_server_are_false_and_several_of_one_incident_count_once():
    scene = scene_of(LONG)
    found = evaluate_alarms(firing_at(scene, (0, 12, 14), (0, 20, 22), (1, 12, 14)), scene)
    assert found.false_alarms == 1
    np.testing.assert_array_equal(found.lead_seconds, [17 * STEP])


def test_incidents_that_are_cut_off_are_not_counted_and_explain_their_alarms():
    scene = scene_of((0, -STEP, 5 * STEP, 9 * STEP, "oom"), (1, 95 * STEP, 98 * STEP, 120 * STEP, "oom"))
    found = evaluate_alarms(firing_at(scene, (0, 3, 5), (1, 96, 99)), scene)
    assert (found.false_alarms, len(found.kinds)) == (0, 0)


def test_targets_are_true_before_and_during_an_incident():
    scene = scene_of(LONG)
    np.testing.assert_array_equal(np.flatnonzero(begins_within(scene, 2 * STEP)[0]), np.arange(27, 40))
    np.testing.assert_array_equal(np.flatnonzero(signs_begun(scene)[0]), np.arange(9, 40))
    assert not signs_begun(scene)[1].any()


def test_the_curve_has_precision_at_the_usual_rate_and_leaves_out_levels_of_many_false_alarms():
    scene = scene_of(LONG, (1, 50 * STEP, 50 * STEP, 60 * STEP, "ddos"), steps=8_640)  # two server-months
    risk = np.zeros((2, 8_640), dtype=np.float32)
    risk[0, 20:35], risk[1, 200:210], risk[1, 52:55] = 0.9, 0.6, 0.3
    risk[0, 1_000:8_000:10] = risk[0, 1_001:8_000:10] = 0.02
    risk[0, 1_000:8_000:10] = 0.02
    points = curve([risk], [scene], [0.015, 0.25, 0.5, 0.8])
    assert [point.level for point in points] == [0.25, 0.5, 0.8]
    first, second, third = points
    assert first.false_alarms_per_server_month == second.false_alarms_per_server_month == 0.5
    assert first.precision == pytest.approx((2 / 4) / (2 / 4 + 1))
    assert (first.recall_other, second.recall_other) == (1.0, 0.0)
    assert third.precision == 1.0
    assert third.ahead == 1.0
    assert third.median_lead_minutes == pytest.approx((30 - 22) * 5)
