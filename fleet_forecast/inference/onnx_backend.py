"""The network in ONNX Runtime, as the engine calls it: windows in, arrays out, in the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fleet_forecast.features.windows import Windows
from fleet_forecast.network.outputs import NetworkWeights


def onnx_run(path: Path) -> Callable[[Windows], np.ndarray]:
    """Load model.onnx: windows -> quantiles [window, horizon, metric, quantile]."""
    run_all = _session(path)

    def run(windows: Windows) -> np.ndarray:
        return run_all(windows)[0]

    return run


def onnx_explain(path: Path) -> Callable[[Windows], NetworkWeights]:
    """Load explain.onnx: windows -> quantiles and the weights of variables and attention."""
    run_all = _session(path)

    def explain(windows: Windows) -> NetworkWeights:
        return NetworkWeights(*run_all(windows))

    return explain


def _session(path: Path) -> Callable[[Windows], list[np.ndarray]]:
    """Load a network with one thread; its inputs are fields of Windows by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {node.name for node in session.get_inputs()}

    def run(windows: Windows) -> list[np.ndarray]:
        fields = {name: field for name, field in windows._asdict().items() if name in inputs}
        return [np.asarray(output) for output in session.run(None, fields)]

    return run
