"""From the daemon's history to the model in use: data, comparison with the champion, promotion, rollback, removal."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet_forecast.commands.models_folder import current_model, remove_old, roll_back
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.evaluation.against_champion.champion import Comparison
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import TEMPORARY_PREFIX, is_starter, promote, read_config
from fleet_forecast.inference.risk_model import RiskModel
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.storage.offline.export import export_history
from fleet_forecast.training.job import Job
from fleet_forecast.training.ranks.group import is_first, wait_for_ranks
from fleet_forecast.training.trainer_state import TrainerState
from fleet_forecast.usage import note
from fleet_forecast.wording import counted

KEPT_NOT_IN_USE = 3  # exit code


@contextmanager
def training_path(arguments: argparse.Namespace) -> Iterator[Path]:
    """Where the training data are: --training-dir, or for the time of the block an export of --from-history.

    The export is in the models folder, where the next run removes what a killed one left.
    """
    if arguments.from_history is None:
        yield arguments.training_dir
        return
    folder = arguments.models_dir / f"{TEMPORARY_PREFIX}history"
    if not is_first():
        wait_for_ranks()  # for the export
        yield folder
        return
    folder.mkdir()
    try:
        calendar = _calendar(arguments.models_dir)
        extent = export_history(arguments.from_history, folder, fleet_in_use().rules, calendar)
        times = f"{iso(extent.first_seconds)} to {iso(extent.last_seconds)}"
        note(f"{arguments.from_history}: {extent.rows:,} step means of {times}")
        wait_for_ranks()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _calendar(models_dir: Path) -> BusinessCalendar:
    """The business calendar of the model in use, or that of the fleet file or the default; a history has none."""
    current = current_model(models_dir)
    try:
        if current is not None and not is_starter(current.name):
            return read_config(current).spec.calendar
    except (ModelError, OSError) as error:
        note(f"the calendar of {current} cannot be read ({error})")
    return fleet_in_use().calendar


def compare(
    job: Job, training: TrainerState, risk_model: RiskModel | None, arguments: argparse.Namespace
) -> Comparison | None:
    """Compare the new model with the one in use; None if there is none, or if it is not to be replaced.

    The starter model is not a champion: the comparison with it is only printed, and the first own model always replaces
    it. If the comparison fails, the model is published, but the one in use stays in use.
    """
    champion = current_model(arguments.models_dir)
    if champion is None or arguments.no_promote:
        return None
    try:
        comparison = job.compare_with(champion, training.model, risk_model)
    except Exception as error:
        comparison = Comparison(champion.name, problems=(f"the comparison with it failed ({error})",))
    for group in comparison.groups:
        note(
            f"WQL on {counted(group.servers, f'{group.group} server')}: {group.challenger_wql:.4f}, that of "
            f"{champion.name} {group.champion_wql:.4f}"
        )
    if comparison.remark:
        note(f"comparison with {champion.name}: {comparison.remark}")
    return None if is_starter(champion.name) else comparison


def put_in_use(model_dir: Path, comparison: Comparison | None, arguments: argparse.Namespace) -> bool:
    """Promote the new model unless it is worse, and remove old models; returns whether it is in use now.

    A worse one stays in the folder.
    """
    worse = comparison is not None and bool(comparison.problems) and not arguments.force
    if comparison is not None and worse:
        print(
            f"kept {model_dir}, not in use: {'; '.join(comparison.problems)}. {comparison.champion} stays in use; "
            "--force replaces it nevertheless",
            file=sys.stderr,
        )
    elif not arguments.no_promote:
        promote(arguments.models_dir, model_dir.name)
        print(
            f"published {model_dir}; it is in use now: {arguments.models_dir / 'current'} points to it", file=sys.stderr
        )
    else:
        print(f"published {model_dir}; --no-promote leaves models/current as it is", file=sys.stderr)
    if arguments.keep is not None and (removed := remove_old(arguments.models_dir, arguments.keep)):
        note(f"removed {', '.join(removed)}")
    return not worse


def roll_back_models(models_dir: Path) -> dict[str, str]:
    """Put the model before the current one in use; returns the content of the script's JSON line. Raises ModelError."""
    present, before = roll_back(models_dir)
    print(f"{models_dir / 'current'}: {before} is in use again, instead of {present}", file=sys.stderr)
    return {"model_dir": str(models_dir / before), "instead_of": present}
