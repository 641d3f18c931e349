"""LightGBM, which needs a library of the system besides its package."""

from __future__ import annotations

import importlib
from types import ModuleType


class LightgbmMissingError(OSError):
    """LightGBM cannot be imported; the message has the reason and the remedy."""


def load_lightgbm() -> ModuleType:
    """The package lightgbm. Raises LightgbmMissingError: it loads libgomp1, which a slim system does not have."""
    try:
        return importlib.import_module("lightgbm")
    except (ImportError, OSError) as error:
        raise LightgbmMissingError(
            "the risk model needs the package lightgbm and the library libgomp1; install requirements.txt, and "
            f"libgomp1 by apt-get install libgomp1 or what your system has for it ({error})"
        ) from error
