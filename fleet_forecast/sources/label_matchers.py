"""Adds label matchers to every selector of a PromQL query, such as cluster="eu" to those of a shared Prometheus.

The matchers are inserted into the text of the query. Then both texts are parsed: the query is used only if each of its
selectors has the matchers and is otherwise as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from promql_parser import Matcher, VectorSelector, parse, walk

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)
    |(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
    |(?P<other>[0-9][0-9A-Za-z_.]*|.)""",
    re.VERBOSE | re.DOTALL,
)
_BEFORE_LABELS = frozenset(("by", "without", "on", "ignoring", "group_left", "group_right"))
_Selector = tuple[str | None, tuple[str, ...], str]  # name, matchers, time modifiers


class LabelMatcherError(ValueError):
    """Matchers are invalid, or cannot be added to a query; the message names the text and the remedy."""


def check_matchers(text: str) -> str:
    """The matchers, as cluster="eu",job=~"node.*" without braces. Raises LabelMatcherError."""
    try:
        (only,) = _selectors(f"x{{{text}}}")
    except ValueError as problem:
        raise LabelMatcherError(f'{text!r} is not a list of label matchers ({problem}); write cluster="eu"') from None
    if not only[1]:
        raise LabelMatcherError(f'{text!r} has no label matcher; write cluster="eu"')
    return text.strip().rstrip(",").rstrip()


def with_matchers(query: str, matchers: str) -> str:
    """The query with the matchers (of `check_matchers`) in each selector. Raises LabelMatcherError."""
    (added,) = _selectors(f"x{{{matchers}}}")
    try:
        before = _selectors(query)
        changed = _inserted(query, matchers, {name for name, _, _ in before if name})
        after = _selectors(changed)
    except ValueError as problem:
        raise LabelMatcherError(_refusal(query, matchers, str(problem))) from None
    if after != [(name, tuple(sorted((*own, *added[1]))), modifiers) for name, own, modifiers in before]:
        raise LabelMatcherError(_refusal(query, matchers, "its selectors were not found"))
    return changed


def _refusal(query: str, matchers: str, reason: str) -> str:
    remedy = "write them into the query, and leave out `matchers` of this Prometheus"
    return f"matchers {matchers!r} cannot be added to {query[:300]!r}: {reason}; {remedy}"


def _selectors(query: str) -> list[_Selector]:
    """The selectors of a query in order. Raises ValueError if it is not PromQL, or uses `or` within braces."""
    found: list[_Selector] = []

    def keep(node: Any) -> None:
        if isinstance(node, VectorSelector):
            if node.matchers.or_matchers:
                raise ValueError("`or` between matchers is not PromQL")
            own = tuple(sorted(map(_shown, node.matchers.matchers)))
            found.append((node.name, own, f"{node.offset} {node.at and (node.at.type, node.at.at)}"))

    walk(parse(query), pre_visit=keep)
    return found


def _shown(matcher: Matcher) -> str:
    return f"{matcher.name} {matcher.op} {matcher.value}"


def _inserted(query: str, matchers: str, names: set[str]) -> str:
    """The text of the query with the matchers at the end of each brace and behind each name without braces."""
    parts: list[str] = []
    before = ""  # the last token that is not a space
    found = list(tokens(query))
    in_braces = in_labels = False
    for index, (kind, text) in enumerate(found):
        following = next((token for other, token in found[index + 1 :] if other != "space"), "")
        if in_braces and text == "}":
            parts.append(matchers if before in ("{", ",") else f",{matchers}")
        parts.append(text)
        if kind == "name" and not in_braces and not in_labels and text in names and following not in ("{", "("):
            parts.append(f"{{{matchers}}}")
        in_braces = (kind == "other" and text == "{") or (in_braces and (kind, text) != ("other", "}"))
        in_labels = (in_labels and text != ")") or (text == "(" and before.lower() in _BEFORE_LABELS)
        before = before if kind == "space" else text
    return "".join(parts)


def tokens(query: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each token: space (with comments), text (quoted), name or other (numbers, single characters)."""
    return ((str(match.lastgroup), match[0]) for match in _TOKEN.finditer(query))
