"""The floors of the packages; no module can run code from a file; importing a script has no effect."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.models import code_running

ROOT = Path(__file__).parent.parent
PACKAGE = "fleet_forecast"
SCRIPTS = ("metrics_generator", "tft_trainer", "tft_inference")
# A module may import its own package and packages of a lower floor. Packages of one floor do not import each other.
FLOORS = {
    "server_profiles": 0,
    PACKAGE: 1,  # the modules directly in the package
    f"{PACKAGE}.contract": 2,
    f"{PACKAGE}.contract.fleet": 3,
    f"{PACKAGE}.sources": 3,
    f"{PACKAGE}.simulation": 3,
    f"{PACKAGE}.intervals": 3,
    f"{PACKAGE}.features": 3,
    f"{PACKAGE}.simulation.live": 4,
    f"{PACKAGE}.sources.protocols": 4,
    f"{PACKAGE}.simulation.output": 4,
    f"{PACKAGE}.network": 4,
    f"{PACKAGE}.profile_audit": 4,
    f"{PACKAGE}.risk": 4,
    f"{PACKAGE}.drift": 4,
    f"{PACKAGE}.inference": 5,
    f"{PACKAGE}.evaluation": 6,
    f"{PACKAGE}.notebooks": 6,
    f"{PACKAGE}.scale": 6,
    f"{PACKAGE}.evaluation.against_champion": 6.5,  # on top of evaluation, below training
    f"{PACKAGE}.training.batches": 5,
    f"{PACKAGE}.training.risk": 6,
    f"{PACKAGE}.training.ranks": 6,
    f"{PACKAGE}.training": 7,
    f"{PACKAGE}.serving": 7,
    "data_contract": 8,
    f"{PACKAGE}.commands": 8,
    f"{PACKAGE}.commands.generator": 8,
    **dict.fromkeys(SCRIPTS, 9),
    "demo": 10,
}
# Within the daemon.
SERVING_FLOORS = {
    f"{PACKAGE}.serving.dashboard": 0,
    f"{PACKAGE}.serving.storage": 0,
    f"{PACKAGE}.serving.storage.offline": 1,
    f"{PACKAGE}.serving.shards": 0.5,
    f"{PACKAGE}.serving.forecasts": 1,
    f"{PACKAGE}.serving.ingest": 1,
    f"{PACKAGE}.serving.monitoring": 2,
    f"{PACKAGE}.serving.export": 2,
    f"{PACKAGE}.serving.alerting": 3,
    f"{PACKAGE}.serving.delivery": 4,
    f"{PACKAGE}.serving.replay": 4,
    f"{PACKAGE}.serving.routes": 5,
    f"{PACKAGE}.serving.http": 5,
    f"{PACKAGE}.serving.views": 6,
    f"{PACKAGE}.serving.routes.protocols": 6,
    f"{PACKAGE}.serving.routes.shards": 6,
}
OUTERMOST = 11  # benchmarks may use anything
MOST_MODULES = 14  # in a package: more are two packages


def source_files():
    files = [*ROOT.glob("*.py"), *(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in files)


def module_of(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path):
    """Dotted names of everything a file imports, inside functions too; each with its line."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.parts[: len(path.parts) - node.level])
            module = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def package_of(module, floors):
    """The longest prefix of a dotted name that has a floor, None if there is none."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in floors), None)


def wrong_imports(path, floors, outermost):
    package = package_of(module_of(path), floors)
    floor = floors[package] if package else outermost
    for module, line in imported_modules(path):
        other = package_of(module, floors)
        if other is not None and other != package and floors[other] >= floor:
            yield f"{path}:{line} imports {module}"


def test_every_package_has_a_floor():
    packages = {module_of(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("__init__.py")}
    without = packages - FLOORS.keys() - SERVING_FLOORS.keys()
    assert not without


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_imports_go_down(path):
    assert list(wrong_imports(path, FLOORS, OUTERMOST)) == []


@pytest.mark.parametrize("path", [p for p in source_files() if p.is_relative_to(f"{PACKAGE}/serving")], ids=str)
def test_imports_within_the_daemon_go_down(path):
    assert list(wrong_imports(path, SERVING_FLOORS, OUTERMOST)) == []


@pytest.mark.parametrize("folder", sorted({p.parent for p in source_files()}, key=str), ids=str)
def test_a_package_is_small_and_has_a_docstring(folder):
    modules = [path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    if folder.parts[:1] == (PACKAGE,):
        assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))


@pytest.mark.parametrize("path", source_files(), ids=str)
def test_nothing_that_can_run_code_from_a_file_is_used(path):
    assert code_running((ROOT / path).read_text()) == []


def test_the_daemon_and_batch_forecasts_need_no_torch():
    program = (
        "import sys, tft_inference, fleet_forecast.serving.app, fleet_forecast.inference.engine\n"
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
