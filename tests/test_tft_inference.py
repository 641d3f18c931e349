"""Script 3: batch forecasts with a tiny model, messages and exit codes; the daemon as a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

import fleet_forecast
import tft_inference
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.access_tokens import read_token
from fleet_forecast.serving.settings import SettingsError
from tests.conftest import TINY_METRICS, tiny_fleet

QUANTILE_COLUMNS = ["q0.02", "q0.1", "q0.25", "q0.5", "q0.75", "q0.9", "q0.98"]


def run(*arguments):
    return tft_inference.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def metrics_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "day.parquet"
    tiny_fleet(hours=24, seed=3).to_parquet(path, index=False)
    return path


@pytest.fixture(scope="module")
def forecasts(tiny_model_dir, metrics_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("output") / "forecasts.parquet"
    assert run("--model", tiny_model_dir, "--input", metrics_file, "--output", path) == 0
    return pd.read_parquet(path)


def test_one_row_per_server_origin_step_and_metric(forecasts):
    keys = ["server_name", "origin", "step", "timestamp", "metric"]
    assert list(forecasts.columns) == [*keys, "peers", "peer_weight", *QUANTILE_COLUMNS]
    assert set(forecasts["peers"]) == {3}  # four servers a profile
    assert len(forecasts) == 8 * 12 * len(TINY_METRICS)
    assert not forecasts.duplicated(["server_name", "origin", "step", "metric"]).any()
    assert set(forecasts["step"]) == set(range(1, 13))
    assert str(forecasts["timestamp"].dtype) == "datetime64[ns, UTC]"


def test_timestamps_of_a_forecast_continue_the_history(forecasts, metrics_file):
    last = pd.read_parquet(metrics_file)["timestamp"].max()
    assert (forecasts["origin"] == last).all()
    assert (forecasts["timestamp"] == forecasts["origin"] + pd.to_timedelta(forecasts["step"] * 300, unit="s")).all()


def test_quantiles_are_ordered(forecasts):
    assert (np.diff(forecasts[QUANTILE_COLUMNS].to_numpy(), axis=1) >= 0).all()


def test_the_file_has_the_forecasts_of_the_engine(forecasts, tiny_model_dir, metrics_file):
    engine = Engine.load(tiny_model_dir, device="cpu")
    grid = FleetGrid.from_frame(pd.read_parquet(metrics_file), TINY_METRICS, 300)
    origins = np.full(8, grid.timestamps()[-1])
    expected = engine.forecast(grid.values, grid.profiles, origins, grid.peers())
    shaped = forecasts[QUANTILE_COLUMNS].to_numpy().reshape(expected.shape)
    np.testing.assert_allclose(shaped, expected, rtol=1e-5)


def test_a_server_without_a_measurement_is_forecast_without_history_and_named(tiny_model_dir, tmp_path, capsys):
    fleet = tiny_fleet(hours=24)
    new = fleet["server_name"] == "ppdb003"
    fleet.loc[new, list(TINY_METRICS)] = np.nan
    fleet.to_parquet(tmp_path / "day.parquet", index=False)
    output = tmp_path / "forecasts.parquet"
    assert run("--model", tiny_model_dir, "--input", tmp_path / "day.parquet", "--output", output) == 0
    assert "note: ppdb003 has no measurement the model can use: forecast without history" in capsys.readouterr().err
    forecasts = pd.read_parquet(output).set_index("server_name")
    assert len(forecasts.loc["ppdb003"]) == 12 * len(TINY_METRICS)
    grid = FleetGrid.from_frame(fleet, TINY_METRICS, 300)
    peers = Peers(grid.peers().table, np.array([False]))
    expected = Engine.load(tiny_model_dir, device="cpu").forecast(
        np.empty((1, 0, 3), np.float32), ["database"], fleet["timestamp"].max().to_datetime64(), peers
    )
    found = forecasts.loc["ppdb003", QUANTILE_COLUMNS].to_numpy()
    np.testing.assert_allclose(found, expected.reshape(-1, 7), rtol=1e-5)


def test_origins_every_few_hours_use_nothing_after_the_origin(tiny_model_dir, metrics_file, tmp_path):
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    flags = ["--model", tiny_model_dir, "--origins", "every:8h", "--from", "2026-03-02T04:00:00Z"]
    assert run(*flags, "--input", metrics_file, "--output", whole) == 0
    frame = pd.read_parquet(metrics_file)
    changed = frame.assign(cpu_pct=frame["cpu_pct"].where(frame["timestamp"] <= "2026-03-02T12:00:00Z", 1.0))
    changed.to_parquet(tmp_path / "changed.parquet")
    assert run(*flags, "--input", tmp_path / "changed.parquet", "--output", cut) == 0
    a, b = pd.read_parquet(whole), pd.read_parquet(cut)
    hours = [f"2026-03-02T{hour:02d}:00:00Z" for hour in (4, 12, 20)]
    assert sorted(a["origin"].unique()) == [pd.Timestamp(hour) for hour in hours]
    known = a["origin"] <= pd.Timestamp("2026-03-02T12:00:00Z")
    pd.testing.assert_frame_equal(a[known], b[known])
    assert not a[~known].equals(b[~known])


def test_one_row_of_an_unseen_server_is_enough(tiny_model_dir, tmp_path):
    (tmp_path / "one.csv").write_text("timestamp,server_name,cpu_pct\n2026-03-02T00:00:00Z,new,40\n")
    assert run("--model", tiny_model_dir, "--input", tmp_path / "one.csv", "--output", tmp_path / "o.parquet") == 0
    forecast = pd.read_parquet(tmp_path / "o.parquet")
    assert len(forecast) == 12  # of the metric that it measures: its profile is not one of the model
    assert np.isfinite(forecast[QUANTILE_COLUMNS]).all().all()


def test_without_any_model_the_starter_model_forecasts_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("timestamp,server_name,cpu_pct\n2026-03-02T00:00:00Z,new,40\n")
    assert run("--input", "one.csv", "--output", "o.parquet") == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert (summary["model"], summary["starter"]) == ("starter", True)
    assert "note: these are forecasts of the starter model, which was not trained on this fleet" in captured.err
    assert pd.read_parquet("o.parquet")["timestamp"].max() == pd.Timestamp("2026-03-02T08:00:00Z")


def test_samples_finer_than_the_step_are_averaged(tiny_model_dir, metrics_file, tmp_path):
    frame = pd.read_parquet(metrics_file)
    later = frame.assign(timestamp=frame["timestamp"] + pd.Timedelta(60, "s"))
    spread = (
        frame.assign(**{m: frame[m] - 1 for m in TINY_METRICS}),
        later.assign(**{m: frame[m] + 1 for m in TINY_METRICS}),
    )
    fine = pd.concat(spread)
    fine = fine.assign(**{m: fine[m].clip(0) for m in TINY_METRICS})
    fine.to_parquet(tmp_path / "fine.parquet", index=False)
    assert run("--model", tiny_model_dir, "--input", tmp_path / "fine.parquet", "--output", tmp_path / "o.parquet") == 0
    origin = pd.read_parquet(tmp_path / "o.parquet")["origin"].unique()
    assert list(origin) == [frame["timestamp"].max()]


def test_the_last_line_of_stdout_is_json(tiny_model_dir, metrics_file, tmp_path, capsys):
    assert run("--model", tiny_model_dir, "--input", metrics_file, "--output", tmp_path / "o.parquet") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["servers"], summary["origins"], summary["rows"]) == (8, 1, 8 * 12 * 3)


def test_explain_prints_the_weights_of_the_forecast_from_the_last_row(tiny_model_dir, metrics_file, capsys):
    assert run("--model", tiny_model_dir, "--input", metrics_file, "--explain", "ppdb003") == 0
    *table, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    assert (summary["server_name"], summary["profile"]) == ("ppdb003", "database")
    engine = Engine.load(tiny_model_dir, device="cpu")
    grid = FleetGrid.from_frame(pd.read_parquet(metrics_file), TINY_METRICS, 300)
    row = grid.servers.index("ppdb003")
    frame = pd.read_parquet(metrics_file).query("server_name == 'ppdb003'")
    history = grid.values[row : row + 1]
    origin = np.datetime64(frame["timestamp"].max().tz_localize(None), "s")
    assert summary["origin"] == f"{origin}Z"
    expected = engine.explain(history, ["database"], origin, peers=Peers(grid.peers().table, np.array([True])))
    for group, names in engine.variables._asdict().items():
        weights = {entry["variable"]: entry["weight"] for entry in summary["variables"][group]}
        np.testing.assert_allclose([weights[n] for n in names], getattr(expected, group)[0], atol=2e-5)
    assert sum(line.endswith("before the origin") for line in table) == 24
    assert f"{100 * expected.attention_ahead[0]:8.1f} %  earlier steps of the horizon" in table


def test_audit_prints_a_wrong_name_and_the_line_that_accepts_the_suggestion(tmp_path, capsys):
    more = [tiny_fleet(hours=24, seed=seed) for seed in range(1, 4)]
    for number, part in enumerate(more):
        part["server_name"] = part["server_name"].str.slice_replace(-3, -2, str(number + 1))  # ppweb002 -> ppweb102
    frame = pd.concat([tiny_fleet(hours=24), *more], ignore_index=True)
    wrong = frame["server_name"] == "ppweb002"
    frame["profile"] = frame["profile"].astype(str).mask(wrong, "database")
    frame.to_parquet(tmp_path / "fleet.parquet")
    assert run("--input", tmp_path / "fleet.parquet", "--audit") == 0
    *text, last = capsys.readouterr().out.splitlines()
    (found,) = json.loads(last)["suggestions"]
    assert (found["server_name"], found["profile"], found["suggested"]) == ("ppweb002", "database", "web_api")
    assert text[0].startswith("ppweb002: database -> web_api")
    assert '"ppweb002" = "web_api"' in text


def test_both_spellings_of_a_flag(capsys):
    assert run("--check_config", "--max_servers=7", "--allowed-hosts", "a_b") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["max_servers"], shown["allowed_hosts"]) == (7, ["a_b"])


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--output", "o.parquet"], 2, "--input is missing"),
        (["--input", "{input}"], 2, "--output is missing"),
        (["--input", "{input}", "--output", "nowhere/o.parquet"], 2, "its folder does not exist"),
        (["--input", "{input}", "--output", "."], 2, "--output .: is a folder; name a file, such as forecasts.parquet"),
        (["--input", "{input}", "--output", "{out}", "--origins", "hourly"], 2, "--origins 'hourly' is unknown"),
        (["--input", "{input}", "--output", "{out}", "--origins", "every:0h"], 2, "is unknown"),
        (["--input", "{input}", "--output", "{out}", "--origins", "every:7m"], 2, "not a multiple of the model's step"),
        (["--input", "{input}", "--output", "{out}", "--from", "2026-03-02T04:00:00Z"], 2, "--origins every:8h"),
        (["--input", "{input}", "--output", "{out}", "--origins", "every:8h", "--from", "noon"], 2, "is not a time"),
        (
            ["--input", "{input}", "--output", "{out}", "--origins", "every:8h", "--from", "2026-03-02"],
            2,
            "no time zone",
        ),
        (
            ["--input", "{input}", "--output", "{out}", "--origins", "every:8h", "--from", "2020-01-01T00:00Z"],
            2,
            "outside the data",
        ),
        (
            ["--input", "{input}", "--output", "{out}", "--origins", "every:8h", "--from", "0001-01-01T00:00+05:00"],
            2,
            "before the year 1",
        ),
        (["--input", "{input}", "--output", "{out}", "--origins", "every:90d"], 2, "is longer than the data"),
        (["--input", "{input}", "--output", "forecasts.csv"], 2, "the output is parquet; name it forecasts.parquet"),
        (["--daemon", "--input", "{input}"], 2, "day.parquet: --daemon does not use it; leave one of them out"),
        (["--check-config", "--from", "2026-03-02T04:00:00Z"], 2, "--from: --check-config does not use it"),
        (["--explain", "ppdb003"], 2, "--input is missing"),
        (["--audit"], 2, "--input is missing"),
        (["--audit", "--input", "{input}", "--output", "{out}"], 2, "o.parquet: --audit does not use it"),
        (["--audit", "--input", "{input}", "--origins", "every:8h"], 2, "--origins: --audit does not use it"),
        (["--daemon", "--audit"], 2, "--audit and --daemon are given; choose one of them"),
        (["--input", "{input}", "--explain", "nobody"], 2, "no measurement of a server with this name"),
        (
            ["--input", "{input}", "--explain", "ppdb003", "--output", "{out}"],
            2,
            "o.parquet: --explain NAME does not use it",
        ),
        (
            ["--input", "{input}", "--explain", "ppdb003", "--origins", "every:8h"],
            2,
            "--origins: --explain NAME does not use it",
        ),
        (["--input", "missing.parquet", "--output", "{out}"], 1, "missing.parquet"),
        (["--input", "{input}", "--output", "{out}", "--model", "no/model"], 1, "no/model"),
        (["--check-config", "--port", "99999"], 2, "port: 99999"),
        (["--check-config", "--host", "0.0.0.0"], 2, "can be reached from other machines"),
        (["--check-config", "--alertmanager", "localhost:9093"], 2, "alertmanager: 'localhost:9093' is not an address"),
        (["--check-config", "--webhook", "http://localhost:99999/x"], 2, "webhook: 'http://localhost:99999/***' is no"),
        (["--check-config", "--fleet", "no.toml"], 2, "fleet file no.toml: no such file"),
        (["--check-config", "--history", "."], 2, "history: . is a folder; give the path of a file in it"),
        (["--check-config", "--webhook", "foo"], 2, "webhook: 'foo' is not an address; write http://host:port"),
        (["--check-config", "--token-file", "no.token"], 2, "token file no.token"),
        (["--daemon", "--host", "0.0.0.0"], 2, "can be reached from other machines"),
        (["--daemon", "--model", "no/model"], 2, "train one with tft_trainer.py"),
    ],
)
def test_invalid_input_is_named_with_its_remedy(flags, code, message, tiny_model_dir, metrics_file, tmp_path, capsys):
    filled = [flag.format(input=metrics_file, out=tmp_path / "o.parquet") for flag in flags]
    model = [] if {"--model", "--audit"} & set(filled) else ["--model", tiny_model_dir]
    assert run(*model, *filled) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert message in captured.err
    assert not (tmp_path / "o.parquet").exists()


def test_a_token_in_the_variable_must_be_as_long_as_one_in_a_file(monkeypatch, tiny_model_dir, capsys):
    command = ("--check-config", "--host", "0.0.0.0", "--model", tiny_model_dir)
    monkeypatch.setenv("FLEET_FORECAST_TOKEN", "short")
    assert run(*command) == 2
    assert "variable FLEET_FORECAST_TOKEN: the token has 5 bytes; use at least 16" in capsys.readouterr().err
    monkeypatch.setenv("FLEET_FORECAST_TOKEN", " a token of more than 16 bytes\n")
    assert run(*command) == 0


def test_a_token_file_without_permission_is_named_with_the_user(monkeypatch, tmp_path):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SettingsError, match=rf"token: may not be read by user {os.geteuid()}; let that user"):
        read_token(tmp_path / "token")


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out.split()[-1] == fleet_forecast.__version__


def test_an_unknown_flag_is_refused():
    with pytest.raises(SystemExit) as ended:
        run("--nonsense")
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", "unknown key 'nonsense'"),
        ("port = 'x'", "port: 'x' is not a whole number"),
        ("port = true", "port: True is not a whole number"),
        ("stale_steps = 9\ndrop_steps = 2", "drop_steps: 2 is less than"),
        ("port = ", "is not TOML"),
        ("retention_hours = inf", "retention_hours: inf"),
    ],
)
def test_a_bad_settings_file_is_refused_by_key(text, message, tmp_path, capsys):
    path = tmp_path / "daemon.toml"
    path.write_text(text)
    assert run("--check-config", "--config", path) == 2
    assert message in capsys.readouterr().err


def test_a_flag_overrules_the_file(tmp_path, capsys):
    path = tmp_path / "daemon.toml"
    path.write_text("port = 9001\nmax-servers = 5\nretention_hours = 24\n")
    assert run("--check-config", "--config", path, "--port", 9002) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["port"], shown["max_servers"], shown["retention_hours"]) == (9002, 5, 24.0)


# --- the daemon as a process ----------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(process, url, seconds=120.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the daemon ended"
        try:
            if httpx.get(url + "/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("not ready in time")


def test_the_daemon_serves_a_real_forecast_and_ends_cleanly(tiny_model_dir, tmp_path):
    port = free_port()
    command = [sys.executable, "tft_inference.py", "--daemon", "--model", tiny_model_dir]
    command += ["--history", tmp_path / "h.sqlite", "--port", port, "--recheck-seconds", 0.1]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([*map(str, command)], stderr=stderr, cwd=Path(tft_inference.__file__).parent)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url)
        now = datetime.now(UTC)
        records = [
            {
                "timestamp": (now - timedelta(minutes=5 * back)).isoformat(),
                "server_name": "ppdb001",
                "cpu_pct": 50.0 + back % 7,
                "mem_pct": 80.0,
            }
            for back in range(40)
        ]
        assert httpx.post(url + "/api/v1/metrics", json={"records": records}).json()["accepted"] == 40
        deadline = time.monotonic() + 120
        forecast = {}
        # Until the first cycle, a provisional forecast rests on the running step alone.
        while forecast.get("history_steps", 0) < 38:
            assert time.monotonic() < deadline, forecast
            time.sleep(0.05)
            got = httpx.get(url + "/api/v1/servers/ppdb001/forecast")
            forecast = got.json() if got.status_code == 200 else {}
        assert set(forecast["metrics"]) == set(TINY_METRICS)
        assert len(forecast["metrics"]["cpu_pct"]["q0.5"]) == 12
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"start", "model loaded", "cycle"} <= {event["event"] for event in events}
    assert not [event for event in events if event["level"] == "error"]


def test_the_daemon_never_imports_torch():
    code = (
        "import sys, tft_inference, fleet_forecast.serving.app, fleet_forecast.serving.http.server\n"
        "print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": "."}
    folder = Path(tft_inference.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.stdout.strip() == "False", done.stderr
