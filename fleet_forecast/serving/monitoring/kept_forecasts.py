"""Forecasts of one origin at the report horizons, kept until the longest horizon has passed, and their losses then."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fleet_forecast.contract.forecast_spec import SCORED_LEVELS, report_horizons
from fleet_forecast.evaluation.baselines import Observed, window_quantiles
from fleet_forecast.evaluation.loss_sums import Compared, LossSums
from fleet_forecast.serving.forecasts.history_window import HistoryWindow
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ModelView, ServerForecast

DAY_SECONDS = 86_400
MAX_SERVERS = 200  # of each profile: the mean of more servers hardly differs, memory and time do
ExcludedCells = Callable[[Sequence[str], Sequence[str], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class KeptForecasts:
    """Forecasts of some servers from one origin.

    horizons: label -> step. model: float32 [server, metric, horizon, level] at SCORED_LEVELS. baseline: quantiles of
    the 24 hours before the origin, float32 [server, metric, level].
    """

    view: ModelView
    origin_step: int
    server_ids: tuple[int, ...]
    names: tuple[str, ...]
    profiles: tuple[str, ...]
    horizons: dict[str, int]
    model: np.ndarray
    baseline: np.ndarray

    @classmethod
    def of(
        cls, snapshot: FleetSnapshot, server_ids: Callable[[str], int | None], window: HistoryWindow
    ) -> KeptForecasts | None:
        """The forecasts of the snapshot's own origin; None if there is none. Called on the forecast worker."""
        view, origin = snapshot.model, snapshot.origin_seconds
        if view is None or origin is None or not set(SCORED_LEVELS) <= set(view.quantiles):
            return None
        chosen = [(forecast, server_ids(forecast.server_name)) for forecast in _sample(_fresh(snapshot, view, origin))]
        known = [(forecast, server_id) for forecast, server_id in chosen if server_id is not None]
        if not known:
            return None
        forecasts, ids = [forecast for forecast, _ in known], tuple(server_id for _, server_id in known)
        day = _measured(window, view, ids, (origin // view.step_seconds, DAY_SECONDS // view.step_seconds))
        observed = Observed(day, 1, DAY_SECONDS // view.step_seconds, SCORED_LEVELS)
        baseline = window_quantiles(observed, hours=24)
        if baseline is None:
            return None
        length = forecasts[0].horizon_steps * view.step_seconds
        horizons = {label: max(seconds // view.step_seconds, 1) for label, seconds in report_horizons(length).items()}
        levels = [view.quantiles.index(level) for level in SCORED_LEVELS]
        steps = np.array([*horizons.values()]) - 1
        return cls(
            view,
            origin // view.step_seconds,
            ids,
            tuple(forecast.server_name for forecast in forecasts),
            tuple(forecast.profile for forecast in forecasts),
            horizons,
            np.stack([np.moveaxis(forecast.quantiles[:, levels][..., steps], 1, 2) for forecast in forecasts]),
            baseline[:, 0],
        )

    @property
    def last_step(self) -> int:
        """The step of the longest horizon."""
        return self.origin_step + max(self.horizons.values())

    def losses(self, window: HistoryWindow, excluded: ExcludedCells) -> LossSums:
        """Their sums, once `last_step` was measured. Called on the forecast worker."""
        longest = max(self.horizons.values())
        measured = _measured(window, self.view, self.server_ids, (self.last_step, longest))
        seconds = (self.origin_step + np.array([*self.horizons.values()])) * self.view.step_seconds
        masked = excluded(self.names, self.profiles, seconds)  # [server, horizon]
        found = LossSums()
        for column, (label, step) in enumerate(self.horizons.items()):
            actual = np.where(masked[:, column, None], np.nan, measured[:, step - 1])
            found.add(
                self.profiles, self.view.metrics, label, Compared(actual, self.model[:, :, column], self.baseline)
            )
        return found


def _measured(window: HistoryWindow, view: ModelView, server_ids: Sequence[int], steps: tuple[int, int]) -> np.ndarray:
    """float32 [server, step, metric of the view]; steps: the last one, and how many up to it."""
    targets = window.engine.config.targets
    return window.steps(server_ids, *steps)[..., [targets.index(metric) for metric in view.metrics]]


def _fresh(snapshot: FleetSnapshot, view: ModelView, origin: int) -> list[ServerForecast]:
    """Forecasts of this origin of servers with some history; those without have no baseline to compare with."""
    return [
        forecast
        for forecast in snapshot.forecasts.values()
        if forecast.origin_seconds == origin
        and forecast.model == view
        and forecast.history_steps > 0
        and not forecast.provisional
    ]


def _sample(forecasts: Iterable[ServerForecast]) -> list[ServerForecast]:
    """Up to MAX_SERVERS of each profile; the same ones as long as the fleet stays the same."""
    by_profile: defaultdict[str, list[ServerForecast]] = defaultdict(list)
    for forecast in forecasts:
        by_profile[forecast.profile].append(forecast)
    return [
        forecast
        for _, of_profile in sorted(by_profile.items())
        for forecast in sorted(of_profile, key=lambda each: zlib.crc32(each.server_name.encode()))[:MAX_SERVERS]
    ]
