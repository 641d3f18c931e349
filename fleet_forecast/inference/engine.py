"""The engine: history arrays in, quantile arrays out. It does not depend on server names, HTTP or files of metrics.

On a CPU the network runs in ONNX Runtime and torch is not imported; on a GPU it runs in torch, on the same windows.
Each CPU core runs its own chunks of servers with one thread: many operators of the network are too small to be split.
Explanations are requested one at a time and run in ONNX Runtime on both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.history import row_distances
from fleet_forecast.features.peers import FleetPeers, Peers, last_steps, peer_counts
from fleet_forecast.features.seasonality import changes_between
from fleet_forecast.features.window_batch import Windows
from fleet_forecast.features.windows import Calendar, FleetArrays, WindowRequest, build_windows
from fleet_forecast.inference.canary import check_canary
from fleet_forecast.inference.explanations import (
    Interpretation,
    Variables,
    empty_interpretation,
    interpret,
    variables_of,
)
from fleet_forecast.inference.model_config import ModelConfig, ModelError
from fleet_forecast.inference.model_directory import (
    CANARY_FILE,
    DEPARTURES_FILE,
    EXPLAIN_FILE,
    MAX_DOCUMENT_BYTES,
    ONNX_FILE,
    read_config,
    read_regular,
    verify,
)
from fleet_forecast.inference.onnx_backend import onnx_explain, onnx_run
from fleet_forecast.inference.peer_support import PeerSupport
from fleet_forecast.inference.risk_model import RiskModel
from fleet_forecast.network.outputs import NetworkWeights
from fleet_forecast.risk.departures import SIMULATED, DepartureStatistics

CHUNK_WINDOWS = 45  # run at once by a thread: larger chunks are faster and need more memory
Run = Callable[[Windows], np.ndarray]  # windows -> quantiles [window, H, metric, quantile], physical units
Explain = Callable[[Windows], NetworkWeights]


class NoExplanationError(ModelError):
    """The model directory has no explain.onnx; the message names the model and the remedy."""


class _Fleet(NamedTuple):
    """Servers to forecast. All fields but the calendar have one entry per server.

    history: float32 [server, step, metric], at most the steps that a window reads. origin_steps: step numbers since
    the Unix epoch. known_steps: steps since the first measurement. profile_rows: rows of the scaling. encoder_steps:
    length of the encoder. peers: transformed, None if no server has peers. row_distances: see history.py, None if
    all rows are one step apart.
    """

    calendar: Calendar
    history: np.ndarray
    origin_steps: np.ndarray
    known_steps: np.ndarray
    profile_rows: np.ndarray
    encoder_steps: np.ndarray
    peers: FleetPeers | None
    row_distances: np.ndarray | None


class _ForecastInput(NamedTuple):
    """The arguments of Engine.forecast."""

    history: np.ndarray
    profiles: Sequence[str | None]
    origins: np.ndarray | np.datetime64
    peers: Peers | None = None


class Engine:
    """Forecasts with one model. Thread-safe: no call changes its state.

    run: the network. load_explain loads the network with weights as outputs, at the first call of `explain`.
    risk_model: None in directories without one. departures: the simulator's for directories without their own.
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
        self.risk_model: RiskModel | None = None
        self.departures = SIMULATED
        self._run = run
        self._load_explain = load_explain
        self._as_trained = self  # its canary has the calendar of the training

    @property
    def model_id(self) -> str:
        """Name of the model, as its directory is called."""
        return self.config.model_id

    @classmethod
    def load(cls, model_dir: Path, device: str = "auto", threads: int | None = None) -> Engine:
        """Verify a model directory (manifest, versions, canaries of forecast and risk) and load it.

        device: auto, cpu or cuda; auto uses a GPU if torch finds one. threads: on a CPU, default one per core.
        Raises ModelError if the directory cannot be used.
        """
        resolved = verify(Path(model_dir))
        config = read_config(resolved)
        if _wants_gpu(device):
            run, threads = _torch_run(resolved, config), 1
        else:
            run, threads = onnx_run(resolved / ONNX_FILE), threads or _cores()
        engine = cls(config, run, resolved, _explain_loader(resolved), threads)
        engine._check_canary(run)
        engine.departures = _departures(resolved)
        engine.risk_model = RiskModel.load(resolved, config.targets, _cores() if threads is None else threads)
        return engine

    def with_calendar(self, calendar: BusinessCalendar) -> Engine:
        """The same model with another business calendar."""
        engine = copy(self)
        engine.config = replace(self.config, spec=replace(self.config.spec, calendar=calendar))
        return engine

    def unknown_profiles(self, profiles: Sequence[str | None]) -> tuple[str, ...]:
        """Names in `profiles` that the model was not trained on; their servers are forecast with an unknown profile."""
        return tuple(sorted({name for name in profiles if name is not None} - set(self.config.profiles)))

    def forecast(
        self,
        history: np.ndarray,
        profiles: Sequence[str | None],
        origins: np.ndarray | np.datetime64,
        peers: Peers | None = None,
    ) -> np.ndarray:
        """Forecast servers.

        history: float32 [server, history_step, metric] in the contract's units, NaN = not measured; the last step is
        the origin, any number of steps from 0. profiles: one per server, None = unknown. origins: datetime64 of the
        last step, one for all or [server]. peers: the observed servers by profile, None = unknown; steps after an
        origin are not used. Returns float32 [server, horizon, metric, quantile], a view of memory in which the steps of
        a quantile are contiguous.
        """
        return self._forecast(self._run, _ForecastInput(history, profiles, origins, peers))

    def forecast_with_support(
        self,
        history: np.ndarray,
        profiles: Sequence[str | None],
        origins: np.ndarray | np.datetime64,
        peers: Peers | None = None,
    ) -> tuple[np.ndarray, PeerSupport]:
        """`forecast` and `peer_support` of the same arguments, with their common work done once."""
        if not len(history):
            return self._empty_quantiles(0), self._support(None, 0)
        fleet = self._fleet(_ForecastInput(history, profiles, origins, peers))
        return self._forecast_fleet(self._run, fleet), self._support(fleet, len(history))

    def explain(
        self,
        history: np.ndarray,
        profiles: Sequence[str | None],
        origins: np.ndarray | np.datetime64,
        horizon_steps: Sequence[int] | None = None,
        peers: Peers | None = None,
    ) -> Interpretation:
        """Variable and attention weights of forecasts; history, profiles, origins and peers as for `forecast`.

        horizon_steps: the steps of the horizon to explain (1 is the first after the origin), None for all of them.
        `variables` has the names of the columns. Raises NoExplanationError if the model has no explain.onnx, and
        ModelError if explain.onnx does not reproduce the canary forecast.
        """
        config = self.config
        found = empty_interpretation(len(history), self.variables, config)
        if not len(history):
            return found
        fleet = self._fleet(_ForecastInput(history, profiles, origins, peers))
        for chunk in self._chunks(fleet.encoder_steps):
            windows = self._windows(fleet, chunk)
            part = interpret(windows, self._explain(windows), config.context_steps, horizon_steps)
            for whole, of_chunk in zip(found[:-1], part[:-1], strict=True):
                whole[chunk] = of_chunk
        return found if peers is None else found._replace(peers=self.peer_support(history, profiles, origins, peers))

    def peer_support(
        self, history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray | np.datetime64, peers: Peers
    ) -> PeerSupport:
        """Number and weight of the peers that forecasts use; arguments as for `forecast`, but much faster."""
        servers = len(history)
        fleet = self._fleet(_ForecastInput(history, profiles, origins, peers)) if servers else None
        return self._support(fleet, servers)

    def _support(self, fleet: _Fleet | None, servers: int) -> PeerSupport:
        spec, scaling = self.config.spec, self.config.scaling
        if fleet is None or fleet.peers is None:
            shape = servers, len(spec.metrics)
            return PeerSupport(np.zeros(servers, dtype=np.int64), np.zeros(shape, dtype=np.float32))
        context = fleet.history[:, -spec.context_steps :]
        counts = _peer_counts(fleet, spec.context_steps)
        measured = (~np.isnan(context)).sum(axis=1)  # [server, metric]
        if fleet.row_distances is not None:
            measured = np.minimum(measured * fleet.row_distances, spec.context_steps)
        prior = scaling.peer_prior_by_steps
        level_weight = prior.level_weight[fleet.profile_rows[:, None], np.arange(len(spec.metrics)), measured]
        weight = np.where(counts[:, None] > 0, np.nan_to_num(1.0 - level_weight), 0.0)
        return PeerSupport(counts, weight.astype(np.float32))

    @property
    def variables(self) -> Variables:
        """Names of the variables in the columns of `explain`."""
        return variables_of(self.config.spec, bool(self.config.profiles))

    def load_explanations(self) -> None:
        """Load explain.onnx now. Raises what `explain` raises."""
        self._explain  # noqa: B018 - a cached property

    @cached_property
    def _explain(self) -> Explain:
        if self._load_explain is None:
            raise NoExplanationError(
                f"{self.model_id}: this model has no explanations ({EXPLAIN_FILE}); train again with this version"
            )
        explain = self._load_explain()
        self._check_canary(lambda windows: explain(windows).quantiles)
        return explain

    def _forecast(self, run: Run, inputs: _ForecastInput) -> np.ndarray:
        if not len(inputs.history):
            return self._empty_quantiles(0)
        return self._forecast_fleet(run, self._fleet(inputs))

    def _empty_quantiles(self, servers: int) -> np.ndarray:
        spec = self.config.spec
        shape = (servers, len(spec.metrics), len(self.config.quantiles), spec.horizon_steps)
        return np.moveaxis(np.empty(shape, dtype=np.float32), 3, 1)

    def _forecast_fleet(self, run: Run, fleet: _Fleet) -> np.ndarray:
        quantiles = self._empty_quantiles(len(fleet.history))

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

    def _fleet(self, inputs: _ForecastInput) -> _Fleet:
        """The input of `_windows`, for all servers."""
        spec, scaling = self.config.spec, self.config.scaling
        history = _at_least_one_step(inputs.history[:, -spec.history_steps :])
        origin_steps = _step_numbers(inputs.origins, len(history), spec.step_seconds)
        known_steps = _known_steps(history)
        lengths = np.array(spec.encoder_lengths)
        first, last = int(origin_steps.min()), int(origin_steps.max()) + spec.horizon_steps
        calendar = Calendar.over(first - spec.context_steps, last, spec.step_seconds, spec.calendar)
        changes = changes_between(first - spec.history_steps, last, spec.step_seconds, spec.calendar.timezone)
        fleet = _Fleet(
            replace(calendar, clock_changes=changes),
            history,
            origin_steps,
            known_steps,
            scaling.profile_rows(np.array(inputs.profiles, dtype=object)) * bool(self.config.profiles),
            lengths[np.searchsorted(lengths, np.clip(known_steps, 1, spec.context_steps))],
            None,
            row_distances(history[:, -spec.context_steps :], spec.day_steps),
        )
        return fleet if inputs.peers is None else self._with_peers(fleet, inputs.peers)

    def _with_peers(self, fleet: _Fleet, peers: Peers) -> _Fleet:
        """The fleet with transformed peers, and a whole context for servers that have any."""
        spec, scaling = self.config.spec, self.config.scaling
        if scaling.peer_prior is None:
            return fleet
        names = np.array([None, *scaling.profiles], dtype=object)[fleet.profile_rows]
        has_prior = scaling.peer_prior.has_peers[fleet.profile_rows]
        used = sorted(set(names[has_prior]) & set(peers.table.profiles))
        first, end = int(fleet.origin_steps.min()) + 1 - spec.history_steps, int(fleet.origin_steps.max()) + 1
        table = peers.table.part(used, first, end)
        if not used or not table.steps:
            return fleet
        fleet = fleet._replace(peers=peers._replace(table=table).of_fleet(list(names), scaling.bounds))
        has_peers = _peer_counts(fleet, spec.context_steps) > 0
        return fleet._replace(encoder_steps=np.where(has_peers, spec.context_steps, fleet.encoder_steps))

    def _chunks(self, encoder_steps: np.ndarray) -> list[np.ndarray]:
        """Rows of servers to run together: one encoder length per chunk, the same number of chunks for each thread."""
        chunks: list[np.ndarray] = []
        for length in np.unique(encoder_steps):
            servers = np.flatnonzero(encoder_steps == length)
            rounds = -(-len(servers) // (CHUNK_WINDOWS * self.threads))
            chunks += np.array_split(servers, min(len(servers), rounds * self.threads))
        return chunks

    def _windows(self, fleet: _Fleet, chunk: np.ndarray) -> Windows:
        """Windows of some servers of one encoder length."""
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
        peers = fleet.peers if fleet.peers is None else fleet.peers.select(chunk)
        distances = None if fleet.row_distances is None else fleet.row_distances[chunk]
        return build_windows(FleetArrays(spec, scaling, fleet.calendar, transformed, peers, distances), request)

    def _check_canary(self, run: Run) -> None:
        """Raise ModelError if `run` does not reproduce the canary forecast of the model directory."""
        if self.model_dir is not None:
            path, step_seconds = self.model_dir / CANARY_FILE, self.config.step_seconds
            check_canary(path, step_seconds, lambda *inputs: self._as_trained._forecast(run, _ForecastInput(*inputs)))


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


def _explain_loader(model_dir: Path) -> Callable[[], Explain] | None:
    path = model_dir / EXPLAIN_FILE
    return partial(onnx_explain, path) if path.exists() else None


def _departures(model_dir: Path) -> DepartureStatistics:
    """Those of the directory, or of the simulator. Raises ModelError if the file is not usable."""
    path = model_dir / DEPARTURES_FILE
    if not path.exists():
        return SIMULATED
    try:
        return DepartureStatistics.from_json(read_regular(path, MAX_DOCUMENT_BYTES).decode())
    except ValueError as error:
        raise ModelError(f"{path}: {error}; train again") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch_run(model_dir: Path, config: ModelConfig) -> Run:
    from fleet_forecast.inference.torch_backend import load_model, torch_run

    return torch_run(load_model(model_dir, config).to("cuda"))


def _at_least_one_step(history: np.ndarray) -> np.ndarray:
    """No history is represented by one step that was not measured."""
    if history.shape[1]:
        return history
    return np.full((history.shape[0], 1, history.shape[2]), np.nan, dtype=np.float32)


def _step_numbers(origins: np.ndarray | np.datetime64, servers: int, step_seconds: int) -> np.ndarray:
    """Origins as step numbers since the Unix epoch: int64 [server]."""
    seconds = np.asarray(origins, dtype="datetime64[s]").astype(np.int64)
    return np.broadcast_to(seconds // step_seconds, (servers,))


def _peer_counts(fleet: _Fleet, context_steps: int) -> np.ndarray:
    """Largest number of peers at a step of the context: int64 [server], 0 without peers."""
    context = last_steps(fleet.history, context_steps)
    counts: np.ndarray = np.zeros(len(context), np.int64)
    if fleet.peers is not None:
        counts = peer_counts(fleet.peers, np.arange(len(context)), fleet.origin_steps, context).largest
    return counts


def _known_steps(history: np.ndarray) -> np.ndarray:
    """Steps from a server's first measurement to the origin: int64 [server], 0 without a measurement."""
    measured = ~np.isnan(history.reshape(len(history), -1))  # [server, step and metric]: long rows
    first = np.argmax(measured, axis=1)
    known = measured[np.arange(len(first)), first]
    return np.where(known, history.shape[1] - first // history.shape[2], 0).astype(np.int64)
