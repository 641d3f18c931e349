"""Replay end to end: the command on a file, with incidents, with answers, from a Prometheus; refused flags."""

import csv
import json

import pandas as pd
import pytest

import tft_inference
from fleet_forecast.sources.prometheus import Pulled
from tests.conftest import TINY_METRICS, tiny_fleet

RULES = """[alerts]
fire_probability = 0.4
[alerts.profiles.web_api]
cpu_pct = 33
[alerts.profiles.database]
mem_pct = {above = 70, below = 60}
"""
PERIOD = ("--from", "2026-03-03T08:00:00Z", "--to", "2026-03-03T14:00:00Z")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    tiny_fleet().to_parquet(folder / "server_metrics.parquet", index=False)
    (folder / "fleet.toml").write_text(RULES)
    return folder


def run(capsys, model, fleet, output, *flags):
    """The exit code, the summary and what was printed to stderr."""
    source = () if "--prometheus" in flags or "--label" in flags[:1] else ("--input", fleet)
    common = ("--model", model, "--fleet", fleet / "fleet.toml", "--output", output)
    code = tft_inference.main([str(each) for each in ("--replay", *source, *common, *flags)])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]) if code == 0 else None, captured.err


def test_a_replay_without_incidents_lists_alerts_to_label_and_the_labels_are_used_by_the_next(
    tiny_model_dir, fleet, tmp_path, capsys
):
    code, found, _ = run(capsys, tiny_model_dir, fleet, tmp_path / "a", *PERIOD)
    assert code == 0
    assert (found["from"], found["to"], found["servers"]) == ("2026-03-03T08:00:00Z", "2026-03-03T14:00:00Z", 8)
    assert found["server_steps"] == 8 * 72
    assert found["pages"] + found["watches"] > 2
    assert found["incidents"] == 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Alarms by level" in page
    assert "no incidents are known" in page
    data = json.loads((tmp_path / "a" / "report.json").read_text())
    assert len(data["alerts"]) == found["pages"] + found["watches"]
    assert len(data["curves"]["breach and departure"]) > 10
    answers = tmp_path / "a" / "alerts.csv"
    rows = list(csv.DictReader(answers.read_text().splitlines()))
    rows[0]["is_incident"] = "yes"
    pd.DataFrame(rows).to_csv(answers, index=False)
    code, found, _ = run(capsys, tiny_model_dir, fleet, tmp_path / "b", "--label", answers)
    assert (code, found) == (0, {"output": str(tmp_path / "b" / "incidents.csv"), "incidents": 1})
    incidents = tmp_path / "b" / "incidents.csv"
    code, found, _ = run(capsys, tiny_model_dir, fleet, tmp_path / "b", *PERIOD, "--incidents", incidents)
    assert (code, found["incidents"], found["page_or_watch"]["found"]) == (0, 1, 1)
    page = (tmp_path / "b" / "report.html").read_text()
    assert "Worst false alarms" in page
    assert page.count("<svg") > 1
    assert page.count("</svg></figure>") == page.count("Z</figcaption>"), "the times of a picture are text that wraps"
    assert page.count("<table") == page.count('<div class="wide"><table'), "a wide table scrolls, not the page"
    assert "type labelled" in page
    assert "false alarms a server and month" in page
    found = json.loads((tmp_path / "b" / "report.json").read_text())
    rows = list(csv.DictReader((tmp_path / "b" / "alerts.csv").read_text().splitlines()))
    assert [alert["severity"] for alert in found["alerts"]] == [row["severity"] for row in rows]
    assert found["pages"] + found["watches"] == len(rows)
    assert found["scores"].keys() == {"page", "page_or_watch"}


def test_a_past_in_prometheus_has_the_alerts_of_the_same_rows_in_a_file(
    tiny_model_dir, fleet, tmp_path, capsys, monkeypatch
):
    asked = []

    def pull_range(server, time_range, step_seconds, _progress):
        asked.append((time_range, step_seconds, set(TINY_METRICS) <= set(server.queries.queries)))
        frame = tiny_fleet().drop(columns="profile")
        return Pulled(frame[(frame["timestamp"] >= time_range.start) & (frame["timestamp"] < time_range.end)], {})

    monkeypatch.setattr("fleet_forecast.sources.fleet_pull.pull_range", pull_range)
    code, from_prometheus, _ = run(capsys, tiny_model_dir, fleet, tmp_path, "--prometheus", "http://p:9090", *PERIOD)
    assert code == 0
    _, from_file, _ = run(capsys, tiny_model_dir, fleet, tmp_path, *PERIOD)
    timings = ("replay_seconds", "server_steps_per_minute")
    assert {k: v for k, v in from_prometheus.items() if k not in timings} == {
        k: v for k, v in from_file.items() if k not in timings
    }
    ((time_range, step_seconds, has_queries),) = asked
    assert (step_seconds, has_queries) == (300, True)
    assert time_range.end == pd.Timestamp("2026-03-03T14:00:00Z")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--from", "2026-04-03T08:00:00Z"], 1, "--from, --to: no step to replay; the data reach from 2026-03-02T"),
        (["--to", "soon"], 2, "--to 'soon' is not a time"),
        (["--incidents", "{fleet}/none.csv"], 1, "none.csv: no such file; give the path of a CSV or parquet file"),
        (
            ["--incidents", "a.csv", "--label", "b.csv"],
            2,
            "--label: the alerts labelled yes are the incidents; omit --incidents",
        ),
        (["--prometheus", "http://p:9090"], 2, "--from is missing; a replay from Prometheus needs --from and --to"),
        (["--fleet", "none.toml"], 2, "fleet file none.toml: no such file"),
        (["--explain", "ppdb001"], 2, "--explain NAME and --replay are given; choose one of them"),
        (["--output", "{fleet}/fleet.toml"], 2, "is a file; a replay needs a folder"),
    ],
)
def test_a_wrong_replay_is_refused_with_its_remedy(flags, code, message, tiny_model_dir, fleet, tmp_path, capsys):
    filled = [flag.format(fleet=fleet) for flag in flags]
    found, _, err = run(capsys, tiny_model_dir, fleet, tmp_path / "out", *filled)
    assert found == code
    assert message in err


@pytest.mark.parametrize("flag", ["--to", "--incidents", "--label"])
def test_flags_of_a_replay_are_refused_without_it(flag, capsys):
    assert tft_inference.main([flag, "x"]) == 2
    assert f"{flag} x: it goes with --replay; add that, or leave it out" in capsys.readouterr().err
