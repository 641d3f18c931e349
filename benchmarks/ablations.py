"""What each choice for strangers is worth: the same short training run, with one choice undone at a time.

    python benchmarks/ablations.py --training-dir ./training/           # all variants, about 4 minutes each
    python benchmarks/ablations.py --step-seconds 3600 --seeds 1,2,3    # hourly means: twenty seconds each
    python benchmarks/ablations.py --variants shipped,per_server        # some of them
    python benchmarks/ablations.py --variants '' --output table.md      # only the table, of the runs there are

Every variant trains as many windows, from the same seed, on the same servers and days, with the same network, and is
scored on the later days: on servers it never saw, with none, one step, one hour, one day and one week of history, the
profile given and hidden; and on the servers it was trained on, with one week of history. Each run is kept as a JSON
file in --work-dir and not repeated, so the table can be made piece by piece; benchmarks/ablations.md is written from
all runs there are. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tft_trainer  # noqa: E402
from benchmarks.unseen_servers import BLOCK_HOURS, at_random, in_blocks_of  # noqa: E402
from data_contract import METRIC_SPECS, ContractError, DataFileError  # noqa: E402
from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS  # noqa: E402
from fleet_forecast.evaluation.backtest import MODEL, Backtest, rolling_origins  # noqa: E402
from fleet_forecast.evaluation.scores import mean_seasonal_error  # noqa: E402
from fleet_forecast.features.cold_start import lengths  # noqa: E402
from fleet_forecast.features.daily_rhythm import DailyRhythm, daily_rhythm  # noqa: E402
from fleet_forecast.features.grid import FleetGrid, GridError  # noqa: E402
from fleet_forecast.features.history import past_values  # noqa: E402
from fleet_forecast.features.quantile_map import NORMAL_SCORES, window_shape  # noqa: E402
from fleet_forecast.features.scaling import FleetScaling, fit_scaling  # noqa: E402
from fleet_forecast.features.windows import WindowSpec  # noqa: E402
from fleet_forecast.inference.torch_backend import torch_run  # noqa: E402
from fleet_forecast.network.model import ForecastModel, build_network, importance  # noqa: E402
from fleet_forecast.training.sampling import HANDICAPS, Batch, Handicaps, WindowSource  # noqa: E402
from fleet_forecast.training.split import Split, SplitError, split_fleet  # noqa: E402
from fleet_forecast.training.trainer import AVERAGING_DECAY, FitSettings, fit  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

HELD_OUT_SHARE = "0.2"  # of each profile's servers
BATCH_SIZE, LEARNING_RATE, HIDDEN_SIZE = 64, 3e-3, 32
ORIGIN_EVERY_HOURS = 7  # no divisor of a day, so that all hours occur
WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class Variant:
    """One way to train; the defaults are the shipped ones.

    per_server: scale by statistics of each training server, of the median server for strangers, as
    pytorch-forecasting's GroupNormalizer does. prior_steps: as which the profile counts beside a window's own, instead
    of estimated weights (short_history.py).
    knows_rhythm: whether a server's daily rhythm is taken off its windows. shape: on what distribution answers are read
    (SHAPES). weighs_windows: whether wide windows count more in the loss.
    trains_unknown: whether the embedding of the unknown profile is trained or stays at its initial zero. gaps: a fifth
    of the rows is missing in training, at random from half of the servers, in blocks from the others (scored on all).
    """

    name: str
    title: str
    handicaps: Handicaps = HANDICAPS
    averaging_decay: float = AVERAGING_DECAY
    prior_steps: float | None = None
    per_server: bool = False
    knows_profiles: bool = True
    knows_rhythm: bool = True
    shape: str = "own and profile's"
    weighs_windows: bool = True
    trains_unknown: bool = True
    gaps: bool = False


VARIANTS = (
    Variant("shipped", "as shipped"),
    Variant("per_server", "scaled per server, strangers as the median server (GroupNormalizer)", per_server=True),
    Variant("full_histories", "no short histories", replace(HANDICAPS, short_history_share=0.0)),
    Variant("profile_always_told", "profile never hidden", replace(HANDICAPS, hidden_profile_share=0.0)),
    Variant("unknown_untrained", "profile hidden at times, its embedding left at zero", trains_unknown=False),
    Variant("fixed_weights", "a window's own after n steps weighs n / (n + 3)", prior_steps=3.0),
    Variant("no_position_noise", "no noise on the window's position", replace(HANDICAPS, position_noise=0.0)),
    Variant("no_level_doubt", "levels of new servers not in doubt", replace(HANDICAPS, level_doubt=0.0)),
    Variant("only_real_servers", "no fictional servers", replace(HANDICAPS, fictional_servers=0.0)),
    Variant("last_weights", "last weights instead of averaged ones", averaging_decay=0.0),
    Variant("no_profile", "no profile at all", knows_profiles=False),
    Variant("no_rhythm", "daily rhythm left in the windows", knows_rhythm=False),
    Variant("normal_prior", "of a short history, quantiles read on the normal distribution", shape="own and normal"),
    Variant("no_shape", "quantiles read on the normal distribution", shape="normal"),
    Variant("equal_windows", "every window counts the same in the loss", weighs_windows=False),
    Variant("gaps", "a fifth of the training rows missing", gaps=True),
)
HISTORIES = {"none": 0.0, "1 step": None, "1 h": 1.0, "24 h": 24.0, "7 days": 168.0}  # hours; None = a single step
LONGEST = "7 days"
COLD_START = ("none", "1 step")  # the histories a new server's score in the last line is averaged over


@dataclass(frozen=True)
class Job:
    """The data set every variant is trained on."""

    name: str
    grid: FleetGrid
    spec: WindowSpec
    split: Split
    profiles: tuple[str, ...]

    def origins(self) -> np.ndarray:
        """Grid steps of the scored forecasts."""
        every = max(1, ORIGIN_EVERY_HOURS * 3600 // self.grid.step_seconds)
        return rolling_origins(self.split.train_end, self.grid.steps - 1, self.spec.horizon_steps, every)


def load_job(training_dir: Path, step_seconds: int, seed: int) -> Job:
    """Read and split the data as the trainer does."""
    flags = ["--training-dir", str(training_dir), "--step-seconds", str(step_seconds), "--seed", str(seed)]
    arguments = tft_trainer.build_parser().parse_args(flags)
    data = tft_trainer.read(arguments)
    grid, spec = tft_trainer.lay_out(data, arguments)
    split = split_fleet(grid, spec, arguments.train_fraction, HELD_OUT_SHARE, seed)
    seen_profiles = {grid.profiles[row] for row in split.seen} if data.has_profile_column else set()
    profiles = tuple(sorted(str(name) for name in seen_profiles if name is not None))
    name = f"{training_dir.absolute().stem}-{step_seconds}s"
    return Job(name, grid, spec, split, profiles if len(profiles) > 1 else ())


# --- one run --------------------------------------------------------------------------------------------------------


class PerServerSource(WindowSource):
    """Windows scaled by fixed statistics of their server; the network is told the profile, as ever."""

    def __init__(self, grid: FleetGrid, spec: WindowSpec, servers: FleetScaling, profiles: FleetScaling) -> None:
        super().__init__(replace(grid, profiles=grid.servers), spec, servers)
        self._told = profiles.profile_rows(np.array(grid.profiles, dtype=object))

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
        """As WindowSource.batch."""
        batch = super().batch(rows, origins, encoder_steps, known_steps, np.zeros_like(hidden), clock_origins, raised)
        told = np.where(hidden, 0, self._told[rows])
        return replace(batch, windows=batch.windows._replace(profile=told))


def source_of(variant: Variant, job: Job) -> WindowSource:
    """The variant's windows; scaling is fitted on training servers and days."""
    grid, split = job.grid, job.split

    def scaling_by(owners: Sequence[str | None]) -> FleetScaling:
        return fit_scaling(
            grid.values[split.seen, : split.train_end],
            grid.metrics,
            np.array([METRIC_SPECS[name].is_percent for name in grid.metrics]),
            tuple(owners[row] for row in split.seen),
            job.spec.context_steps,
        )

    told = job.profiles and variant.knows_profiles
    by_profile = scaling_by(grid.profiles if told else (None,) * len(grid.servers))
    if variant.prior_steps is not None:
        n = lengths(job.spec.context_steps)
        by_profile = with_weights(by_profile, n / (n + variant.prior_steps))
    if not variant.per_server:
        return WindowSource(grid, job.spec, by_profile)
    return PerServerSource(grid, job.spec, for_strangers_the_median(scaling_by(grid.servers)), by_profile)


def with_weights(scaling: FleetScaling, weights: np.ndarray) -> FleetScaling:
    """The same weights [length] for every profile and metric, of means and deviations."""
    table = np.broadcast_to(weights.astype(np.float32), scaling.level_weight.shape)
    return replace(scaling, level_weight=table, spread_weight=table)


def for_strangers_the_median(scaling: FleetScaling) -> FleetScaling:
    """Statistics of each server in row 1 and on, the median server's in row 0; a window's own count for nothing."""
    centre, spread = scaling.centre.copy(), scaling.spread.copy()
    centre[0], spread[0] = np.median(centre[1:], axis=0), np.median(spread[1:], axis=0)
    return with_weights(replace(scaling, centre=centre, spread=spread), np.zeros(scaling.level_weight.shape[2]))


def with_gaps(job: Job) -> Job:
    """The job with rows removed, another way from every other server."""
    random, block_steps = np.random.default_rng(0), BLOCK_HOURS * 3600 // job.grid.step_seconds
    shape = (len(job.grid.servers), job.grid.steps)
    every_other = np.arange(shape[0])[:, None] % 2 == 0
    removed = np.where(every_other, at_random(shape, random), in_blocks_of(block_steps)(shape, random))
    values = np.where(removed[:, :, None], np.float32(np.nan), job.grid.values)
    return replace(job, grid=replace(job.grid, values=values))


@contextmanager
def windows_of(variant: Variant) -> Iterator[None]:
    """Windows are cut, and count in the loss, as the variant wants it meanwhile."""
    with (
        mock.patch.multiple(
            "fleet_forecast.features.windows",
            daily_rhythm=daily_rhythm if variant.knows_rhythm else no_rhythm,
            window_shape=SHAPES[variant.shape],
        ),
        mock.patch(
            "fleet_forecast.training.gradients.importance", importance if variant.weighs_windows else torch.ones_like
        ),
    ):
        yield


def no_rhythm(context: np.ndarray, usual: np.ndarray, _context_steps: int) -> DailyRhythm:
    """As daily_rhythm of servers that follow none."""
    share = np.zeros((len(context), context.shape[2]), dtype=np.float32)
    return DailyRhythm(share, np.zeros_like(usual))


def normal_like(shape: np.ndarray) -> np.ndarray:
    """The normal distribution for every window and metric, float32 [window, metric, level]."""
    return np.broadcast_to(np.array(NORMAL_SCORES, dtype=np.float32), shape.shape).copy()


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "own and profile's": window_shape,
    "own and normal": lambda units, prior: window_shape(units, normal_like(prior)),
    "normal": lambda _units, prior: normal_like(prior),
}


def train(variant: Variant, job: Job, source: WindowSource, epochs: int, seed: int) -> ForecastModel:
    """A model of this variant."""
    torch.manual_seed(seed)
    network = build_network(job.spec, job.profiles if variant.knows_profiles else (), HIDDEN_SIZE)
    if not variant.trains_unknown:
        network.input_embeddings["profile"].weight.register_hook(without_unknown)
    settings = FitSettings(
        epochs=epochs,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        max_seconds=float("inf"),
        seed=seed,
        averaging_decay=variant.averaging_decay,
        handicaps=variant.handicaps,
    )
    return fit(ForecastModel(network, job.spec, source.scaling), source, job.split, settings).model


def without_unknown(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of an embedding, zero for category 0 (what padding_idx=0 does in the stock class)."""
    kept = gradient.clone()
    kept[0] = 0.0
    return kept


def forecast(
    model: ForecastModel, source: WindowSource, rows: np.ndarray, origins: np.ndarray, steps: int, hidden: bool
) -> np.ndarray:
    """Quantiles from so many steps of history, cut as the engine cuts them: [window, horizon, metric, quantile]."""
    lengths = source.spec.encoder_lengths
    encoder_steps = lengths[int(np.searchsorted(lengths, np.clip(steps, 1, source.spec.context_steps)))]
    run, parts = torch_run(model), []
    for chunk in np.array_split(np.arange(len(rows)), -(-len(rows) // WINDOWS_AT_ONCE)):
        known, unseen = np.full(len(chunk), steps), np.full(len(chunk), hidden)
        parts.append(run(source.batch(rows[chunk], origins[chunk], encoder_steps, known, unseen).windows))
    return np.concatenate(parts)


def scores(model: ForecastModel, source: WindowSource, job: Job, servers: np.ndarray, steps: int, hidden: bool) -> Any:
    """WQL, accuracy and coverage of some servers' later days: {score: mean over metrics}."""
    grid, horizon = job.grid, job.spec.horizon_steps
    rows, origins = (part.ravel() for part in np.meshgrid(servers, job.origins(), indexing="ij"))
    actual = past_values(grid.values, rows, origins + horizon, horizon)
    some = ~np.isnan(actual).all(axis=(1, 2))
    rows, origins, actual = rows[some], origins[some], actual[some]
    day = job.spec.day_steps
    seasonal_error = mean_seasonal_error(grid.values[:, : job.split.train_end], day)
    made = {MODEL: forecast(model, source, rows, origins, steps, hidden)}
    table = Backtest(grid.metrics, QUANTILE_LEVELS, rows, origins, actual, seasonal_error, made).scores()
    mean = table.set_index("metric").loc["mean"]
    return {name: round(float(mean[name]), 5) for name in ("wql", "accuracy", "coverage_80", "coverage_96")}


def run(variant: Variant, job: Job, epochs: int, seed: int) -> dict[str, Any]:
    """Train and score one variant."""
    with windows_of(variant):
        return _run(variant, job, epochs, seed)


def _run(variant: Variant, job: Job, epochs: int, seed: int) -> dict[str, Any]:
    source = source_of(variant, with_gaps(job) if variant.gaps else job)
    model = train(variant, job, source, epochs, seed)
    if variant.gaps:
        source = WindowSource(job.grid, job.spec, source.scaling)
    hour = 3600 / job.grid.step_seconds
    steps = {name: 1 if hours is None else round(hours * hour) for name, hours in HISTORIES.items()}
    told = {"given": False, "hidden": True} if job.profiles and variant.knows_profiles else {"hidden": True}
    unseen = {
        profile: {name: scores(model, source, job, job.split.unseen, n, hidden) for name, n in steps.items()}
        for profile, hidden in told.items()
    }
    seen = scores(model, source, job, job.split.seen, steps[LONGEST], "given" not in told)
    facts = {"servers": len(job.grid.servers), "trained": len(job.split.seen), "unseen": len(job.split.unseen)}
    return {
        "variant": variant.name, "seed": seed, "epochs": epochs, "data": job.name, **facts,
        "steps": job.grid.steps, "step_seconds": job.grid.step_seconds, "metrics": job.grid.metrics,
        "unseen_scores": unseen, "seen_score": seen,
    }  # fmt: skip


# --- the table ------------------------------------------------------------------------------------------------------


def columns_of(result: Mapping[str, Any], score: str) -> dict[str, float]:
    """One table row's figures; a variant without profiles forecasts as if the profile were hidden."""
    shown = [name for name in HISTORIES if name != "1 h" or result["step_seconds"] < 3600]  # else it is the 1 step
    columns: dict[str, float] = {}
    for profile in ("given", "hidden"):
        by_history = result["unseen_scores"].get(profile, result["unseen_scores"]["hidden"])
        columns |= {f"{profile}, {history}": float(by_history[history][score]) for history in shown}
    return columns | {f"seen, {LONGEST}": float(result["seen_score"][score])}


def on_common_seeds(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs of those seeds that every variant has been run with; all runs if there is no such seed."""
    seeds_of: dict[str, set[int]] = {}
    for result in results:
        seeds_of.setdefault(result["variant"], set()).add(result["seed"])
    common = set.intersection(*seeds_of.values())
    return [result for result in results if not common or result["seed"] in common]


def table_of(results: Sequence[Mapping[str, Any]], score: str) -> pd.DataFrame:
    """Mean over seeds: a row per variant in the order of VARIANTS, columns as in columns_of.

    Data without profiles have no columns with the profile given.
    """
    rows = pd.DataFrame([{"variant": result["variant"], **columns_of(result, score)} for result in results])
    means = rows.groupby("variant").mean()
    if not any("given" in result["unseen_scores"] for result in results):
        means = means[[name for name in means.columns if not name.startswith("given")]]
    return means.loc[[variant.name for variant in VARIANTS if variant.name in means.index]]


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The section of one data set."""
    first = results[0]
    seeds = sorted({int(result["seed"]) for result in results})
    hours = first["steps"] * first["step_seconds"] // 3600
    title = (
        f"## {first['data']}: {first['servers']} servers, {hours} hours, {len(first['metrics'])} metrics, "
        f"steps of {first['step_seconds']} s"
    )
    setting = (
        f"{first['epochs']} visit(s) of every server-hour of {first['trained']} servers, "
        f"{first['unseen']} others held out; seed {', '.join(map(str, seeds))}. Unseen servers by length of history, "
        f"profile given or hidden; seen servers with {LONGEST}. In brackets: change against the first row in percent."
    )
    lines = [title, "", setting]
    spread = spread_between_seeds([result for result in results if result["variant"] == "shipped"])
    if spread is not None:
        lines += ["", f"Between seeds, the first row's WQL differs by {spread:.1f} % (deviation, mean of columns)."]
    for score, heading in (("wql", "WQL (smaller is better)"), ("accuracy", "Accuracy, % (larger is better)")):
        lines += ["", heading, "", *_rows(table_of(results, score), score)]
    return "\n".join(lines)


def _rows(table: pd.DataFrame, score: str) -> list[str]:
    titles = {variant.name: variant.title for variant in VARIANTS}
    lines = ["| | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    for name, row in table.iterrows():
        cells = [f"{value:.4f}" if score == "wql" else f"{value:.1f}" for value in row]
        if score == "wql" and "shipped" in table.index and name != "shipped":
            change = 100 * (row / table.loc["shipped"] - 1)
            cells = [f"{cell} ({percent:+.0f})" for cell, percent in zip(cells, change, strict=True)]
        lines.append(f"| {titles[str(name)]} | " + " | ".join(cells) + " |")
    return lines


def spread_between_seeds(shipped: Sequence[Mapping[str, Any]]) -> float | None:
    """Deviation of WQL between seeds in percent, mean over columns; None with a single seed."""
    if len(shipped) < 2:
        return None
    table = pd.DataFrame([columns_of(result, "wql") for result in shipped])
    return float((100 * table.std() / table.mean()).mean())


def write_table(work_dir: Path, output: Path) -> dict[str, Any]:
    """benchmarks/ablations.md from every run in `work_dir`.

    Returns by data and variant the mean WQL of servers with a step of history or none, profile given if there are any.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work_dir.glob("*.json"))]
    summary: dict[str, Any] = {}
    sections = []
    for name in sorted({result["data"] for result in results}):
        of_data = on_common_seeds([result for result in results if result["data"] == name])
        sections.append(markdown(of_data))
        table = table_of(of_data, "wql")
        told = "given" if any(name.startswith("given") for name in table.columns) else "hidden"
        means = table[[f"{told}, {history}" for history in COLD_START]].mean(axis=1)
        summary[name] = {str(variant): round(float(value), 5) for variant, value in means.items()}
    title = "# What each choice for strangers is worth\n\nWritten by `python benchmarks/ablations.py`.\n"
    output.write_text(title + "".join(f"\n{section}\n" for section in sections), encoding="utf-8")
    return summary


def run_missing(variants: Sequence[Variant], job: Job, arguments: argparse.Namespace, seed: int) -> None:
    """Run and keep those variants that have no file yet."""
    for variant in variants:
        path = arguments.work_dir / f"{job.name}-{variant.name}-{seed}.json"
        if path.exists():
            print(f"{path}: there already, not repeated", file=sys.stderr)
            continue
        print(f"{variant.title}, seed {seed}", file=sys.stderr)
        path.write_text(json.dumps(run(variant, job, arguments.epochs, seed)), encoding="utf-8")


# --- command line ---------------------------------------------------------------------------------------------------


def _chosen(text: str) -> tuple[Variant, ...]:
    names = [name for name in text.split(",") if name]
    known = {variant.name: variant for variant in VARIANTS}
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no variant {', '.join(unknown)}; known are {', '.join(known)}")
    return tuple(known[name] for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the table; returns 0 when done, 1 if the data cannot be used, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--training-dir", type=Path, default=ROOT / "training", help="folder or file to train on (./training)")
    add("--work-dir", type=Path, default=ROOT / "models/ablations", help="where runs are kept (models/ablations)")
    add("--output", type=Path, default=ROOT / "benchmarks/ablations.md", help="the table (benchmarks/ablations.md)")
    add("--variants", type=_chosen, default=VARIANTS, help="comma-separated names (all)")
    add("--step-seconds", type=int, default=300, help="finer data are averaged onto this step (%(default)s)")
    add("--epochs", type=int, default=1, help="visits of every server-hour (%(default)s)")
    add("--seeds", default="1", help="comma-separated; a run for each (%(default)s)")
    arguments = parser.parse_args(argv)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    try:
        for seed in map(int, arguments.seeds.split(",")) if arguments.variants else ():
            run_missing(
                arguments.variants, load_job(arguments.training_dir, arguments.step_seconds, seed), arguments, seed
            )
    except (ContractError, DataFileError, GridError, SplitError, tft_trainer.TrainingError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(write_table(arguments.work_dir, arguments.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
