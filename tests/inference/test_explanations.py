"""Explanations: the weights are those of the stock class, and are averaged and labelled correctly."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_forecasting import TemporalFusionTransformer
from safetensors.torch import load_file

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR
from fleet_forecast.evaluation.weight_tables import weight_tables
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.window_batch import FIELDS, WindowBatch, Windows
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.inference.engine import Engine, NoExplanationError
from fleet_forecast.inference.explanations import in_lag_bins, interpret, label_of, variables_of
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import read_config
from fleet_forecast.inference.torch_backend import load_model, torch_explain
from fleet_forecast.network.build import build_network
from fleet_forecast.network.model import ForecastModel, window_tensors
from fleet_forecast.network.outputs import NetworkWeights
from tests.inference.test_engine import ORIGIN, history_of
from tests.inference.test_model_directory import reseal

PROFILES = ["database", None, "web_api"]


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return Engine.load(tiny_model_dir, device="cpu")


def stock_weights(model_dir: Path):
    """windows -> NetworkWeights by the stock class in double precision, its weights read from the model directory."""
    config = read_config(model_dir)
    stock = build_network(config.spec, config.profiles, config.hidden_size, TemporalFusionTransformer)
    stock.load_state_dict(load_file(model_dir / "model.safetensors"))
    model = ForecastModel(stock, config.spec, config.scaling).eval().double()

    def run(windows: Windows) -> NetworkWeights:
        tensors = window_tensors(windows).map(lambda field: field.double() if field.is_floating_point() else field)
        with torch.no_grad():
            output = model.network(model.network_inputs(tensors.inputs))
            quantiles = model(tensors)
        attention = torch.cat([output["encoder_attention"], output["decoder_attention"]], dim=-1).mean(dim=2)
        parts = [output[f"{group}_variables"].squeeze(-2) for group in ("encoder", "decoder")]
        return NetworkWeights(
            *(p.numpy() for p in (quantiles, output["static_variables"].squeeze(1), *parts, attention))
        )

    return run


@pytest.mark.parametrize("steps", [0, 1, 5, 30, 48, 700])
def test_the_explanation_is_that_of_the_stock_network(engine: Engine, tiny_model_dir: Path, steps: int) -> None:
    history = history_of(3, steps)
    history[0, : steps // 2] = np.nan
    stock = Engine(
        engine.config, lambda _: pytest.fail("not called"), load_explain=lambda: stock_weights(tiny_model_dir)
    )
    model = load_model(tiny_model_dir, engine.config)
    in_torch = Engine(engine.config, lambda _: pytest.fail("not called"), load_explain=lambda: torch_explain(model))
    expected = stock.explain(history, PROFILES, ORIGIN)
    for ours in (engine.explain(history, PROFILES, ORIGIN), in_torch.explain(history, PROFILES, ORIGIN)):
        assert ours.peers is None
        for name, weights in list(ours._asdict().items())[:-1]:
            np.testing.assert_allclose(weights, getattr(expected, name), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("with_profile", [True, False])
def test_names_have_the_order_of_the_networks_weights(with_profile: bool) -> None:
    spec = WindowSpec(("cpu_pct", "net_in_mb_s"), 300, DEFAULT_CALENDAR, 24, 12)
    network = build_network(spec, ("database", "web_api") if with_profile else (), 8, TemporalFusionTransformer)
    names = variables_of(spec, with_profile)
    for group, own in names._asdict().items():
        assert own == tuple(getattr(network, f"{group}_variable_selection").input_sizes), group


def test_every_variable_has_a_label_of_its_own() -> None:
    spec = WindowSpec(("cpu_pct", "net_in_mb_s"), 300, DEFAULT_CALENDAR, 24, 12)
    for group in variables_of(spec, with_profile=True):
        assert len({label_of(name) for name in group}) == len(group)
    assert label_of("net_in_mb_s_seasonal_mean") == "net_in_mb_s, mean of earlier days at this time"


@pytest.mark.parametrize("steps", [0, 1, 13, 48])
def test_weights_of_each_group_and_attention_sum_to_one(engine: Engine, steps: int) -> None:
    found = engine.explain(history_of(3, steps), PROFILES, ORIGIN)
    for group in engine.variables._fields:
        weights = getattr(found, group)
        assert weights.shape == (3, len(getattr(engine.variables, group)))
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.attention.sum(axis=1) + found.attention_ahead, 1, rtol=1e-5)
    np.testing.assert_allclose(in_lag_bins(found.attention).sum(axis=1), found.attention.sum(axis=1), rtol=1e-5)
    for attention, encoder_steps in zip(found.attention, found.encoder_steps, strict=True):
        assert (attention[:encoder_steps] > 0).all()
        assert (attention[encoder_steps:] == 0).all()


def test_the_explanation_belongs_to_the_forecast(engine: Engine) -> None:
    history = history_of(40, 60)
    history[::3, :55] = np.nan
    profiles = [PROFILES[index % 3] for index in range(40)]
    found = engine.explain(history, profiles, ORIGIN)
    np.testing.assert_allclose(found.quantiles, engine.forecast(history, profiles, ORIGIN), rtol=1e-4, atol=1e-4)


def test_the_explanation_of_a_server_is_the_same_alone_and_in_a_fleet(engine: Engine) -> None:
    history = history_of(40, 60)
    history[::3, :55] = np.nan
    profiles = [PROFILES[index % 3] for index in range(40)]
    together = engine.explain(history, profiles, ORIGIN)
    for server in (0, 1, 39):
        alone = engine.explain(history[server : server + 1], profiles[server : server + 1], ORIGIN)
        for whole, own in zip(together[:-1], alone[:-1], strict=True):
            np.testing.assert_allclose(whole[server], own[0], rtol=1e-4, atol=1e-4)


def windows_of(measured: list[bool]) -> Windows:
    """Only what `interpret` reads: the masks of one window with one metric, and no peers."""
    encoder = np.array([[[5.0, float(flag)] for flag in measured]], dtype=np.float32)
    read = {"encoder": encoder, "static": np.zeros((1, 6), dtype=np.float32)}
    return WindowBatch.of_fields({name: read.get(name, np.empty(0)) for name in FIELDS})


def weights_of(encoder: list[float], attention: list[list[float]]) -> NetworkWeights:
    """Two encoder variables, the first with the given weight at each step; the decoder's is the step's number."""
    first = np.array(encoder)
    of_encoder = np.stack([first, 1 - first], axis=1)[None]
    of_decoder = np.arange(1.0, len(attention) + 1)[None, :, None]
    return NetworkWeights(
        np.zeros((1, len(attention), 1, 7)), np.ones((1, 1)), of_encoder, of_decoder, np.array([attention])
    )


def test_attention_is_by_lag_before_the_origin_and_separate_for_the_horizon() -> None:
    attention = [[0.1, 0.2, 0.7, 0.0, 0.0], [0.3, 0.2, 0.1, 0.4, 0.0]]
    found = interpret(windows_of([True] * 3), weights_of([0.5] * 3, attention), context_steps=5)
    np.testing.assert_allclose(found.attention[0], [0.4, 0.2, 0.2, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.attention_ahead, [0.2])
    first = interpret(windows_of([True] * 3), weights_of([0.5] * 3, attention), 5, horizon_steps=[1])
    np.testing.assert_allclose(first.attention[0], [0.7, 0.2, 0.1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(first.decoder, [[1.0]])
    assert found.decoder[0, 0] == 1.5


def test_encoder_weights_are_the_mean_over_measured_steps_or_over_all_if_none_was_measured() -> None:
    weights = weights_of([0.9, 0.2, 0.4], [[1 / 3] * 3 + [0.0]])
    assert interpret(windows_of([False, True, True]), weights, 3).encoder[0] == pytest.approx([0.3, 0.7])
    assert interpret(windows_of([False] * 3), weights, 3).encoder[0] == pytest.approx([0.5, 0.5])


def test_lag_bins_are_hours_of_a_day_and_keep_the_sum() -> None:
    np.testing.assert_array_equal(in_lag_bins(np.ones(288)), np.full(24, 12))
    np.testing.assert_array_equal(in_lag_bins(np.ones(50)), [3] * 16 + [2])
    np.testing.assert_array_equal(in_lag_bins(np.arange(4)), np.arange(4))


def test_tables_are_means_by_profile(engine: Engine) -> None:
    history = history_of(4, 60)
    profiles = ["database", "web_api", "database", None]
    found = engine.explain(history, profiles, ORIGIN)
    weights, attention = weight_tables(found, engine.variables, profiles, engine.config.step_seconds)
    assert set(weights["profile"]) == {"database", "web_api", "unknown"}
    sums = weights.groupby(["profile", "group"])["weight"].sum()
    assert len(sums) == 9
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    np.testing.assert_allclose(attention.groupby("profile")["weight"].sum(), 1, rtol=1e-5)
    row = weights.query("profile == 'database' and group == 'static' and variable == 'cpu_pct_loc'")
    column = engine.variables.static.index("cpu_pct_loc")
    assert row["weight"].item() == pytest.approx(found.static[[0, 2], column].mean())
    lags = attention.query("profile == 'database' and on == 'context'")["lag_hours"]
    assert lags.tolist() == pytest.approx(np.arange(24) * 600 / 3600)  # 4 h of context in 24 parts


def test_the_published_tables_are_the_means_over_the_test_period_of_every_profile(
    engine: Engine, tiny_model_dir: Path, tiny_training_dir: Path
) -> None:
    """The tiny fleet is smaller than the sample, so that all windows are in it."""
    frame = pd.read_parquet(tiny_training_dir / "server_metrics.parquet")
    grid = FleetGrid.from_frame(frame, engine.config.targets, 300)
    peers = grid.peers(np.flatnonzero(~np.isin(grid.servers, ["ppdb007", "ppweb006"])))  # all but the unseen servers
    first = int(grid.steps * 0.7) - 1  # the last step trained on
    origins = range(first, grid.steps - engine.config.horizon_steps, 8 * 12)
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    for origin in origins:
        found = engine.explain(grid.values[:, : origin + 1], grid.profiles, grid.timestamps()[origin], peers=peers)
        for row, profile in enumerate(grid.profiles):
            for name, weights in list(found._asdict().items())[:-1]:
                sums.setdefault((str(profile), name), []).append(weights[row])
    variables = pd.read_parquet(tiny_model_dir / "variable_weights.parquet")
    for (owner, group), own in variables.groupby(["profile", "group"]):
        np.testing.assert_allclose(own["weight"], np.mean(sums[str(owner), str(group)], axis=0), atol=1e-4)
    attention = pd.read_parquet(tiny_model_dir / "attention.parquet")
    for name in ("database", "web_api"):
        by_lag = attention[attention["profile"] == name].set_index("on")["weight"]
        assert by_lag["horizon"] == pytest.approx(np.mean(sums[name, "attention_ahead"]), abs=1e-4)
        expected = np.mean(sums[name, "attention"], axis=0).reshape(24, 2).sum(axis=1)
        np.testing.assert_allclose(by_lag["context"], expected, atol=1e-4)
    assert set(attention["profile"]) == set(variables["profile"]) == {"database", "web_api"}


def test_explaining_on_a_cpu_never_imports_torch(tiny_model_dir: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import numpy as np; from fleet_forecast.inference.engine import Engine\n"
        f"engine = Engine.load(Path({str(tiny_model_dir)!r}), device='cpu')\n"
        "engine.explain(np.ones((1, 3, 3), np.float32), [None], np.datetime64('2026-03-05', 's'))\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    root = Path(__file__).resolve().parents[2]
    finished = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_model_without_explanations_forecasts_and_refuses_only_explanations(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(tiny_model_dir, tmp_path / "older"))
    (older / "explain.onnx").unlink()
    reseal(older)
    engine = Engine.load(older, device="cpu")
    assert np.isfinite(engine.forecast(history_of(1, 20), [None], ORIGIN)).all()
    with pytest.raises(NoExplanationError, match=r"has no explanations \(explain.onnx\); train again"):
        engine.explain(history_of(1, 20), [None], ORIGIN)


def test_an_explanation_of_another_network_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))
    engine = Engine.load(copy, device="cpu")
    canary = (copy / "canary.json").read_text()
    (copy / "canary.json").write_text(canary.replace('"quantiles": [[[[', '"quantiles": [[[[1'))
    with pytest.raises(ModelError, match="does not reproduce its canary forecast"):
        engine.explain(history_of(1, 20), [None], ORIGIN)


def test_no_servers_give_an_empty_explanation(engine: Engine) -> None:
    found = engine.explain(np.empty((0, 5, 3), np.float32), [], ORIGIN)
    assert all(len(field) == 0 for field in found[:-1])
