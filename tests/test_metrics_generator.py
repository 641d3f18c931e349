"""The script: flags, messages, exit codes, files, and a daemon that receives the stream."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_contract import METADATA_FILE, METRICS, METRICS_FILE, read_metadata, read_metrics
from fleet_forecast.commands.generator import stream_fleet
from fleet_forecast.commands.generator.scenario_of_flags import instant
from metrics_generator import main
from server_profiles import DEFAULT_SERVERS

ROOT = Path(__file__).parent.parent
FEW = ["--num_ml_compute", "1", "--num_database", "2", "--num_web_api", "3"]
FEW += ["--num_conductor_mgmt", "0", "--num_data_ingest", "0", "--num_risk_analytics", "0", "--num_generic", "1"]


def run(capsys, *flags):
    """Exit code, last line of stdout as JSON, stderr."""
    try:
        code = main([*map(str, flags)])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out and code == 0 else None, err


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_default_fleet_has_90_servers_of_seven_profiles(capsys, tmp_path):
    code, result, err = run(capsys, "--hours", 1, "--out_dir", tmp_path)
    assert (code, result["servers"], result["rows"]) == (0, 90, 90 * 12)
    assert result["path"] == str(tmp_path / METRICS_FILE)
    assert set(result) == {"rows", "servers", "seconds", "rows_per_second", "path"}
    assert read_metadata(tmp_path).fleet == {str(profile): count for profile, count in DEFAULT_SERVERS.items()}
    assert "risk_analytics" in err
    assert "states: " in err


def test_the_files_keep_the_contract_and_the_metadata_describes_them(capsys, tmp_path):
    code, result, _ = run(capsys, "--hours", 48, "--incident_rate", 30, "--out_dir", tmp_path, *FEW)
    assert code == 0
    data = read_metrics(tmp_path)
    metadata, frame = data.metadata, data.frame
    assert data.metrics == METRICS
    assert data.notices == ()
    assert (metadata.seed, metadata.start, metadata.hours) == (42, "2026-09-14T00:00:00Z", 48)
    assert (metadata.step_seconds, metadata.timezone) == (300, "America/New_York")
    assert metadata.rows == len(frame) == result["rows"] == 7 * 576
    assert metadata.state_counts == frame["state"].value_counts().loc[lambda counts: counts > 0].to_dict()
    assert sum(metadata.incident_counts.values()) == len(metadata.incidents) > 0
    for incident in metadata.incidents:
        times = [incident[name] for name in ("onset", "start", "peak", "recovery", "end")]
        assert times == sorted(times)
        inside = frame[
            (frame["server_name"] == incident["server_name"])
            & (frame["timestamp"] >= incident["start"])
            & (frame["timestamp"] < incident["end"])
        ]
        assert set(inside["incident"].dropna()) <= {incident["incident"]}
    assert set(frame["incident"].dropna()) <= set(metadata.incident_counts)


def test_the_same_flags_give_the_same_bytes_and_another_seed_others(capsys, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert run(capsys, "--hours", 24, "--seed", seed, "--out_dir", tmp_path / name, *FEW)[0] == 0
    one, two, three = (digests(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys() == {METRICS_FILE, METADATA_FILE}
    assert one[METRICS_FILE] != three[METRICS_FILE]


@pytest.mark.parametrize("parts", [(), ("--parts", 2)])
def test_files_of_others_in_the_folder_of_metrics_are_not_removed(capsys, tmp_path, parts):
    metrics = tmp_path / "server_metrics"
    assert run(capsys, "--hours", 1, "--parts", 2, "--out_dir", tmp_path, *FEW)[0] == 0
    (metrics / "mine.parquet").write_bytes(b"mine")
    code, _, err = run(capsys, "--hours", 1, "--out_dir", tmp_path, *FEW, *parts)
    assert code == 1
    assert f"{metrics}: has mine.parquet, which would be removed" in err
    assert (metrics / "mine.parquet").read_bytes() == b"mine"
    metrics.rename(tmp_path / "elsewhere")
    metrics.symlink_to(tmp_path / "elsewhere")
    code, _, err = run(capsys, "--hours", 1, "--out_dir", tmp_path, *FEW, *parts)
    assert code == 1
    assert "server_metrics: is a link" in err


def test_flags_are_understood_with_hyphens_too(capsys, tmp_path):
    flags = ["--hours", 2, "--out-dir", tmp_path, "--tick-seconds", 60, "--offline-mode", "sparse", "--num-web-api", 7]
    code, result, _ = run(capsys, *flags, "--incident-rate", 0)
    assert (code, result["servers"]) == (0, 72)


def test_a_fork_keeps_the_past_and_changes_the_future(capsys, tmp_path):
    common = ["--hours", 24, *FEW]
    run(capsys, *common, "--out_dir", tmp_path / "base")
    for seed in (1, 2):
        flags = ["--fork_at", "2026-09-14T12:00:00Z", "--fork_seed", seed, "--out_dir", tmp_path / f"fork{seed}"]
        assert run(capsys, *common, *flags)[0] == 0
    base, *forks = (read_metrics(tmp_path / name).frame for name in ("base", "fork1", "fork2"))
    past = base["timestamp"] < "2026-09-14T12:00:00Z"
    for fork in forks:
        assert base.loc[past, list(METRICS)].equals(fork.loc[past, list(METRICS)])
        assert not base.loc[~past, "cpu_pct"].equals(fork.loc[~past, "cpu_pct"])
    assert not forks[0].loc[~past, "cpu_pct"].equals(forks[1].loc[~past, "cpu_pct"])


def test_times_may_be_dates_offsets_or_relative_to_now():
    assert instant("--start", "2026-09-14", 300) == np.datetime64("2026-09-14T00:00:00")
    assert instant("--start", "2026-09-14T02:00:00+02:00", 300) == np.datetime64("2026-09-14T00:00:00")
    assert instant("--start", "2026-09-14 00:00", 300) == np.datetime64("2026-09-14T00:00:00")
    now = np.datetime64(datetime.now(UTC).replace(tzinfo=None), "s")
    for text, hours in (("now", 0), ("now-72h", 72), ("now-0.5h", 0.5)):
        moment = instant("--start", text, 300)
        assert 0 <= (now - moment).astype(int) - hours * 3600 <= 600
        assert moment.astype(int) % 300 == 0


# --- bad input ------------------------------------------------------------------------------------------------------

NO_SERVERS = [text for profile in DEFAULT_SERVERS for text in (f"--num_{profile}", "0")]
BAD = [
    (["--hours", "0"], "--hours is 0.0; give a number above 0"),
    (["--hours", "-3"], "--hours is -3.0; give a number above 0"),
    (["--hours", "nan"], "--hours is nan; give a number above 0"),
    (["--hours", "inf"], "--hours is inf"),
    (["--hours", "ten"], "argument --hours: invalid float value: 'ten'"),
    (["--hours", "1", "--tick_seconds", "3601"], "--tick_seconds is 3601; give at most the length of the data, 1 h"),
    (["--tick_seconds", "0"], "--tick_seconds is 0; give a whole number of seconds above 0"),
    (["--tick_seconds", "-5"], "--tick_seconds is -5"),
    (["--num_web_api", "-1"], "the number of web_api servers is -1; give 0 or more"),
    (NO_SERVERS, "the fleet has no server; give at least one profile a number above 0"),
    (["--timezone", "Mars/Base"], "unknown time zone 'Mars/Base'; use an IANA name such as America/New_York"),
    (
        ["--start", "yesterday"],
        "--start is yesterday; give a UTC time such as 2026-09-14T00:00:00Z, a date, or now",
    ),
    (["--start", "2026-13-01"], "--start is 2026-13-01; give a UTC time"),
    (["--start", "0001-01-01"], "--start is 0001-01-01; give a time from 1971 to 2198"),
    (["--seed", "-1"], "--seed is -1; give 0 or more"),
    (["--incident_rate", "-1"], "--incident_rate is -1.0; give incidents per server and month"),
    (["--incident_rate", "nan"], "--incident_rate is nan"),
    (["--workers", "0"], "--workers is 0; give 1 or more"),
    (["--offline_mode", "none"], "argument --offline_mode/--offline-mode: invalid choice: 'none'"),
    (["--fork_at", "2020-01-01"], "--fork_at is 2020-01-01; give a time from 2026-09-14T00:00:00Z"),
    (["--fork_at", "2026-09-15", "--fork_seed", "42"], "--fork_seed is 42; give another number than --seed"),
    (["--fork_at", "2026-09-15", "--fork_seed", "-2"], "--fork_seed is -2; give 0 or more"),
    (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
    (["--hour", "3"], "unrecognized arguments: --hour"),
    (["--plot", "fleet.txt"], "--plot is fleet.txt; name a file that ends with one of"),
    (["--stream", "http://127.0.0.1:9", "--inject", "ppdb999:lock_contention"], "no server 'ppdb999' in the fleet"),
    (
        ["--stream", "http://127.0.0.1:9", "--inject", "ppdb001:oom"],
        "server such as ppdb001 has no incident",
    ),
    (["--stream", "http://127.0.0.1:9", "--inject", "ppdb001"], "--inject is ppdb001; write SERVER:INCIDENT"),
    (["--stream", "http://127.0.0.1:9", "--hours", "0"], "--hours is 0.0; give a number above 0"),
    (["--stream", "http://127.0.0.1:9", "--tick_seconds", "0"], "--tick_seconds is 0"),
    (["--stream", "http://127.0.0.1:9", "--speed", "0"], "--speed is 0.0; give a multiple of real time"),
    (["--stream", "http://127.0.0.1:9", "--start", "2190-01-01"], "a stream cannot begin in the future"),
    (["--stream", "http://127.0.0.1:9", "--backfill_hours", "-1"], "--backfill_hours is -1.0; give 0 or more"),
    (
        ["--stream", "http://127.0.0.1:9", "--new_server_every", "10"],
        "--new_server_every is 10; write a number",
    ),
    (["--stream", "http://127.0.0.1:9", "--token_file", "absent"], "--token_file is absent; it cannot be read"),
    (
        ["--from_prometheus", "http://127.0.0.1:9", "--queries", "absent.toml"],
        "--queries absent.toml: is part of the fleet file now",
    ),
    (["--from_prometheus", "http://127.0.0.1:9", "--fleet", "absent.toml"], "fleet file absent.toml: no such"),
    (["--from_prometheus", "http://127.0.0.1:9", "--hours", "0"], "--hours is 0.0"),
    (["--from_prometheus", "http://127.0.0.1:9", "--stream", "http://127.0.0.1:9"], "choose one of"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags)[:60] for flags, _ in BAD])
def test_wrong_usage_is_refused_with_flag_value_and_remedy_and_no_file_is_written(capsys, tmp_path, flags, message):
    folder = tmp_path / "data"
    writes = not {"--stream", "--plot"} & set(flags)
    code, _, err = run(capsys, *flags, *(["--out_dir", folder] if writes else []))
    assert code == 2
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert not folder.exists()


FAILURES = [
    (["--stream", "nonsense"], "'nonsense' is not an address"),
    (["--stream", "ftp://127.0.0.1"], "'ftp://127.0.0.1' is not an address"),
]


@pytest.mark.parametrize(("flags", "message"), FAILURES)
def test_what_cannot_be_done_is_answered_with_the_reason(capsys, flags, message):
    code, _, err = run(capsys, *flags, *FEW)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_written_is_named(capsys, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for folder in (blocked, blocked / "below", Path("/proc/no")):
        code, _, err = run(capsys, "--hours", 1, "--out_dir", folder, *FEW)
        assert code == 1
        assert err.startswith("error: ")
        assert "--out_dir" in err
    assert blocked.read_text() == "in the way"


ENDINGS = [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interrupted_run_keeps_the_earlier_data(tmp_path, ending):
    assert main(["--hours", "2", "--out_dir", str(tmp_path), *FEW]) == 0
    before = digests(tmp_path)
    command = [sys.executable, "metrics_generator.py", "--tick_seconds", "5", "--out_dir", str(tmp_path)]
    child = subprocess.Popen([*command, "--workers", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".server_metrics-*/server_metrics/*.parquet")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(ending)
    _, err = child.communicate(timeout=60)
    assert digests(tmp_path) == before
    if ending != signal.SIGKILL:
        assert child.returncode == 130
        assert err.strip().splitlines()[-1] == "interrupted; nothing was changed"
        assert not list(tmp_path.glob(".*"))
    assert main(["--hours", "2", "--out_dir", str(tmp_path), *FEW]) == 0
    assert not list(tmp_path.glob(".*")), "the next run clears away what a killed one left"


# --- live -----------------------------------------------------------------------------------------------------------


class FakeDaemon(ThreadingHTTPServer):
    """Takes samples as the daemon does; `answer` may be replaced."""

    daemon_threads = True

    def __init__(self):
        self.rows = {}
        self.answer = self.accept
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def accept(self, path, body):
        records = json.loads(body)["records"]
        self.rows.update({(record["server_name"], record["timestamp"]): record for record in records})
        return 200, json.dumps({"accepted": len(records), "rejected": []})


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status, text = self.server.answer(self.path, body)
        self.send_response(status)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def daemon():
    server = FakeDaemon()
    yield server
    server.shutdown()
    server.server_close()


def test_a_stream_backfills_a_day_and_continues_until_a_signal(daemon):
    command = [sys.executable, "metrics_generator.py", "--stream", daemon.url, *FEW]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(daemon.rows) < 7 * 300 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["accepted"] == len(daemon.rows) == 7 * result["ticks"]
    assert result["rejected"] == result["retries"] == 0
    stamps = sorted({stamp for _, stamp in daemon.rows})
    oldest, newest = (datetime.fromisoformat(stamp) for stamp in (stamps[0], stamps[-1]))
    assert 24.9 < (newest - oldest).total_seconds() / 3600 < 25.1
    assert -5 < (datetime.now(UTC) - newest).total_seconds() < 400


def test_a_stream_continues_the_fleet_that_was_written(capsys, tmp_path, daemon):
    """A stream with the start of the training data continues its servers' paths."""
    start = f"{instant('--start', 'now-48h', 300)}Z"
    run(capsys, "--start", start, "--hours", 47, "--out_dir", tmp_path, *FEW)
    flags = ["--start", start, "--stream", daemon.url, "--backfill_hours", 3, "--hours", 2.5]
    code, result, _ = run(capsys, *flags, *FEW)
    assert (code, result["ticks"]) == (0, 30)
    frame = read_metrics(tmp_path).frame
    compared = 0
    for row in frame[frame["timestamp"] >= frame["timestamp"].max() - np.timedelta64(1, "h")].itertuples():
        sent = daemon.rows.get((row.server_name, row.timestamp.strftime("%Y-%m-%dT%H:%M:%SZ")))
        if sent and sent["cpu_pct"] is not None:
            assert sent["cpu_pct"] == pytest.approx(row.cpu_pct, abs=0.006)
            compared += 1
    assert compared > 50


def test_a_stream_with_a_position_file_continues_after_the_last_tick(capsys, tmp_path, daemon):
    flags = ["--stream", daemon.url, "--position_file", tmp_path / "position.json", "--backfill_hours", 2, *FEW]
    assert run(capsys, *flags, "--hours", 1)[1]["ticks"] == 12
    code, result, err = run(capsys, *flags, "--hours", 1.5)
    assert (code, result["ticks"]) == (0, 6)
    assert "resuming after" in err
    assert len({stamp for _, stamp in daemon.rows}) == 18


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [(403, "no", "refuses the samples with status 403: no"), (200, "hello", "does not respond like this project's")],
)
def test_a_daemon_that_refuses_or_has_an_unknown_response_ends_the_stream(capsys, daemon, status, text, message):
    daemon.answer = lambda path, body: (status, text)
    code, _, err = run(capsys, "--stream", daemon.url, *FEW)
    assert code == 1
    assert message in err


def test_a_daemon_that_is_not_there_is_named_with_the_remedy(capsys, monkeypatch):
    monkeypatch.setattr(stream_fleet, "Feed", _impatient)
    code, _, err = run(capsys, "--stream", "http://127.0.0.1:9", *FEW)
    assert code == 1
    assert "http://127.0.0.1:9 does not accept samples: ConnectError" in err
    assert "start the daemon, or correct the address" in err


def _impatient(*arguments, **options):
    from fleet_forecast.simulation.live.feed import Feed

    return Feed(*arguments, **options, patience_at_first_seconds=0.2)


# --- a picture ------------------------------------------------------------------------------------------------------


def test_a_picture_shows_one_server_of_each_profile(capsys, tmp_path):
    from PIL import Image

    path = tmp_path / "fleet.png"
    code, result, _ = run(capsys, "--plot", path, "--hours", 30, *FEW)
    assert code == 0
    assert [name[:4] for name in result["servers"]] == ["ppml", "ppdb", "ppwe", "ppge"]
    with Image.open(path) as image:
        assert image.width > 1000
        assert len(image.getcolors(256)) > 10


def test_the_committed_picture_is_small():
    assert (ROOT / "docs" / "fleet.png").stat().st_size < 300_000
