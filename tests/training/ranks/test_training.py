"""Several processes train as one does with the same batches, and lose no step when one of them dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.ranks.processes import BATCH_SIZE, STEPS, in_processes, small_job, trained

LOST_AT = 5


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(small_job(), tmp_path_factory.mktemp("alone"))


def test_two_processes_train_as_one_does(alone: dict[str, Any], tmp_path: Path) -> None:
    assert alone["windows"] == 7 * BATCH_SIZE + 1  # the seventh batch has one window, of which one process has none
    results = in_processes(2, tmp_path)
    for result in results:
        assert result["said"] == [{"from": 0}, 2.0, 2]
        assert result["windows"] == alone["windows"]
        np.testing.assert_allclose(result["losses"], alone["losses"], rtol=1e-6)
        np.testing.assert_allclose(result["validations"], alone["validations"], rtol=1e-6)
    assert results[0] == results[1]  # to the bit: they never differ
    assert [path.name for path in tmp_path.glob(".*")] == [".unfinished.safetensors"]
    assert not list(tmp_path.glob("arrays*"))


def test_a_lost_process_ends_the_run_and_one_process_resumes_it(alone: dict[str, Any], tmp_path: Path) -> None:
    first, lost = in_processes(2, tmp_path, dies_at_step=LOST_AT)
    assert lost == {}
    assert "another process of this training ended" in first["problem"]
    assert "--resume" in first["problem"]
    resumed = trained(small_job(), tmp_path, resume=True)
    assert len(resumed["losses"]) == STEPS - LOST_AT
    np.testing.assert_allclose(resumed["losses"], alone["losses"][LOST_AT:], rtol=1e-6)
    assert resumed["windows"] == alone["windows"]
