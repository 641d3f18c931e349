"""Label matchers in every selector of a query: expected texts are written by hand."""

import pytest

from fleet_forecast.sources.label_matchers import LabelMatcherError, check_matchers, with_matchers
from fleet_forecast.sources.prometheus import NODE_EXPORTER, WINDOW

M = 'c="eu"'


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("up", 'up{c="eu"}'),
        ("up{}", 'up{c="eu"}'),
        ('up{job="x",}', 'up{job="x",c="eu"}'),
        ('up{job="x"} [5m]', 'up{job="x",c="eu"} [5m]'),
        ("rate(a[5m]) / b", 'rate(a{c="eu"}[5m]) / b{c="eu"}'),
        ("sum by (instance) (instance)", 'sum by (instance) (instance{c="eu"})'),
        ("sum(a) by (a)", 'sum(a{c="eu"}) by (a)'),
        ("a * on (b) group_left (a) b", 'a{c="eu"} * on (b) group_left (a) b{c="eu"}'),
        ('a{x="}"} + b{y="{"}', 'a{x="}",c="eu"} + b{y="{",c="eu"}'),
        (r'a{x="\"}"}', r'a{x="\"}",c="eu"}'),
        ("a # b {c}\n + b", 'a{c="eu"} # b {c}\n + b{c="eu"}'),
        ('{__name__=~"node_.+"}', '{__name__=~"node_.+",c="eu"}'),
        ("max_over_time(rate(x[5m])[1h:5m] offset 3m)", 'max_over_time(rate(x{c="eu"}[5m])[1h:5m] offset 3m)'),
        ("rate(x[5m:])", 'rate(x{c="eu"}[5m:])'),
        (
            r'label_replace(up, "a", "$1", "up", "(.*):\\d+")',
            r'label_replace(up{c="eu"}, "a", "$1", "up", "(.*):\\d+")',
        ),
        ("a offset 5m unless fleet:b", 'a{c="eu"} offset 5m unless fleet:b{c="eu"}'),
        ("vector(1)", "vector(1)"),
        ("1 + time()", "1 + time()"),
        ("a or vector(0)", 'a{c="eu"} or vector(0)'),
    ],
)
def test_each_selector_has_the_matchers_and_nothing_else_changes(query, expected):
    assert with_matchers(query, M) == expected


@pytest.mark.parametrize("metric", NODE_EXPORTER.queries)
def test_the_built_in_queries_take_matchers(metric):
    query = NODE_EXPORTER.queries[metric].replace(WINDOW, "300s")
    assert with_matchers(query, M).count(M) == query.count("node_")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("avg by (instance", "unclosed left parenthesis"),
        ("rollup_rate(a[5m])", "unknown function with name 'rollup_rate'"),
        ('a{b="1" or c="2"}', "`or` between matchers is not PromQL"),
        ("count(x) keep_metric_names", "invalid promql query"),
    ],
)
def test_a_query_that_is_not_promql_is_refused_with_the_remedy(query, reason):
    with pytest.raises(LabelMatcherError, match=f"cannot be added to .*{reason}; write them into the query"):
        with_matchers(query, M)


@pytest.mark.parametrize("text", ["", "eu", 'c="eu"} or up{', "c=eu", '{c="eu"}'])
def test_texts_that_are_not_matchers_are_refused(text):
    with pytest.raises(LabelMatcherError, match=r'write cluster="eu"'):
        check_matchers(text)


def test_matchers_may_end_with_a_comma():
    assert check_matchers(' c="eu", d!~"x", ') == 'c="eu", d!~"x"'
