"""The folds of benchmarks/real_roles.py hold out other servers each time."""

from __future__ import annotations

import pandas as pd

from benchmarks.real_roles import folds_of, markdown, summary


def test_each_fold_holds_out_another_quarter_of_each_profile() -> None:
    names = [f"{profile}{number}" for profile in "ab" for number in range(8)]
    frame = pd.DataFrame({"server_name": names, "profile": [name[0] for name in names]})
    folds = [fold.held_out for fold in folds_of(frame, 4, None)]
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    assert all(sum(name.startswith("a") for name in fold) == 2 for fold in folds)


def test_servers_of_one_host_are_held_out_together() -> None:
    names = [f"host{host}:vm{number}" for host in range(8) for number in range(3)]
    frame = pd.DataFrame({"server_name": names, "profile": ["a", "b", "c"] * 8})
    for fold in folds_of(frame, 4, ":"):
        assert len(fold.held_out) == 6
        assert len({name.split(":")[0] for name in fold.held_out}) == 2


def test_the_table_has_the_mean_and_the_spread_over_the_folds() -> None:
    row = {"history": "none", "method": "model", "accuracy": 80.0, "coverage_80": 79.0}
    table = summary([pd.DataFrame([{**row, "wql": wql}]) for wql in (0.1, 0.2)])
    assert "| none | model | 0.150 ± 0.071 | 80.0 ± 0.0 | 79.0 ± 0.0 |" in markdown("title", table)
