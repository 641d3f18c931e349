"""The pins: every package that the requirements need is pinned exactly, and installed as pinned."""

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def pins(file):
    """Lines of a requirements file and of those it includes."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    included = [line.split()[1] for line in lines if line.startswith("-r")]
    own = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return own + [pin for name in included for pin in pins(name)]


def needed_packages(requirements):
    """Names of all packages that the requirements need on this machine; CUDA's are chosen by torch's GPU build."""
    found, visited, waiting = set(), set(), list(requirements)
    while waiting:
        need = waiting.pop()
        name, extras = canonicalize_name(need.name), frozenset(need.extras)
        if name.startswith(("cuda-", "nvidia-")):
            continue
        if not str(need.specifier).startswith("=="):
            found.add(name)
        if (name, extras) in visited:
            continue
        visited.add((name, extras))
        further = map(Requirement, metadata.requires(name) or [])
        waiting += [each for each in further if each.marker is None or holds(each.marker, extras)]
    return found


def holds(marker, extras):
    return any(marker.evaluate({"extra": extra}) for extra in extras or {""})


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_all_needed_packages_are_pinned_and_installed_as_pinned(file):
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins(file)}
    assert all(specifier.startswith("==") and "*" not in specifier for specifier in pinned.values())
    assert needed_packages(pins(file)) - pinned.keys() == set()
    installed = {name: Version(metadata.version(name)).public for name in pinned}
    assert installed == {name: specifier.removeprefix("==") for name, specifier in pinned.items()}


def test_the_packages_of_the_image_have_hashes_and_the_versions_of_the_requirements():
    text = (ROOT / "requirements-deploy.txt").read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries)
    image = {
        canonicalize_name(pin.name): str(pin.specifier) for entry in entries if (pin := Requirement(entry.split()[0]))
    }
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins("requirements.txt")}
    assert image.items() <= pinned.items()
    wanted = [line for line in (ROOT / "deploy/requirements.in").read_text().split("\n") if line and line[0] != "#"]
    needed = needed_packages([Requirement(f"{name}=={pinned[name].removeprefix('==')}") for name in wanted])
    assert needed | set(wanted) <= image.keys()


def test_the_image_is_built_on_a_base_with_a_digest_only():
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ${PYTHON_IMAGE}"]
    assert "ARG PYTHON_IMAGE" in lines  # without a default
    assert any("*@sha256:*" in line for line in lines if line.startswith("RUN"))
