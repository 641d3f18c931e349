"""Ablations: what a variant changes, its training and its table."""

import json

import numpy as np
import pytest

from benchmarks import ablations, limit
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.training.batches.source import WindowSelection, WindowSource
from tests.conftest import tiny_fleet

SPEC = WindowSpec(("cpu_pct",), 300, BusinessCalendar("UTC"), context_steps=48, horizon_steps=12)


def test_scaled_per_server_an_unseen_server_has_the_statistics_of_the_median_server():
    random = np.random.default_rng(0)
    levels = np.array([10.0, 30.0, 60.0, 70.0, 90.0])
    values = (levels[:, None, None] + random.normal(0, 2, (5, 400, 1))).astype(np.float32)
    grid = FleetGrid(tuple("abcde"), ("web_api", "database") * 2 + ("web_api",), SPEC.metrics, limit.START, 300, values)
    known = slice(0, 4)
    servers = ablations.median_for_unseen(fit_scaling(values[known], {"cpu_pct": "percent"}, grid.servers[known], 48))
    profiles = fit_scaling(values[known], {"cpu_pct": "percent"}, grid.profiles[known], 48)
    source = ablations.PerServerSource(grid, SPEC, servers, profiles)
    masked = np.array([False, False, True, False, False])
    selection = WindowSelection(np.arange(5), np.full(5, 300), 48, np.full(5, 48), masked)
    windows = source.batch(selection).windows
    own = servers.bounds.transform(values[known]).mean(axis=1)
    np.testing.assert_allclose(windows.target_scale.loc[known][:, 0], own, rtol=1e-3)
    np.testing.assert_allclose(windows.target_scale.loc[4, 0], np.median(own, axis=0), rtol=1e-3)
    assert windows.inputs.profile.tolist() == [2, 1, 0, 1, 2]  # database is 1, web_api is 2, masked is 0


@pytest.mark.parametrize(
    ("variant", "seasonality", "quantile_map"), [("no_seasonality", False, True), ("no_quantile_map", True, False)]
)
def test_a_variant_removes_its_part_and_only_while_it_runs(variant, seasonality, quantile_map):
    hours = np.arange(5 * 288) / 288 * 2 * np.pi
    values = np.random.default_rng(0).exponential(3, (2, hours.size, 1)) + (50 + 20 * np.sin(hours))[None, :, None]
    grid = FleetGrid(("a", "b"), (None, None), ("cpu_pct",), limit.START, 300, values.astype(np.float32))
    spec = WindowSpec(grid.metrics, 300, BusinessCalendar("UTC"), context_steps=288, horizon_steps=12)
    scaling = fit_scaling(grid.values, {"cpu_pct": "percent"}, grid.profiles, 288)
    source = WindowSource(grid, spec, scaling)

    def features():
        selection = WindowSelection(np.arange(2), np.full(2, 1300), 288, np.full(2, 1300), np.ones(2, dtype=bool))
        inputs, target_scale = source.batch(selection).windows
        normal = np.allclose(target_scale.window_quantiles, ablations.NORMAL_SCORES, atol=1e-6)
        return bool((inputs.static[:, 2] > 0.5).all()), not normal

    (chosen,) = [one for one in ablations.VARIANTS if one.name == variant]
    with ablations.windows_of(chosen):
        assert features() == (seasonality, quantile_map)
    assert features() == (True, True)


def test_a_variant_is_trained_and_scored_with_every_length_of_history(tmp_path):
    frame = tiny_fleet(hours=14 * 24, seed=1)
    frame.to_parquet(tmp_path / "fleet.parquet", index=False)
    flags = ["--training-dir", tmp_path / "fleet.parquet", "--step-seconds", 3600, "--work-dir", tmp_path / "runs"]
    flags += ["--variants", "shipped,no_seasonality", "--output", tmp_path / "table.md"]
    assert ablations.main(list(map(str, flags))) == 0
    runs = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*.json"))]
    with_seasonality, without = (run["unseen_scores"]["masked"] for run in reversed(runs))
    assert set(with_seasonality) == set(ablations.HISTORIES)
    assert with_seasonality["7 days"]["wql"] != without["7 days"]["wql"]
    assert all(0 < of["wql"] < 10 for of in with_seasonality.values())


def test_the_table_has_the_stored_runs(tmp_path):
    def scores(wql):
        return {"wql": wql, "accuracy": 100 - 100 * wql, "coverage_80": 80.0, "coverage_96": 96.0}

    for variant, wql in (("shipped", 0.1), ("per_server", 0.25)):
        unseen = {profile: {h: scores(wql) for h in ablations.HISTORIES} for profile in ("given", "masked")}
        run = {"variant": variant, "seed": 1, "epochs": 1, "data": "fleet", "servers": 90, "training_servers": 64}
        run |= {"unseen_servers": 18, "steps": 8640}
        run |= {"metrics": ["cpu_pct"], "step_seconds": 300, "unseen_scores": unseen, "training_score": scores(wql)}
        (tmp_path / f"fleet-{variant}-1.json").write_text(json.dumps(run))
    output = tmp_path / "table.md"
    assert ablations.main(["--variants", "", "--work-dir", str(tmp_path), "--output", str(output)]) == 0
    text = output.read_text()
    assert "## fleet: 90 servers, 720 hours, 1 metrics, steps of 300 s" in text
    rows = [line for line in text.splitlines() if line.startswith("| scaled per server")]
    assert rows[0].count("0.2500 (+150)") == 2 * len(ablations.HISTORIES) + 1
    assert rows[1].count("75.0") == 2 * len(ablations.HISTORIES) + 1
