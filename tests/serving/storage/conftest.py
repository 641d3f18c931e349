"""An open store."""

import pytest

from fleet_forecast.serving.storage.store import HistoryStore
from tests.serving.storage.stored import STEP


@pytest.fixture
def store(tmp_path):
    opened = HistoryStore(tmp_path / "h.sqlite", STEP)
    yield opened
    opened.close()
