"""The engine: history arrays in, quantile arrays out. It knows no names of servers, no HTTP, no files of metrics.

On a CPU the network runs in ONNX Runtime and torch is never imported; on a GPU it runs in torch, on the same windows.
Each processor gets chunks of servers of its own, one thread each: many operators of the network are too small to share.
Explanations, which are asked for one at a time, run in ONNX Runtime on either.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.features.seasonality import changes_between
from fleet_forecast.features.window_batch import Windows
from fleet_forecast.features.windows import Calendar, FleetArrays, WindowRequest, build_windows
from fleet_forecast.inference.explanations import Interpretation, Variables, blank, interpret, variables_of
from fleet_forecast.inference.model_directory import (
    CANARY_FILE,
    CANARY_TOLERANCE,
    EXPLAIN_FILE,
    ONNX_FILE,
    ModelConfig,
    ModelError,
    read_config,
    verify,
)
from fleet_forecast.network.outputs import NetworkWeights

CHUNK_WINDOWS = 45  # windows a thread runs at once: more share the tables of the network, but take more memory
Run = Callable[[Windows], np.ndarray]  # windows -> quantiles [window, H, metric, quantile], physical units
Explain = Callable[[Windows], NetworkWeights]


class NoExplanationError(ModelError):
    """A model was made without the network that explains its forecasts; the message names it and the remedy."""


class _Fleet(NamedTuple):
    """Servers to forecast: their history, at most what a window uses; the other fields are per server.

    origin_steps: step numbers since the epoch. known_steps: steps since the first measurement. profile_rows: rows of
    the scaling. encoder_steps: encoder length.
    """

    calendar: Calendar
    history: np.ndarray
    origin_steps: np.ndarray
    known_steps: np.ndarray
    profile_rows: np.ndarray
    encoder_steps: np.ndarray


class Engine:
    """Forecasts with one model. Thread-safe: between calls it keeps nothing but the network that explains, once loaded.

    load_explain loads that network when the first explanation is asked for.
    """

    def __init__(
        self,
        config: ModelConfig,
        run: Run,
        model_dir: Path | None = None,
        load_explain: Callable[[], Explain] | None = None,
        threads: int = 1,
    ) -> None:
        self.config = config
        self.threads = threads
        self.model_dir = model_dir
        self._run = run
        self._load_explain = load_explain

    @property
    def model_id(self) -> str:
        """Name of the model, as its directory is called."""
        return self.config.model_id

    @classmethod
    def load(cls, model_dir: Path, device: str = "auto", threads: int | None = None) -> Engine:
        """Verify a model directory (manifest, contract version, canary forecast) and load it.

        device: auto, cpu or cuda; auto takes a GPU where torch finds one. threads: on a CPU, default one a core.
        Raises ModelError if anything is not as it should be.
        """
        resolved = verify(Path(model_dir))
        config = read_config(resolved)
        explain_file = resolved / EXPLAIN_FILE
        load_explain = partial(_onnx_explain, explain_file) if explain_file.exists() else None
        if _wants_gpu(device):
            run, threads = _torch_run(resolved, config), 1
        else:
            run, threads = _onnx_run(resolved / ONNX_FILE), threads or _cores()
        engine = cls(config, run, resolved, load_explain, threads)
        engine._check_canary(run)
        return engine

    def unknown_profiles(self, profiles: Sequence[str | None]) -> tuple[str, ...]:
        """Names among `profiles` that the model was not trained on: forecast as an unknown profile."""
        return tuple(sorted({name for name in profiles if name is not None} - set(self.config.profiles)))

    def forecast(
        self, history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray | np.datetime64
    ) -> np.ndarray:
        """Forecast servers.

        history: float32 [server, history_step, metric] in the contract's units, NaN = not measured; the last step is
        the origin, any number of steps from 0 up. profiles: one per server, None = unknown. origins: datetime64 of
        the last step, one or [server]. Returns float32 [server, horizon, metric, quantile], a view of memory in which
        the steps of a quantile lie side by side.
        """
        return self._forecast(self._run, history, profiles, origins)

    def explain(
        self,
        history: np.ndarray,
        profiles: Sequence[str | None],
        origins: np.ndarray | np.datetime64,
        horizon_steps: Sequence[int] | None = None,
    ) -> Interpretation:
        """What the forecasts of some servers rest on; the first three arguments as for `forecast`.

        horizon_steps: the steps of the horizon to explain (1 is the first after the origin), None for all of them.
        `variables` names the columns. Raises NoExplanationError if the model has no explain.onnx, and ModelError if
        that does not reproduce the canary forecast.
        """
        config = self.config
        found = blank(len(history), self.variables, config.spec, len(config.quantiles))
        if not len(history):
            return found
        fleet = self._fleet(history, profiles, origins)
        for chunk in self._chunks(fleet.encoder_steps):
            windows = self._windows(fleet, chunk)
            part = interpret(windows, self._explain(windows), config.context_steps, horizon_steps)
            for whole, of_chunk in zip(found, part, strict=True):
                whole[chunk] = of_chunk
        return found

    @property
    def variables(self) -> Variables:
        """Names of the variables that `explain` weighs."""
        return variables_of(self.config.spec, bool(self.config.profiles))

    @cached_property
    def _explain(self) -> Explain:
        if self._load_explain is None:
            raise NoExplanationError(
                f"{self.model_id}: this model has no explanations ({EXPLAIN_FILE}); train again with this version"
            )
        explain = self._load_explain()
        if self.model_dir is not None:
            self._check_canary(lambda windows: explain(windows).quantiles)
        return explain

    def _forecast(
        self, run: Run, history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray | np.datetime64
    ) -> np.ndarray:
        spec = self.config.spec
        shape = (len(history), len(spec.metrics), len(self.config.quantiles), spec.horizon_steps)
        quantiles = np.moveaxis(np.empty(shape, dtype=np.float32), 3, 1)
        if not len(history):
            return quantiles
        fleet = self._fleet(history, profiles, origins)

        def forecast_chunk(chunk: np.ndarray) -> None:
            quantiles[chunk] = run(self._windows(fleet, chunk))

        chunks = self._chunks(fleet.encoder_steps)
        if self.threads == 1 or len(chunks) < 2:
            for chunk in chunks:
                forecast_chunk(chunk)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(forecast_chunk, chunks))
        return quantiles

    def _fleet(
        self, history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray | np.datetime64
    ) -> _Fleet:
        """What the windows of the servers are built from."""
        spec, scaling = self.config.spec, self.config.scaling
        history = _at_least_one_step(history[:, -spec.history_steps :])
        origin_steps = _step_numbers(origins, len(history), spec.step_seconds)
        known_steps = _known_steps(history)
        lengths = np.array(spec.encoder_lengths)
        first, last = int(origin_steps.min()), int(origin_steps.max()) + spec.horizon_steps
        calendar = Calendar.over(first - spec.context_steps, last, spec.step_seconds, spec.timezone)
        changes = changes_between(first - spec.history_steps, last, spec.step_seconds, spec.timezone)
        return _Fleet(
            replace(calendar, clock_changes=changes),
            history,
            origin_steps,
            known_steps,
            scaling.profile_rows(np.array(profiles, dtype=object)) * bool(self.config.profiles),
            lengths[np.searchsorted(lengths, np.clip(known_steps, 1, spec.context_steps))],
        )

    def _chunks(self, encoder_steps: np.ndarray) -> list[np.ndarray]:
        """Rows of servers to forecast together: of one encoder length, and as many chunks for each thread."""
        chunks: list[np.ndarray] = []
        for length in np.unique(encoder_steps):
            servers = np.flatnonzero(encoder_steps == length)
            rounds = -(-len(servers) // (CHUNK_WINDOWS * self.threads))
            chunks += np.array_split(servers, min(len(servers), rounds * self.threads))
        return chunks

    def _windows(self, fleet: _Fleet, chunk: np.ndarray) -> Windows:
        """The windows of some servers of one encoder length."""
        spec, scaling = self.config.spec, self.config.scaling
        longest = max(1, int(fleet.known_steps[chunk].max()))
        transformed = scaling.bounds.transform(fleet.history[chunk, -longest:])
        request = WindowRequest(
            rows=np.arange(len(chunk)),
            origins=np.full(len(chunk), transformed.shape[1] - 1),
            calendar_steps=fleet.origin_steps[chunk],
            profile_rows=fleet.profile_rows[chunk],
            encoder_steps=int(fleet.encoder_steps[chunk[0]]),
            known_steps=fleet.known_steps[chunk],
        )
        return build_windows(FleetArrays(spec, scaling, fleet.calendar, transformed), request)

    def _check_canary(self, run: Run) -> None:
        """Forecast the stored canary: a network that computes something else than at training time is refused."""
        assert self.model_dir is not None  # noqa: S101 - it was loaded from there
        path = self.model_dir / CANARY_FILE
        canary = read_canary(path)
        made = self._forecast(run, canary["history"], canary["profiles"], canary["origins"])
        expected = canary["quantiles"]
        if not np.allclose(made, expected, rtol=CANARY_TOLERANCE, atol=CANARY_TOLERANCE):
            worst = float(np.max(np.abs(made - expected)))
            raise ModelError(
                f"{path}: the model does not reproduce its canary forecast (off by up to {worst:.3g}); "
                "use the package versions of requirements.txt or train again"
            )


def write_canary(path: Path, engine: Engine) -> None:
    """Store a made-up history, one server young and one with a daily rhythm, with what the engine forecasts now."""
    config = engine.config
    random = np.random.default_rng(0)
    shape = (2, config.context_steps + config.spec.seasonal_lag_steps, len(config.targets))
    loc, scale = config.scaling.loc[0], config.scaling.scale[0]  # [metric]
    days = np.resize(random.normal(size=(config.spec.day_steps, shape[2])), shape[1:])  # the same one again and again
    history = config.scaling.bounds.inverse(loc + scale * (days + 0.3 * random.normal(size=shape)))
    history[0, : -config.context_steps // 4] = np.nan
    profiles = [config.profiles[0] if config.profiles else None, None]
    origins = np.array(["2026-01-05T15:00:00", "2026-07-04T03:00:00"], dtype="datetime64[s]")
    quantiles = engine.forecast(history, profiles, origins)
    canary = {
        "history": [
            [[None if np.isnan(value) else float(value) for value in step] for step in server] for server in history
        ],
        "profiles": profiles,
        "origins": [str(origin) for origin in origins],
        "quantiles": quantiles.tolist(),
    }
    path.write_text(json.dumps(canary), encoding="utf-8")


def read_canary(path: Path) -> dict[str, Any]:
    """The stored canary with arrays in place of lists (None -> NaN)."""
    canary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    canary["history"] = np.array(canary["history"], dtype=np.float32)
    canary["quantiles"] = np.array(canary["quantiles"], dtype=np.float32)
    canary["origins"] = np.array(canary["origins"], dtype="datetime64[s]")
    return canary


def _wants_gpu(device: str) -> bool:
    if device == "cpu":
        return False
    try:
        import torch
    except ImportError:
        return False
    available = bool(torch.cuda.is_available())
    if device == "cuda" and not available:
        raise ModelError("--device cuda: torch finds no GPU on this machine; use --device cpu")
    return available


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _onnx_run(path: Path) -> Run:
    run_all = _onnx_session(path)

    def run(windows: Windows) -> np.ndarray:
        return run_all(windows)[0]

    return run


def _onnx_explain(path: Path) -> Explain:
    run_all = _onnx_session(path)

    def explain(windows: Windows) -> NetworkWeights:
        return NetworkWeights(*run_all(windows))

    return explain


def _onnx_session(path: Path) -> Callable[[Windows], list[np.ndarray]]:
    """Load a network into ONNX Runtime: windows in, its outputs in their order out, in the calling thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {node.name for node in session.get_inputs()}

    def run(windows: Windows) -> list[np.ndarray]:
        fields = {name: field for name, field in windows.fields().items() if name in inputs}
        return [np.asarray(output) for output in session.run(None, fields)]

    return run


def _torch_run(model_dir: Path, config: ModelConfig) -> Run:
    from fleet_forecast.inference.torch_backend import load_model, torch_run

    return torch_run(load_model(model_dir, config).to("cuda"))


def _at_least_one_step(history: np.ndarray) -> np.ndarray:
    """A server without history is one whose only step was not measured."""
    if history.shape[1]:
        return history
    return np.full((history.shape[0], 1, history.shape[2]), np.nan, dtype=np.float32)


def _step_numbers(origins: np.ndarray | np.datetime64, servers: int, step_seconds: int) -> np.ndarray:
    """Origins as step numbers since the epoch: int64 [server]."""
    seconds = np.asarray(origins, dtype="datetime64[s]").astype(np.int64)
    return np.broadcast_to(seconds // step_seconds, (servers,))


def _known_steps(history: np.ndarray) -> np.ndarray:
    """Steps from a server's first measurement to the origin: int64 [server], 0 without any."""
    measured = ~np.isnan(history.reshape(len(history), -1))  # [server, step and metric]: long rows
    first = np.argmax(measured, axis=1)
    known = measured[np.arange(len(first)), first]
    return np.where(known, history.shape[1] - first // history.shape[2], 0).astype(np.int64)
