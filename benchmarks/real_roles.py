"""Unseen servers of real fleets by length of history: the benefit of the profile and its live peers.

    python benchmarks/real_roles.py                              # both data sets, 4 folds, 15 minutes of training each
    python benchmarks/real_roles.py --folds 1 --minutes 5        # a quick look
    python benchmarks/real_roles.py --steps 800                  # the same training on any machine, however busy
    python benchmarks/real_roles.py --data ../shared/data/fleets_public.parquet --ablations
    python benchmarks/real_roles.py --untrained                  # the prior: what an untrained network forecasts

In each fold tft_trainer.py trains with another quarter of each profile's servers held out (of the virtual machines of
slices_public: another quarter of the hosts) and is scored on the held-out servers in the days after the training, with
no history, one step, and 1, 6 and 24 hours: with the profile given, masked, and with the peers masked, beside the
baselines. Models are kept in models/roles/. Tables (Markdown, mean and standard deviation over the folds) go to stdout;
the last line is JSON. With --ablations, models without one part of the live peers each are trained too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tft_trainer  # noqa: E402
from benchmarks.real_servers import TrainingLength, arguments_of, last_json_line, run_all  # noqa: E402
from data_contract import read_metrics  # noqa: E402
from fleet_forecast.commands import training_job  # noqa: E402
from fleet_forecast.evaluation.cold_start import PROFILE_GIVEN  # noqa: E402
from fleet_forecast.features.cold_start import default_prior  # noqa: E402
from fleet_forecast.features.peer_prior import PeerPrior, PeerSample, fit_peer_prior  # noqa: E402
from fleet_forecast.features.peers import Spliced, splice  # noqa: E402
from fleet_forecast.features.scaling import FleetScaling  # noqa: E402
from fleet_forecast.features.seasonality import LagSteps  # noqa: E402
from fleet_forecast.features.windows import _values_and_masks as values_and_masks  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

DATA = ROOT / "../shared/data"
HELD_OUT_SHARE = 0.25
MODELS = Path("models/roles")
SEED = 0
TEST_START = {
    "slices_public": "2011-04-04"
}  # the last day before it is 3 April, the first after it 9 April; elsewhere after 70 % of the time
HOST_SEPARATOR = {"slices_public": ":"}  # the part of a server's name before it is the host
TIMEZONE = {"fleets_public": "UTC", "slices_public": "UTC"}
SCORES = ("wql", "accuracy", "coverage_80")


class Fold(NamedTuple):
    """Names of the servers held out, and the seed of the training."""

    held_out: list[str]
    seed: int


def folds_of(frame: pd.DataFrame, folds: int, host_separator: str | None) -> list[Fold]:
    """In each fold another quarter of each profile's servers, or of the hosts; repeated if there are not enough."""
    random = np.random.default_rng(SEED)
    servers = frame[["server_name", "profile"]].drop_duplicates().astype(str).sort_values("server_name")
    if host_separator:
        servers["unit"], servers["group"] = servers["server_name"].str.split(host_separator).str[0], "all hosts"
    else:
        servers["unit"], servers["group"] = servers["server_name"], servers["profile"]
    units: list[list[str]] = [[] for _ in range(folds)]
    for _, group in servers.groupby("group"):
        shuffled = list(random.permutation(group["unit"].unique()))
        if len(shuffled) < 3:
            continue
        count = max(1, round(HELD_OUT_SHARE * len(shuffled)))
        for fold in range(folds):
            units[fold] += (shuffled * (fold + 2))[fold * count : (fold + 1) * count]
    return [
        Fold(servers.loc[servers["unit"].isin(chosen), "server_name"].tolist(), SEED + fold)
        for fold, chosen in enumerate(units)
    ]


def train_fraction(frame: pd.DataFrame, test_start: str | None) -> float:
    """Share of the time before `test_start`."""
    first, last = frame["timestamp"].min(), frame["timestamp"].max()
    if test_start is None:
        return 0.7
    return float((pd.Timestamp(test_start, tz="UTC") - first) / (last - first))


def one_fold(path: Path, fold: Fold, length: TrainingLength | None, fraction: float) -> pd.DataFrame:
    """The cold-start table of a model trained without the fold's servers; without a length, of an untrained network."""
    flags = {
        "--training-dir": path,
        "--models-dir": ROOT / MODELS / path.stem,
        "--holdout-servers": ",".join(fold.held_out),
        "--seed": fold.seed,
        "--train-fraction": f"{fraction:.6f}",
        "--timezone": TIMEZONE.get(path.stem, "UTC"),
        "--device": "cpu",
    }
    words = [str(word) for pair in flags.items() for word in pair]
    if length is None:
        arguments = tft_trainer.build_parser().parse_args(words)
        job = training_job.prepare(training_job.read(arguments), arguments)
        return job.cold_start_table(job.fresh_model())
    run = [*words, *length.flags, "--no-comparison", "--no-final-fit", "--no-risk-model", "--no-promote"]
    trained = last_json_line(tft_trainer.main, run)
    return pd.read_parquet(Path(trained["model_dir"]) / "cold_start.parquet")


# --- parts of the live peers ----------------------------------------------------------------------------------------


def profile_scale(_scaling: FleetScaling, by_profile: Any, *_: Any) -> Any:
    """windows._scale_with_peers by the profile statistics."""
    return by_profile


def own_values_and_masks(standardised: Any) -> np.ndarray:
    """windows._values_and_masks without the peers' values."""
    own = np.where(standardised.missing, np.float32(np.nan), standardised.context)
    return values_and_masks(standardised._replace(context=own))


def own_earlier_days(own: np.ndarray, level: np.ndarray, context_steps: int) -> Spliced:
    """peers.splice with the server's own values only before the context, where the seasonal lags are from."""
    spliced = splice(own, level, context_steps)
    spliced.values[:, :-context_steps] = own[:, :-context_steps]
    return spliced


def fixed_weights(sample: PeerSample, lag_steps: LagSteps, history_steps: int) -> PeerPrior | None:
    """peer_prior.fit_peer_prior with weights n / (n + 3) of the own level and deviation after n steps."""
    prior = fit_peer_prior(sample, lag_steps, history_steps)
    if prior is None:
        return None
    weight = np.where(np.isnan(prior.level_weight), np.nan, default_prior(lag_steps.encoder).loc_weight)
    return prior._replace(level_weight=weight.astype(np.float32), scale_weight=weight.astype(np.float32))


WINDOWS = "fleet_forecast.features.windows"
PARTS: dict[str, dict[str, Callable[..., Any]]] = {
    "the prior from peers": {f"{WINDOWS}._scale_with_peers": profile_scale},
    "peers in the encoder": {f"{WINDOWS}._values_and_masks": own_values_and_masks},
    "the peers' earlier days": {
        f"{WINDOWS}.splice": own_earlier_days,
        "fleet_forecast.features.peer_prior.splice": own_earlier_days,
    },
    "learned weights": {"fleet_forecast.training.job.fit_peer_prior": fixed_weights},
}  # what replaces what in a training without the part; batches built on a GPU do not use it


@contextmanager
def without(part: str) -> Iterator[None]:
    """Trains without a part of the live peers within the block."""
    with ExitStack() as stack:
        for target, replacement in PARTS[part].items():
            stack.enter_context(mock.patch(target, replacement))
        yield


def only_given(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """The rows of the model with its profile, named after the part that is left out."""
    return table[table["method"] == PROFILE_GIVEN].assign(method=f"without {part}")


# --- the table ------------------------------------------------------------------------------------------------------


def summary(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean and standard deviation over the folds by history and method: columns <score>, <score>_spread."""
    together = pd.concat(tables, ignore_index=True)
    groups = together.groupby(["history", "method"], sort=False)[list(SCORES)]
    return groups.mean().join(groups.std(), rsuffix="_spread").reset_index()


def markdown(title: str, table: pd.DataFrame) -> str:
    """The table in Markdown."""
    lines = [title, "", "| history | method | WQL | accuracy % | 80 % band covers % |", "|---|---|---|---|---|"]
    for row in table.to_dict("records"):
        cells = [_cell(row, score, digits) for score, digits in zip(SCORES, (3, 1, 1), strict=True)]
        lines.append(f"| {row['history']} | {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[Any, Any], score: str, digits: int) -> str:
    spread = row[f"{score}_spread"]
    return f"{row[score]:.{digits}f}" + ("" if pd.isna(spread) else f" ± {spread:.{digits}f}")


def run(path: Path, folds: int, length: TrainingLength | None, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Run all folds of a data set, as shipped and without each of the parts, and print the table; returns its rows."""
    frame = read_metrics(path).frame
    fraction = train_fraction(frame, TEST_START.get(path.stem))
    chosen = folds_of(frame, folds, HOST_SEPARATOR.get(path.stem))
    tables = [one_fold(path, fold, length, fraction) for fold in chosen]
    for part in parts:
        with without(part):
            tables += [only_given(one_fold(path, fold, length, fraction), part) for fold in chosen]
    table = summary(tables)
    title = f"`{path.name}`, unseen servers, {folds} folds, {length or 'untrained'}"
    print(f"\n{markdown(title, table)}")
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=5))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score; returns 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ablations", action="store_true", help="also train without each part of the live peers")
    parser.add_argument("--untrained", action="store_true", help="score the network without training: its prior")
    arguments = arguments_of(parser, 4, argv)
    length = None if arguments.untrained else arguments.length
    paths = arguments.data or [DATA / f"{name}.parquet" for name in ("fleets_public", "slices_public")]
    parts = tuple(PARTS) if arguments.ablations else ()
    return run_all([path.resolve() for path in paths], lambda path: run(path, arguments.folds, length, parts))


if __name__ == "__main__":
    sys.exit(main())
