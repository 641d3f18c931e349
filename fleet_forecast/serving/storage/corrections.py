"""Stored samples that a later sample of the same server and time would change.

A sample adds what is not measured yet. Another value of what is stored already is a correction, which needs a right:
without it, whoever may send samples could rewrite the past.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from fleet_forecast.serving.storage.samples import Batch, Correction, Sample
from fleet_forecast.serving.storage.schema import Statements

KEYS = 3  # columns of a row before its cells: step, server_id, timestamp_ms
Row = tuple[Any, ...]  # step, server_id, timestamp_ms, state, *metrics


def add_rows(
    database: sqlite3.Connection, sql: Statements, rows: Sequence[Row], batches: Sequence[Batch]
) -> list[list[Correction]]:
    """Write the rows of some batches, in the order of their samples; returns the corrections of each batch.

    Those of a batch that may correct are stored: a later write wins. Raises sqlite3.Error.
    """
    rest = iter(rows)
    groups = [(batch, list(islice(rest, len(batch.samples)))) for batch in batches]
    return [_add(database, sql, group, batch.may_correct) for batch, group in groups]


def _add(database: sqlite3.Connection, sql: Statements, rows: Sequence[Row], may_correct: bool) -> list[Correction]:
    if database.executemany(sql.add, rows).rowcount == len(rows):
        return []
    found = []
    for place, row in enumerate(rows):
        stored, sent = database.execute(sql.cells, row[:KEYS]).fetchone(), row[KEYS:]
        at = next((at for at, each in enumerate(sent) if None not in (each, stored[at]) and each != stored[at]), None)
        if at is not None:
            found.append(Correction(place, sql.fields[at], stored[at], sent[at]))
        if at is not None and may_correct:
            database.execute(sql.correct, row)
    return found


def without_refused(batches: Sequence[Batch], corrections: Sequence[Sequence[Correction]]) -> Iterator[Sample]:
    """The samples that are stored."""
    for batch, found in zip(batches, corrections, strict=True):
        refused = set() if batch.may_correct else {each.place for each in found}
        yield from (sample for place, sample in enumerate(batch.samples) if place not in refused)
