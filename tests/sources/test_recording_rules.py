"""The recording rules in deploy/ are those of the built-in queries.

python -m tests.sources.test_recording_rules --write    # write deploy/prometheus-recording.rules.yml
"""

import sys
from pathlib import Path

import yaml

from data_contract import METRICS
from fleet_forecast.sources.prometheus import NODE_EXPORTER, QuerySet
from fleet_forecast.sources.recording_rules import recording_rules

FILE = Path(__file__).parents[2] / "deploy" / "prometheus-recording.rules.yml"
HEAD = """\
# The metrics of the fleet as series for remote write, from node_exporter. Written from the built-in queries by
# python -m tests.sources.test_recording_rules --write
"""


def shipped():
    return HEAD + recording_rules(NODE_EXPORTER)


def test_the_shipped_rules_are_the_built_in_queries():
    assert FILE.read_text() == shipped(), "old; run: python -m tests.sources.test_recording_rules --write"


def test_each_query_becomes_the_rule_of_its_metric():
    (group,) = yaml.safe_load(recording_rules(NODE_EXPORTER))["groups"]
    queries = NODE_EXPORTER.queries
    assert {rule["record"]: rule["expr"] for rule in group["rules"]} == {
        f"fleet:{metric}": queries[metric].replace("$window", "2m") for metric in METRICS
    }


def test_a_metric_without_a_query_has_no_rule():
    (group,) = yaml.safe_load(recording_rules(QuerySet(queries={"mem_pct": "a:b{c='d: e'}"})))["groups"]
    assert group["rules"] == [{"record": "fleet:mem_pct", "expr": "a:b{c='d: e'}"}]


if __name__ == "__main__":
    if "--write" in sys.argv:
        FILE.write_text(shipped())
    else:
        print(shipped(), end="")
