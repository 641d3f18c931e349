"""Functions and classes are short enough to be read as a whole. ruff holds the number of arguments and statements."""

import ast
from pathlib import Path

import pytest

from tests.test_imports import ROOT, source_files

FUNCTION_LINES = 50
CLASS_LINES = 250
REASON = "Long because"  # begins a line in the docstring of a longer class


def lines_of(node):
    return node.end_lineno - node.lineno + 1


def too_long(path, source):
    """Places of functions over FUNCTION_LINES, and of classes over CLASS_LINES that give no reason."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > FUNCTION_LINES:
            yield f"{path}:{node.lineno} {node.name} has {lines_of(node)} lines, at most {FUNCTION_LINES}: split it"
        if isinstance(node, ast.ClassDef) and lines_of(node) > CLASS_LINES:
            doc = ast.get_docstring(node) or ""
            if not any(line.startswith(REASON) for line in doc.splitlines()):
                yield (
                    f"{path}:{node.lineno} {node.name} has {lines_of(node)} lines, at most {CLASS_LINES}: split it, "
                    f"or give the reason in a line of its docstring that begins with {REASON!r}"
                )


@pytest.mark.parametrize("path", [*source_files(), *sorted(Path("docs").glob("*.py"))], ids=str)
def test_functions_and_classes_are_short(path):
    assert list(too_long(path, (ROOT / path).read_text())) == []


def test_a_long_function_is_found_at_its_line():
    body = "    x = 1\n" * FUNCTION_LINES
    found = list(too_long("module.py", f"\ndef f():\n{body}\nasync def g():\n{body}"))
    assert [text.partition(" ")[0] for text in found] == ["module.py:2", f"module.py:{FUNCTION_LINES + 4}"]
    assert list(too_long("module.py", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1))) == []


def test_a_long_class_needs_a_reason_in_its_docstring():
    body = "    x = 1\n" * CLASS_LINES
    assert list(too_long("module.py", f"class A:\n{body}"))
    assert list(too_long("module.py", f'class A:\n    """Text.\n\n    {REASON} of this.\n    """\n{body}')) == []
