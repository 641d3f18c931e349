"""Addresses of other services."""

from __future__ import annotations

import re

import httpx


def is_address(text: str) -> bool:
    """Whether the text is a URL for requests: http or https, a valid host name, a valid port."""
    try:
        url = httpx.URL(text)
        url.host.encode("idna")  # as a DNS query does
    except (httpx.InvalidURL, ValueError):
        return False
    has_port = url.port is None or 1 <= url.port <= 65_535
    return bool(re.fullmatch(r"https?://[^/\s]+\S*", text) and url.host) and has_port
