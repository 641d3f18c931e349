"""The server that a label such as `instance` names."""

from __future__ import annotations


def without_port(value: str) -> str:
    """The value without the port that a scraped address ends with: host:9100 is the server "host"."""
    host, colon, port = value.rpartition(":")
    return host if colon and port.isdecimal() else value
