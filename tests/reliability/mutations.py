"""Mutations of bytes: some are flipped, removed, inserted or repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence


def mutated_bytes(dice: random.Random, text: bytes, times: int, inserted: Sequence[bytes]) -> bytes:
    """`text` after so many mutations. inserted: what may be inserted."""
    changed = bytearray(text)
    for _ in range(times):
        place = dice.randrange(len(changed) + 1)
        kind = dice.randrange(4)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del changed[place : place + dice.randint(1, 20)]
        elif kind == 2:
            changed[place:place] = dice.choice(inserted)
        else:
            changed[place:place] = changed[place : place + dice.randint(1, 40)]
    return bytes(changed)
