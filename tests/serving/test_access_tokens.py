"""Tokens are read again on request, and a file that cannot be used changes nothing."""

from fleet_forecast.serving.access_tokens import AccessTokens
from fleet_forecast.serving.settings import Settings


def test_a_changed_token_file_replaces_the_token_and_an_unusable_one_does_not(tmp_path):
    client, admin = tmp_path / "token", tmp_path / "admin"
    settings = Settings(token_file=client, admin_token_file=admin)
    tokens = AccessTokens(b"0123456789abcdef-old")
    client.write_text("0123456789abcdef-new\n")
    admin.write_text("0123456789abcdef-admin\n")
    tokens.reload(settings)
    assert (tokens.client, tokens.admin) == (b"0123456789abcdef-new", b"0123456789abcdef-admin")
    client.write_text("short")
    tokens.reload(settings)
    client.unlink()
    tokens.reload(settings)
    assert tokens.client == b"0123456789abcdef-new"


def test_a_daemon_for_other_machines_keeps_its_token_when_none_is_left(monkeypatch):
    monkeypatch.delenv("FLEET_FORECAST_TOKEN", raising=False)
    tokens = AccessTokens(b"0123456789abcdef-old")
    tokens.reload(Settings(host="0.0.0.0"))
    assert tokens.client == b"0123456789abcdef-old"
