"""Mutated bodies: bytes flipped, removed, repeated, replaced and cut off."""

import random


def mutations(good, count, seed=1):
    """Bodies made from good ones; a part of them are the good ones cut off or changed in a single bit."""
    dice = random.Random(seed)
    for _ in range(count):
        body = bytearray(dice.choice(good))
        for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
            place, kind = dice.randrange(len(body) + 1), dice.choice((0, 0, 0, 0, 1, 2, 3, 4, 5))
            if kind == 0 and place < len(body):
                body[place] ^= 1 << dice.randrange(8)
            elif kind == 1:
                del body[place : place + dice.randint(1, 20)]
            elif kind == 2:
                body[place:place] = dice.randbytes(dice.randint(1, 12))
            elif kind == 3:
                body[place:place] = body[place : place + dice.randint(1, 60)]
            elif kind == 4:
                body[place : place + 8] = dice.choice((b"\xff" * 8, b"\x00" * 8, b"\x7f" * 8))
            else:
                del body[max(place, 1) :]
            body = body or bytearray(b"\x00")
        yield bytes(body)
