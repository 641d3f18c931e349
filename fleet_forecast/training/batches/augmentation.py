"""Augmentation: changes of training windows that train the network for unseen servers.

- Short histories: per batch one encoder length is drawn, mostly the whole context, else down to no history at all.
- Masked profiles: the profile of some windows is unknown, so that its embedding is trained.
- Synthetic servers, only among windows with an unknown profile: metrics are exchanged, or the calendar is that of
  another time, and the window's position relative to its profile is noisy. With few training servers the network would
  otherwise memorise each one.
- Masked peers: windows with peers have the whole context as encoder, so short histories need no batches of their own;
  some batches and windows have their peers masked.
- Level shift: the level of windows with little history and no peers is shifted at random by the predictive level
  uncertainty.

Predictive level uncertainty: a network trained on nine servers of a profile forecasts that a tenth lies among them.
That is overconfident, because neither their mean nor their deviation is the profile's. With normal levels, the next of
n servers follows a Student distribution of n - 1 degrees of freedom (Geisser 1993, Predictive Inference), whose
variance exceeds the sample variance by a factor of 4 (n - 1) / (n (n - 3)) of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.window_batch import NetworkInputs, TargetScale, WindowBatch, Windows
from fleet_forecast.features.windows import WindowSpec

SHORTEST_SHARE = 0.25  # of short histories: one measurement or none; unlike any other, and cheap to compute
SMALLEST_SAMPLE = 5  # servers; with fewer the Student distribution has no variance, or one too large to learn from


@dataclass(frozen=True)
class Augmentation:
    """How often and how much windows are changed; benchmarks/ablations.md has the effect of each.

    short_history_share: of batches, with less than the whole context. one_day_share: of windows with a whole context,
    without anything older. masked_profile_share: of windows.
    synthetic_servers: their number, counted with the training servers. Of the windows with unknown profile and whole
    context, their share gets another order of metrics, and their share another calendar.
    position_noise: standard deviation of the noise on loc and log-scale relative to the profile, in asinh profile
    units, times the share of synthetic servers.
    level_uncertainty: factor of the level shift of windows without history; it falls linearly to 0 at a whole context.
    """

    short_history_share: float = 0.35
    one_day_share: float = 0.2
    masked_profile_share: float = 0.15
    masked_peers_share: float = 0.4
    one_window_masked_peers_share: float = 0.1
    synthetic_servers: float = 8.0
    position_noise: float = 2.0
    level_uncertainty: float = 1.0

    def synthetic_share(self, servers: int) -> float:
        """Share of synthetic servers, with this number of training servers."""
        return self.synthetic_servers / (self.synthetic_servers + servers)


DEFAULT_AUGMENTATION = Augmentation()


class DrawnHistory(NamedTuple):
    """Encoder length of a batch, known steps of each window int64 [window], and where the peers are masked."""

    encoder_steps: int
    known_steps: np.ndarray
    masked_peers: np.ndarray | None = None


def draw_history(
    spec: WindowSpec, windows: int, random: np.random.Generator, augmentation: Augmentation = DEFAULT_AUGMENTATION
) -> DrawnHistory:
    """For a batch of windows without peers."""
    if random.random() >= augmentation.short_history_share:
        return _long_history(spec, windows, random, augmentation)
    return _short_history(spec, windows, random)


def draw_history_with_peers(
    spec: WindowSpec,
    has_peers: np.ndarray,
    random: np.random.Generator,
    augmentation: Augmentation = DEFAULT_AUGMENTATION,
) -> DrawnHistory:
    """For a batch in which some windows have peers: boolean [window].

    Short histories of windows with peers are mixed into batches of a whole context. The share of batches with a shorter
    encoder, in which no window has peers, is smaller by as much.
    """
    windows = len(has_peers)
    if not has_peers.any():
        return draw_history(spec, windows, random, augmentation)
    mixed_share = has_peers.mean() * (1 - augmentation.masked_peers_share)
    if random.random() < augmentation.short_history_share * (1 - mixed_share):
        return _short_history(spec, windows, random)._replace(masked_peers=np.ones(windows, dtype=bool))
    drawn = _long_history(spec, windows, random, augmentation)
    is_short = has_peers & (random.random(windows) < augmentation.short_history_share)
    lengths = np.array(spec.encoder_lengths)
    choice = np.where(
        random.random(windows) < SHORTEST_SHARE, 0, random.integers(min(1, len(lengths) - 1), len(lengths), windows)
    )
    shortest = np.where(choice == 0, 0, lengths[choice - 1] + 1)
    short_steps = random.integers(shortest, lengths[choice] + 1)
    masked = ~is_short & (random.random(windows) < augmentation.one_window_masked_peers_share)
    return DrawnHistory(spec.context_steps, np.where(is_short, short_steps, drawn.known_steps), masked)


def _long_history(
    spec: WindowSpec, windows: int, random: np.random.Generator, augmentation: Augmentation
) -> DrawnHistory:
    only_a_day = random.random(windows) < augmentation.one_day_share
    return DrawnHistory(spec.context_steps, np.where(only_a_day, spec.context_steps, spec.history_steps))


def _short_history(spec: WindowSpec, windows: int, random: np.random.Generator) -> DrawnHistory:
    lengths = spec.encoder_lengths
    if len(lengths) == 1 or random.random() < SHORTEST_SHARE:
        return DrawnHistory(1, random.integers(0, 2, windows))
    choice = int(random.integers(1, len(lengths)))
    known_steps = random.integers(lengths[choice - 1] + 1, lengths[choice] + 1, windows)
    return DrawnHistory(lengths[choice], known_steps)


def add_position_noise(windows: Windows, noise: np.ndarray) -> Windows:
    """Adds noise (float32 [window, 2 * metric]) to loc and log-scale relative to the profile, which are static reals.

    Targets and other inputs are standardised, so this is the same behaviour at another level: a synthetic server.
    """
    static = windows.inputs.static.copy()
    static[:, : noise.shape[1]] += noise
    return windows._replace(inputs=windows.inputs._replace(static=static))


def exchange_metrics(windows: Windows, targets: np.ndarray, order: np.ndarray) -> tuple[Windows, np.ndarray]:
    """Windows and targets in which metric m of a window has the values of its metric order[window, m] (int64).

    Standardised metrics are alike: a server whose memory behaves like another's disk is a synthetic server. Only valid
    where the profile is unknown: a profile implies how its metrics behave.
    """
    metrics = order.shape[1]
    rows = np.flatnonzero((order != np.arange(metrics)).any(axis=1))
    if not rows.size:
        return windows, targets
    order = order[rows]
    pairs = (2 * order[:, :, None] + np.arange(2)).reshape(len(rows), -1)  # inputs have two columns per metric
    inputs, target_scale = windows
    static, encoder, decoder = inputs.static.copy(), inputs.encoder.copy(), inputs.decoder.copy()
    static[rows, : 2 * metrics] = np.take_along_axis(static[rows], pairs, axis=1)
    static[rows, 2 * metrics : 3 * metrics] = np.take_along_axis(static[rows], 2 * metrics + order, axis=1)
    encoder[rows] = np.take_along_axis(encoder[rows], pairs[:, None], axis=2)
    decoder[rows, :, : 2 * metrics] = np.take_along_axis(decoder[rows], pairs[:, None], axis=2)
    quantiles = target_scale.window_quantiles.copy()
    quantiles[rows] = np.take_along_axis(quantiles[rows], order[:, :, None], axis=1)
    targets = targets.copy()
    targets[rows] = np.take_along_axis(targets[rows], order[:, None], axis=2)
    exchanged: NetworkInputs[np.ndarray] = inputs._replace(static=static, encoder=encoder, decoder=decoder)
    scale: TargetScale[np.ndarray] = target_scale._replace(window_quantiles=quantiles)
    return WindowBatch(exchanged, scale), targets


def level_uncertainty(levels: np.ndarray, profile_rows: np.ndarray, profiles: int) -> np.ndarray:
    """Standard deviation of the level shift: float32 [1 + profile, metric], transformed; row 0 for all servers.

    levels: float64 [server, metric], mean of each training server, NaN = never measured. profile_rows: [server], 1 and
    on. profiles: their number. A profile of a single server has the fleet's value; a fleet of one server has 0.
    """
    fleet = np.nan_to_num(predictive_excess(levels))
    of_profiles = [predictive_excess(levels[profile_rows == row]) for row in range(1, 1 + profiles)]
    return np.stack([fleet, *(np.where(np.isnan(own), fleet, own) for own in of_profiles)])


def predictive_excess(levels: np.ndarray) -> np.ndarray:
    """Root of the predictive variance in excess of the sample variance.

    levels: float [server, metric], servers of one profile. Returns float32 [metric], NaN with fewer than two servers.
    """
    n = (~np.isnan(levels)).sum(axis=0)
    from_mean = levels - np.nansum(levels, axis=0) / np.maximum(n, 1)
    variance = np.nansum(from_mean**2, axis=0) / np.maximum(n - 1, 1)
    sample = np.maximum(n, SMALLEST_SAMPLE)
    excess = np.sqrt(variance * 4 * (sample - 1) / (sample * (sample - 3)))
    return np.where(n > 1, excess, np.nan).astype(np.float32)


def mean_level(transformed: np.ndarray) -> np.ndarray:
    """Mean of each column of [step, metric] over measured steps, NaN without any."""
    measured = ~np.isnan(transformed)
    with np.errstate(invalid="ignore"):
        return np.where(measured, transformed, 0.0).sum(axis=0, dtype=np.float64) / measured.sum(axis=0)
