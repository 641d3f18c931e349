"""Flags that the chosen command does not use are refused, in every script."""

import argparse

import pytest

import data_contract
import metrics_generator
import tft_inference
import tft_trainer
from fleet_forecast.flag_uses import PLAIN, only_one, refuse_unused_flags
from fleet_forecast.usage import UsageError

USES = {
    "metrics_generator": (metrics_generator.parser(), metrics_generator.flag_uses()),
    "tft_inference": (tft_inference.build_parser(), tft_inference.USES),
    "tft_trainer": (
        tft_trainer.build_parser(),
        tft_trainer.flag_uses(set(vars(tft_trainer.build_parser().parse_args([])))),
    ),
    "data_contract": (data_contract.build_parser(), data_contract.USES),
}


@pytest.mark.parametrize("script", USES)
def test_every_flag_is_used_by_a_command_and_every_use_is_of_a_flag(script):
    parser, uses = USES[script]
    flags = {action.dest for action in parser._actions if action.help != argparse.SUPPRESS}
    used = {name for names in uses.values() for name in names if not name.startswith("moved_")}
    assert used == flags - {"help", "version"}


REFUSED = [
    ("metrics_generator", "--backfill_hours 3", "--backfill_hours 3: it goes with --stream URL; add that, or leave it"),
    ("metrics_generator", "--fork_seed 4", "--fork_seed 4: it goes with --fork_at TIME"),
    ("metrics_generator", "--plot x.png --hours 3 --out_dir w/e", "--out_dir w/e: --plot FILE does not use it; leave"),
    ("metrics_generator", "--plot x.png --offline_mode sparse", "--offline_mode sparse: --plot FILE does not use it"),
    ("metrics_generator", "--plot x.png --workers 2", "--workers 2: --plot FILE does not use it"),
    ("metrics_generator", "--stream http://h --out_dir w", "--out_dir w: --stream URL does not use it"),
    ("metrics_generator", "--stream http://h --parts 2", "--parts 2: --stream URL does not use it"),
    ("metrics_generator", "--from_prometheus http://h --num_web_api 3", "--num_web_api 3: --from_prometheus URL does"),
    ("metrics_generator", "--from_prometheus http://h --seed 9", "--seed 9: --from_prometheus URL does not use it"),
    ("metrics_generator", "--from_prometheus http://h --incident_rate 3", "--incident_rate 3: --from_prometheus URL"),
    ("metrics_generator", "--from_prometheus http://h --offline_mode sparse", "--offline_mode sparse: --from_prom"),
    ("metrics_generator", "--connections c --token_file t", "--token_file t: it goes with --stream URL or --from_prom"),
    (
        "metrics_generator",
        "--from_prometheus http://h --out_dir s3://f",
        "--from_prometheus URL cannot write to an addr",
    ),
    ("metrics_generator", "--ray_address a", "--ray_address a: it goes with --engine ray"),
    ("metrics_generator", "--inject ppdb003:oom", "--inject: it goes with --stream URL"),
    ("metrics_generator", "--plot a.png --stream http://h", "--stream URL and --plot FILE are given; choose one of"),
    ("tft_inference", "--input a --output b --port 18105", "--port 18105: it goes with --check-config or --daemon"),
    ("tft_inference", "--input a --output b --webhook http://h/secret", "--webhook: it goes with"),
    ("tft_inference", "--input a --output b --to now", "--to now: it goes with --replay"),
    ("tft_inference", "--daemon --origins every:8h", "--origins: --daemon does not use it; leave one of them out"),
    ("tft_inference", "--replay --input a --output b --origins every:8h", "--origins: --replay does not use it"),
    ("tft_inference", "--replay --input a --output b --prometheus http://h", "--prometheus: the metrics are those of"),
    ("tft_inference", "--audit --input a --model m", "--model m: --audit does not use it"),
    ("tft_inference", "--engine parts --input a --output b --device cuda", "--device cuda: --engine parts does not"),
    ("tft_inference", "--daemon --prometheus-token-file f", "prometheus_token_file: applies to the setting prometheus"),
    ("tft_trainer", "--rollback --keep 3", "--keep 3: --rollback does not use it"),
    ("tft_trainer", "--rollback --engine ray", "--engine ray: --rollback does not use it"),
    ("tft_trainer", "--from-history f --input-timezone UTC", "--input-timezone UTC: --from-history FILE does not use"),
    ("tft_trainer", "--force --no-promote", "--force: --no-promote puts no model in use"),
    ("data_contract", "training --document", "training: --document does not use it"),
    ("data_contract", "training --workers 2", "--workers 2: it goes with --engine ray"),
]
MAINS = {name: globals()[name].main for name in USES}


@pytest.mark.parametrize(("script", "flags", "message"), REFUSED, ids=[flags for _, flags, _ in REFUSED])
def test_a_flag_that_would_be_ignored_is_refused_with_the_remedy(script, flags, message, capsys):
    assert MAINS[script](flags.split()) == 2
    assert message in capsys.readouterr().err


def test_the_daemons_command_line_can_be_checked(capsys):
    assert tft_inference.main(["--daemon", "--check-config", "--port", "18105"]) == 0
    assert '"port": 18105' in capsys.readouterr().out


def test_values_that_may_contain_a_password_are_not_shown():
    parser = argparse.ArgumentParser()
    parser.add_argument("--header", action="append", default=[])
    arguments = parser.parse_args(["--header", "X-Token: secret", "--header", "a"])
    with pytest.raises(UsageError, match=r"^--header a: it goes with --url; add that, or leave it out$"):
        refuse_unused_flags(parser, arguments, {PLAIN: (), "--url": ("header",)}, [only_one([])])
