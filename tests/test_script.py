"""Scripts whose output is read by another program that ends first, such as `head`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleet_forecast.script import INTERRUPTED, READER_GONE, run_script

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "data_contract": ("data_contract.py", "--document"),
    "demo": ("demo.py", "--help"),
    "metrics_generator": ("metrics_generator.py", "--help"),
    "tft_trainer": ("tft_trainer.py", "--help"),
    "tft_inference": ("tft_inference.py", "--check-config"),
}


def run_without_reader(*command, environment=None):
    """Run a script whose stdout is a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        return subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=environment,
        )
    finally:
        os.close(write_end)


def test_a_script_ends_with_one_line_after_ctrl_c(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match=str(INTERRUPTED)):
        run_script(main)
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_script_ends_without_a_message_if_the_reader_of_its_output_is_gone(command):
    result = run_without_reader(*command)
    assert result.returncode in (0, READER_GONE)  # argparse ignores an error while it prints its help
    assert result.stderr == ""


def test_an_explanation_ends_without_a_message_if_its_reader_is_gone(tiny_training_dir, tiny_model_dir):
    flags = ("--input", tiny_training_dir / "server_metrics.parquet", "--model", tiny_model_dir)
    result = run_without_reader("tft_inference.py", "--explain", "ppdb001", *flags)
    assert result.returncode == READER_GONE
    assert "Traceback" not in result.stderr
    assert "BrokenPipeError" not in result.stderr


def test_a_script_that_prints_line_by_line_ends_without_a_message_if_its_reader_is_gone():
    program = "from fleet_forecast.script import run_script; run_script(lambda: print('text', flush=True) or 0)"
    result = run_without_reader("-c", program, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (result.returncode, result.stderr) == (READER_GONE, "")


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_script_exits_with_the_code_of_its_main(code):
    program = f"from fleet_forecast.script import run_script; run_script(lambda: {code})"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == code
