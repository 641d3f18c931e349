"""Regular expressions for server names, matched by RE2 in time linear in the length of the name.

Patterns come from an operator's file and names from clients: a backtracking matcher would stop the process on a name
chosen for a careless pattern.
"""

from __future__ import annotations

import re2

from server_profiles import NamePattern

MAX_PATTERN_BYTES = 1 << 20  # of one compiled pattern; nested counts such as (a{999}){999} need more and are refused


def compile_pattern(text: str) -> NamePattern:
    """The pattern, matched at the start of a name, case ignored. Raises ValueError with the pattern and the remedy."""
    options = re2.Options()
    options.case_sensitive, options.log_errors, options.max_mem = False, False, MAX_PATTERN_BYTES
    try:
        compiled: NamePattern = re2.compile(text, options)
    except re2.error as problem:
        reason = problem.args[0].decode() if isinstance(problem.args[0], bytes) else problem
        remedy = r"correct it, or put a backslash before a character meant literally, as in 'db\.\d+'"
        limits = "; look-around and back-references are not supported, because names are matched in linear time"
        raise ValueError(f"pattern {text!r} is not a regular expression ({reason}); {remedy}{limits}") from None
    return compiled


def compile_whole_name(text: str) -> NamePattern:
    """The pattern of a whole name: `web.*` matches web01, `web` only web. Raises ValueError as compile_pattern."""
    compile_pattern(text)  # its message shows the pattern as it was given
    return compile_pattern(f"(?:{text})$")
