"""Numbers with their noun, in messages."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """The number with its noun: 1 server, 2,000 servers."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
