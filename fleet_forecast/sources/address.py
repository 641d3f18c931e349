"""Addresses of other services and of scraped servers, and headers of requests."""

from __future__ import annotations

import re

import httpx

HIDDEN = "***"


def is_address(text: str) -> bool:
    """Whether the text is a URL for requests: http or https, a valid host name, a valid port."""
    try:
        url = httpx.URL(text)
        url.host.encode("idna")  # as a DNS query does
    except (httpx.InvalidURL, ValueError):
        return False
    has_port = url.port is None or 1 <= url.port <= 65_535
    return bool(re.fullmatch(r"https?://[^/\s]+\S*", text) and url.host) and has_port


def without_secrets(text: str) -> str:
    """An address for messages and logs: user, password and query are replaced by ***. Any text is accepted."""
    scheme, separator, rest = text.rpartition("://")
    if "@" in rest:
        rest = f"{HIDDEN}@{rest.rpartition('@')[2]}"
    rest = re.sub(r"[?#].*", f"?{HIDDEN}", rest, flags=re.S)
    return scheme.rpartition("://")[2] + separator + rest if scheme else rest


def origin_of(text: str) -> str:
    """Scheme, host and port of an address, for messages about one whose path contains a secret, such as a webhook."""
    scheme, separator, rest = without_secrets(text).rpartition("://")
    host, slash, _ = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2].partition('?')[0]}" + (f"/{HIDDEN}" if slash else "")


def parse_header(text: str) -> tuple[str, str]:
    """Name and value of "X-Scope-OrgID: tenant". Raises ValueError."""
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not value.strip().isprintable():
        raise ValueError(f"{name[:40]!r} is not a header; write NAME: VALUE, such as 'X-Scope-OrgID: tenant'")
    return name, value.strip()


def without_port(instance: str) -> str:
    """The server that a label such as `instance` names: host of host:9100, 2001:db8::10 of [2001:db8::10]:9100.

    An IPv6 address without brackets has no port.
    """
    match = re.fullmatch(r"\[(.+)\](?::\d+)?|([^:]*):\d+", instance)
    return instance if match is None else match[1] or match[2]
