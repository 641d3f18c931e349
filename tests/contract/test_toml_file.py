"""TOML files become models; errors name file, line, field, value and remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fleet_forecast.contract.toml_file import TomlFileError, first_problem, read_toml


class Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    warn: float = Field(default=0.5, gt=0, lt=1)
    count: int = 1


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = "default"
    enabled: bool = True
    labels: list[str] = []
    limits: Limits = Limits()
    servers: dict[str, Limits] = {}

    @field_validator("name")
    @classmethod
    def _no_space(cls, name: str) -> str:
        if " " in name:
            raise ValueError(f"name {name!r} has a space; write it with a hyphen")
        return name


def read(folder: Path, text: str) -> Document:
    path = folder / "limits.toml"
    path.write_text(text, encoding="utf-8")
    return read_toml(path, Document, "limits file")


def test_a_file_becomes_an_instance_of_its_model(tmp_path: Path) -> None:
    document = read(tmp_path, "name = 'x'\nlabels = ['a', 'b']\n[limits]\nwarn = 0.25\n[servers.web1]\ncount = 3\n")
    assert document == Document(
        name="x", labels=["a", "b"], limits=Limits(warn=0.25), servers={"web1": Limits(count=3)}
    )
    assert read(tmp_path, "") == Document()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# warn\n[limits]\nwarn = 2\n", ", line 3: limits.warn is 2; it should be less than 1"),
        ("[limits]\nwarm = 2\n", ", line 2: unknown key 'warm'; use warn, count"),
        ("limit = 2\n", ", line 1: unknown key 'limit'; use name, enabled, labels, limits, servers"),
        ("[servers.web1]\ncount = 1\n[servers.web2]\ncount = 1.5\n", ", line 4: servers.web2.count is 1.5; write a"),
        ("[servers.web1]\nwarm = 1\n", ", line 2: unknown key 'warm'; use warn, count"),
        ("\nlimits = 3\n", ", line 2: limits is 3; write [limits] on a line of its own"),
        ("enabled = 'yes'\n", ", line 1: enabled is 'yes'; write true or false"),
        ("labels = 'a'\n", ", line 1: labels is 'a'; write a list, as in labels = ['...']"),
        ("labels = [\n 'a',\n 4\n]\n", ", line 1: labels.1 is 4; write text in quotes"),
        ("\n\nname = 'a b'\n", ", line 3: name 'a b' has a space; write it with a hyphen"),
        ("name = 'a'\nname = 'b'\n", " is not TOML: Cannot overwrite a value (at line 2, column 11)"),
        ("name = Berlin\n", " is not TOML: Invalid value (at line 1, column 8); write text in quotes"),
        ('name = "\\d"\n', " is not TOML: Unescaped '\\' in a string (at line 1, column 11); write regular"),
    ],
)
def test_errors_name_file_line_field_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TomlFileError, match=re.escape(f"limits file {tmp_path}/limits.toml{message}")):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    for name, message in (("absent.toml", "no such file"), ("", "cannot be read"), ("latin.toml", "not UTF-8 text")):
        with pytest.raises(TomlFileError, match=f"^limits file {tmp_path / name}.*{message}.*; "):
            read_toml(tmp_path / name, Document, "limits file")


def test_a_missing_field_and_a_long_value_are_described() -> None:
    class Required(BaseModel):
        model_config = ConfigDict(extra="forbid")

        address: str

    def problem(values: dict[str, Any]) -> str:
        with pytest.raises(ValidationError) as refused:
            Required.model_validate(values)
        return first_problem(refused.value, Required)

    assert problem({}) == "address is missing; add address = ..."
    assert problem({"adress": "x"}) == "unknown key 'adress'; use address"
    assert problem({"address": True}) == "address is true; write text in quotes"
    assert problem({"address": list(range(100))}).endswith("...; write text in quotes")


def test_a_file_that_is_nested_too_deeply_is_named(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text("labels = " + "[" * 100_000)
    with pytest.raises(TomlFileError, match=r"test file .*deep\.toml is nested too deeply; write"):
        read_toml(path, Document, "test file")
