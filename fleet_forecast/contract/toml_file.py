r"""Reads a TOML file into a pydantic model; an error names file, line, field, value and remedy.

    class Rules(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        fire_probability: float = Field(default=0.5, gt=0, lt=1)

    rules = read_toml(Path("tokens.toml"), Rules, "tokens file")

    tokens file tokens.toml: no such file; give the path of a TOML file
    tokens file tokens.toml is not TOML: Expected '=' after a key (at line 3, column 7)
    tokens file tokens.toml, line 1: fire_probability is 2; it should be less than 1
    tokens file tokens.toml, line 4: unknown key 'fires'; use fire_probability

A validator of the model raises ValueError("problem; remedy"), which is shown after file and line as it is.
`first_problem` words the errors of values that come from elsewhere, such as flags.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)
LONGEST_VALUE = 100  # characters of a refused value that a message shows

_REMEDIES = {
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "dict_type": "write [{name}] on a line of its own, and its entries below",
    "model_type": "write [{name}] on a line of its own, and its entries below",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "finite_number": "write a finite number",
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "int_from_float": "write a whole number",
    "list_type": "write a list, as in {key} = ['...']",
    "tuple_type": "write a list, as in {key} = ['...']",
    "path_type": "write a path in quotes",
    "string_type": "write text in quotes",
}


class TomlFileError(ValueError):
    """A TOML file cannot be used; the message names file, line (where it is known), field, value and remedy."""


def read_toml(path: Path, model: type[Model], what: str) -> Model:
    """The file's content as an instance of `model`.

    what: the kind of file, for messages, such as "fleet file". Raises TomlFileError.
    """
    text = _text(path, what)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:  # its message ends with line and column
        hints = {
            "\\": "; write regular expressions in single quotes, which take backslashes as they are",
            "Invalid value": "; write text in quotes",
        }
        hint = next((remedy for part, remedy in hints.items() if part in str(problem)), "")
        raise TomlFileError(f"{what} {path} is not TOML: {problem}{hint}") from None
    except RecursionError:
        raise TomlFileError(
            f"{what} {path} is nested too deeply; write tables and lists as the documentation shows"
        ) from None
    try:
        return model.model_validate(document)
    except ValidationError as problem:
        raise _error(f"{what} {path}", text, problem, model) from None


def check_table(table: Mapping[str, Any], model: type[Model], path: Path, key: str) -> Model:
    """The table [key] of a TOML file as an instance of `model`. Raises TomlFileError."""
    try:
        return model.model_validate(table)
    except ValidationError as problem:
        raise _error(f"{path}, [{key}]", _text(path, "file"), problem, model) from None


def _error(where: str, text: str, problem: ValidationError, model: type[BaseModel]) -> TomlFileError:
    line = _line(text.splitlines(), _first(problem))
    return TomlFileError(f"{where}{'' if line is None else f', line {line}'}: {first_problem(problem, model)}")


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The message of the first error of a validation: "field is value; remedy"."""
    first = _first(error)
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    location = [str(part) for part in first["loc"] if part != "[key]"]
    if first["type"] == "extra_forbidden":
        return f"unknown key {location[-1]!r}; use {', '.join(keys_at(model, first['loc']))}"
    name, key = ".".join(location), location[-1] if location else ""
    if first["type"] == "missing":
        return f"{name} is missing; add {key} = ..."
    value = first["input"]
    shown = str(value).lower() if isinstance(value, bool) else repr(value)  # a flag as TOML writes it
    if len(shown) > LONGEST_VALUE:
        shown = shown[:LONGEST_VALUE] + "..."
    expected = first["msg"].removeprefix("Input ").removeprefix("String ")
    remedy = _REMEDIES.get(first["type"], f"it {expected}").format(key=key, name=name)
    return f"{name} is {shown}; {remedy}"


def _first(error: ValidationError) -> ErrorDetails:
    """The first error; where a key is missing, an unknown key of the same table, which may be its misspelling."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] != "missing":
        return first
    table = first["loc"][:-1]
    return next((other for other in errors if other["type"] == "extra_forbidden" and other["loc"][:-1] == table), first)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TomlFileError(f"{what} {path}: no such file; give the path of a TOML file") from None
    except UnicodeDecodeError as problem:
        message = f"{what} {path} is not TOML: not UTF-8 text ({problem.reason}); save it as UTF-8"
        raise TomlFileError(message) from None
    except OSError as problem:
        reason = f"cannot be read ({problem.strerror})"
        raise TomlFileError(f"{what} {path}: {reason}; give the path of a TOML file") from None


def keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Keys that the table of the refused key may have."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _line(lines: Sequence[str], error: Mapping[str, Any]) -> int | None:
    """Number of the line with the refused key or value, from 1; None if the error has no location in the file."""
    keys = [str(part) for part in error["loc"] if isinstance(part, str) and part != "[key]"]
    if not keys or error["type"] == "missing":
        return None
    at, found = 0, False
    for key in keys:
        as_key = re.compile(rf"""(?:^|[\s.\["'{{,]){re.escape(key)}["']?\s*[\].=]""")
        position = next((n for n in range(at, len(lines)) if as_key.search(_without_comment(lines[n]))), None)
        if position is not None:
            at, found = position, True
    value = error["input"]
    if isinstance(value, str) and value:
        spellings = (value, value.replace("\\", "\\\\"))
        at = next((n for n in range(at, len(lines)) if any(text in lines[n] for text in spellings)), at)
    return at + 1 if found else None


def _without_comment(line: str) -> str:
    return "" if line.lstrip().startswith("#") else line
