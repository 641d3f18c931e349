"""Number of connections that the process's limit of open files allows."""

from __future__ import annotations

import resource

RESERVED_DESCRIPTORS = 128  # for the history, models, requests to other services, and connections being refused


def allowed_connections(wanted: int) -> int:
    """Connections that may be open; raises the soft limit of open files to what `wanted` needs, if the hard one allows.

    RESERVED_DESCRIPTORS stay free, or half of a smaller limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - min(RESERVED_DESCRIPTORS, soft // 2)))


def accepts_per_turn(max_connections: int) -> int:
    """Connections accepted in one turn of the event loop: those that exceed the limit are open until the next turns."""
    return max(1, max_connections // 32)
