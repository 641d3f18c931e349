"""A model is tried in a process with limits of memory and time before the daemon loads it."""

import asyncio
import os
import shutil
import signal
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import write_manifest
from fleet_forecast.serving.forecasts.model_manager import ModelLoading, ModelManager
from fleet_forecast.serving.forecasts.model_trial import ModelTrial
from tests.serving.daemon_client import wait_for
from tests.serving.fake_engine import FakeEngine


class Forecasts:
    """What the manager needs of the forecast loop."""

    metrics = FakeEngine().config.targets
    engine = None


@pytest.fixture
def model(tiny_models_dir, tmp_path):
    return shutil.copytree((tiny_models_dir / "current").resolve(), tmp_path / "model")


def reseal(model):
    (model / "manifest.json").unlink()
    write_manifest(model)


def take_gigabytes(model):
    """Add a tensor of 4 GB to the network, whose file stays small."""
    network = onnx.load(model / "model.onnx")
    shape = numpy_helper.from_array(np.array([1024, 1024, 1024], np.int64), "huge_shape")
    network.graph.initializer.append(shape)
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    first = network.graph.node[0]
    network.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"], value=one))
    network.graph.node.insert(1, helper.make_node("ReduceSum", ["huge"], ["huge_sum"], keepdims=0))
    output = helper.make_tensor_value_info("huge_sum", TensorProto.FLOAT, [])
    network.graph.output.append(output)
    assert first is not None
    onnx.save(network, model / "model.onnx")
    reseal(model)


def loop_forever(model):
    """Add a loop with more iterations than the test waits for."""
    network = onnx.load(model / "model.onnx")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("Add", ["total", "total"], ["total_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total_out", TensorProto.FLOAT, []),
        ],
    )
    for name, value in {
        "turns": np.array(2**62, np.int64),
        "yes": np.array(True),
        "zero": np.array(0.0, np.float32),
    }.items():
        network.graph.initializer.append(numpy_helper.from_array(value, name))
    network.graph.node.insert(0, helper.make_node("Loop", ["turns", "yes", "zero"], ["endless"], body=body))
    network.graph.output.append(helper.make_tensor_value_info("endless", TensorProto.FLOAT, []))
    onnx.save(network, model / "model.onnx")
    reseal(model)


def trial(tmp_path, seconds=60.0):
    return ModelTrial(512.0, seconds, tmp_path / "checked")


def test_a_good_model_passes_and_is_not_tried_again(model, tmp_path, monkeypatch):
    asyncio.run(trial(tmp_path).run(model))
    assert len((tmp_path / "checked").read_text().strip()) == 64
    monkeypatch.setattr(ModelTrial, "_start", lambda *_: 1 / 0)
    asyncio.run(trial(tmp_path).run(model))
    trial(tmp_path).begin(model)


def test_a_trial_that_was_begun_is_the_one_that_is_waited_for(model, tmp_path, monkeypatch):
    begun = trial(tmp_path)
    begun.begin(model)
    monkeypatch.setattr(ModelTrial, "_start", lambda *_: 1 / 0)
    asyncio.run(begun.run(model))
    assert (tmp_path / "checked").exists()


def test_a_trial_that_was_begun_before_the_model_changed_does_not_count(model, tmp_path):
    begun = trial(tmp_path)
    begun.begin(model)
    first = begun._begun.process
    (model / "report.html").write_text("changed")
    reseal(model)
    (model / "model.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"model\.onnx: is damaged"):
        asyncio.run(begun.run(model))
    assert first.returncode is not None


def test_a_trial_that_nothing_waited_for_ends_with_the_daemon(model, tmp_path):
    begun = trial(tmp_path)
    begun.begin(model)
    process = begun._begun.process
    begun.close()
    assert process.returncode == -signal.SIGKILL


def test_a_changed_model_is_tried_again(model, tmp_path):
    asyncio.run(trial(tmp_path).run(model))
    (model / "report.html").write_text("changed")
    reseal(model)
    (model / "model.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"model\.onnx: is damaged"):
        asyncio.run(trial(tmp_path).run(model))


def test_a_model_that_takes_gigabytes_is_refused(model, tmp_path):
    take_gigabytes(model)
    with pytest.raises(ModelError, match=r"memory|alloc"):
        asyncio.run(trial(tmp_path).run(model))
    assert not (tmp_path / "checked").exists()


def test_a_model_that_never_ends_is_refused_after_the_deadline(model, tmp_path):
    loop_forever(model)
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"not checked within 4 s|ended by SIG(XCPU|KILL)"):
        asyncio.run(trial(tmp_path, 4.0).run(model))
    assert time.monotonic() - began < 30


def test_a_pipe_in_place_of_a_file_is_refused_at_once(model, tmp_path):
    for name in ("manifest.json", "model.onnx"):
        copy = shutil.copytree(model, tmp_path / f"copy of {name}")
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(ModelError, match="is not a plain file"):
            asyncio.run(trial(tmp_path).run(copy))


async def watch_until(manager, condition):
    task = asyncio.create_task(manager.watch())
    try:
        await asyncio.to_thread(wait_for, condition, 30.0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_refused_model_is_tried_again_and_its_reason_is_logged_once(tmp_path, caplog):
    reasons = ["missing", "missing", "missing"]

    def load(_path):
        if reasons:
            raise OSError(reasons.pop())
        return FakeEngine()

    manager = ModelManager(ModelLoading(tmp_path, load), Forecasts())
    asyncio.run(watch_until(manager, lambda: manager.loads[True]))
    assert manager.loads[False] == 3
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["model refused"]


def test_a_directory_that_is_copied_in_place_is_loaded_when_it_is_complete(tmp_path):
    def load(path):
        if not (path / "model.onnx").exists():
            raise OSError("not complete")
        return FakeEngine()

    manager = ModelManager(ModelLoading(tmp_path, load), Forecasts())
    manager._pause_seconds = 1_000.0  # the change of a file counts, not the pause
    (tmp_path / "manifest.json").write_text("{}")
    timer = threading.Timer(1.5, (tmp_path / "model.onnx").write_text, ["x"])
    timer.start()
    asyncio.run(watch_until(manager, lambda: manager.loads[True]))
    timer.join()


def test_a_load_that_hangs_is_given_up_and_delays_no_end(tmp_path):
    hanging = threading.Event()
    manager = ModelManager(ModelLoading(tmp_path, lambda _path: hanging.wait(60), seconds=0.5), Forecasts())
    began = time.monotonic()
    result = asyncio.run(manager.load())
    assert "not loaded within 0.5 s" in result.problem
    assert time.monotonic() - began < 10
    hanging.set()
