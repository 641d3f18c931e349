"""Order, distances and far-off rows, against plain loops."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_forecast.timeline import NANOSECONDS, RowsByDay, Timeline

DAY = 86_400 * NANOSECONDS
rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=40)


def distances_of(pairs):
    found, times = Counter(), {}
    for server, second in sorted(pairs):
        if server in times and second > times[server]:
            found[second - times[server]] += 1
        times[server] = second
    return found


@settings(max_examples=100, deadline=None)
@given(rows)
def test_repeats_their_first_rows_and_distances_agree_with_a_plain_loop(pairs):
    timeline = Timeline()
    servers, seconds = (np.array(column) for column in zip(*pairs, strict=True))
    later, first = timeline.sort(servers.astype(np.int32), seconds * NANOSECONDS)
    seen, expected = {}, {}
    for number, pair in enumerate(pairs):
        if pair in seen:
            expected[number] = seen[pair]
        seen.setdefault(pair, number)
    assert dict(zip(later.tolist(), first.tolist(), strict=True)) == expected
    assert timeline.distances == distances_of(pairs)


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(1, 7))
def test_batches_in_order_have_the_distances_of_all_rows(pairs, size):
    timeline, ordered = Timeline(), sorted(set(pairs), key=lambda pair: (pair[1], pair[0]))
    for begin in range(0, len(ordered), size):
        servers, seconds = (np.array(column) for column in zip(*ordered[begin : begin + size], strict=True))
        timeline.add(servers.astype(np.int32), seconds * NANOSECONDS, 4)
    assert timeline.in_order
    assert timeline.distances == distances_of(ordered)


def days(*parts):
    """Rows on days, as (day, number of rows)."""
    found = RowsByDay()
    instants = np.concatenate([day * DAY + np.arange(count) * NANOSECONDS for day, count in parts])
    found.add(np.random.default_rng(1).permutation(instants))
    return found


@pytest.mark.parametrize(
    ("parts", "servers", "strays"),
    [
        ([(100, 500), (101, 500), (0, 1)], 1, 1),
        ([(100, 500), (101, 500), (109, 1)], 1, 1),
        ([(100, 500), (101, 500), (108, 1)], 1, 0),  # seven days are not a long gap
        ([(100, 500), (101, 500), (0, 3), (200, 2)], 5, 5),
        ([(100, 500), (101, 500), (0, 6)], 5, 0),  # more than one for each server
        ([(100, 40), (101, 40), (0, 1)], 1, 0),  # more than 1 %
        ([(100, 500), (130, 500), (160, 1)], 1, 1),
        ([(30 * month, 1) for month in range(200)], 1, 0),
        ([(5, 3)], 1, 0),
    ],
)
def test_single_rows_far_from_all_others_are_strays(parts, servers, strays):
    found = days(*parts)
    assert found.strays(servers) == strays
    found.keep(*found.main_range(servers))
    assert found.strays(servers) == 0
    assert (found.first, found.last) == found.main_range(servers)
