"""JSON as bytes, with NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson


def to_json(document: Any) -> bytes:
    """JSON of a document; float32 values have the fewest digits that identify them."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def list_parts(head: dict[str, Any], name: str, items: Iterable[bytes]) -> Iterator[bytes]:
    """Parts of a JSON object with the keys of `head` and, under `name`, a list of items that are already JSON."""
    yield to_json(head)[:-1] + (b"," if head else b"") + to_json(name) + b":["
    for number, item in enumerate(items):
        yield b"," + item if number else item
    yield b"]}"
