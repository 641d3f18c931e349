"""Data of one shard's servers for another shard: names, and their means of some steps, as bytes.

A table of peers has at most 128 servers of a profile, chosen by a hash of the name. So the values of all shards'
servers in it are a few kilobytes a step, and the order statistics over all shards are exact.

A page is one line of JSON and then four arrays without padding, little-endian: profile uint16 [cell], member uint16
[cell], step uint32 [cell], values float32 [cell, metric]. A cell is one member in one step in which it was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from fleet_forecast.contract.labels import is_server_name
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.features.peers import MAX_MEMBERS, member_order
from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.shard import Shard

MAX_CELLS = 40_000  # of a page, about: 1.3 MB with six metrics
MAX_CELLS_READ = 120_000
MAX_METRICS = 256
MAX_PROFILES = 1_000


class Position(NamedTuple):
    """The last change that a shard has of another one. boot: changes when the other restarts its numbering."""

    boot: str
    sequence: int


class Offered(NamedTuple):
    """Servers of one profile of a shard.

    names: the first by member_order, MAX_MEMBERS at most. with_cells: how many of these have cells, the first ones.
    """

    names: tuple[str, ...]
    with_cells: int


class Cells(NamedTuple):
    """profiles, members: int64 [cell], indices; steps: int64 [cell]; values: float32 [cell, metric]."""

    profiles: np.ndarray
    members: np.ndarray
    steps: np.ndarray
    values: np.ndarray


class PeerPage(NamedTuple):
    """One response.

    position: after this page. more: whether there are further pages now. last_step: that the shard has completed.
    profiles: names, to which cells refer. offered: of the profiles whose servers changed since the page before.
    """

    position: Position
    more: bool
    last_step: int
    step_seconds: int
    metrics: tuple[str, ...]
    profiles: tuple[str, ...]
    offered: Mapping[str, Offered]
    cells: Cells


def page_bytes(page: PeerPage) -> bytes:
    """A page as it is sent."""
    head = page._asdict() | {
        "position": page.position._asdict(),
        "offered": {profile: each._asdict() for profile, each in page.offered.items()},
        "cells": len(page.cells.steps),
    }
    profiles, members, steps, values = page.cells
    arrays = (profiles.astype("<u2"), members.astype("<u2"), steps.astype("<u4"), values.astype("<f4"))
    return b"".join([to_json(head), b"\n", *(array.tobytes() for array in arrays)])


def read_page(body: bytes, sender: Shard) -> PeerPage:
    """The page that another shard sent. Raises ValueError if it is not one, or has data that the shard cannot have."""
    line, newline, rest = body.partition(b"\n")
    if not newline:
        raise ValueError("no line of JSON")
    try:
        page = _page(orjson.loads(line), rest, sender)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, OverflowError) as problem:
        raise ValueError(f"not a page of peers: {type(problem).__name__} {problem}"[:200]) from None
    _check_cells(page)
    return page


def _page(head: Mapping[str, Any], rest: bytes, sender: Shard) -> PeerPage:
    metrics, profiles = _texts(head["metrics"], MAX_METRICS), _texts(head["profiles"], MAX_PROFILES)
    offered = {profile: _offered(head["offered"][profile], sender) for profile in _texts(head["offered"], MAX_PROFILES)}
    position = Position(_boot(head["position"]["boot"]), _whole(head["position"]["sequence"]))
    last_step, step_seconds = _whole(head["last_step"]), _whole(head["step_seconds"])
    cells = _cells(rest, _whole(head["cells"]), len(metrics))
    return PeerPage(position, head["more"] is True, last_step, step_seconds, metrics, profiles, offered, cells)


def _cells(rest: bytes, count: int, metrics: int) -> Cells:
    if count > MAX_CELLS_READ or len(rest) != count * (8 + 4 * metrics):
        raise ValueError(f"{count} cells of {metrics} metrics in {len(rest)} bytes")
    indices = np.frombuffer(rest, "<u2", 2 * count).astype(np.int64)
    steps = np.frombuffer(rest, "<u4", count, offset=4 * count).astype(np.int64)
    values = np.frombuffer(rest, "<f4", count * metrics, offset=8 * count).astype(np.float32)
    return Cells(indices[:count], indices[count:], steps, values.reshape(count, metrics))


def _check_cells(page: PeerPage) -> None:
    cells = page.cells
    if not len(cells.steps):
        return
    if cells.profiles.max() >= len(page.profiles) or cells.members.max() >= MAX_MEMBERS:
        raise ValueError("a cell of no member")
    if cells.steps.max() > page.last_step:
        raise ValueError("a step that is not complete")
    for metric, values in zip(page.metrics, cells.values.T, strict=True):
        measured = values[~np.isnan(values)]
        spec = METRIC_SPECS.get(metric)
        if not np.isfinite(measured).all():
            raise ValueError(f"{metric}: a value that is not finite")
        if spec is not None and len(measured) and not (measured.min() >= spec.lower and measured.max() <= spec.upper):
            raise ValueError(f"{metric}: a value beyond {spec.range_text}")


def _offered(entry: Mapping[str, Any], sender: Shard) -> Offered:
    names, with_cells = _texts(entry["names"], MAX_MEMBERS), _whole(entry["with_cells"])
    if with_cells > len(names) or list(names) != sorted(names, key=member_order):
        raise ValueError("names that are not in order")
    for name in names:
        if not is_server_name(name) or not sender.has(name):
            raise ValueError(f"{name[:100]!r} is not a server of shard {sender}")
    return Offered(names, with_cells)


def _texts(value: Any, most: int) -> tuple[str, ...]:
    """A list of different texts, or the keys of an object."""
    if not isinstance(value, list | dict) or not all(isinstance(each, str) for each in value):
        raise ValueError("no list of texts")
    found = tuple(value)
    if len(found) > most or len(set(found)) < len(found):
        raise ValueError(f"{len(found)} texts, of {most} different ones at most")
    return found


def _boot(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{1,64}", value):
        raise ValueError("no mark of a start")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("no whole number")
    return value
