"""The demo: one command for all three scripts, and no process left after it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import demo

ROOT = Path(__file__).parent.parent

# Stands for a script that starts a process of its own; with "ignores signals" both ignore the request to end.
CHILD = """
import os, signal, subprocess, sys, time
if sys.argv[1] == "ignores signals":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), grandchild.pid, file=open(sys.argv[2], "w"), flush=True)
time.sleep(600)
"""

# The demo with that child in the place of the generator.
STAND_IN = """
import sys, demo
from pathlib import Path
demo.STOP_SECONDS = 1
demo.FOLDER = Path(sys.argv[1])
demo._generator_command = lambda *_: [sys.argv[2], sys.argv[3], sys.argv[4]]
sys.exit(demo.main(["--port", sys.argv[5]]))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("manner", ["ends on signals", "ignores signals"])
def test_a_stopped_demo_leaves_nothing_running(tmp_path, number, manner):
    pids, script = tmp_path / "pids", tmp_path / "child.py"
    script.write_text(CHILD)
    arguments = [str(tmp_path / "files"), str(script), manner, str(pids), str(free_port())]
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    started = [int(pid) for pid in pids.read_text().split()]
    assert all(map(is_running, started))
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopping" in errors
    assert json.loads(output)["seconds"] == {}
    wait_for(lambda: not any(map(is_running, started)))


def test_a_port_in_use_is_reported_first(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "files")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert demo.main(["--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"error: port {port} on 127.0.0.1 cannot be used" in error
    assert f"make demo PORT={port + 1}" in error
    assert not (tmp_path / "files").exists()


def test_a_part_that_fails_ends_the_demo_and_is_named(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "files")
    monkeypatch.setattr(demo, "_generator_command", lambda *_: ["metrics_generator.py", "--hours", "0"])
    assert demo.main(["--port", str(free_port())]) == 1
    error = capfd.readouterr().err
    assert "--hours is 0" in error
    assert "error: metrics_generator.py ended with exit code 2" in error


def test_a_daemon_that_ends_is_reported_with_the_end_of_its_log(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    log = tmp_path / "daemon.log"
    log.write_text("one\ntwo\nno model\n")
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    ended.wait()
    with pytest.raises(demo.DemoError, match=r"the daemon ended with exit code 3(.|\n)*no model"):
        demo._require_running({"daemon": ended}, tmp_path)


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "70000"], ["--minutes", "0"], ["--fast"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.main(arguments)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--port", "abc"], ["--minutes", "abc"], ["--minutes", "nan"]])
def test_a_flag_that_is_not_a_number_is_named_with_its_range(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.main(arguments)
    assert f"{arguments[0]}: {arguments[1]}: must be a " in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_serves_a_forecast_of_a_server_that_is_new(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "files")
    assert demo.main(["--port", str(free_port()), "--minutes", "0.3", "--once"]) == 0
    captured = capfd.readouterr()
    assert f"{demo.NEW_SERVER} was not in the training data; its profile is {demo.NEW_SERVER_PROFILE}" in captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert list(result["seconds"]) == ["simulate", "start_daemon", "first_forecast", "train"]
    servers = json.loads((tmp_path / "files" / "training" / "metrics_metadata.json").read_text())["fleet"]
    assert servers == demo.SERVERS
