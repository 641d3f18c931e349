"""The other half of the small experiments of test_reliability.py, so that two workers share them."""

import pytest

from tests.reliability.small import SMALL, check


@pytest.mark.parametrize("name", list(SMALL)[1::2])
def test_a_promise_holds_in_small_size(name, tmp_path, tiny_model_dir):
    check(SMALL[name](tmp_path, tiny_model_dir))
