"""A real fleet of one: node_exporter, scraped by Prometheus, pulled by the script; skipped where they are not there."""

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

import tft_inference
from data_contract import METADATA_FILE, METRICS_FILE, read_metadata, read_metrics
from metrics_generator import main

PROGRAMS = ("prometheus", "prometheus-node-exporter")
SCRAPES = 16  # eight seconds


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds, log):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)


def answers(url):
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def scrapes(url):
    answer = httpx.get(f"{url}/api/v1/query", params={"query": "count_over_time(node_load1[1m])"}).json()
    return max((int(series["value"][1]) for series in answer["data"]["result"]), default=0)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Address of a Prometheus that has scraped a node_exporter twice a second for some seconds."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install {' '.join(PROGRAMS)})")
    folder = tmp_path_factory.mktemp("prometheus")
    exporter, own = (f"127.0.0.1:{free_port()}" for _ in range(2))
    scrape = {
        "job_name": "node",
        "scrape_interval": "500ms",
        "scrape_timeout": "400ms",
        "static_configs": [{"targets": [exporter]}],
        "relabel_configs": [{"target_label": "instance", "replacement": "ppdb001.example.com:9100"}],
    }
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))  # JSON is YAML
    commands = (
        ["prometheus-node-exporter", f"--web.listen-address={exporter}"],
        ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={own}"],
    )
    log = folder / "log"
    with log.open("wb") as output:
        processes = [subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) for command in commands]
    try:
        wait_for(lambda: answers(f"http://{exporter}/metrics") and answers(f"http://{own}/-/ready"), 30, log)
        wait_for(lambda: scrapes(f"http://{own}") >= SCRAPES, 60, log)
        yield f"http://{own}"
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(10)


def pull(capsys, url, folder, *flags):
    code = main(["--from_prometheus", url, "--out_dir", str(folder), "--hours", "0.01", "--tick_seconds", "2", *flags])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if code == 0 else None, err


def test_a_real_server_is_written_as_the_contract_has_it(capsys, tmp_path, prometheus):
    code, result, err = pull(capsys, prometheus, tmp_path)
    assert (code, result["servers"]) == (0, 1), err
    assert result["path"] == str(tmp_path / METRICS_FILE)
    data = read_metrics(tmp_path)
    frame, metadata = data.frame, data.metadata
    assert set(frame["server_name"]) == {"ppdb001.example.com"}, "host label without its port"
    assert set(frame["profile"]) == {"database"}
    assert {"cpu_pct", "mem_pct", "net_in_mb_s", "net_out_mb_s"} <= set(data.metrics)
    assert metadata.seed is None
    assert (metadata.step_seconds, metadata.rows, metadata.fleet) == (2, len(frame), {"database": 1})
    assert (frame["timestamp"].astype("int64") // 10**9 % 2 == 0).all(), "aligned to the step"
    assert 2 <= len(frame) <= 18
    assert frame["cpu_pct"].dropna().between(0, 100).all()


def test_memory_equals_that_of_the_kernel(capsys, tmp_path, prometheus):
    assert pull(capsys, prometheus, tmp_path)[0] == 0
    measured = read_metrics(tmp_path).frame["mem_pct"].dropna()
    with Path("/proc/meminfo").open() as file:
        meminfo = {line.split(":")[0]: float(line.split()[1]) for line in file}
    expected = 100 * (1 - meminfo["MemAvailable"] / meminfo["MemTotal"])
    assert measured.iloc[-1] == pytest.approx(expected, abs=15)


def test_own_queries_replace_the_ready_ones_of_their_metric(capsys, tmp_path, prometheus):
    fleet, query = tmp_path / "fleet.toml", "1000 * avg by (instance) (node_boot_time_seconds * 0 + 0.0125)"
    fleet.write_text(f"[metrics.latency_ms]\nquery = '{query}'\n[servers]\nppdb001 = 'web_api'\n")
    code, _, err = pull(capsys, prometheus, tmp_path / "data", "--fleet", str(fleet))
    assert code == 0, err
    frame = read_metrics(tmp_path / "data").frame
    assert frame["latency_ms"].dropna().tolist() == pytest.approx([12.5] * frame["latency_ms"].notna().sum())
    assert frame["cpu_pct"].notna().any(), "the other ready queries stay"
    assert set(frame["profile"]) == {"web_api"}


def test_another_server_label_needs_queries_of_its_own(capsys, tmp_path, prometheus):
    fleet, query = tmp_path / "fleet.toml", "avg by (job) (node_load1 * 0 + 7)"
    fleet.write_text(f"[prometheus]\nserver_label = 'job'\n[metrics.cpu_pct]\nquery = '{query}'\n")
    assert pull(capsys, prometheus, tmp_path / "data", "--fleet", str(fleet))[0] == 0
    data = read_metrics(tmp_path / "data")
    assert data.metrics == ("cpu_pct",)
    assert set(data.frame["server_name"]) == {"node"}


def test_a_connections_file_gives_the_same_rows_and_a_probe_writes_nothing(capsys, tmp_path, prometheus):
    connections = tmp_path / "connections.toml"
    one = f'url = "{prometheus}"\nmatchers = \'job="node"\'\n'
    connections.write_text(f"[prometheus.eu]\n{one}[prometheus.us]\n{one}")
    flags = ["--connections", str(connections), "--out_dir", str(tmp_path / "data"), "--hours", "0.01"]
    flags += ["--tick_seconds", "2"]
    assert main([*flags, "--probe"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["servers"]["ppdb001.example.com"]["prometheus"] == "eu"
    assert "cpu_pct: 1 series, 1 server" in err
    assert not (tmp_path / "data").exists()
    assert main(flags) == 0
    assert "ppdb001.example.com of prometheus us is left out: it is taken from prometheus eu" in capsys.readouterr().err
    assert set(read_metrics(tmp_path / "data").frame["server_name"]) == {"ppdb001.example.com"}
    connections.write_text(f'[prometheus.eu]\nurl = "{prometheus}"\nqueries = "{tmp_path}/q.toml"\n')
    (tmp_path / "q.toml").write_text("[queries]\ncpu_pct = 'avg by (instance) (node_load1)'\nmem_pct = 'rate('\n")
    assert tft_inference.main(["--check-config", "--probe", "--connections", str(connections)]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert [query["problem"] is None for query in document["queries"]] == [True, False]
    assert "  mem_pct: failed: " in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe"], "--probe: it goes with --from_prometheus URL or --connections FILE"),
        (["--connections", "none.toml"], "connections file none.toml: no such file"),
        (["--connections", "c.toml", "--prometheus_header", "X-A: b"], "it goes with --from_prometheus URL"),
        (["--connections", "c.toml"], "--connections c.toml: has no .prometheus.NAME. to pull from; add one"),
        (["--from_prometheus", "p:9090"], "url is 'p:9090', not an address"),
        (["--from_prometheus", "http://p", "--prometheus_header", "a b"], "'a b' is not a header"),
    ],
)
def test_wrong_connections_are_refused(capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text("")
    assert main(flags) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_time_without_data_is_named_and_nothing_is_written(capsys, tmp_path, prometheus):
    code, _, err = pull(capsys, prometheus, tmp_path, "--start", "2020-01-01")
    assert code == 1
    assert "has no values from 2020-01-01T00:00:00Z to 2020-01-01T00:00:36Z" in err
    assert "fleet.toml" in err
    assert list(tmp_path.iterdir()) == []


def test_a_query_prometheus_refuses_is_shown(capsys, tmp_path, prometheus):
    fleet = tmp_path / "fleet.toml"
    fleet.write_text("[metrics.cpu_pct]\nquery = 'avg by (instance'\n")
    code, _, err = pull(capsys, prometheus, tmp_path / "data", "--fleet", str(fleet))
    assert code == 1
    assert "refused 'avg by (instance'" in err
    assert not list((tmp_path / "data").iterdir())


# --- a server that is no Prometheus ---------------------------------------------------------------------------------


@pytest.fixture
def impostor():
    class Handler(BaseHTTPRequestHandler):
        answer = (200, "hello")

        def do_POST(self):
            status, text = type(self).answer
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, "hello"), "the response is not JSON; is this a Prometheus?"),
        ((200, '{"status": "success"}'), "not a response of Prometheus"),
        ((200, "[]"), "not a response of Prometheus"),
        ((401, "who are you"), "refused"),
        ((404, "nothing here"), "refused"),
    ],
)
def test_refusals_and_nonsense_are_named_and_the_old_data_stays(capsys, tmp_path, impostor, answer, message):
    assert main(["--hours", "1", "--out_dir", str(tmp_path)]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {METRICS_FILE, METADATA_FILE}
    url, handler = impostor
    handler.answer = answer
    code, _, err = pull(capsys, url, tmp_path)
    assert code == 1
    assert message in err
    assert url in err
    assert "Traceback" not in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert read_metadata(tmp_path).seed == 42


def test_a_prometheus_that_is_not_there_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("fleet_forecast.sources.prometheus.ATTEMPTS", 1)
    code, _, err = pull(capsys, "http://127.0.0.1:9", tmp_path)
    assert code == 1
    assert "http://127.0.0.1:9/api/v1/query_range does not respond after 1 attempts: ConnectError" in err
    assert list(tmp_path.iterdir()) == []
