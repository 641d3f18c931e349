"""Checks on unseen servers: gaps in the history and coverage by length of history."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import unseen_servers


@pytest.mark.parametrize("gaps", [unseen_servers.at_random, unseen_servers.in_blocks_of(36)])
def test_a_fifth_of_the_rows_is_removed(gaps):
    removed = gaps((400, 288), np.random.default_rng(1))
    assert removed.mean() == pytest.approx(0.2, abs=0.02)


def test_blocks_are_whole_but_at_the_ends_of_a_history():
    removed = unseen_servers.in_blocks_of(36)((200, 288), np.random.default_rng(1))
    for row in removed:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        for first, end in edges.reshape(-1, 2):
            assert (end - first) % 36 == 0 or first == 0 or end == 288


def test_the_metric_farthest_off_is_shown_whether_its_bands_are_too_narrow_or_too_wide():
    metrics = ["cpu_pct", "mem_pct", "latency_ms", "mean"]
    scores = pd.DataFrame({"wql": [0.1, 0.1, 0.4, 0.2]}, index=metrics)
    narrow = scores.assign(coverage_80=[79.0, 60.0, 83.0, 74.0], coverage_96=[95.0, 90.0, 97.0, 94.0])
    wide = scores.assign(coverage_80=[79.0, 91.0, 83.0, 84.3], coverage_96=[93.0, 98.0, 97.0, 96.0])
    table = unseen_servers.calibration_by_history({"none": narrow, "1 step": wide}).set_index("history")
    assert table["farthest_80"].tolist() == [60, 91]
    assert table["farthest_96"].tolist() == [90, 93]
    assert table["coverage_80"].tolist() == [74.0, 84.3]
