"""A daemon's parts with fixed figures, for the golden pages of /metrics."""

from collections import Counter
from types import SimpleNamespace

import numpy as np

from data_contract import METRICS
from fleet_forecast.drift.advice import Reason
from fleet_forecast.serving.forecasts.forecast_loop import CycleStatistics
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ModelView, ServerForecast
from fleet_forecast.serving.ingest.tally import IngestTally, Protocol
from fleet_forecast.serving.monitoring.drift_monitor import Advice
from fleet_forecast.serving.monitoring.http_counters import HttpCounters
from fleet_forecast.serving.monitoring.scores import Tally
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.shards.exchange import Exchanged
from fleet_forecast.sources.fleet_pull import Owners

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
ORIGIN = 1_795_000_200
VIEW = ModelView("tft_model_fixed", METRICS, LEVELS, 300)


def fixed_forecast(name, profile, rule, level, view=VIEW, horizon_steps=96):
    """Quantiles that rise with metric, quantile and step."""
    shape = (len(view.metrics), len(view.quantiles), horizon_steps)
    metric, quantile, step = np.indices(shape)
    quantiles = (level + 3.25 * metric + 1.5 * quantile + step / 7).astype(np.float32)
    current = tuple(None if column == 2 else level + column for column in range(len(view.metrics)))
    return ServerForecast(name, view, ORIGIN, ORIGIN + 301.0, profile, rule, 288, quantiles, (), current)


def fixed_statistics():
    statistics = CycleStatistics(cycles=4, skipped=1, failed=2, not_finite=3)
    for seconds in (0.04, 0.3, 1.7, 99.0):
        statistics.durations.observe(seconds)
    return statistics


def fixed_scores():
    return {
        ("mem_pct", "1h"): Tally(10, 8, 12.5, 875.0),
        ("cpu_pct", "15m"): Tally(12, 9, 20.125, 640.0),
    }


def running_daemon():
    """After some cycles: every family has samples."""
    forecasts = [
        fixed_forecast("ppml0001", "ml_compute", "ppml", 20.0),
        fixed_forecast("odd", "generic", None, 40.0),
        fixed_forecast("silent", "database", "pin", 60.0),
    ]
    snapshot = FleetSnapshot({each.server_name: each for each in forecasts}, ORIGIN, ORIGIN + 301.0, VIEW)
    probabilities = {
        name: np.linspace(0, 1, 4 * len(METRICS), dtype=np.float32).reshape(len(METRICS), 4) ** 2
        for name in ("ppml0001", "odd", "silent", "gone")
    }
    return SimpleNamespace(
        forecasts=SimpleNamespace(
            snapshot=snapshot,
            engine=None,
            statistics=fixed_statistics(),
            peers=SimpleNamespace(counts={"ml_compute": 2, "database": 1}),
            provisional=SimpleNamespace(forecasts=5),
            complete_step=lambda step_seconds: ORIGIN // step_seconds,
            is_stale=lambda forecast: forecast.server_name == "silent",
            stale_servers=lambda: 1,
        ),
        store=SimpleNamespace(
            step_seconds=300,
            size_bytes=lambda: 40_960,
            waiting_records=lambda: 7,
            failure=None,
            set_aside=["h.damaged"],
            leaving={"moved": None},
        ),
        model=SimpleNamespace(
            last_load=SimpleNamespace(problem=None, at_seconds=ORIGIN + 0.12345), loads={True: 2, False: 1}
        ),
        alerts=SimpleNamespace(
            updates=1,
            probabilities=probabilities,
            firing={n: SimpleNamespace(metric=metric) for n, metric in enumerate(("cpu_pct", "latency_ms", "cpu_pct"))},
        ),
        scores=SimpleNamespace(tallies=fixed_scores()),
        drift=SimpleNamespace(advice=Advice((Reason("database", "changed"),), True, (), ORIGIN, 12, 9, 10_000.0)),
        notifiers=[SimpleNamespace(sent=3, failures=1), SimpleNamespace(sent=4, failures=0)],
        events=SimpleNamespace(listeners=2, dropped=1),
        clock=lambda: ORIGIN + 420.25,
        settings=Settings(shard="1/3", shard_peers=("http://shard{shard}",)),
        neighbours=dict.fromkeys((2, 3)),
        exchange=SimpleNamespace(exchanged={2: Exchanged(7, 4096, False, True), 3: Exchanged()}),
        ingest=SimpleNamespace(
            senders=SimpleNamespace(
                profile_changes=Counter(accepted=2),
                corrections=Counter(refused=6),
                sources={"a": ("x", "y"), "b": ("x",)},
            ),
            forwarder=SimpleNamespace(records=Counter({(2, "accepted"): 70, (3, "failed"): 5})),
            accepted=1234,
            rejected=Counter(cpu_pct=2, timestamp=1),
            left_out_cells=Counter(mem_pct=4),
            tally=fixed_tally(),
            pulls=Counter({("eu", "success"): 5, ("eu", "failure"): 1, ("us", "success"): 6}),
        ),
        pullers=fixed_pullers(),
        forecast_writer=SimpleNamespace(
            written=720, failures=2, waiting=72, not_written=Counter(queue_full=0, refused=9)
        ),
        background_failures=Counter(alerts=1),
        http=HttpCounters(Counter({"401": 3, "403": 1}), 2, Counter(total=4, unread=1)),
        dropped_log_lines=Counter(queue=1, rate=250, write=0),
    )


def fixed_pullers():
    owners = Owners(["eu", "us"])
    owners.claim("eu", ["a", "b"])
    owners.claim("us", ["b"])
    return [SimpleNamespace(server=SimpleNamespace(name=name), owners=owners) for name in ("eu", "us")]


def fixed_tally():
    tally = IngestTally()
    tally.stored.update(json=4000, remote_write=3400)
    tally.not_stored.update({(Protocol.REMOTE_WRITE, "other_name"): 7, (Protocol.JSON, "cpu_pct"): 2})
    return tally


def starting_daemon():
    """Before the first model and the first sample."""
    daemon = running_daemon()
    daemon.forecasts.snapshot = FleetSnapshot()
    daemon.forecasts.statistics = CycleStatistics()
    daemon.forecasts.peers = SimpleNamespace(counts={})
    daemon.forecasts.provisional = SimpleNamespace(forecasts=0)
    daemon.forecasts.stale_servers = lambda: 0
    daemon.settings, daemon.exchange, daemon.ingest.forwarder = Settings(), None, None
    daemon.store = SimpleNamespace(
        step_seconds=300, size_bytes=lambda: 0, waiting_records=lambda: 0, failure="disk full", set_aside=[]
    )
    daemon.model = SimpleNamespace(last_load=None, loads={True: 0, False: 0})
    daemon.alerts = SimpleNamespace(probabilities={}, firing={}, updates=0)
    daemon.scores, daemon.drift = SimpleNamespace(tallies={}), SimpleNamespace(advice=Advice())
    daemon.notifiers, daemon.pullers, daemon.forecast_writer = [], [], None
    daemon.http, daemon.dropped_log_lines = HttpCounters(), Counter(queue=0, rate=0, write=0)
    daemon.ingest.tally = IngestTally()
    daemon.ingest.rejected, daemon.ingest.pulls, daemon.background_failures = Counter(), Counter(), Counter()
    daemon.ingest.left_out_cells = Counter()
    return daemon
