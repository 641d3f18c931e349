"""Long responses in bounded pieces.

A piece is made in a worker thread when the client has taken the one before: what is unsent is at most a piece and
the connection's write buffer, whatever the size of the response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from fastapi import Response
from starlette.responses import StreamingResponse

PIECE_BYTES = 64 * 1024  # about a millisecond to make; as much as the write buffer of a connection


def in_pieces(parts: Iterable[bytes], piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """Join small parts to pieces of at least `piece_bytes`, apart from the last one."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= piece_bytes:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


async def bounded_response(parts: Iterable[bytes], media_type: str) -> Response:
    """A response of one piece with its length, or a stream of pieces. The parts are made in worker threads."""
    pieces = in_pieces(parts)
    first = await asyncio.to_thread(lambda: list(islice(pieces, 2)))
    headers = {"content-type": media_type}
    if len(first) < 2:
        return Response(b"".join(first), headers=headers)
    return StreamingResponse(chain(first, pieces), headers=headers)
