"""Facts and mechanisms that have one place: nothing else defines them. A message names the place to use."""

import ast
import re

import pytest

from data_contract import METRICS, STATES
from tests.test_imports import ROOT, source_files

PACKAGE = "fleet_forecast"
AVERAGES = ("resample", "reduceat")


def constants_of(node):
    """Constants of a tuple, list or set literal; empty for other nodes."""
    elements = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else []
    return [each.value for each in elements if isinstance(each, ast.Constant)]


def name_of_call(node):
    """Name of a called function or method; None for other nodes."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", None))


def is_metric_list(node):
    return len(set(METRICS) & set(map(str, constants_of(node)))) >= 3


def is_state_list(node):
    return len(set(STATES) & set(map(str, constants_of(node)))) >= 3


def is_level_list(node):
    """Increasing probabilities that are symmetric about 0.5."""
    found = constants_of(node)
    if len(found) < 2 or not all(isinstance(each, float) and 0 < each < 1 for each in found):
        return False
    mirrored = zip(found, reversed(found), strict=True)
    return found == sorted(set(found)) and all(abs(low + high - 1) < 1e-9 for low, high in mirrored)


def is_horizon_table(node):
    """Durations by label, such as {"15m": 900, "1h": 3600}."""
    keys = [key.value for key in node.keys if isinstance(key, ast.Constant)] if isinstance(node, ast.Dict) else []
    return len([key for key in keys if re.fullmatch(r"\d+[mh]", str(key))]) >= 2


def is_time_text(node):
    dated = isinstance(node, ast.FormattedValue) and node.format_spec and "%Y" in ast.unparse(node.format_spec)
    return bool(dated) or name_of_call(node) in ("strftime", "isoformat")


def is_rename(node):
    """Path.replace, Path.rename, os.replace or os.rename; str.replace has two arguments, others names or a dict."""
    if name_of_call(node) not in ("replace", "rename") or not isinstance(node.func, ast.Attribute) or node.keywords:
        return False
    from_os = getattr(node.func.value, "id", "") == "os"
    return len(node.args) == (2 if from_os else 1) and not isinstance(node.args[0], ast.Dict)


def is_flag(node):
    """add_argument of an option."""
    return name_of_call(node) == "add_argument" and any("-" in str(getattr(a, "value", "")) for a in node.args)


def is_average(node):
    added = name_of_call(node) == "at" and ast.unparse(node.func) == "np.add.at"
    sql = isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"(?i)\s*avg\(", node.value)
    return added or bool(sql) or name_of_call(node) in AVERAGES


def is_retry_loop(node):
    """A loop that catches an error and sleeps."""
    if not isinstance(node, ast.While | ast.For | ast.AsyncFor):
        return False
    inside = list(ast.walk(node))
    return any(isinstance(each, ast.ExceptHandler) for each in inside) and "sleep" in map(name_of_call, inside)


# Fact or mechanism -> (test of a node, place to use, further places that are allowed with their reason).
RULES = {
    "metric list": (
        is_metric_list,
        "fleet_forecast/contract/specs.py: METRICS, METRIC_SPECS",
        {
            "fleet_forecast/risk/departures.py": "metrics of an estimated covariance matrix",
            "fleet_forecast/simulation/physics.py": "positions of the metrics of a backup",
            "fleet_forecast/serving/storage/migrations.py": "metrics of files of schema version 1",
        },
    ),
    "state list": (
        is_state_list,
        "fleet_forecast/contract/specs.py: STATES",
        {"fleet_forecast/simulation/states.py": "a constant for each state, looked up in STATES"},
    ),
    "quantile levels": (
        is_level_list,
        "fleet_forecast/contract/forecast_spec.py: QUANTILE_LEVELS, SCORED_LEVELS, BAND_80, BAND_96",
        {
            "fleet_forecast/features/quantile_map.py": "KNOT_LEVELS: knots of the map, not levels of a forecast",
            "benchmarks/alerts.py": "FIRE_PROBABILITIES: probabilities of alerts",
            "fleet_forecast/serving/replay/curve.py": "LEVELS: probabilities of alerts",
        },
    ),
    "report horizons": (is_horizon_table, "fleet_forecast/contract/forecast_spec.py: REPORT_HORIZONS", {}),
    "UTC time text": (
        is_time_text,
        "fleet_forecast/iso_time.py: iso, iso_exact, iso_milliseconds",
        {
            "fleet_forecast/contract/checks.py": "shows a time without zone as it was read",
            "fleet_forecast/serving/storage/integrity.py": "part of a file name",
            "fleet_forecast/simulation/output/writer.py": "file name of a part",
            "fleet_forecast/training/publish.py": "name of a model",
        },
    ),
    "atomic file write": (
        is_rename,
        "fleet_forecast/atomic_write.py: replace_file, new_file",
        {
            "fleet_forecast/contract/publishing.py": "publishes a folder of part files",
            "fleet_forecast/inference/model_directory.py": "publishes a model directory",
            "fleet_forecast/commands/models_folder.py": "takes a model directory away before its files are deleted",
            "fleet_forecast/serving/storage/integrity.py": "sets a damaged file aside",
        },
    ),
    "flag in both spellings": (is_flag, "fleet_forecast/flags.py: add_flag", {}),
    "averaging of samples onto steps": (
        is_average,
        "fleet_forecast/step_means.py: CellMeans, step_means",
        {
            "fleet_forecast/serving/storage/schema.py": "the store's means in SQL, which a test compares",
            "fleet_forecast/inference/explanations.py": "sums attention by lag",
            "fleet_forecast/simulation/output/tally.py": "counts rows by profile",
        },
    ),
    "retry with back-off": (
        is_retry_loop,
        "fleet_forecast/retry.py: back_off",
        {
            "fleet_forecast/serving/storage/opening.py": "a few attempts on the disk with a fixed pause",
            "fleet_forecast/serving/background.py": "restarts background work after a fixed pause",
            "fleet_forecast/serving/forecasts/forecast_loop.py": "looks for due forecasts at a fixed interval",
        },
    ),
}
NOT_OF_BENCHMARKS = ("flag in both spellings", "retry with back-off")  # they wait for processes they started


def found_in(rule, path, source):
    """Places in a file that define what has a place elsewhere."""
    is_definition, place, allowed = RULES[rule]
    if str(path) == place.partition(":")[0] or str(path) in allowed:
        return []
    nodes = ast.walk(ast.parse(source))
    lines = sorted({node.lineno for node in nodes if hasattr(node, "lineno") and is_definition(node)})
    return [f"{path}:{line} defines {rule}; use {place}" for line in lines]


@pytest.mark.parametrize("rule", RULES)
def test_it_is_defined_in_one_place(rule):
    paths = [path for path in source_files() if rule not in NOT_OF_BENCHMARKS or path.parts[0] != "benchmarks"]
    assert [text for path in paths for text in found_in(rule, path, (ROOT / path).read_text())] == []


@pytest.mark.parametrize("rule", RULES)
def test_the_places_exist_and_every_exception_is_needed(rule):
    is_definition, place, allowed = RULES[rule]
    assert (ROOT / place.partition(":")[0]).is_file()
    for path in allowed:
        assert any(map(is_definition, ast.walk(ast.parse((ROOT / path).read_text())))), path


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("metric list", 'A = ["cpu_pct", "mem_pct", "latency_ms"]'),
        ("state list", 'A = ("healthy", "idle", "offline", "own")'),
        ("quantile levels", "A = (0.05, 0.5, 0.95)"),
        ("quantile levels", "low, high = (0.1, 0.9)"),
        ("report horizons", 'A = {"30m": 1800, "2h": 7200}'),
        ("UTC time text", "text = moment.isoformat() + 'Z'"),
        ("UTC time text", "text = f'{moment:%Y-%m-%d}'"),
        ("UTC time text", "text = time.strftime('%Y', now)"),
        ("atomic file write", "temporary.replace(path)"),
        ("atomic file write", "os.replace(temporary, path)"),
        ("flag in both spellings", "group.add_argument('--dry-run', '--dry_run')"),
        ("averaging of samples onto steps", "np.add.at(totals, steps, values)"),
        ("averaging of samples onto steps", "query = f'SELECT {step}, ' + 'avg(cpu_pct)'"),
        ("retry with back-off", "while True:\n    try:\n        send()\n    except OSError:\n        sleep(pause)"),
    ],
)
def test_a_second_definition_is_found(rule, source):
    (text,) = found_in(rule, "module.py", source)
    assert text.startswith("module.py:1 ")
    assert RULES[rule][1] in text


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("quantile levels", "A = (0.1, 0.3)"),
        ("atomic file write", "text.replace('a', 'b')"),
        ("atomic file write", "moment.replace(hour=0)"),
        ("flag in both spellings", "parser.add_argument('path')"),
        ("retry with back-off", "while True:\n    sleep(1)"),
    ],
)
def test_other_code_is_not_reported(rule, source):
    assert found_in(rule, "module.py", source) == []
