"""Addresses in messages contain no secrets; a port is not part of a server's name."""

import pytest

from fleet_forecast.sources.address import origin_of, parse_header, without_port, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:9090", "http://host:9090"),
        ("https://host/prometheus/", "https://host/prometheus/"),
        ("http://user:secret@host:9090/p", "http://***@host:9090/p"),
        ("http://user:sec/ret@x@host", "http://***@host"),
        ("http://host/p?key=secret", "http://host/p?***"),
        ("user:secret@host", "***@host"),
        ("host:9090", "host:9090"),
    ],
)
def test_user_password_and_query_are_hidden(address, shown):
    assert without_secrets(address) == shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:9093", "http://host:9093"),
        ("https://user:secret@host/services/secret?token=secret", "https://host/***"),
        ("host/secret", "host/***"),
        ("user:secret@host/secret", "host/***"),
        ("host", "host"),
    ],
)
def test_only_scheme_host_and_port_of_a_webhook_are_shown(address, shown):
    assert origin_of(address) == shown


@pytest.mark.parametrize("text", ["X-Scope-OrgID: tenant", "X-Scope-OrgID:tenant ", "Authorization: Basic a:b"])
def test_a_header_is_a_name_and_a_value(text):
    name, value = parse_header(text)
    assert f"{name}: {value}" == text.strip().replace(":tenant", ": tenant")


@pytest.mark.parametrize("text", ["tenant", ": x", "a b: c", "a: b\nc: d", "ä: b"])
def test_text_that_is_not_a_header_is_refused_without_its_value(text):
    with pytest.raises(ValueError, match="write NAME: VALUE"):
        parse_header(text)


@pytest.mark.parametrize(
    ("instance", "name"),
    [
        ("web1:9100", "web1"),
        ("web1.example.com:9100", "web1.example.com"),
        ("web1", "web1"),
        ("10.0.0.1:9100", "10.0.0.1"),
        ("[2001:db8::10]:9100", "2001:db8::10"),
        ("[2001:db8::10]", "2001:db8::10"),
        ("2001:db8::10", "2001:db8::10"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("SQL Server 01", "SQL Server 01"),
        ("web:blue", "web:blue"),
        ("web1:", "web1:"),
        (":9100", ""),
        ("", ""),
    ],
)
def test_a_port_is_cut_off_and_no_part_of_an_address(instance, name):
    assert without_port(instance) == name
