"""The daemon serves HTTPS with a certificate, and refuses files that are none."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time

import pytest

from fleet_forecast.serving.referenced_files import read_referenced_files
from fleet_forecast.serving.settings import Settings, SettingsError
from tests.serving.fake_daemon import FakeDaemon

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is not installed")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return new_certificate(tmp_path_factory.mktemp("tls"))


def new_certificate(folder):
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class HttpsDaemon(FakeDaemon):
    """Ready once it writes so: `wait_for` speaks HTTP."""

    context = None

    def wait_for(self, path, seconds=60.0):
        connect, http.client.HTTPConnection = http.client.HTTPConnection, self.connection
        try:
            return super().wait_for(path, seconds)
        finally:
            http.client.HTTPConnection = connect

    def connection(self, host, port, timeout):
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=self.context)


def test_clients_that_know_the_certificate_are_served_and_plain_ones_are_not(files, tmp_path):
    certificate, key = files
    HttpsDaemon.context = ssl.create_default_context(cafile=certificate)
    with HttpsDaemon(tmp_path, "--tls-certificate", certificate, "--tls-key", key) as daemon:
        connection = daemon.connection("127.0.0.1", daemon.port, 10)
        connection.request("GET", "/status")
        assert connection.getresponse().status == 200
        connection.close()
        plain = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
        plain.request("GET", "/status")
        with pytest.raises((OSError, http.client.HTTPException)):
            plain.getresponse()
        plain.close()
        assert daemon.stop()[0] == 0


def test_clients_that_never_begin_the_handshake_are_counted_and_closed(files, tmp_path):
    """At the connection limit they make room for others; they have the time for headers."""
    certificate, key = files
    HttpsDaemon.context = ssl.create_default_context(cafile=certificate)
    daemon = HttpsDaemon(tmp_path, "--tls-certificate", certificate, "--tls-key", key, "--header-seconds", 2)
    daemon.prefix = ["prlimit", "--nofile=160:160"]
    with daemon, contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=20)) for _ in range(200)
        ]
        for _ in range(10):
            with contextlib.closing(daemon.connection("127.0.0.1", daemon.port, 10)) as connection:
                connection.request("GET", "/healthz")
                assert connection.getresponse().status == 200
        for each in silent:
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""
        assert "Too many open files" not in daemon.log.read_text()
        assert daemon.stop()[0] == 0


def served_certificate(daemon):
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", daemon.port)))


def renewed(daemon, before):
    """The certificate that is served once it is another one than before."""
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 60
    while (served := served_certificate(daemon)) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    return served


def test_a_renewed_certificate_is_served_after_sighup_and_one_without_its_key_is_refused(files, tmp_path):
    certificate, key = (tmp_path / path.name for path in files)
    for source, copy in zip(files, (certificate, key), strict=True):
        shutil.copy(source, copy)
    HttpsDaemon.context = ssl._create_unverified_context()
    with HttpsDaemon(tmp_path, "--tls-certificate", certificate, "--tls-key", key) as daemon:
        first = served_certificate(daemon)
        (tmp_path / "new").mkdir()
        new_certificate_file, new_key = new_certificate(tmp_path / "new")
        shutil.copy(new_certificate_file, certificate)
        daemon.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while "certificate refused" not in daemon.log.read_text():
            assert time.monotonic() < deadline, "the pair that does not match was not refused"
            time.sleep(0.05)
        assert served_certificate(daemon) == first
        shutil.copy(new_key, key)
        assert renewed(daemon, first) == ssl.PEM_cert_to_DER_cert(certificate.read_text())
        assert daemon.stop()[0] == 0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("certificate", None), "tls_key: is missing; tls_certificate is given"),
        ((None, "key"), "tls_certificate: is missing; tls_key is given"),
        (("missing", "key"), "tls_certificate: .*missing cannot be read"),
        (("key", "certificate"), "are not a usable pair"),
        (("text", "key"), "are not a usable pair"),
    ],
)
def test_files_that_are_not_a_certificate_with_its_key_are_refused(files, tmp_path, chosen, message):
    (tmp_path / "text").write_text("no certificate")
    paths = {"certificate": files[0], "key": files[1], "missing": tmp_path / "missing", "text": tmp_path / "text"}
    certificate, key = (paths.get(name) for name in chosen)
    with pytest.raises(SettingsError, match=message):
        read_referenced_files(Settings(tls_certificate=certificate, tls_key=key), os.environ)
