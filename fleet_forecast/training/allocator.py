"""Freed memory stays with the process, for the next step of training.

A step frees hundreds of megabytes in large blocks, and the next one asks for the same again. The C library gives such
blocks back to the system, which hands them out anew page by page, each fetched by a fault and filled with zeros: ten
thousand faults and a tenth of the time of a step (benchmarks/training.py).
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """From here on, for all of this process; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)  # large blocks come from the heap as well
        mallopt(TRIM_THRESHOLD, NEVER)  # whose end is not given back
