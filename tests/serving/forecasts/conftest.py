"""Fixtures of the forecast loop's tests."""

import pytest

from tests.serving.forecasts.scene import Scene


@pytest.fixture
def scene(tmp_path):
    made = Scene(tmp_path)
    yield made
    made.close()
