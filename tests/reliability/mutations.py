"""Mutations of bytes: some are flipped, removed, inserted or repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


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


def mutations(good: Sequence[bytes], count: int, seed: int = 1) -> Iterator[bytes]:
    """Binary bodies made from good ones, most by a single mutation; a ninth of them are cut off. None is empty."""
    dice = random.Random(seed)
    for _ in range(count):
        inserted = (b"\xff" * 8, b"\x00" * 8, b"\x7f" * 8, dice.randbytes(dice.randint(1, 12)))
        body = mutated_bytes(dice, dice.choice(good), dice.choice((1, 1, 1, 2, 4, 16)), inserted) or b"\x00"
        yield body if dice.randrange(9) else body[: dice.randint(1, len(body))]
