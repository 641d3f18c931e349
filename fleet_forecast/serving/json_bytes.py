"""JSON bytes of documents with NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson


def to_json(document: Any) -> bytes:
    """JSON bytes; float32 arrays are written with the digits that tell them apart."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def joined_list(head: dict[str, Any], name: str, items: Iterable[bytes]) -> bytes:
    """JSON object of `head` and a list of ready-made JSON items under `name`."""
    opening = to_json(head)[:-1]
    return opening + (b"," if head else b"") + to_json(name) + b":[" + b",".join(items) + b"]}"
