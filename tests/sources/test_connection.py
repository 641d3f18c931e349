"""Credentials and certificates of a connection: what is sent, what is refused, what is never shown."""

import contextlib
import json
import shutil
import subprocess

import httpx
import pytest

from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.sources.connection import Connection, CredentialError, read_access
from fleet_forecast.sources.connections_file import load_connections, prometheus_servers
from fleet_forecast.sources.prometheus import NODE_EXPORTER, PrometheusClient, PrometheusError
from tests.sources.programs import require, running_prometheus, running_victoria_metrics

SECRET = "let me in"
BCRYPT = "$2b$04$abcdefghijklmnopqrstuuTnc8amReAFiMHxaSoW9U22KarbWnkSm"  # of SECRET


def loaded(folder, text):
    (folder / "connections.toml").write_text(text)
    return load_connections(folder / "connections.toml")


def access_of(folder, **fields):
    return read_access(Connection(url="http://p:9090", **fields), {"PASSWORD": SECRET})


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return tmp_path / "secret"


def test_secrets_come_from_files_and_variables_and_are_in_no_repr(tmp_path, secret):
    by_file = access_of(tmp_path, user="me", password_file=secret, header_files={"X-Scope-OrgID": secret})
    by_variable = access_of(tmp_path, user="me", password_variable="PASSWORD", headers={"X-Scope-OrgID": SECRET})
    assert by_file.headers == by_variable.headers
    assert by_file.headers["authorization"] == httpx.BasicAuth("me", SECRET)._auth_header
    assert by_file.headers["X-Scope-OrgID"] == SECRET
    assert access_of(tmp_path, token_file=secret).headers == {"authorization": f"Bearer {SECRET}"}
    assert SECRET not in repr(by_file)
    assert "p:9090" not in repr(by_file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('url = "p:9090"', r"line 2: url is 'p:9090', not an address; write http://host:port"),
        ('url = "http://me:hunter2@p:99999"', r"url is 'http://\*\*\*@p:99999', not an address"),
        ('url = "http://p"\nuser = "me"', "password_file is missing; user is given"),
        ('url = "http://p"\npassword_file = "x"', "user is missing; password_file is given"),
        ('url = "http://p"\nuser = "a"\npassword_file = "x"\npassword_variable = "X"', "leave out one of them"),
        ('url = "http://a:b@p"\ntoken_file = "x"', "a user in url and token_file are given; a request has one"),
        ('url = "http://p"\ncertificate_file = "x"', "key_file is missing; certificate_file is given"),
        ('url = "http://p"\nheaders = {"a b" = "c"}', "'a b' is not a header"),
        ('url = "http://p"\nmatchers = "eu"', "'eu' is not a list of label matchers"),
        ('url = "http://p"\nwindow_seconds = 0', "window_seconds is 0"),
        ('url = "http://p"\npassword = "x"', "unknown key 'password'; use url, user, password_file"),
        ('user = "me"', "url is missing"),
    ],
)
def test_a_wrong_table_is_refused_with_the_line_and_the_remedy(tmp_path, text, message):
    with pytest.raises(TomlFileError, match=message):
        loaded(tmp_path, f"[prometheus.eu]\n{text}\n")


def test_a_table_without_a_name_of_its_own_is_refused(tmp_path):
    with pytest.raises(TomlFileError, match=r"prometheus\.url is 'http://p'; it should be in a table with a name of"):
        loaded(tmp_path, '[prometheus]\nurl = "http://p"\n')


def test_an_unknown_metric_of_the_forecasts_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(TomlFileError, match=r"line 3: .*unknown metric 'cpu'; use cpu_pct, mem_pct"):
        loaded(tmp_path, '[forecasts]\nurl = "http://p"\nmetrics = ["mem_pct", "cpu"]\n')


def test_a_name_that_is_none_is_refused(tmp_path):
    with pytest.raises(TomlFileError, match=r"prometheus\.a b is not a name; use 1 to 50 letters"):
        loaded(tmp_path, '[prometheus."a b"]\nurl = "http://p"\n')


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_file": "missing"}, "token_file: missing cannot be read .No such file"),
        ({"user": "me", "password_variable": "OTHER"}, "password_variable: OTHER is not set in the environment"),
        ({"header_files": {"X-A": "two"}}, "header_files.X-A: two has more than one line"),
        ({"header_files": {"X-A": "empty"}}, "header_files.X-A: empty has no line"),
        ({"ca_file": "two"}, "ca_file: two cannot be used .*; give certificates in PEM"),
        ({"certificate_file": "two", "key_file": "two"}, "certificate_file: two and two cannot be used"),
        ({"certificate_file": "missing", "key_file": "two"}, "certificate_file: missing and two cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, monkeypatch, fields, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").write_text("a\nb\n")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(CredentialError, match=message):
        access_of(tmp_path, **fields)


def test_servers_keep_their_order_and_have_their_own_queries_and_windows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.toml").write_text("[queries]\ncpu_pct = 'cpu[$window]'\n")
    tables = loaded(
        tmp_path,
        '[prometheus.eu]\nurl = "http://eu"\nqueries = "q.toml"\nwindow_seconds = 600\n'
        '[prometheus.asia]\nurl = "http://asia"\nmatchers = \'dc="a"\'\n',
    )
    eu, asia = prometheus_servers(tables.prometheus, NODE_EXPORTER, {})
    assert (eu.name, eu.query("cpu_pct", 300)) == ("eu", "cpu[600s]")
    assert asia.query("net_in_mb_s", 300).count('dc="a"') == 1
    with pytest.raises(CredentialError, match="prometheus eu: token_file: none cannot be read"):
        prometheus_servers(
            loaded(tmp_path, '[prometheus.eu]\nurl = "http://eu"\ntoken_file = "none"').prometheus, NODE_EXPORTER, {}
        )


# --- the real programs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate that signs itself, for the server and the client, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def answers(address, **fields):
    """Whether the service answers a query over the connection."""
    client = PrometheusClient(read_access(Connection(url=address, **fields), {"PASSWORD": SECRET}), pause_seconds=0.0)
    with contextlib.suppress(PrometheusError):
        return len(client.query_range("vector(1)", 0, 600, 300)) == 1
    return False


def test_the_real_prometheus_takes_the_password_and_the_client_certificate(tmp_path, monkeypatch, certificate):
    require("prometheus")
    monkeypatch.setattr("fleet_forecast.sources.prometheus.ATTEMPTS", 1)
    cert, key = map(str, certificate)
    tls = {"cert_file": cert, "key_file": key, "client_ca_file": cert, "client_auth_type": "RequireAndVerifyClientCert"}
    web = {"basic_auth_users": {"me": BCRYPT}, "tls_server_config": tls}
    (tmp_path / "web.yml").write_text(json.dumps(web))  # JSON is YAML
    own = {"verify": _context(cert, key), "auth": ("me", SECRET)}
    with running_prometheus(tmp_path, "# EOF\n", "--web.config.file=web.yml", scheme="https", **own) as address:
        all_of_it = {
            "user": "me",
            "password_variable": "PASSWORD",
            "ca_file": cert,
            "certificate_file": cert,
            "key_file": key,
        }
        assert answers(address, **all_of_it)
        for missing in (("user", "password_variable"), ("ca_file",), ("certificate_file", "key_file")):
            assert not answers(address, **{name: all_of_it[name] for name in all_of_it if name not in missing}), missing


def test_the_real_victoria_metrics_takes_the_password(tmp_path, monkeypatch, secret):
    require("victoria-metrics")
    monkeypatch.setattr("fleet_forecast.sources.prometheus.ATTEMPTS", 1)
    with running_victoria_metrics(tmp_path, "-httpAuth.username=me", f"-httpAuth.password={SECRET}") as address:
        assert answers(address, user="me", password_file=str(secret))
        assert not answers(address)


def _context(certificate, key):
    import ssl

    context = ssl.create_default_context(cafile=certificate)
    context.load_cert_chain(certificate, key)
    return context
