"""The server that a label names."""

import pytest

from fleet_forecast.sources.server_label import without_port


@pytest.mark.parametrize(
    ("value", "server"),
    [
        ("ppdb001:9100", "ppdb001"),
        ("ppdb001.example.com:9100", "ppdb001.example.com"),
        ("ppdb001", "ppdb001"),
        ("ppdb001:", "ppdb001:"),
        ("ppdb001:http", "ppdb001:http"),
        ("a:b:1", "a:b"),
        (":9100", ""),
        ("", ""),
    ],
)
def test_a_port_is_cut_off(value, server):
    assert without_port(value) == server
