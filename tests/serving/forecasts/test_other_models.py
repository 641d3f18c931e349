"""Models with another horizon, other quantile levels or another metric, and a contract with another metric."""

import asyncio
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from data_contract import METRICS
from fleet_forecast.contract.definitions import BUILT_IN_FLEET, BUILT_IN_METRICS, MetricSpec, use_fleet
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.model_manager import ModelLoading, ModelManager
from fleet_forecast.serving.forecasts.on_request import forecast_samples
from fleet_forecast.serving.forecasts.selection import Selection
from fleet_forecast.serving.forecasts.snapshot import NO_PEERS, PeerSummary
from fleet_forecast.serving.forecasts.tables import ARROW_STREAM, encoded, fleet_table
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import BUILT_IN_RULES
from tests.serving.fake_engine import FakeConfig, FakeEngine

STEP = 300
NOON = 1_800_000_000 // STEP * STEP
SIX = tuple(METRICS)
NEXT = (*SIX[:2], "added_pct", *SIX[2:], "other_pct")
LEVELS = (0.05, 0.5, 0.95)
MODELS = {
    "24 h horizon": FakeConfig(horizon_steps=288),
    "other levels": FakeConfig(quantiles=LEVELS),
    "60 s steps": FakeConfig(step_seconds=60, horizon_steps=480),
    "two metrics": FakeConfig(targets=("latency_ms", "cpu_pct")),
    "eight metrics": FakeConfig(targets=NEXT),
    "all at once": FakeConfig(targets=NEXT[::-1], quantiles=LEVELS, horizon_steps=288, history_steps=600),
}


@pytest.fixture(autouse=True)
def own_metrics():
    """A fleet with the metrics of NEXT."""
    own = (MetricSpec(name, "%", "percent", name) for name in ("added_pct", "other_pct"))
    with use_fleet(replace(BUILT_IN_FLEET, metrics=(*BUILT_IN_METRICS, *own))):
        yield


def sample(name, seconds_ago, values):
    return Sample(name, (NOON - seconds_ago) * 1000, None, None, values)


def forecast_once(folder, engine, metrics):
    settings = Settings(history=folder / "h.sqlite", grace_seconds=0.0)
    store = HistoryStore(settings.history, STEP, metrics=metrics)
    values = tuple(float(10 * n) for n in range(len(metrics)))
    step = engine.config.step_seconds
    store.append([sample(name, seconds, values) for name, seconds in (("a", 2 * step), ("a", step), ("b", step))])
    loop = ForecastLoop(settings, store, BUILT_IN_RULES, clock=lambda: float(NOON))
    loop.engine = engine
    asyncio.run(loop.forecast_due())
    loop.worker.shutdown()
    store.close()
    return loop.snapshot.forecasts, dict(zip(metrics, values, strict=True))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_loop_forecasts_the_metrics_levels_and_horizon_of_the_model(tmp_path, config):
    engine = FakeEngine(config)
    forecasts, values = forecast_once(tmp_path, engine, NEXT)
    assert set(forecasts) == {"a", "b"}
    for forecast in forecasts.values():
        model = forecast.model
        assert (model.metrics, model.quantiles) == (config.targets, config.quantiles)
        assert forecast.quantiles.shape == (len(config.targets), len(config.quantiles), config.horizon_steps)
        assert forecast.current == tuple(values[metric] for metric in config.targets)
        medians = forecast.quantiles[:, config.quantiles.index(0.5)]
        np.testing.assert_array_equal(medians[:, -1], np.array(forecast.current, np.float32))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_table_has_the_levels_and_steps_of_the_model(tmp_path, config):
    forecasts, _ = forecast_once(tmp_path, FakeEngine(config), NEXT)
    table = fleet_table(list(forecasts.values()), Selection())
    assert table.num_rows == len(forecasts) * config.horizon_steps * len(config.targets)
    levels = [name for name in table.column_names if name.startswith("q")]
    assert levels == [f"q{level:g}" for level in config.quantiles]
    assert pa.ipc.open_stream(encoded(table, ARROW_STREAM)).read_all().equals(table)


def test_a_table_has_the_weight_of_the_peers_for_each_metric(tmp_path):
    forecasts, _ = forecast_once(tmp_path, FakeEngine(FakeConfig(targets=SIX)), SIX)
    weights = tuple(np.linspace(0.0, 1.0, len(SIX), dtype=np.float32).tolist())
    chosen = [replace(forecasts["a"], peers=PeerSummary(7, weights)), replace(forecasts["b"], peers=NO_PEERS)]
    table = fleet_table(chosen, Selection(metrics=("latency_ms", "mem_pct"))).to_pandas()
    found = table.groupby(["server_name", "metric"])[["peers", "peer_weight"]].agg(["min", "max"])
    for metric in ("latency_ms", "mem_pct"):
        weight = weights[SIX.index(metric)]
        np.testing.assert_allclose(found.loc[("a", metric)], [7, 7, weight, weight])
        np.testing.assert_allclose(found.loc[("b", metric)], [0, 0, 0, 0])


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_history_sent_with_a_request_is_forecast_with_the_metrics_levels_and_horizon_of_the_model(config):
    engine = FakeEngine(config)
    values = tuple(float(n) for n in range(len(NEXT)))
    sent = [sample("a", 3 * STEP, values), sample("a", STEP, values)]
    (forecast,) = forecast_samples(engine, sent, BUILT_IN_RULES, metrics=NEXT)
    assert forecast.quantiles.shape == (len(config.targets), len(config.quantiles), config.horizon_steps)
    assert forecast.current == tuple(values[NEXT.index(metric)] for metric in config.targets)
    assert forecast.history_steps == 2


def test_a_metric_added_to_the_contract_keeps_the_history_of_the_others(tmp_path):
    before = FakeEngine(FakeConfig(targets=SIX))
    forecast_once(tmp_path, before, SIX)
    after = FakeEngine(FakeConfig(targets=NEXT))
    forecast_once(tmp_path, after, NEXT)
    (call,) = after.calls
    assert call["history"].shape[2] == len(NEXT)
    assert np.isfinite(call["history"][0, -2:, NEXT.index("cpu_pct")]).all()


def test_a_model_of_metrics_that_the_fleet_lacks_is_refused_and_the_model_in_use_stays(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP, metrics=SIX)
    loop = ForecastLoop(Settings(), store, BUILT_IN_RULES)
    loop.engine = in_use = FakeEngine()
    manager = ModelManager(ModelLoading(tmp_path, lambda _path: FakeEngine(FakeConfig(targets=("gpu", "fan")))), loop)
    result = asyncio.run(manager.load())
    assert (
        "it forecasts gpu, fan, which the fleet does not have; add them to the fleet file, or train a model on cpu_pct"
        in result.problem
    )
    assert loop.engine is in_use
    loop.worker.shutdown()
    store.close()


def test_a_model_of_the_old_metrics_forecasts_on_after_a_metric_was_added(tmp_path):
    engine = FakeEngine(FakeConfig(targets=SIX))
    forecasts, values = forecast_once(tmp_path, engine, NEXT)
    assert forecasts["a"].current == tuple(values[metric] for metric in SIX)
