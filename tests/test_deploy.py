"""What is shipped for operators fits what the daemon exposes, and passes the tools that read it."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog import plugins as grafana_plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import timeseries
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

import tft_inference
import tft_trainer
from fleet_forecast.commands.model_life import KEPT_NOT_IN_USE
from fleet_forecast.contract.definitions import use_fleet
from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.iso_time import iso, utc_seconds
from fleet_forecast.serving.alerting.rules import alert_rules_of
from fleet_forecast.serving.settings import load_settings
from fleet_forecast.sources.connections_file import ForecastsTable, PrometheusTable, load_connections
from tests.serving.daemon_client import complete_start, daemon, forecast_of, post, record, wait_for

ROOT = Path(tft_inference.__file__).parent
DEPLOY = ROOT / "deploy"
NAMES = re.compile(r"\bfleet_[a-z_]+\b")


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    values = dict.fromkeys(("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms"), 50.0)
    shards = {"shard": "2/2", "shard_peers": ("http://127.0.0.1:9",) * 2, "shard_seconds": 0.1}
    with daemon(tmp_path_factory.mktemp("daemon"), **shards) as client:
        post(client, record(**values))
        forecast_of(client)
        wait_for(lambda: "fleet_breach_probability{" in client.get("/metrics").text)
        return set(NAMES.findall(client.get("/metrics").text))


@pytest.mark.parametrize("name", ["fleet-forecast.rules.yml", "grafana/fleet-forecast.json"])
def test_rules_and_dashboard_use_only_what_is_exposed(exposed, name):
    used = set(NAMES.findall((DEPLOY / name).read_text()))
    assert len(used) > 3
    assert used <= exposed


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the program promtool is not installed")
def test_promtool_accepts_scrape_configuration_and_rules(tmp_path):
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus-scrape.yml"],
        cwd=tmp_path / "deploy",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "10 rules found" in done.stdout


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the program promtool is not installed")
def test_promtool_accepts_the_remote_write_configuration_and_its_rules(tmp_path):
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    command = ["promtool", "check", "config", "prometheus-remote-write.yml"]
    done = subprocess.run(command, cwd=tmp_path / "deploy", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 rules found" in done.stdout


GRAFANA = json.loads((DEPLOY / "grafana/fleet-forecast.json").read_text())
PANELS = [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the program promtool is not installed")
def test_the_dashboards_queries_are_promql(tmp_path):
    queries = [target["expr"] for target in TARGETS if "expr" in target]
    rules = [{"record": f"check:{n}", "expr": query} for n, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "check", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(queries) > 5


def test_grafanas_schema_has_every_field_of_the_dashboard():
    """The types of grafana-foundation-sdk are generated from Grafana's schema; they drop a field that it lacks."""
    grafana_plugins.register_default_plugins()
    read = json.loads(json.dumps(GrafanaDashboard.from_json(GRAFANA), cls=JSONEncoder))
    for written, kept in zip(GRAFANA["annotations"]["list"], read["annotations"]["list"], strict=True):
        kept["target"] = written["target"]  # the data source's own: its fields are those of the panels' targets
    assert lost(GRAFANA, read) == []
    drawn = vars(timeseries.FieldConfig()).keys()
    for panel in (panel for panel in PANELS if panel["type"] == "timeseries"):
        used = {each["id"] for override in panel["fieldConfig"]["overrides"] for each in override["properties"]}
        names = {re.sub("([A-Z])", r"_\1", name.removeprefix("custom.")).lower() for name in used if "custom." in name}
        assert names <= drawn


def lost(written, read, place=""):
    """Places of a JSON document that another one lacks or has with another value."""
    if isinstance(written, dict):
        found = [
            lost(value, read[key], f"{place}/{key}") if key in read else [f"{place}/{key}"]
            for key, value in written.items()
        ]
        return [each for places in found for each in places]
    if isinstance(written, list) and len(written) == len(read):
        found = [lost(value, other, place) for value, other in zip(written, read, strict=True)]
        return [each for places in found for each in places]
    return [] if written == read else [place]


def test_the_daemon_has_the_routes_that_the_dashboard_queries(tmp_path):
    variables = {"server": "ppdb001", "past": "4", "__from": iso(complete_start(3))}
    queries = [target for target in TARGETS if "url" in target]
    queries += [each["target"] for each in GRAFANA["annotations"]["list"]]
    queries += [each["query"]["infinityQuery"] for each in GRAFANA["templating"]["list"] if each["type"] == "query"]
    values = dict.fromkeys(("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms"), 99.0)
    now = [complete_start(3) + 1.0]
    with daemon(tmp_path, clock=lambda: now[0]) as client:
        for start in map(complete_start, (2, 1, 0)):  # alerts need more than one forecast
            now[0] = start + 1.0
            post(client, record("ppdb001", start, **values))
            now[0] = start + 301.0
            wait_for(lambda: forecast_of(client, "ppdb001")["origin"] == iso(start))  # noqa: B023
        wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])
        for query in queries:
            url = re.sub(r"\$\{(\w+)[^}]*\}", lambda found: variables[found[1]], query["url"])
            answer = client.get(url)
            assert answer.status_code == 200, (url, answer.text)
            rows = answer.json()[query["root_selector"]] if query["root_selector"] else [answer.json()]
            assert "recent" in url or rows, url
            for row in rows:
                assert all(column["selector"] in row for column in query["columns"]), url
                times = [row[column["selector"]] for column in query["columns"] if column["type"] == "timestamp"]
                assert all(time is None or utc_seconds(time) > 0 for time in times)
    for panel in PANELS:
        columns = {column["text"] for target in panel["targets"] for column in target.get("columns", [])}
        overrides = panel["fieldConfig"]["overrides"]
        assert {override["matcher"]["options"] for override in overrides} <= columns
        below = [
            each["value"] for override in overrides for each in override["properties"] if "fillBelow" in each["id"]
        ]
        assert set(below) <= columns


def test_the_sample_fleet_file_is_read():
    with use_fleet(read_fleet(DEPLOY / "fleet.toml")) as fleet:
        rules = alert_rules_of(fleet)
        assert rules.bounds_of("ci-1", "build", "queue_depth").above == 50
    assert fleet.rules.pins == {"legacy-host-7": "cache"}
    assert fleet.calendar.timezone == "Europe/Berlin"
    assert rules.shadow
    assert rules.bounds_of("ppdb001", "database", "net_in_mb_s").below == 0.1
    assert [silence.kind for silence in rules.silences] == ["exclude"]


def test_the_sample_connections_are_read_and_show_every_field():
    text = (DEPLOY / "connections.toml").read_text()
    assert [*load_connections(DEPLOY / "connections.toml").prometheus] == ["eu", "windows"]
    fields = {**PrometheusTable.model_fields, **ForecastsTable.model_fields}
    assert set(re.findall(r"^(?:# )?(\w+) = ", text, re.M)) == set(fields)


def test_the_sample_settings_are_settings():
    path = DEPLOY / "daemon.toml"
    assert load_settings(path, {}).port == 8000
    commented = re.sub(r"^# (\w+ = )", r"\1", path.read_text(), flags=re.M)
    assert len(tomllib.loads(commented)) > 8


def test_the_sample_settings_name_only_settings_in_their_comments(tmp_path):
    commented = re.sub(r"^# (\w+ = )", r"\1", (DEPLOY / "daemon.toml").read_text(), flags=re.M)
    (tmp_path / "all.toml").write_text(commented)
    assert load_settings(tmp_path / "all.toml", {}).alertmanager == "http://127.0.0.1:9093"


@pytest.mark.parametrize("name", ["fleet-forecast.service", "Dockerfile"])
def test_units_and_images_start_the_daemon_with_known_flags(name):
    text = (DEPLOY / name).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(("ExecStart=", "ENTRYPOINT "))]
    flags = re.findall(r"--[a-z-]+", line)
    assert "--daemon" in flags
    known = tft_inference.build_parser().parse_args([]).__dict__
    assert {flag[2:].replace("-", "_") for flag in flags} <= set(known)


def test_training_starts_with_flags_of_the_trainer_and_a_worse_model_is_not_a_failure():
    text = (DEPLOY / "fleet-forecast-train.service").read_text()
    (line,) = [line for line in text.splitlines() if "tft_trainer.py --from-history" in line]
    words = line.partition("tft_trainer.py ")[2].partition(' "$@"')[0].split()
    arguments = tft_trainer.build_parser().parse_args(words)
    assert (arguments.from_history.name, arguments.keep) == ("fleet.sqlite", 5)
    assert f"SuccessExitStatus={KEPT_NOT_IN_USE}\n" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="the program systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["fleet-forecast.service", "fleet-forecast-train.service"])
def test_the_units_are_hardened(name):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(DEPLOY / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:]


def test_the_image_installs_what_the_daemon_imports_and_no_torch():
    assert "--require-hashes -r requirements-deploy.txt" in (DEPLOY / "Dockerfile").read_text()
    lines = (DEPLOY / "requirements.in").read_text().splitlines()
    installed = {line for line in lines if line and not line.startswith("#")}
    list_imports = """
import ast, importlib.metadata, json, pathlib, sys
import tft_inference, fleet_forecast.inference.engine
import fleet_forecast.serving.app, fleet_forecast.serving.http.server
own = [pathlib.Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
own = [path for path in own if path.is_relative_to(pathlib.Path.cwd()) and "site-packages" not in path.parts]
nodes = [node for path in own for node in ast.walk(ast.parse(path.read_text()))]
names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
known = importlib.metadata.packages_distributions()
print(json.dumps(sorted({tuple(known[top]) for name in names if (top := name.split(".")[0]) in known})))
"""
    done = subprocess.run([sys.executable, "-c", list_imports], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = list(map(set, json.loads(done.stdout)))  # the packages that share each top-level name, such as google
    assert all({name} in imported for name in ("numpy", "onnxruntime", "uvicorn"))
    parts = {"starlette", "pydantic_core"}  # of FastAPI and of pydantic
    assert [names for names in imported if not names & (installed | parts | {"torch"})] == []  # torch: on a GPU only
    assert "torch" not in installed
    pinned = (ROOT / "requirements.txt").read_text()
    assert all(re.search(rf"^{name}==", pinned, flags=re.M) for name in installed)
