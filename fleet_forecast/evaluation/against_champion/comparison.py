"""Whether a newly trained model (the challenger) is worse than the one in use (the champion).

Both forecast the same past windows. For each group of servers the ratio of their WQL is estimated with an interval:
servers are drawn with replacement, because a server's windows are not independent (cluster bootstrap, Efron &
Tibshirani 1993, percentile interval). The challenger is worse if one of these holds in a group:

- its WQL is more than MARGIN_PCT higher,
- the upper end of the one-sided 95 % interval of the ratio is more than TOLERATED_PCT above 1,
- the coverage of its 80 % band is farther from 80 % by more than COVERAGE_MARGIN_POINTS,

or if its risk model finds fewer incidents (`risk_is_worse`), or if it lacks something that the champion has.
The margins are differences that a user would not notice. They are defined here only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fleet_forecast.contract.forecast_spec import BAND_80, SCORED_LEVELS
from fleet_forecast.evaluation.scores import pinball_loss
from fleet_forecast.risk.alarms import CurvePoint
from fleet_forecast.wording import counted

MARGIN_PCT = 2.0
TOLERATED_PCT = 10.0
COVERAGE_MARGIN_POINTS = 10.0
RISK_MARGIN_POINTS = 10.0  # of the incidents with a long precursor, found before the harm ...
RISK_FALSE_ALARMS = 1.0  # ... at this number of false alarms per server and month
UPPER_LEVEL = 0.95
DRAWS = 2_000
FEWEST_SERVERS = 5  # with fewer the interval has no meaning, and the ratio alone counts
WINDOWS_AT_ONCE = 512  # bounds memory


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of the same windows: float32 [window, horizon, metric, quantile], and the levels of the quantiles."""

    quantiles: np.ndarray
    levels: Sequence[float]

    def at(self, part: slice, wanted: Sequence[float]) -> np.ndarray:
        """float64 [window, horizon, metric, level] of some windows."""
        return self.quantiles[part][..., [self.levels.index(level) for level in wanted]].astype(np.float64)


@dataclass(frozen=True)
class GroupComparison:
    """Scores of both models on one group of servers, over the points that both forecast.

    WQL: mean over the metrics. ratio: challenger / champion. ratio_upper_95: None with fewer than FEWEST_SERVERS.
    """

    group: str
    servers: int
    windows: int
    champion_wql: float
    challenger_wql: float
    ratio: float
    ratio_upper_95: float | None
    champion_coverage_80: float
    challenger_coverage_80: float

    def problems(self) -> list[str]:
        """Why the challenger is worse on these servers; empty if it is not."""
        found, excess_pct = [], 100 * (self.ratio - 1)
        if excess_pct > MARGIN_PCT:
            found.append(f"its error (WQL) on {self.group} servers is {excess_pct:.1f} % higher")
        elif self.ratio_upper_95 is not None and 100 * (self.ratio_upper_95 - 1) > TOLERATED_PCT:
            found.append(
                f"its error (WQL) on {self.group} servers may be {100 * (self.ratio_upper_95 - 1):.0f} % higher "
                f"({counted(self.servers, 'server')} cannot show more)"
            )
        off = abs(self.challenger_coverage_80 - 80) - abs(self.champion_coverage_80 - 80)
        if off > COVERAGE_MARGIN_POINTS:
            found.append(
                f"its 80 % band covers {self.challenger_coverage_80:.1f} % on {self.group} servers, that of the "
                f"champion {self.champion_coverage_80:.1f} %"
            )
        return found

    def as_document(self) -> dict[str, Any]:
        """The fields, rounded."""
        return {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(self).items()}


def compare_group(
    group: str, servers: np.ndarray, actual: np.ndarray, champion: Forecasts, challenger: Forecasts
) -> GroupComparison | None:
    """Compare two models on the windows of a group; None if no point has both forecasts.

    servers: int64 [window], the server of each. actual: float32 [window, horizon, metric], NaN = not measured.
    """
    scored = ~np.isnan(actual)
    for forecasts in (champion, challenger):
        scored &= ~np.isnan(forecasts.quantiles).any(axis=3)
    names, rows = np.unique(servers, return_inverse=True)
    sums = [_sums(forecasts, np.where(scored, actual, np.nan), rows) for forecasts in (champion, challenger)]
    total, points = _by_server(np.where(scored, np.abs(actual), 0.0), rows), int(scored.sum())
    if not points or not total.any():
        return None
    ones = np.ones((1, len(names)))
    before, after = (float(_wql(ones, loss, total)[0]) for loss, _ in sums)
    return GroupComparison(
        group,
        len(names),
        len(actual),
        before,
        after,
        ratio=after / before if before else 1.0,
        ratio_upper_95=_upper(sums[0][0], sums[1][0], total),
        champion_coverage_80=100 * sums[0][1] / points,
        challenger_coverage_80=100 * sums[1][1] / points,
    )


def _sums(forecasts: Forecasts, actual: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Twice the pinball loss, mean over SCORED_LEVELS: sums [server, metric]; and points within the 80 % band."""
    loss, inside = np.zeros((rows.max(initial=-1) + 1, actual.shape[2])), 0
    for first in range(0, len(actual), WINDOWS_AT_ONCE):
        part = slice(first, first + WINDOWS_AT_ONCE)
        levels = forecasts.at(part, SCORED_LEVELS)
        low, high = forecasts.at(part, BAND_80)[..., 0], forecasts.at(part, BAND_80)[..., 1]
        inside += int(((low <= actual[part]) & (actual[part] <= high)).sum())  # NaN is in no band
        lost = np.nan_to_num(2 * pinball_loss(actual[part], levels, SCORED_LEVELS).mean(axis=-1))
        loss += _by_server(lost, rows[part], len(loss))
    return loss, inside


def _by_server(values: np.ndarray, rows: np.ndarray, servers: int | None = None) -> np.ndarray:
    """Sums over windows and horizon: [window, horizon, metric] -> [server, metric]."""
    of_window = values.sum(axis=1, dtype=np.float64)  # [window, metric]
    count = int(rows.max(initial=-1)) + 1 if servers is None else servers
    return np.stack([np.bincount(rows, of_metric, count) for of_metric in of_window.T], axis=1)


def _wql(draws: np.ndarray, loss: np.ndarray, total: np.ndarray) -> np.ndarray:
    """WQL, mean over the metrics, of each draw: draws [draw, server] counts how often each server was drawn."""
    lost, magnitude = draws @ loss, draws @ total  # [draw, metric]
    ratio = np.divide(lost, magnitude, out=np.full(lost.shape, np.nan), where=magnitude > 0)
    return np.asarray(np.nanmean(ratio, axis=1))


def _upper(champion: np.ndarray, challenger: np.ndarray, total: np.ndarray) -> float | None:
    """Upper end of the one-sided interval of the ratio of WQL, from losses [server, metric]."""
    if len(total) < FEWEST_SERVERS:
        return None
    measured = total[:, total.any(axis=0)]
    random = np.random.default_rng(0)
    draws = random.multinomial(len(total), np.full(len(total), 1 / len(total)), DRAWS).astype(np.float64)
    draws = draws[(draws @ measured > 0).any(axis=1)]
    champion_wql, challenger_wql = (_wql(draws, loss, total) for loss in (champion, challenger))
    ratios = np.divide(challenger_wql, champion_wql, out=np.ones(len(draws)), where=champion_wql > 0)
    return float(np.quantile(ratios, UPPER_LEVEL))


def found_ahead_pct(curve: Sequence[CurvePoint]) -> float | None:
    """Share of the incidents with a long precursor found before the harm, at up to RISK_FALSE_ALARMS; in percent."""
    shares = [point.ahead for point in curve if point.false_alarms_per_server_month <= RISK_FALSE_ALARMS]
    known = [share for share in shares if share is not None]
    return 100 * max(known) if known else None


def risk_is_worse(champion: Sequence[CurvePoint], challenger: Sequence[CurvePoint]) -> str | None:
    """Why the challenger's risk model is worse, by the curves measured on held-out servers; None if it is not."""
    before, after = found_ahead_pct(champion), found_ahead_pct(challenger)
    if before is None or after is None or before - after <= RISK_MARGIN_POINTS:
        return None
    return (
        f"its risk model finds {after:.0f} % of the incidents with a long precursor before the harm, that of the "
        f"champion {before:.0f} %"
    )
