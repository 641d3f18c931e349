"""Who may import whom, what nobody imports, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.models import code_running

ROOT = Path(__file__).parent.parent
SCRIPTS = ("metrics_generator", "tft_trainer", "tft_inference")
# Imports run from a higher number to a lower one, or stay within a package.
LAYERS = {
    "server_profiles": 0,
    "contract": 1,
    "data_contract": 2,
    "simulation": 3,  # of one height with forecasting: neither knows the other
    "forecasting": 3,
    "serving": 4,
    **dict.fromkeys(SCRIPTS, 5),
}
OUTERMOST = 6  # the demo and benchmarks may use anything


def source_files():
    packages = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    files = [*ROOT.glob("*.py"), *(file for package in packages for file in package.rglob("*.py"))]
    return sorted(path.relative_to(ROOT) for path in files)


def imported_modules(path):
    """Dotted names of everything a file imports, inside functions too; its line beside each."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.parts[: len(path.parts) - node.level])
            module = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def test_there_is_something_to_check():
    assert {room.split("/")[0].removesuffix(".py") for room in map(str, source_files())} >= set(LAYERS)


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_imports_run_one_way(path):
    room = path.parts[0].removesuffix(".py")
    for module, line in imported_modules(path):
        other = module.partition(".")[0]
        if other in LAYERS and other != room:
            assert LAYERS[other] < LAYERS.get(room, OUTERMOST), f"{path}:{line} imports {module}"


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_nothing_that_can_run_code_from_a_file_is_used(path):
    assert code_running((ROOT / path).read_text()) == []


def test_the_daemon_and_batch_forecasts_need_no_torch():
    program = (
        "import sys, tft_inference, serving.app, forecasting.engine\n"
        "print([name for name in ('torch', 'lightning', 'pytorch_forecasting') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("script", [*SCRIPTS, "data_contract", "server_profiles", "demo"])
def test_importing_a_script_does_nothing(script, tmp_path):
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {script}"
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
