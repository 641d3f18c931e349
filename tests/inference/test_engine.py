"""The engine: ONNX Runtime and torch agree, any history can be forecast, servers are independent of each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fleet_forecast.features.window_batch import TargetScale
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_directory import read_config
from fleet_forecast.inference.torch_backend import load_model, torch_run
from fleet_forecast.network.head import MEDIAN, ordered

ORIGIN = np.datetime64("2026-03-05T12:00:00", "s")


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return Engine.load(tiny_model_dir, device="cpu")


def history_of(servers: int, steps: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.uniform(10, 60, (servers, steps, 3)).astype(np.float32)


def test_onnx_and_torch_give_the_same_forecast(engine: Engine, tiny_model_dir: Path) -> None:
    config = read_config(tiny_model_dir)
    in_torch = Engine(config, torch_run(load_model(tiny_model_dir, config)))
    for steps in (0, 1, 5, 48, 700):
        history = history_of(3, steps)
        ours, theirs = (each.forecast(history, ["database", None, "web_api"], ORIGIN) for each in (engine, in_torch))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_forecast_of_a_cpu(engine: Engine, tiny_model_dir: Path) -> None:
    on_gpu = Engine.load(tiny_model_dir, device="cuda")
    for steps in (0, 1, 5, 48, 700):
        history = history_of(100, steps)
        profiles = ["database", None, "web_api", "mainframe"] * 25
        ours, theirs = (each.forecast(history, profiles, ORIGIN) for each in (on_gpu, engine))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_forecasts_do_not_use_tf32(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 changes quantiles by more than the canary's tolerance. Training may use it, forecasting may not."""
    config = read_config(tiny_model_dir)
    model, precisions = load_model(tiny_model_dir, config), []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    hook = model.register_forward_pre_hook(lambda *_: precisions.append(torch.backends.cudnn.allow_tf32))
    Engine(config, torch_run(model)).forecast(history_of(2, 20), [None, None], ORIGIN)
    hook.remove()
    assert set(precisions) == {False}
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("steps", [0, 1, 2, 11, 48, 2100])
def test_any_length_of_history_gives_ordered_quantiles_within_physical_bounds(engine: Engine, steps: int) -> None:
    quantiles = engine.forecast(history_of(4, steps), ["database", None, "mainframe", "web_api"], ORIGIN)
    assert quantiles.shape == (4, 12, 3, 7)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=-1) >= 0).all()
    assert quantiles.min() >= 0
    assert quantiles[:, :, :2].max() <= 100


def test_extreme_values_stay_within_bounds(engine: Engine) -> None:
    """Servers at the limits of the metrics' ranges."""
    history = np.zeros((3, 60, 3), dtype=np.float32)
    history[1] = [100, 100, 1e6]
    history[2, ::2] = [0, 100, 1e6]
    quantiles = engine.forecast(history, [None] * 3, ORIGIN)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=-1) >= 0).all()
    assert quantiles.min() >= 0
    assert quantiles[:, :, :2].max() <= 100


def test_quantiles_that_are_nearly_equal_do_not_cross_by_rounding(tiny_model_dir: Path) -> None:
    config = read_config(tiny_model_dir)
    model, draw = load_model(tiny_model_dir, config), torch.Generator().manual_seed(0)
    metrics, levels = len(config.targets), len(config.quantiles)
    raw = torch.randn(40, metrics, levels, config.horizon_steps, generator=draw) * 3
    raw[:, :, np.delete(np.arange(levels), MEDIAN)] -= 18  # its softplus is below the resolution of a float32
    loc = 20 * torch.randn(40, config.horizon_steps, metrics, generator=draw)
    knots = torch.randn(40, metrics, levels, generator=draw).sort(dim=-1).values
    with torch.no_grad():
        quantiles = model.head(ordered(raw), TargetScale(loc, torch.full((40, metrics), 7.0), knots))
    assert (quantiles.diff(dim=-1) >= 0).all()


def test_the_forecast_of_a_server_is_the_same_alone_and_in_a_fleet(engine: Engine) -> None:
    history = history_of(300, 60)
    history[::3, :55] = np.nan  # a third of the servers is new
    profiles = ["database", "web_api", None] * 100
    together = engine.forecast(history, profiles, ORIGIN)
    for server in (0, 1, 2, 299):
        alone = engine.forecast(history[server : server + 1], [profiles[server]], ORIGIN)
        np.testing.assert_allclose(together[server], alone[0], rtol=1e-4, atol=1e-4)


def test_several_threads_give_the_forecast_of_one(tiny_model_dir: Path) -> None:
    one, three = (Engine.load(tiny_model_dir, device="cpu", threads=threads) for threads in (1, 3))
    history = history_of(40, 60)
    history[::3, :55] = np.nan  # of two encoder lengths
    forecasts = [each.forecast(history, ["database", None] * 20, ORIGIN) for each in (one, three)]
    np.testing.assert_allclose(*forecasts, rtol=1e-4, atol=1e-4)


def test_each_server_has_its_own_origin(engine: Engine) -> None:
    history = history_of(2, 60)
    origins = np.array([ORIGIN, ORIGIN + np.timedelta64(9, "h")])
    both = engine.forecast(history, [None, None], origins)
    for server in range(2):
        alone = engine.forecast(history[server : server + 1], [None], origins[server])
        np.testing.assert_allclose(both[server], alone[0], rtol=1e-4, atol=1e-4)


def test_history_beyond_what_the_model_can_use_changes_nothing(engine: Engine) -> None:
    longer = history_of(2, engine.config.history_steps + 50)
    shorter = longer[:, -engine.config.history_steps :]
    np.testing.assert_array_equal(
        engine.forecast(longer, [None] * 2, ORIGIN), engine.forecast(shorter, [None] * 2, ORIGIN)
    )


def test_missing_values_are_not_the_same_as_zeros(engine: Engine) -> None:
    history = history_of(1, 48)
    missing, zero = history.copy(), history.copy()
    missing[0, 20:40], zero[0, 20:40] = np.nan, 0
    assert not np.allclose(engine.forecast(missing, [None], ORIGIN), engine.forecast(zero, [None], ORIGIN))


def test_an_unknown_profile_is_named_and_forecast_as_no_profile(engine: Engine) -> None:
    assert engine.unknown_profiles(["database", None, "mainframe", "abacus"]) == ("abacus", "mainframe")
    history = history_of(1, 12)
    np.testing.assert_array_equal(
        engine.forecast(history, ["mainframe"], ORIGIN), engine.forecast(history, [None], ORIGIN)
    )


def test_the_profile_sets_the_level_of_a_server_without_history(engine: Engine) -> None:
    nothing = np.empty((2, 0, 3), dtype=np.float32)
    database, web_api = engine.forecast(nothing, ["database", "web_api"], ORIGIN)[..., 3]
    assert database[:, 0].mean() > web_api[:, 0].mean() + 10  # 60 % and 25 % CPU in the tiny fleet


def test_no_servers_give_an_empty_forecast(engine: Engine) -> None:
    assert engine.forecast(np.empty((0, 5, 3), np.float32), [], ORIGIN).shape == (0, 12, 3, 7)


def test_loading_and_forecasting_on_a_cpu_never_import_torch(tiny_model_dir: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import numpy as np; from fleet_forecast.inference.engine import Engine\n"
        f"engine = Engine.load(Path({str(tiny_model_dir)!r}), device='cpu')\n"
        "engine.forecast(np.ones((1, 3, 3), np.float32), [None], np.datetime64('2026-03-05', 's'))\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    root = Path(__file__).resolve().parents[2]
    finished = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
