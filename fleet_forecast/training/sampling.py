"""Which windows training visits, and under which handicaps: so that strangers are an ordinary case.

An epoch visits every server-hour of the training period once as a forecast origin, at a random minute of the hour. Per
batch one encoder length is drawn: mostly the whole context, else a short one, down to no history at all. For a share of
the windows the profile is hidden, so that the unknown-profile category is trained rather than left at its start. Where
no profile is told, fictional servers are made of the known ones: metrics exchange what they do, or the clock shows
another time.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.masked_statistics import at_each_step
from fleet_forecast.features.scaling import FleetScaling
from fleet_forecast.features.windows import Calendar, Windows, WindowSpec, build_windows, compress

HOUR_SECONDS = 3_600
NEWEST_SHARE = 0.25  # of short histories, those with one measurement or none: nothing like any other, and soon computed


@dataclass(frozen=True)
class Handicaps:
    """What training withholds, and how often; benchmarks/ablations.md shows what each is worth.

    short_history_share: of the batches, less than the whole context is known. one_day_share: of the windows with a
    whole context, nothing older than the context is known. hidden_profile_share: of the windows.

    fictional_servers: so many beside the real ones. Of the windows whose profile is not told and whose context is
    whole, their share have their metrics in another order (exchange_metrics), and their share the calendar of another
    moment: servers of one kind may live by other hours, and a network that knows few of them learns the hours of each
    by heart instead of reading yesterday's. Among many servers, the real ones teach more. position_noise: deviation of
    the noise on where a window lies relative to its profile, in compressed profile units, times their share.

    level_doubt: how much of the doubt about the level of a new server (level_doubt.py) moves windows without history up
    or down, as a whole; less with some history, down to nothing with a whole context.
    """

    short_history_share: float = 0.35
    one_day_share: float = 0.2
    hidden_profile_share: float = 0.15
    fictional_servers: float = 8.0
    position_noise: float = 2.0
    level_doubt: float = 1.0

    def fictional_share(self, servers: int) -> float:
        """Of so many real servers and the fictional ones, the share that is fictional."""
        return self.fictional_servers / (self.fictional_servers + servers)


HANDICAPS = Handicaps()


@dataclass(frozen=True)
class Batch:
    """Windows with their targets: float32 [window, H, metric] in compressed window units, NaN = not measured."""

    windows: Windows
    targets: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Which windows a training batch holds, and what is withheld from them and changed in them.

    number: of the batch in its epoch. encoder_steps, rows, origins, known_steps, hidden, clock_origins, raised: as
    WindowSource.batch takes them. noise: float32 [window, 2 * metric], see blur_position. order: int64 [window,
    metric], see exchange_metrics.
    """

    number: int
    encoder_steps: int
    rows: np.ndarray
    origins: np.ndarray
    known_steps: np.ndarray
    hidden: np.ndarray
    clock_origins: np.ndarray
    raised: np.ndarray
    noise: np.ndarray
    order: np.ndarray

    def __len__(self) -> int:
        """Windows."""
        return len(self.rows)


class WindowSource:
    """Cuts batches of windows out of a fleet held in memory.

    linked: float32 [server, step, metric], link space. profile_rows: int64 [server]. first_step: of the grid, since the
    epoch. calendar: of all steps a window can reach.
    """

    def __init__(self, grid: FleetGrid, spec: WindowSpec, scaling: FleetScaling) -> None:
        self.spec = spec
        self.scaling = scaling
        self.linked = scaling.to_link(grid.values)
        self.profile_rows = scaling.profile_rows(np.array(grid.profiles, dtype=object))
        self.first_step = int(grid.start.astype("datetime64[s]").astype(np.int64)) // grid.step_seconds
        self.calendar = Calendar.over(
            self.first_step - spec.context_steps,
            self.first_step + grid.steps + spec.horizon_steps,
            grid.step_seconds,
            spec.timezone,
        )

    def without_profiles(self) -> WindowSource:
        """The same windows with no profile told; the fleet in link space is shared."""
        source = copy(self)
        source.scaling = self.scaling.without_profiles()
        source.profile_rows = np.zeros_like(self.profile_rows)
        return source

    def batch(
        self,
        rows: np.ndarray,
        origins: np.ndarray,
        encoder_steps: int,
        known_steps: np.ndarray,
        hidden: np.ndarray,
        clock_origins: np.ndarray | None = None,
        raised: np.ndarray | None = None,
    ) -> Batch:
        """Windows of servers `rows` at grid steps `origins` (int64 [window]).

        known_steps: how much history may be used; hidden: boolean, where the profile is not told. clock_origins: grid
        steps whose calendar the windows show (their own). raised: float32 [window, metric], by how much the server
        lies higher in link space than it does (nowhere). See build_windows.
        """
        windows = build_windows(
            self.spec,
            self.scaling,
            self.calendar,
            self.linked,
            rows,
            origins,
            self.first_step + (origins if clock_origins is None else clock_origins),
            np.where(hidden, 0, self.profile_rows[rows]),
            encoder_steps,
            known_steps,
            raised,
        )
        index = origins[:, None] + np.arange(1, self.spec.horizon_steps + 1)
        future = self.linked[rows[:, None], index]
        if raised is not None:
            future += raised[:, None]
        future -= windows.centre
        future /= at_each_step(windows.spread, self.spec.horizon_steps)
        return Batch(windows, compress(future))

    def cut(self, plan: Plan) -> Batch:
        """The batch that `plan` describes."""
        raised = plan.raised if plan.raised.any() else None
        batch = self.batch(
            plan.rows, plan.origins, plan.encoder_steps, plan.known_steps, plan.hidden, plan.clock_origins, raised
        )
        return exchange_metrics(replace(batch, windows=blur_position(batch.windows, plan.noise)), plan.order)

    def untold(self, rows: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Where the network is not told a profile: boolean [window]."""
        return hidden | (self.profile_rows[rows] == 0)

    def measured_targets(self, rows: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """True for the windows with at least one measured target: boolean [window]."""
        seen = ~np.isnan(self.linked).all(axis=2)
        counts = np.zeros((len(seen), seen.shape[1] + 1), dtype=np.int32)
        np.cumsum(seen, axis=1, out=counts[:, 1:])
        return counts[rows, origins + 1 + self.spec.horizon_steps] > counts[rows, origins + 1]


def epoch(
    source: WindowSource,
    rows: np.ndarray,
    last_step: int,
    batch_size: int,
    random: np.random.Generator,
    level_doubt: np.ndarray,
    handicaps: Handicaps = HANDICAPS,
    first_batch: int = 0,
) -> Iterator[Plan]:
    """One epoch over servers `rows` (int64): batches in random order, no target after grid step `last_step`.

    Each batch has random numbers of its own, so that an epoch can be entered at `first_batch` without planning those
    before it.
    """
    spec, metrics = source.spec, len(source.spec.metrics)
    server, origin, hour = _server_hours(spec, rows, last_step)
    origin = np.minimum(origin + random.integers(0, hour, origin.shape), last_step - spec.horizon_steps)
    kept = random.permutation(np.flatnonzero(source.measured_targets(server, origin)))
    seed, fictional_share = int(random.integers(2**63)), handicaps.fictional_share(len(rows))
    for number in range(first_batch, -(-len(kept) // batch_size)):
        random = np.random.default_rng([seed, number])
        chosen = kept[number * batch_size : (number + 1) * batch_size]
        encoder_steps, known_steps = draw_history(spec, len(chosen), random, handicaps)
        size = len(chosen)
        hidden = random.random(size) < handicaps.hidden_profile_share
        shows_itself = source.untold(server[chosen], hidden) & (known_steps >= spec.context_steps)
        exchanged, other_clock = shows_itself & (random.random((2, size)) < fictional_share)
        clock = np.where(other_clock, random.choice(origin, size), origin[chosen])
        deviation = handicaps.position_noise * fictional_share
        noise = random.normal(0, deviation, (size, 2 * metrics)).astype(np.float32)
        order = np.tile(np.arange(metrics), (size, 1))
        order[exchanged] = random.permuted(order[exchanged], axis=1)
        doubt = level_doubt[np.where(hidden, 0, source.profile_rows[server[chosen]])]
        doubt = handicaps.level_doubt * doubt * np.maximum(1.0 - known_steps / spec.context_steps, 0.0)[:, None]
        raised = (doubt * random.normal(0, 1, doubt.shape)).astype(np.float32)
        yield Plan(
            number, encoder_steps, server[chosen], origin[chosen], known_steps, hidden, clock, raised, noise, order
        )


def blur_position(windows: Windows, noise: np.ndarray) -> Windows:
    """Noise on the static reals that say where a window lies relative to its profile and how wide it is.

    noise: float32 [window, 2 * metric]. Targets and inputs are in window units, so this is the same behaviour at
    another level: a fictional server. Without it the levels give the servers of a small fleet away, and the network
    learns them by heart instead of their kind. With it, it learns less of what levels tell: the more servers, the less.
    """
    static = windows.static.copy()
    static[:, : noise.shape[1]] += noise
    return windows._replace(static=static)


def exchange_metrics(batch: Batch, order: np.ndarray) -> Batch:
    """Windows whose metrics do what others do: metric m of a window what order[window, m] did (int64).

    In window units one metric is as good as another: a server whose memory does what another's disk does is a
    fictional server. Without it a network that knows few servers learns each one's metrics by heart. Only where the
    profile is not told, as it tells what its metrics are like, and where the context shows it instead.
    """
    metrics = order.shape[1]
    rows = np.flatnonzero((order != np.arange(metrics)).any(axis=1))
    if not rows.size:
        return batch
    order = order[rows]
    pairs = (2 * order[:, :, None] + np.arange(2)).reshape(len(rows), -1)  # inputs have two columns a metric
    windows = batch.windows
    static, encoder, decoder = windows.static.copy(), windows.encoder.copy(), windows.decoder.copy()
    static[rows, : 2 * metrics] = np.take_along_axis(static[rows], pairs, axis=1)
    static[rows, 2 * metrics : 3 * metrics] = np.take_along_axis(static[rows], 2 * metrics + order, axis=1)
    encoder[rows] = np.take_along_axis(encoder[rows], pairs[:, None], axis=2)
    decoder[rows, :, : 2 * metrics] = np.take_along_axis(decoder[rows], pairs[:, None], axis=2)
    shape = windows.shape.copy()
    shape[rows] = np.take_along_axis(shape[rows], order[:, :, None], axis=1)
    targets = batch.targets.copy()
    targets[rows] = np.take_along_axis(targets[rows], order[:, None], axis=2)
    return Batch(windows._replace(static=static, encoder=encoder, decoder=decoder, shape=shape), targets)


def batches_per_epoch(source: WindowSource, rows: np.ndarray, last_step: int, batch_size: int) -> int:
    """How many batches `epoch` yields, at least 1; beside gaps, its random minutes may make it one more or fewer."""
    server, hours, _ = _server_hours(source.spec, rows, last_step)
    return max(1, -(-int(source.measured_targets(server, hours).sum()) // batch_size))


def _server_hours(spec: WindowSpec, rows: np.ndarray, last_step: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Servers and first steps of their hours, int64 [window] each, whose windows end by `last_step`; steps an hour."""
    hour = max(1, HOUR_SECONDS // spec.step_seconds)
    hours = np.arange(0, last_step - spec.horizon_steps + 1, hour)
    server, origin = (part.ravel() for part in np.meshgrid(rows, hours, indexing="ij"))
    return server, origin, hour


def draw_history(
    spec: WindowSpec, windows: int, random: np.random.Generator, handicaps: Handicaps = HANDICAPS
) -> tuple[int, np.ndarray]:
    """An encoder length for a batch, and per window how many steps up to the origin are known: int64 [window]."""
    unlimited = spec.history_steps
    if random.random() >= handicaps.short_history_share:
        only_a_day = random.random(windows) < handicaps.one_day_share
        return spec.context_steps, np.where(only_a_day, spec.context_steps, unlimited)
    lengths = spec.encoder_lengths
    if len(lengths) == 1 or random.random() < NEWEST_SHARE:
        return 1, random.integers(0, 2, windows)
    choice = int(random.integers(1, len(lengths)))
    return lengths[choice], random.integers(lengths[choice - 1] + 1, lengths[choice] + 1, windows)
