"""Fixtures of the daemon's tests."""

import pytest

from tests.serving.daemon_client import daemon, wait_for


@pytest.fixture
def client(tmp_path):
    with daemon(tmp_path) as running:
        wait_for(lambda: running.get("/readyz").status_code == 200)
        yield running
