"""Errors of the store that its callers handle."""

from __future__ import annotations


class HistoryBusyError(RuntimeError):
    """More samples wait for the disk than the limit allows; try again shortly."""


class HistoryUnavailableError(RuntimeError):
    """The samples could not be written or read (disk full, for example); each later call tries again."""


class PartlyStoredError(HistoryUnavailableError):
    """Another shard did not store its part of a request; the rest may be stored. The sender repeats all of it."""


class HistoryLockedError(RuntimeError):
    """Another process uses the history file."""


class HistoryVersionError(RuntimeError):
    """The history file was written by a newer version of this software."""
