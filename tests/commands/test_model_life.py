"""From a daemon's history to the model in use: training on it, comparison, promotion, rollback, removal."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

import tft_trainer
from fleet_forecast.commands.model_life import compare, put_in_use, training_path
from fleet_forecast.commands.models_folder import model_before, remove_old
from fleet_forecast.commands.training_job import grid_and_windows, read
from fleet_forecast.evaluation.against_champion.champion import Comparison
from fleet_forecast.evaluation.against_champion.comparison import GroupComparison
from fleet_forecast.inference.model_directory import TRAINING_INFO_FILE, promote, write_manifest
from fleet_forecast.training.job import Job
from fleet_forecast.training.split import TrainingError
from fleet_forecast.training.trainer_state import TrainerState
from tests.commands.histories import store_history
from tests.conftest import tiny_flags_of_history, tiny_fleet


def test_a_model_trained_warm_on_the_history_is_compared_with_the_one_in_use_and_can_be_rolled_back(
    tiny_models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models_dir, history = tmp_path / "models", tmp_path / "fleet.sqlite"
    shutil.copytree(tiny_models_dir, models_dir, symlinks=True)
    champion = (models_dir / "current").resolve()
    store_history(history, tiny_fleet())
    flags = [*tiny_flags_of_history(history, models_dir), "--warm-start", str(champion)]
    code = tft_trainer.main([*flags, "--no-final-fit", "--learning-rate", "1e-9", "--force", "--keep", "2"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    line = json.loads(captured.out.splitlines()[-1])
    assert "4,608 step means of 2026-03-02T00:00:00Z to 2026-03-03T23:55:00Z" in captured.err
    info = json.loads((models_dir / "current" / TRAINING_INFO_FILE).read_text())
    assert info["data"] == str(history)
    # Nearly the weights of the champion before its final fit, on the days that it was tested on: the same scores.
    assert info["champion"]["model"] == champion.name
    assert info["champion"]["remark"] == ""
    groups = {group["group"]: group for group in info["champion"]["groups"]}
    tested = json.loads((champion / TRAINING_INFO_FILE).read_text())["scores"]
    assert set(groups) == {"training", "unseen"}
    for name, group in groups.items():
        assert group["champion_wql"] == pytest.approx(tested[name]["model"]["mean"]["wql"], abs=2e-4)
        assert group["ratio"] == pytest.approx(1, abs=1e-3)
    assert line["champion"] == info["champion"]
    assert sorted(path.name for path in models_dir.iterdir()) == sorted(["current", champion.name, info_name(line)])
    assert tft_trainer.main(["--models-dir", str(models_dir), "--rollback"]) == 0
    assert json.loads(capsys.readouterr().out)["instead_of"] == info_name(line)
    assert (models_dir / "current").resolve() == champion
    assert tft_trainer.main(["--models-dir", str(models_dir), "--rollback"]) == 1
    assert "records no model before it; point the link at one of the folder's models" in capsys.readouterr().err


def test_times_that_the_daemons_silences_exclude_are_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = tiny_fleet(hours=3)
    store_history(tmp_path / "h.sqlite", frame)
    silence = {"server": "ppweb000", "from": "2026-03-02T01:00:00Z", "until": "2026-03-02T02:00:00Z"}
    beside = tmp_path / "h.sqlite.silences.json"
    beside.write_text(json.dumps({"a": {**silence, "kind": "exclude"}, "b": {**silence, "server": "ppdb001"}}))
    arguments = tft_trainer.build_parser().parse_args(
        ["--from-history", str(tmp_path / "h.sqlite"), "--models-dir", str(tmp_path)]
    )
    with training_path(arguments) as folder:
        data = read(arguments, folder)
        grid, spec = grid_and_windows(data, arguments)
    assert f"{beside}: measurements of 12 server-steps are excluded" in capsys.readouterr().err
    assert (spec.step_seconds, spec.calendar.timezone) == (300, "America/New_York")
    missing = np.isnan(grid.values).all(axis=2)
    assert missing[grid.servers.index("ppweb000")].nonzero()[0].tolist() == list(range(12, 24))
    assert missing.sum() == 12
    assert not list(tmp_path.glob(".tmp-*"))
    beside.write_text("[]")
    with training_path(arguments) as folder, pytest.raises(TrainingError, match="repair it, or remove it"):
        grid_and_windows(read(arguments, folder), arguments)


def info_name(line: dict) -> str:
    return Path(line["model_dir"]).name


def fake_model(models_dir: Path, number: int, before: str | None) -> Path:
    """A complete model directory with nothing but the record of the model before it."""
    directory = models_dir / f"tft_model_2026010{number}_000000"
    directory.mkdir(parents=True)
    record = None if before is None else {"model": before}
    (directory / TRAINING_INFO_FILE).write_text(json.dumps({"champion": record}))
    write_manifest(directory)
    return directory


def chain(models_dir: Path, length: int) -> list[str]:
    """Models that replaced each other; the last one is in use."""
    names: list[str] = []
    for number in range(1, length + 1):
        names.append(fake_model(models_dir, number, names[-1] if names else None).name)
    promote(models_dir, names[-1])
    return names


@pytest.mark.parametrize(
    ("problems", "force", "in_use"), [((), False, True), (("its error is higher",), False, False), (("x",), True, True)]
)
def test_a_worse_model_is_kept_and_not_put_in_use_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], problems: tuple[str, ...], force: bool, in_use: bool
) -> None:
    (champion,) = chain(tmp_path, 1)
    challenger = fake_model(tmp_path, 2, champion)
    arguments = argparse.Namespace(models_dir=tmp_path, force=force, no_promote=False, keep=None)
    assert put_in_use(challenger, Comparison(champion, problems=problems), arguments) == in_use
    assert (tmp_path / "current").resolve().name == (challenger.name if in_use else champion)
    assert challenger.is_dir()
    message = capsys.readouterr().err
    if in_use:
        assert f"published {challenger}; it is in use now: {tmp_path / 'current'} points to it" in message
    else:
        assert f"not in use: its error is higher. {champion} stays in use; --force replaces it" in message


def test_a_comparison_that_fails_leaves_the_model_in_use(tmp_path: Path) -> None:
    (champion,) = chain(tmp_path, 1)

    def fail(*_arguments: object) -> Comparison:
        raise RuntimeError("out of luck")

    job, training = SimpleNamespace(compare_with=fail), SimpleNamespace(model=None)
    arguments = argparse.Namespace(models_dir=tmp_path, force=False, no_promote=False, keep=None)
    comparison = compare(cast(Job, job), cast(TrainerState, training), None, arguments)
    assert comparison == Comparison(champion, problems=("the comparison with it failed (out of luck)",))
    assert not put_in_use(fake_model(tmp_path, 2, champion), comparison, arguments)
    assert (tmp_path / "current").resolve().name == champion


def test_the_starter_model_is_not_a_champion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "starter").mkdir()
    promote(tmp_path, "starter")
    found = Comparison(
        "starter", (GroupComparison("unseen", 2, 9, 0.2, 0.3, 1.5, None, 80.0, 80.0),), problems=("worse",)
    )
    job = SimpleNamespace(compare_with=lambda *_: found)
    arguments = argparse.Namespace(models_dir=tmp_path, force=False, no_promote=False, keep=None)
    comparison = compare(cast(Job, job), cast(TrainerState, SimpleNamespace(model=None)), None, arguments)
    assert put_in_use(fake_model(tmp_path, 2, "starter"), comparison, arguments)
    assert "WQL on 2 unseen servers: 0.3000, that of starter 0.2000" in capsys.readouterr().err


def test_removal_leaves_the_newest_models_the_one_in_use_and_the_one_before(tmp_path: Path) -> None:
    names = chain(tmp_path, 6)
    (tmp_path / "tft_model_of_mine").mkdir()  # not a complete model
    assert remove_old(tmp_path, 4) == names[:2]
    promote(tmp_path, names[3])
    assert remove_old(tmp_path, 2) == names[4:]
    assert model_before(tmp_path) == (tmp_path / names[2]).resolve()
    assert {path.name for path in tmp_path.iterdir()} == {"current", "tft_model_of_mine", names[2], names[3]}
    assert remove_old(tmp_path, 1) == []


def test_a_model_before_that_is_gone_or_damaged_is_not_put_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = chain(tmp_path, 2)
    (tmp_path / first / TRAINING_INFO_FILE).write_text("{}")
    assert tft_trainer.main(["--models-dir", str(tmp_path), "--rollback"]) == 1
    assert "is damaged" in capsys.readouterr().err
    shutil.rmtree(tmp_path / first)
    assert tft_trainer.main(["--models-dir", str(tmp_path), "--rollback"]) == 1
    assert f"the model before, {first}, is gone" in capsys.readouterr().err
    assert (tmp_path / "current").resolve().name == second


def test_fewer_than_two_kept_models_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tft_trainer.main(["--keep", "1"])
    assert ended.value.code == 2
    assert "must be at least 2, for the model in use and the one before" in capsys.readouterr().err
