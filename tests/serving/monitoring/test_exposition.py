"""/metrics: golden pages, Prometheus's own linter, and values."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fleet_forecast.contract.definitions import BUILT_IN_METRICS, METRICS, MetricSpec
from fleet_forecast.contract.forecast_spec import report_horizons
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.histogram import Histogram
from fleet_forecast.serving.monitoring.base_units import base_unit
from fleet_forecast.serving.monitoring.exposition import Exposition, check_exposed_names, forecast_lines, page_parts
from tests.serving.daemon_client import daemon, forecast_of, post, record, wait_for
from tests.serving.monitoring.fixed_daemon import ORIGIN, VIEW, fixed_forecast, running_daemon, starting_daemon

LINE = re.compile(r'([a-z_]+)((?:\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})?) (\S+)$')


GOLDEN = Path(__file__).parent / "golden"


def rendered(daemon, openmetrics=False):
    return b"".join(page_parts(Exposition().update(daemon), daemon, openmetrics))


@pytest.mark.parametrize("openmetrics", [False, True], ids=["prometheus", "openmetrics"])
@pytest.mark.parametrize("make", [running_daemon, starting_daemon])
def test_the_page_is_the_golden_one_to_the_byte(make, openmetrics):
    name = f"{make.__name__.removesuffix('_daemon')}.{'openmetrics' if openmetrics else 'prometheus'}.txt"
    page = b"".join(line for line in rendered(make(), openmetrics).splitlines(True) if b"process_" not in line)
    assert page == (GOLDEN / name).read_bytes()


def test_a_metric_that_the_contract_does_not_list_is_exposed_under_its_name():
    view = replace(VIEW, metrics=(*METRICS, "gpu_load"))
    lines = list(forecast_lines([fixed_forecast("ppml0001", "ml_compute", "ppml", 20.0, view)]))
    place = 'server="ppml0001",profile="ml_compute",horizon="1h",quantile="0.5"'
    assert "# TYPE fleet_forecast_gpu_load summary" in lines
    assert f"fleet_forecast_gpu_load{{{place}}} {20 + 6 * 3.25 + 3 * 1.5 + 11 / 7:.6g}" in lines


@pytest.mark.parametrize(
    ("name", "unit", "exposed"),
    [
        ("fs_used_pct", "%", ("fs_used_ratio", 0.01)),
        ("queue_depth", "messages", ("queue_depth", 1)),
        ("lag", "ms", ("lag_seconds", 1e-3)),
    ],
)
def test_an_own_metric_is_exposed_in_base_units_where_its_unit_is_known(name, unit, exposed):
    assert base_unit(MetricSpec(name, unit, "rate", name)) == exposed


@pytest.mark.parametrize(
    ("name", "unit", "message"),
    [
        ("cpu_ratio", "share", "metrics.cpu_ratio: on /metrics it is fleet_forecast_cpu_ratio, the name of cpu_pct"),
        ("age_s", "s", "it is fleet_forecast_age_seconds, the name of a metric of the daemon; rename it"),
    ],
)
def test_an_own_metric_with_the_name_of_another_on_the_page_is_refused(name, unit, message):
    specs = [*BUILT_IN_METRICS, MetricSpec(name, unit, "value", name)]
    with pytest.raises(TomlFileError, match=re.escape(message)):
        check_exposed_names(specs)


def test_all_levels_of_a_model_with_other_quantile_levels_are_exposed():
    view = replace(VIEW, quantiles=(0.05, 0.5, 0.95))
    lines = list(forecast_lines([fixed_forecast("a", "generic", None, 20.0, view)]))
    levels = {re.search(r'quantile="([^"]+)"', line)[1] for line in lines if not line.startswith("#")}
    assert levels == {"0.05", "0.5", "0.95"}


def test_a_horizon_of_24_hours_is_exposed():
    daemon = running_daemon()
    forecast = fixed_forecast("ppml0001", "ml_compute", "ppml", 20.0, horizon_steps=288)
    daemon.forecasts.snapshot = replace(daemon.forecasts.snapshot, forecasts={"ppml0001": forecast})
    daemon.alerts = SimpleNamespace(probabilities={"ppml0001": np.full((len(METRICS), 5), 0.25)}, firing={}, updates=0)
    found = values(rendered(daemon).decode())
    place = 'server="ppml0001",profile="ml_compute"'
    assert found[f'fleet_breach_probability{{{place},metric="cpu_pct",horizon="24h"}}'] == 0.25
    assert f'fleet_forecast_cpu_ratio{{{place},horizon="24h",quantile="0.5"}}' in found


def test_report_horizons_are_within_the_forecast_and_include_a_longer_one():
    assert list(report_horizons(28_800)) == ["15m", "1h", "4h", "8h"]
    assert list(report_horizons(14_400)) == ["15m", "1h", "4h"]
    assert report_horizons(86_400)["24h"] == 86_400
    assert report_horizons(600) == {"10m": 600}


@pytest.fixture
def page(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record("ppml0001", cpu_pct=60.0, disk_io_mb_s=2.0, latency_ms=20.0), record("odd"))
        post(client, record(cpu_pct=180.0))
        forecast_of(client)
        wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 2)
        yield lambda accept="*/*": client.get("/metrics", headers={"accept": accept})


def values(text):
    matches = [LINE.match(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(matches)
    return {match[1] + match[2]: float(match[3]) for match in matches if match}


def test_forecasts_are_in_base_units_with_the_horizon_as_a_label(page):
    found = values(page().text)
    place = 'server="ppml0001",profile="ml_compute",horizon="1h",quantile="0.9"'
    assert found[f"fleet_forecast_cpu_ratio{{{place}}}"] == pytest.approx(0.64)
    assert found[f"fleet_forecast_disk_io_bytes_per_second{{{place}}}"] == pytest.approx(6e6)
    assert found[f"fleet_forecast_latency_seconds{{{place}}}"] == pytest.approx(0.024)


def test_own_figures(page):
    found = values(page().text)
    assert found["fleet_ingested_records_total"] == 2
    assert found['fleet_rejected_records_total{field="cpu_pct"}'] == 1
    assert found["fleet_servers_unmatched"] == 1
    assert found['fleet_servers{profile="ml_compute"}'] == 1
    assert found['fleet_model_info{model="tft_model_fake"}'] == 1
    assert found["fleet_model_last_reload_successful"] == 1
    assert found["fleet_history_size_bytes"] > 0
    assert found["fleet_cycle_duration_seconds_count"] == found["fleet_cycles_total"]


def test_openmetrics_on_request(page):
    answer = page("application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert "# TYPE fleet_cycles counter\n" in answer.text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the program promtool is not installed")
def test_promtool_has_no_complaint(page):
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page().text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_histogram_counts_cumulatively():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert list(histogram.samples("h")) == [
        'h_bucket{le="1.0"} 2',
        'h_bucket{le="2.0"} 3',
        'h_bucket{le="+Inf"} 4',
        "h_sum 12.0",
        "h_count 4",
    ]


def test_unknown_profiles_share_one_label():
    daemon = running_daemon()
    forecasts = {f"s{n}": fixed_forecast(f"s{n}", f"sent-{n}", None, 20.0) for n in range(5)}
    daemon.forecasts.snapshot = FleetSnapshot(forecasts, ORIGIN, ORIGIN + 301.0, VIEW)
    text = rendered(daemon).decode()
    assert 'fleet_servers{profile="other"} 5' in text
    assert "sent-" not in text


def test_a_page_is_rendered_once_for_a_cycle_and_again_when_alerts_were_updated():
    daemon, exposition = running_daemon(), Exposition()
    blocks = exposition.update(daemon)
    assert exposition.update(daemon) is blocks
    daemon.alerts.updates += 1
    assert exposition.update(daemon) is not blocks
    assert exposition.update(daemon) == blocks
