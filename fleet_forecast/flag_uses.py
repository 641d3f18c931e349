"""Refuses flags that the chosen command does not use: what a user asks for is not ignored."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence

from fleet_forecast.usage import UsageError

PLAIN = ""  # the script without a flag that selects another command
# Names of flags, as attributes of the parsed arguments, by the command or the flag that uses them: `--stream URL`.
FlagUses = Mapping[str, Collection[str]]


def only_one(chosen: Sequence[str]) -> str:
    """The command that the flags select, PLAIN without one. Raises UsageError for several."""
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} are given; choose one of them")
    return chosen[0] if chosen else PLAIN


def chosen_flags(arguments: argparse.Namespace, selecting: Mapping[str, str]) -> list[str]:
    """Of `selecting`, a text such as `--stream URL` by the name of its flag, the texts of the given ones."""
    return [text for name, text in selecting.items() if getattr(arguments, name) not in (None, False)]


def refuse_unused_flags(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, uses: FlagUses, present: Sequence[str]
) -> None:
    """Raise UsageError for the first flag with another value than its default that nothing uses.

    present: the chosen command, then the given flags that use others; names of `uses`.
    """
    for name, shown in _given(parser, arguments):
        users = [user for user, names in uses.items() if name in names]
        if set(users) & set(present):
            continue
        if PLAIN in users:
            raise UsageError(f"{shown}: {present[0]} does not use it; leave one of them out")
        raise UsageError(f"{shown}: it goes with {' or '.join(users)}; add that, or leave it out")


def _given(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Name, and flag and value as text, of each flag with another value than its default."""
    for action in parser._actions:
        value = getattr(arguments, action.dest, action.default)
        if value != action.default:
            yield action.dest, " ".join([*action.option_strings[:1], *_texts(value)])


def _texts(value: object) -> list[str]:
    if isinstance(value, bool):
        return []
    values = value if isinstance(value, list) else [value]
    texts = [f"{each:g}" if isinstance(each, float) else str(each) for each in values]
    return [text for text in texts if ":" not in text]  # addresses and headers may contain passwords
