"""Effect of each design choice on unseen servers: the same short training, with one choice undone at a time.

    python benchmarks/ablations.py --training-dir ./training/           # all variants, about 4 minutes each
    python benchmarks/ablations.py --step-seconds 3600 --seeds 1,2,3    # hourly means: twenty seconds each
    python benchmarks/ablations.py --variants shipped,per_server        # some of them
    python benchmarks/ablations.py --variants '' --output table.md      # only the table, of existing runs

All variants have the same seed, number of windows, servers, days and network. They are scored in the test period: on
unseen servers with a history of 0, one step, one hour, one day and one week, with the profile given and masked; and on
training servers with one week of history. Each run is stored as a JSON file in --work-dir and not repeated, so that the
table can be made in several calls. benchmarks/ablations.md is written from all stored runs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tft_trainer  # noqa: E402
from benchmarks.unseen_servers import BLOCK_HOURS, at_random, in_blocks_of  # noqa: E402
from data_contract import METRIC_SPECS, ContractError, DataFileError  # noqa: E402
from fleet_forecast.commands import training_job  # noqa: E402
from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS  # noqa: E402
from fleet_forecast.evaluation.backtest import MODEL, Backtest, rolling_origins  # noqa: E402
from fleet_forecast.evaluation.scores import mean_seasonal_error  # noqa: E402
from fleet_forecast.features.cold_start import history_lengths  # noqa: E402
from fleet_forecast.features.grid import FleetGrid, GridError  # noqa: E402
from fleet_forecast.features.history import past_values  # noqa: E402
from fleet_forecast.features.quantile_map import NORMAL_SCORES, window_quantiles  # noqa: E402
from fleet_forecast.features.scaling import FleetScaling, fit_scaling  # noqa: E402
from fleet_forecast.features.seasonality import SeasonalComponent, seasonal_component  # noqa: E402
from fleet_forecast.features.windows import WindowSpec  # noqa: E402
from fleet_forecast.inference.torch_backend import torch_run  # noqa: E402
from fleet_forecast.network.build import build_network  # noqa: E402
from fleet_forecast.network.loss import sample_weight  # noqa: E402
from fleet_forecast.network.model import ForecastModel  # noqa: E402
from fleet_forecast.training.batches.augmentation import DEFAULT_AUGMENTATION, Augmentation  # noqa: E402
from fleet_forecast.training.batches.source import Batch, TrainingBatch, WindowSelection, WindowSource  # noqa: E402
from fleet_forecast.training.job import choose_profiles  # noqa: E402
from fleet_forecast.training.split import Split, TrainingError, split_fleet  # noqa: E402
from fleet_forecast.training.trainer import EMA_DECAY, Trainer, TrainerSettings, TrainingData  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

HELD_OUT_SHARE = "0.2"  # of each profile's servers
BATCH_SIZE, LEARNING_RATE, HIDDEN_SIZE = 64, 3e-3, 32
ORIGIN_INTERVAL_HOURS = 7  # does not divide a day, so that origins fall on all hours
WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class Variant:
    """A training set-up; the defaults are those of the trainer.

    per_server: scale by the statistics of each training server, and by those of the median server for unseen servers,
    as pytorch-forecasting's GroupNormalizer does. prior_steps: fixed shrinkage weight n / (n + prior_steps) after n
    measurements, instead of the learned weights (features/cold_start.py). uses_seasonality: subtract the daily seasonal
    component. quantile_map: the distribution on which quantiles are read (QUANTILE_MAPS). weighs_windows: sample
    weights in the loss. trains_unknown: train the embedding of the unknown profile; otherwise it stays zero.
    starts_at_prior: the output layer starts at the normal scores instead of random weights. gaps: remove a fifth of the
    rows from training, at random for half of the servers, in blocks for the others.
    """

    name: str
    title: str
    augmentation: Augmentation = DEFAULT_AUGMENTATION
    ema_decay: float = EMA_DECAY
    prior_steps: float | None = None
    per_server: bool = False
    uses_profiles: bool = True
    uses_seasonality: bool = True
    quantile_map: str = "window and profile"
    weighs_windows: bool = True
    trains_unknown: bool = True
    starts_at_prior: bool = True
    gaps: bool = False


VARIANTS = (
    Variant("shipped", "as shipped"),
    Variant("per_server", "scaled per server, unseen servers as the median server (GroupNormalizer)", per_server=True),
    Variant("full_histories", "no short histories", replace(DEFAULT_AUGMENTATION, short_history_share=0.0)),
    Variant("no_profile_masking", "profile never masked", replace(DEFAULT_AUGMENTATION, masked_profile_share=0.0)),
    Variant("unknown_untrained", "embedding of the unknown profile not trained", trains_unknown=False),
    Variant("random_output", "output layer starts with random weights", starts_at_prior=False),
    Variant("fixed_shrinkage", "fixed shrinkage weight n / (n + 3) after n steps", prior_steps=3.0),
    Variant("no_position_noise", "no noise on loc and scale inputs", replace(DEFAULT_AUGMENTATION, position_noise=0.0)),
    Variant(
        "no_level_uncertainty", "no predictive level uncertainty", replace(DEFAULT_AUGMENTATION, level_uncertainty=0.0)
    ),
    Variant("only_real_servers", "no synthetic servers", replace(DEFAULT_AUGMENTATION, synthetic_servers=0.0)),
    Variant("last_weights", "last weights instead of their EMA", ema_decay=0.0),
    Variant("no_profile", "no profile at all", uses_profiles=False),
    Variant("no_seasonality", "seasonal component not subtracted", uses_seasonality=False),
    Variant("normal_prior", "quantile map shrunk to the normal distribution", quantile_map="window and normal"),
    Variant("no_quantile_map", "no quantile map: normal distribution", quantile_map="normal"),
    Variant("equal_windows", "no sample weights in the loss", weighs_windows=False),
    Variant("gaps", "a fifth of the training rows missing", gaps=True),
)
HISTORIES = {"none": 0.0, "1 step": None, "1 h": 1.0, "24 h": 24.0, "7 days": 168.0}  # hours; None = a single step
LONGEST = "7 days"
COLD_START = ("none", "1 step")  # histories that the scores in the last line are averaged over


@dataclass(frozen=True)
class Job:
    """The data that all variants are trained on."""

    name: str
    grid: FleetGrid
    spec: WindowSpec
    split: Split
    profiles: tuple[str, ...]

    def origins(self) -> np.ndarray:
        """Grid steps of the scored forecasts."""
        interval_steps = max(1, ORIGIN_INTERVAL_HOURS * 3600 // self.grid.step_seconds)
        first, last = self.split.test_start, self.grid.steps - 1
        return rolling_origins(first, last, self.spec.horizon_steps, interval_steps)


def load_job(training_dir: Path, step_seconds: int, seed: int) -> Job:
    """Read and split the data with the trainer's functions."""
    flags = ["--training-dir", str(training_dir), "--step-seconds", str(step_seconds), "--seed", str(seed)]
    arguments = tft_trainer.build_parser().parse_args(flags)
    data = training_job.read(arguments)
    grid, spec = training_job.grid_and_windows(data, arguments)
    split = split_fleet(grid, spec, arguments.train_fraction, HELD_OUT_SHARE, seed)
    profiles, _ = choose_profiles(data, grid, split)
    return Job(f"{training_dir.absolute().stem}-{step_seconds}s", grid, spec, split, profiles)


# --- one run --------------------------------------------------------------------------------------------------------


class PerServerSource(WindowSource):
    """Windows scaled by fixed statistics of their server. The profile remains an input of the network."""

    def __init__(self, grid: FleetGrid, spec: WindowSpec, servers: FleetScaling, profiles: FleetScaling) -> None:
        super().__init__(replace(grid, profiles=grid.servers), spec, servers)
        self._network_profile = profiles.profile_rows(np.array(grid.profiles, dtype=object))

    def batch(self, selection: WindowSelection) -> Batch:
        """As WindowSource.batch."""
        windows, targets = super().batch(replace(selection, masked_profile=None))
        profile = self._network_profile[selection.rows]
        if selection.masked_profile is not None:
            profile = np.where(selection.masked_profile, 0, profile)
        return TrainingBatch(windows._replace(inputs=windows.inputs._replace(profile=profile)), targets)


def source_of(variant: Variant, job: Job) -> WindowSource:
    """The variant's windows; scaling is fitted on training servers and days."""
    grid, split = job.grid, job.split

    def scaling_by(owners: Sequence[str | None]) -> FleetScaling:
        return fit_scaling(
            grid.values[split.training_servers, : split.test_start],
            {name: METRIC_SPECS[name].kind for name in grid.metrics},
            tuple(owners[row] for row in split.training_servers),
            job.spec.context_steps,
        )

    with_profiles = job.profiles and variant.uses_profiles
    by_profile = scaling_by(grid.profiles if with_profiles else (None,) * len(grid.servers))
    if variant.prior_steps is not None:
        n = history_lengths(job.spec.context_steps)
        by_profile = with_weights(by_profile, n / (n + variant.prior_steps))
    if not variant.per_server:
        return WindowSource(grid, job.spec, by_profile)
    return PerServerSource(grid, job.spec, median_for_unseen(scaling_by(grid.servers)), by_profile)


def with_weights(scaling: FleetScaling, weights: np.ndarray) -> FleetScaling:
    """The same shrinkage weights [length] of loc and scale for every profile and metric."""
    table = np.broadcast_to(weights.astype(np.float32), scaling.loc_weight.shape)
    return replace(scaling, loc_weight=table, scale_weight=table)


def median_for_unseen(scaling: FleetScaling) -> FleetScaling:
    """Median statistics in row 0 for unseen servers, and shrinkage weight 0 for the window's own statistics."""
    loc, scale = scaling.loc.copy(), scaling.scale.copy()
    loc[0], scale[0] = np.median(loc[1:], axis=0), np.median(scale[1:], axis=0)
    return with_weights(replace(scaling, loc=loc, scale=scale), np.zeros(scaling.loc_weight.shape[2]))


def with_gaps(job: Job) -> Job:
    """The job with a fifth of the rows removed, at random from even servers and in blocks from odd ones."""
    random, block_steps = np.random.default_rng(0), BLOCK_HOURS * 3600 // job.grid.step_seconds
    shape = (len(job.grid.servers), job.grid.steps)
    every_other = np.arange(shape[0])[:, None] % 2 == 0
    removed = np.where(every_other, at_random(shape, random), in_blocks_of(block_steps)(shape, random))
    values = np.where(removed[:, :, None], np.float32(np.nan), job.grid.values)
    return replace(job, grid=replace(job.grid, values=values))


@contextmanager
def windows_of(variant: Variant) -> Iterator[None]:
    """Replaces the functions that build and weigh windows within the block, as the variant requires."""
    with (
        mock.patch.multiple(
            "fleet_forecast.features.windows",
            seasonal_component=seasonal_component if variant.uses_seasonality else no_seasonality,
            window_quantiles=QUANTILE_MAPS[variant.quantile_map],
        ),
        mock.patch(
            "fleet_forecast.training.gradients.sample_weight",
            sample_weight if variant.weighs_windows else torch.ones_like,
        ),
    ):
        yield


def no_seasonality(context: np.ndarray, seasonal_mean: np.ndarray, _day_steps: int) -> SeasonalComponent:
    """seasonal_component for windows without a daily pattern."""
    strength = np.zeros((len(context), context.shape[2]), dtype=np.float32)
    return SeasonalComponent(strength, np.zeros_like(seasonal_mean))


def normal_like(quantiles: np.ndarray) -> np.ndarray:
    """The normal distribution for every window and metric, float32 [window, metric, knot]."""
    return np.broadcast_to(np.array(NORMAL_SCORES, dtype=np.float32), quantiles.shape).copy()


QUANTILE_MAPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "window and profile": window_quantiles,
    "window and normal": lambda units, prior: window_quantiles(units, normal_like(prior)),
    "normal": lambda _units, prior: normal_like(prior),
}


def train(variant: Variant, job: Job, source: WindowSource, epochs: int, seed: int) -> ForecastModel:
    """Train a model of this variant."""
    torch.manual_seed(seed)
    network = build_network(job.spec, job.profiles if variant.uses_profiles else (), HIDDEN_SIZE)
    if not variant.trains_unknown:
        network.input_embeddings["profile"].weight.register_hook(without_unknown)
    settings = TrainerSettings(
        epochs=epochs,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        max_seconds=float("inf"),
        seed=seed,
        ema_decay=variant.ema_decay,
        augmentation=variant.augmentation,
    )
    model = ForecastModel(network, job.spec, source.scaling)
    if variant.starts_at_prior:
        model.start_at_prior()
    return Trainer(model, TrainingData(source, job.split), settings).fit().model


def without_unknown(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of an embedding with zeros for category 0 (padding_idx=0 of the stock class)."""
    kept = gradient.clone()
    kept[0] = 0.0
    return kept


class Inputs(NamedTuple):
    """What a scored model receives of a server: steps of its history, and its profile unless masked."""

    history_steps: int
    profile_masked: bool


def forecast(
    model: ForecastModel, source: WindowSource, rows: np.ndarray, origins: np.ndarray, inputs: Inputs
) -> np.ndarray:
    """Quantiles [window, horizon, metric, quantile], with the encoder length of the engine."""
    lengths, steps = source.spec.encoder_lengths, inputs.history_steps
    encoder_steps = lengths[int(np.searchsorted(lengths, np.clip(steps, 1, source.spec.context_steps)))]
    run, parts = torch_run(model), []
    for chunk in np.array_split(np.arange(len(rows)), -(-len(rows) // WINDOWS_AT_ONCE)):
        known, masked = np.full(len(chunk), steps), np.full(len(chunk), inputs.profile_masked)
        selection = WindowSelection(rows[chunk], origins[chunk], encoder_steps, known, masked)
        parts.append(run(source.batch(selection).windows))
    return np.concatenate(parts)


def scores(
    model: ForecastModel, source: WindowSource, job: Job, servers: np.ndarray, inputs: Inputs
) -> dict[str, float]:
    """WQL, accuracy and coverage in the test period: {score: mean over metrics}."""
    grid, horizon = job.grid, job.spec.horizon_steps
    rows, origins = (part.ravel() for part in np.meshgrid(servers, job.origins(), indexing="ij"))
    actual = past_values(grid.values, rows, origins + horizon, horizon)
    some = ~np.isnan(actual).all(axis=(1, 2))
    rows, origins, actual = rows[some], origins[some], actual[some]
    day = job.spec.day_steps
    seasonal_error = mean_seasonal_error(grid.values[:, : job.split.test_start], day)
    made = {MODEL: forecast(model, source, rows, origins, inputs)}
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
    profiles = {"given": False, "masked": True} if job.profiles and variant.uses_profiles else {"masked": True}
    unseen = {
        profile: {
            name: scores(model, source, job, job.split.unseen_servers, Inputs(n, masked)) for name, n in steps.items()
        }
        for profile, masked in profiles.items()
    }
    longest = Inputs(steps[LONGEST], profile_masked="given" not in profiles)
    training = scores(model, source, job, job.split.training_servers, longest)
    servers = {
        "servers": len(job.grid.servers),
        "training_servers": len(job.split.training_servers),
        "unseen_servers": len(job.split.unseen_servers),
    }
    return {
        "variant": variant.name, "seed": seed, "epochs": epochs, "data": job.name, **servers,
        "steps": job.grid.steps, "step_seconds": job.grid.step_seconds, "metrics": job.grid.metrics,
        "unseen_scores": unseen, "training_score": training,
    }  # fmt: skip


# --- the table ------------------------------------------------------------------------------------------------------


def columns_of(result: Mapping[str, Any], score: str) -> dict[str, float]:
    """The values of a table row. For variants without profiles those with masked profile count as given, too."""
    shown = [
        name for name in HISTORIES if name != "1 h" or result["step_seconds"] < 3600
    ]  # otherwise "1 h" is "1 step"
    columns: dict[str, float] = {}
    for profile in ("given", "masked"):
        by_history = result["unseen_scores"].get(profile, result["unseen_scores"]["masked"])
        columns |= {f"{profile}, {history}": float(by_history[history][score]) for history in shown}
    return columns | {f"training servers, {LONGEST}": float(result["training_score"][score])}


def on_common_seeds(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs with the seeds that all variants have in common; all runs if there is no such seed."""
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
        f"{first['epochs']} epoch(s) over {first['training_servers']} training servers, "
        f"{first['unseen_servers']} unseen servers; seed {', '.join(map(str, seeds))}. "
        f"Unseen servers by length of history, profile given or masked; training servers with {LONGEST}. "
        "In brackets: change from the first row in percent."
    )
    lines = [title, "", setting]
    deviation = deviation_between_seeds([result for result in results if result["variant"] == "shipped"])
    if deviation is not None:
        lines += ["", f"Standard deviation of the first row's WQL between seeds: {deviation:.1f} % (mean of columns)."]
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


def deviation_between_seeds(shipped: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard deviation of WQL between seeds in percent, mean over columns; None with a single seed."""
    if len(shipped) < 2:
        return None
    table = pd.DataFrame([columns_of(result, "wql") for result in shipped])
    return float((100 * table.std() / table.mean()).mean())


def write_table(work_dir: Path, output: Path) -> dict[str, Any]:
    """Write benchmarks/ablations.md from all runs in `work_dir`.

    Returns by data and variant the mean WQL of unseen servers with at most one step of history, with the profile given
    if the data have profiles.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work_dir.glob("*.json"))]
    summary: dict[str, Any] = {}
    sections = []
    for name in sorted({result["data"] for result in results}):
        of_data = on_common_seeds([result for result in results if result["data"] == name])
        sections.append(markdown(of_data))
        table = table_of(of_data, "wql")
        profile = "given" if any(name.startswith("given") for name in table.columns) else "masked"
        means = table[[f"{profile}, {history}" for history in COLD_START]].mean(axis=1)
        summary[name] = {str(variant): round(float(value), 5) for variant, value in means.items()}
    title = "# Effect of each design choice on unseen servers\n\nWritten by `python benchmarks/ablations.py`.\n"
    output.write_text(title + "".join(f"\n{section}\n" for section in sections), encoding="utf-8")
    return summary


def run_missing(variants: Sequence[Variant], job: Job, arguments: argparse.Namespace, seed: int) -> None:
    """Run and store the variants that have no file yet."""
    for variant in variants:
        path = arguments.work_dir / f"{job.name}-{variant.name}-{seed}.json"
        if path.exists():
            print(f"{path}: exists, not repeated", file=sys.stderr)
            continue
        print(f"{variant.title}, seed {seed}", file=sys.stderr)
        path.write_text(json.dumps(run(variant, job, arguments.epochs, seed)), encoding="utf-8")


# --- command line ---------------------------------------------------------------------------------------------------


def _chosen(text: str) -> tuple[Variant, ...]:
    names = [name for name in text.split(",") if name]
    known = {variant.name: variant for variant in VARIANTS}
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no variant {', '.join(unknown)}; choose from {', '.join(known)}")
    return tuple(known[name] for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Run missing variants and write the table; returns 1 if the data cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--training-dir", type=Path, default=ROOT / "training", help="folder or file to train on (./training)")
    add("--work-dir", type=Path, default=ROOT / "models/ablations", help="folder of the stored runs (models/ablations)")
    add("--output", type=Path, default=ROOT / "benchmarks/ablations.md", help="the table (benchmarks/ablations.md)")
    add("--variants", type=_chosen, default=VARIANTS, help="comma-separated names (all)")
    add("--step-seconds", type=int, default=300, help="step; samples of finer data are averaged (%(default)s)")
    add("--epochs", type=int, default=1, help="passes over all server-hours (%(default)s)")
    add("--seeds", default="1", help="comma-separated; a run for each (%(default)s)")
    arguments = parser.parse_args(argv)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    try:
        for seed in map(int, arguments.seeds.split(",")) if arguments.variants else ():
            run_missing(
                arguments.variants, load_job(arguments.training_dir, arguments.step_seconds, seed), arguments, seed
            )
    except (ContractError, DataFileError, GridError, TrainingError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(write_table(arguments.work_dir, arguments.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
