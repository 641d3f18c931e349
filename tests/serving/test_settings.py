"""Settings of the daemon: what is refused before it starts."""

import pytest

from fleet_forecast.serving.settings import SettingsError, load_settings
from fleet_forecast.sources.prometheus import PrometheusClient, PrometheusError

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
def test_an_address_nothing_can_be_sent_to_is_refused(setting, address):
    with pytest.raises(SettingsError, match=f"{setting}: .* is no address; write http://host:port"):
        load_settings(None, {setting: address})


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_the_prometheus_client_refuses_the_same_addresses(address):
    with pytest.raises(PrometheusError, match="is no address; write http://host:9090"):
        PrometheusClient(address)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_with_user_port_path_or_foreign_letters_is_taken(address):
    assert load_settings(None, {"webhook": address}).webhook == address
