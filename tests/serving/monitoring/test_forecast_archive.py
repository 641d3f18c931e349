"""The archive keeps one cycle an hour for eight hours, and gives a server's past forecasts."""

from types import MappingProxyType

import numpy as np
import pytest

from fleet_forecast.contract.forecast_spec import SCORED_LEVELS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring import forecast_archive
from fleet_forecast.serving.monitoring.forecast_archive import ForecastArchive
from tests.serving.alerting.examples import STEP, VIEW, forecast

HOUR_STEPS = 3600 // STEP


def snapshot(origin, names=("ppweb001",), **medians):
    forecasts = {name: forecast(medians.get(name, 50.0 + np.arange(96)), origin, name) for name in names}
    return FleetSnapshot(MappingProxyType(forecasts), origin * STEP, origin * STEP + 300.0, VIEW)


def origins(archive):
    return [cycle.origin_seconds // STEP for cycle in archive.cycles]


def test_the_first_cycle_of_each_hour_is_kept_for_eight_hours():
    archive = ForecastArchive()
    for origin in range(100 * HOUR_STEPS, 120 * HOUR_STEPS, 4):
        archive.update(snapshot(origin))
    assert origins(archive) == [hour * HOUR_STEPS for hour in range(111, 120)]


def test_a_past_forecast_has_the_scored_levels_every_quarter_of_an_hour():
    archive = ForecastArchive()
    archive.update(snapshot(1200))
    (found,) = archive.of_server("ppweb001")
    assert found["origin"] == iso(1200 * STEP)
    assert found["timestamps"][:2] == [iso((1200 + 3) * STEP), iso((1200 + 6) * STEP)]
    assert len(found["timestamps"]) == 32
    cpu = found["metrics"]["cpu_pct"]
    assert list(cpu) == [f"q{level:g}" for level in SCORED_LEVELS]
    assert cpu["q0.5"][:2].tolist() == [52.0, 55.0]
    assert cpu["q0.9"][0] == pytest.approx(52.0 + 0.4 * 2 * 5.0)
    assert archive.of_server("nobody") == []


def test_memory_is_bounded_by_servers_and_a_clock_that_is_set_back_removes_what_is_ahead(monkeypatch):
    monkeypatch.setattr(forecast_archive, "MAX_SERVERS", 2)
    archive = ForecastArchive()
    archive.update(snapshot(1200, names=("c", "a", "b")))
    assert list(archive.cycles[0].row_of) == ["a", "b"]
    assert archive.cycles[0].quantiles.nbytes == 2 * 6 * 3 * 32 * 4
    archive.update(snapshot(1200 - HOUR_STEPS))
    assert origins(archive) == [1200 - HOUR_STEPS]


def test_cycles_without_forecasts_of_their_own_are_not_kept():
    archive = ForecastArchive()
    archive.update(FleetSnapshot())
    archive.update(FleetSnapshot(MappingProxyType({"a": forecast(50.0, 1100, "a")}), 1200 * STEP, 0.0, VIEW))
    assert archive.cycles == ()
