"""Settings of the daemon: what is refused before it starts."""

import argparse

import pytest
from pydantic import ValidationError

from fleet_forecast.serving.referenced_files import read_referenced_files
from fleet_forecast.serving.settings import Settings, SettingsError, add_flags, load_settings

NO_ADDRESSES = (
    "http://localhost:99999/x",
    "http://localhost:0",
    "http://host:abc/x",
    "http://[::1/x",
    "http://:9090",
    "http://am..example/",
    "http://xn--/",
    "http://\x7f/",
)
ADDRESSES = (
    "http://host",
    "https://user:word@host:65535/secret?token=1",
    "http://[::1]:9090/x",
    "http://bücher.example",
)


@pytest.mark.parametrize("setting", ["prometheus", "alertmanager", "webhook"])
@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_an_address_that_cannot_be_reached_by_http_is_refused(setting, address):
    with pytest.raises(SettingsError, match=f"{setting}: .* is not an address; write http://host:port"):
        load_settings(None, {setting: address})


def test_an_empty_label_is_refused():
    with pytest.raises(SettingsError, match="server_label: '' is not a name of a label; give one, such as instance"):
        load_settings(None, {"server_label": ""})


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_with_user_port_path_or_non_ascii_letters_is_accepted(address):
    assert load_settings(None, {"webhook": address}).webhook == address


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": "8000"}, "port: '8000' is not a whole number"),
        ({"port": True}, "port: True is not a whole number"),
        ({"port": 80.5}, "port: 80.5 is not a whole number"),
        ({"port": -1}, "port: -1 is not a finite number of at least 0"),
        ({"port": 65_536}, "port: 65536 is above 65535"),
        ({"insecure": 1}, "insecure: 1 is not true or false"),
        ({"retention_hours": "8"}, "retention_hours: '8' is not a number"),
        ({"retention_hours": 0.5}, "retention_hours: 0.5 is not a finite number of at least 1.0"),
        ({"retention_hours": float("nan")}, "retention_hours: nan is not a finite number of at least 1.0"),
        ({"host": 7}, "host: 7 is not text"),
        ({"allowed_hosts": "a"}, "allowed_hosts: 'a' is not a list of texts"),
        ({"allowed_hosts": ["a", 1]}, "allowed_hosts: ['a', 1] is not text"),
        ({"history": ""}, "history: '' is not a path"),
        ({"history": 1}, "history: 1 is not a path"),
        ({"device": "tpu"}, "device: 'tpu' is unknown; use cpu, cuda or auto"),
        ({"stale_steps": 9, "drop_steps": 2}, "drop_steps: 2 is less than stale_steps (9); give at least as many"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting_and_the_remedy(values, message):
    with pytest.raises(SettingsError) as refused:
        load_settings(None, values)
    assert str(refused.value) == message


def test_a_wrong_value_in_a_file_is_named_with_file_and_line(tmp_path):
    path = tmp_path / "daemon.toml"
    path.write_text("host = '::1'\nport = 99999\n")
    with pytest.raises(SettingsError, match=r"^settings file .*daemon.toml, line 2: port: 99999 is above 65535$"):
        load_settings(path, {})


def test_a_flag_may_resolve_a_contradiction_within_the_file(tmp_path):
    path = tmp_path / "daemon.toml"
    path.write_text("drop_steps = 2\n")
    assert load_settings(path, {"stale_steps": 2}).drop_steps == 2


def test_a_whole_number_may_be_written_with_a_decimal_point():
    assert load_settings(None, {"max_servers": 5.0}).max_servers == 5


def test_every_setting_has_a_description_and_a_flag_with_its_default():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = {action.dest: action for action in parser._actions}
    for name, setting in Settings.model_fields.items():
        assert setting.description
        assert flags[name].help.startswith(setting.description)
        if setting.default is not None and not isinstance(setting.default, bool | tuple):
            assert flags[name].help.endswith(f"(default {setting.default})")
        assert flags[name].default is None


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1


@pytest.mark.parametrize("setting", ["prometheus", "alertmanager", "webhook"])
def test_printed_settings_hide_the_passwords_of_addresses(setting):
    settings = load_settings(None, {setting: "http://me:hunter2@host:1/x?key=hunter2"})
    assert "hunter2" not in settings.model_dump_json()
    assert "http://" in settings.model_dump_json(include={setting})


@pytest.mark.parametrize("setting", ["prometheus", "alertmanager", "webhook"])
def test_the_error_of_a_wrong_address_hides_its_password(setting):
    with pytest.raises(SettingsError, match="is not an address") as refused:
        load_settings(None, {setting: "http://me:hunter2@host:99999"})
    assert "hunter2" not in str(refused.value)


def test_printed_settings_hide_the_path_of_a_webhook():
    assert "hunter2" not in load_settings(None, {"webhook": "https://hooks.example/hunter2"}).model_dump_json()


CONNECTIONS = """
[prometheus.eu]
url = "http://eu:9090"
user = "me"
password_variable = "EU"
matchers = 'cluster="eu"'
[prometheus.us]
url = "http://us:9090"
[forecasts]
url = "http://db/write"
token_file = "{token}"
"""


def referenced(folder, text, environment=None, **changes):
    (folder / "c.toml").write_text(text)
    return read_referenced_files(load_settings(None, {"connections": folder / "c.toml", **changes}), environment or {})


def test_a_connections_file_gives_the_prometheus_servers_and_the_database(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    files = referenced(tmp_path, CONNECTIONS.format(token=tmp_path / "token"), {"EU": "word"})
    assert [server.name for server in files.prometheus] == ["eu", "us"]
    assert [server.matchers for server in files.prometheus] == ['cluster="eu"', ""]
    assert files.prometheus[0].client.access.headers["authorization"].startswith("Basic ")
    assert files.forecasts.access.headers == {"authorization": "Bearer secret"}
    assert "secret" not in repr(files.forecasts)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (CONNECTIONS, {}, "prometheus eu: password_variable: EU is not set in the environment"),
        ("[forecasts]\nurl = 'http://db'\ntoken_file = 'none'", {}, "forecasts: token_file: none cannot be read"),
        ("[prometheus.eu]\nurl = 'http://eu'", {"prometheus": "http://p"}, "has .prometheus.NAME. too; leave out one"),
        ("", {"prometheus": "http://a:b@p", "prometheus_token_file": "x"}, "a user in url and token_file are given"),
    ],
)
def test_connections_that_cannot_be_used_are_refused(tmp_path, text, changes, message):
    with pytest.raises(SettingsError, match=message):
        referenced(tmp_path, text, **changes)
