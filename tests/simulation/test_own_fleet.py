"""Simulated servers of the profiles and metrics of a fleet file."""

import numpy as np
import pytest

from fleet_forecast.contract.definitions import use_fleet
from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.contract.reading import read_metrics
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.incident_kinds import KINDS, LABELS
from fleet_forecast.simulation.metric_model import simulated
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.simulation.simulator import simulate
from metrics_generator import main
from server_profiles import GENERAL_INCIDENTS

FLEET = r"""
timezone = "Europe/Berlin"
holidays = "DE"
[profiles.cache]
patterns = ['redis\d+']
first_name = "redis01"
servers = 2
rhythm = {weekend = 0.5, windows = [{start = "08:00", end = "18:00", multiplier = 2.0}]}
[profiles.cache.baselines]
cpu_pct = [35, 8]
fs_used_pct = [70, 6]
queue_depth = [20, 8]
celsius = [-4, 2]
[profiles.web_api.baselines]
queue_depth = [5, 1]
[profiles.empty]
[metrics.fs_used_pct]
unit = "%"
kind = "percent"
[metrics.queue_depth]
unit = "jobs"
kind = "rate"
[metrics.celsius]
unit = "°C"
kind = "value"
"""
START = np.datetime64("2026-09-14T00:00:00", "s")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "own.toml").write_text(FLEET)
    return tmp_path / "own.toml"


def test_own_profiles_have_incidents_that_show_in_their_metrics(file):
    with use_fleet(read_fleet(file)) as definition:
        assert definition.profiles["cache"].incidents == ("resource_starvation",)
        assert definition.profiles["empty"].incidents == ()
        fleet = Fleet.of({"cache": 20}, seed=3)
        scenario = Scenario(fleet, START, 4032, 300, definition.calendar, incident_rate=4.0, outage_rate=0.0)
        found = simulate(scenario)
        kinds = {LABELS[code] for code in np.unique(found.incidents[found.incidents >= 0])}
        cpu = found.metrics[..., simulated().positions["cpu_pct"]]
    assert kinds == {"resource_starvation"}
    assert cpu[found.incidents >= 0].mean() > 1.3 * cpu[found.incidents < 0].mean()


def test_a_profile_names_its_incidents_and_an_unknown_one_is_refused(tmp_path):
    named = tmp_path / "fleet.toml"
    named.write_text("[profiles.cache]\nincidents = ['oom', 'ddos']\n[profiles.web_api]\nincidents = []\n")
    fleet = read_fleet(named)
    assert (fleet.profiles["cache"].incidents, fleet.profiles["web_api"].incidents) == (("oom", "ddos"), ())
    named.write_text("[profiles.cache]\nincidents = ['fire']\n")
    with pytest.raises(TomlFileError, match=r"line 2: .*unknown incident 'fire'; use oom, cuda_oom"):
        read_fleet(named)


def test_the_general_incidents_show_in_the_metric_that_is_named_for_them():
    for kind, metric in GENERAL_INCIDENTS.items():
        assert metric in KINDS[kind].before


def test_own_profiles_have_their_baselines_and_rhythm_and_no_other_metric(file):
    with use_fleet(read_fleet(file)) as definition:
        fleet = Fleet.of({"cache": 60}, seed=3)
        scenario = Scenario(fleet, START, 2016, 300, definition.calendar, incident_rate=0.0, outage_rate=0.0)
        values = dict(zip(simulated().names, np.moveaxis(simulate(scenario).metrics, 2, 0), strict=True))
        hours = (scenario.timestamps().astype(np.int64) // 3600 + 2) % 24  # summer time
    assert fleet.names[0] == "redis01"
    for metric, (mean, spread) in {"cpu_pct": (35, 8), "fs_used_pct": (70, 6), "queue_depth": (20, 8)}.items():
        assert values[metric].mean() == pytest.approx(mean, rel=0.05), metric
        around = values[metric] - values[metric].mean(axis=0)
        assert around.std() == pytest.approx(spread, rel=0.15), metric
    assert values["celsius"].mean() == pytest.approx(-4, abs=0.3)
    busy = (hours >= 9) & (hours < 17) & (np.arange(2016) < 5 * 288)
    assert values["queue_depth"][:, busy].mean() > 1.6 * values["queue_depth"][:, ~busy].mean()
    assert np.isnan(values["latency_ms"]).all()


def test_the_generator_writes_them_the_same_with_any_number_of_workers(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fleet_forecast.commands.generator.generate_fleet.ROWS_PER_WORKER", 1)
    monkeypatch.setattr("fleet_forecast.simulation.output.writer.SERVERS_IN_ONE_GROUP", 4)
    monkeypatch.setattr("fleet_forecast.simulation.output.writer.ROWS_IN_ONE_GROUP", 1)
    flags = ["--fleet", str(file), "--hours", "6", "--num_cache", "5"]
    for workers in ("1", "2"):
        assert main([*flags, "--workers", workers, "--out_dir", str(tmp_path / workers)]) == 0
    one, two = (tmp_path / workers / "server_metrics.parquet" for workers in ("1", "2"))
    assert one.read_bytes() == two.read_bytes()
    with use_fleet(read_fleet(file)) as definition:
        data = read_metrics(tmp_path / "1")
        assert data.metadata is not None
        assert data.metadata.business_calendar() == definition.calendar
    assert data.notices == ()
    assert data.metrics[-3:] == ("fs_used_pct", "queue_depth", "celsius")
    assert data.metadata.fleet["cache"] == 5
    frame = data.frame
    assert frame[frame["profile"] == "database"]["queue_depth"].isna().all()
    assert frame[frame["profile"] == "web_api"]["queue_depth"].mean() == pytest.approx(5, rel=0.3)


def test_a_profile_without_baselines_is_not_simulated(file, tmp_path, capsys):
    assert main(["--fleet", str(file), "--num_empty", "1", "--hours", "1", "--out_dir", str(tmp_path / "d")]) == 2
    assert "profile empty cannot be simulated; give it baselines in the fleet file" in capsys.readouterr().err
