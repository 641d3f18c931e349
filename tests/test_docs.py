"""README.md and docs/ agree with the code: flags, commands, files, links, make targets, messages.

    python tests/test_docs.py            # print the flag tables of docs/cli.md
    python tests/test_docs.py --write    # write them into docs/cli.md

Every ```sh block of the documents is checked: its scripts, flags, files and make targets exist. Blocks without a mark
are also run, document by document, in an empty project folder with a tiny model in models/current; a ```text block that
follows directly must be part of their output. A mark is an HTML
comment on the line before the block: `<!-- needs a server -->` or `<!-- takes minutes -->`. Requests with curl are sent
to a daemon on a fake engine.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("metrics_generator", "tft_trainer", "tft_inference", "data_contract", "demo")
DOCUMENTS = (ROOT / "README.md", ROOT / "DATA_CONTRACT.md", *sorted((ROOT / "docs").glob("*.md")))
CLI = ROOT / "docs" / "cli.md"
MARKS = ("needs a server", "takes minutes")
README_WORDS = 900
BLOCK_SECONDS = 120
sys.path.insert(0, str(ROOT))

from tests.serving.fake_daemon import FakeDaemon  # noqa: E402


class Block(NamedTuple):
    """One ```sh block; mark is one of MARKS, or None if the block is run by a test.

    output: the ```text block that follows directly, "" if there is none.
    """

    document: str
    mark: str | None
    text: str
    output: str

    @property
    def commands(self) -> list[str]:
        """Its commands without comments, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


class _ParserCaughtError(Exception):
    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def shell_blocks() -> list[Block]:
    pattern = re.compile(
        r"(?:^<!-- ([^\n]*?) -->\n+)?^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL
    )
    return [
        Block(str(document.relative_to(ROOT)), match[1], match[2], match[3] or "")
        for document in DOCUMENTS
        for match in pattern.finditer(text_of(document))
    ]


# --- flags ----------------------------------------------------------------------------------------------------------


def parser_of(script: str) -> argparse.ArgumentParser:
    """The argument parser of a script, captured when the script parses its arguments."""

    def catch(self: argparse.ArgumentParser, *_arguments: Any, **_options: Any) -> None:
        raise _ParserCaughtError(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        try:
            importlib.import_module(script).main([])
        except _ParserCaughtError as caught:
            return caught.parser
    raise AssertionError(f"{script}.main parsed no flags")


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """(argument, effect) of each argument, by its first spelling."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.dest == "help" or action.help == argparse.SUPPRESS:
            continue
        flag = action.option_strings[0] if action.option_strings else ""
        default_metavar = action.dest.upper() if action.option_strings else action.dest
        takes_value = not action.option_strings or action.nargs != 0
        metavar = formatter._metavar_formatter(action, default_metavar)(1)[0] if takes_value else ""
        value = formatter._format_args(action, metavar) if takes_value else ""
        yield f"{flag} {value}".strip(), " ".join(formatter._expand_help(action).split())


def flag_table(script: str) -> str:
    rows = [f"| `{flag.replace('|', chr(92) + '|')}` | {effect} |" for flag, effect in arguments_of(parser_of(script))]
    return "\n".join([f"| `{script}.py` | effect |", "|---|---|", *rows])


def known_flags(script: str) -> str:
    """Text that has every flag of a script: of our scripts argparse's, of others their source."""
    name = script.removesuffix(".py")
    if name in SCRIPTS:
        return " ".join(flag for action in parser_of(name)._actions for flag in action.option_strings)
    return (ROOT / script).read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS)
def test_cli_document_has_every_flag_with_its_effect(script):
    assert flag_table(script) in text_of(CLI), "docs/cli.md is old; run: python tests/test_docs.py --write"


# --- commands -------------------------------------------------------------------------------------------------------


def python_commands() -> list[Any]:
    """(script, its arguments) of every command of the documents that runs Python."""
    found = []
    for block in shell_blocks():
        for command in block.commands:
            if match := re.search(r"python (\S+\.py)\b(.*)", command):
                found.append(pytest.param(match[1], match[2], id=f"{block.document}: {match[0][:60]}"))
            elif match := re.search(r"python -m (tests\.reliability|pytest)\b(.*)", command):
                script = "tests/reliability/__main__.py"
                if match[1] == "tests.reliability":
                    found.append(pytest.param(script, match[2], id=f"{block.document}: {match[0][:60]}"))
    return found


def test_marks_of_shell_blocks_are_known():
    for block in shell_blocks():
        assert block.mark is None or block.mark in MARKS, block


def test_readme_shows_each_of_the_three_scripts():
    commands = "\n".join(
        command for block in shell_blocks() if block.document == "README.md" for command in block.commands
    )
    for script in SCRIPTS[:3]:
        assert f"python {script}.py" in commands


@pytest.mark.parametrize(("script", "arguments"), python_commands())
def test_commands_use_scripts_and_flags_that_exist(script, arguments):
    assert (ROOT / script).is_file()
    known = known_flags(script)
    for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", arguments):
        assert flag in known or flag.replace("_", "-") in known, f"python {script}{arguments}: no flag {flag}"


@pytest.mark.parametrize("document", sorted({block.document for block in shell_blocks() if block.mark is None}))
def test_unmarked_commands_run(document, tiny_models_dir, tmp_path):
    project = project_folder(tmp_path, tiny_models_dir)
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for block in shell_blocks():
        if block.document == document and block.mark is None:
            printed = run_shell(block.text, project, environment).splitlines()
            for line in block.output.splitlines():
                assert line in printed or line.startswith("{")  # JSON lines have times of the machine


def run_shell(text: str, folder: Path, environment: dict[str, str]) -> str:
    """Run the commands of a block; returns their output, and fails with it if one of them fails."""
    run = subprocess.run(
        ["timeout", str(BLOCK_SECONDS), "bash", "-euo", "pipefail", "-c", text],  # timeout ends the commands as well
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"
    return run.stdout + run.stderr


def project_folder(parent: Path, models: Path) -> Path:
    """The project as a user has it: the scripts, an empty training folder, a tiny model in models/current."""
    project = parent / "project"
    project.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("training", "models", ".git", "history", "demo_files"):
            (project / path.name).symlink_to(path)
    (project / "training").mkdir()
    (project / "models").symlink_to(models)
    return project


@pytest.mark.skipif(shutil.which("curl") is None, reason="the program curl is not installed")
def test_requests_shown_are_answered(tmp_path):
    # Python commands of these blocks start daemons: the test has one on a fake engine instead. Until a server's first
    # forecast is made the answer is 503, which curl retries.
    setup = 'python() { :; }; curl() { command curl --fail-with-body --retry 9 "${@/localhost:8000/$ADDRESS}"; };'
    with FakeDaemon(tmp_path) as daemon:
        environment = {"ADDRESS": f"127.0.0.1:{daemon.port}"}
        for block in sorted(shell_blocks(), key=lambda block: "/api/v1/metrics" not in block.text):  # samples first
            if any(command.startswith("curl") for command in block.commands):
                assert block.mark == "needs a server"
                run_shell(f"{setup}\n{block.text}", tmp_path, environment)
                daemon.wait_for("/api/v1/servers/ppweb005/forecast")


def test_make_targets_exist_and_are_documented():
    targets = set(re.findall(r"^([a-z-]+):.*## ", text_of(ROOT / "Makefile"), re.MULTILINE))
    prose = "\n".join(text_of(document) for document in DOCUMENTS)
    named = set(re.findall(r"`make ([a-z][a-z-]*)", prose)) | {
        command.split()[1] for block in shell_blocks() for command in block.commands if command.startswith("make ")
    }
    assert named <= targets
    assert targets - {"help"} <= named


# --- files, links, names --------------------------------------------------------------------------------------------


def test_readme_is_short():
    assert len(text_of(ROOT / "README.md").split()) <= README_WORDS


def test_files_of_the_tree_in_readme_exist():
    tree = re.search(r"^```text\n(README\.md.*?)^```", text_of(ROOT / "README.md"), re.MULTILINE | re.DOTALL)
    assert tree
    folders: list[str] = []
    for line in tree[1].splitlines():
        names = re.match(r" *((?:[\w.-]+/? {1,2})*[\w.-]+/?)(?: {3}|$)", line)
        assert names, line
        depth = (len(line) - len(line.lstrip())) // 2
        for name in names[1].split():
            folders[depth:] = [name]
            assert Path(ROOT, *folders).exists(), "/".join(folders)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document):
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", text_of(document)):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


def anchors_of(document: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_linked_from_readme():
    readme = text_of(ROOT / "README.md")
    for document in DOCUMENTS[1:]:
        assert f"]({document.relative_to(ROOT)})" in readme, document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_documents_exist(document):
    folders = "fleet_forecast|benchmarks|docs|deploy|tests"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)", text_of(document)):
        assert (ROOT / name).exists(), name


def test_calls_of_the_data_flows_in_design_exist():
    design = text_of(ROOT / "docs" / "design.md").partition("## From POST to forecast")[2].partition("## How to add")[0]
    rows = re.findall(r"^\| `(fleet_forecast/\S+)` \| (.*?) \|", design, re.MULTILINE)
    assert len(rows) > 15
    for package, call in rows:
        source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / package).glob("*.py"))
        for name in re.findall(r"`([A-Za-z_.]+)(?:\(|`)", call):
            for part in name.split("."):
                assert re.search(rf"^ *(?:async )?(?:def|class) {part}\b", source, re.MULTILINE), f"{package} {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_routes_named_in_documents_exist(document):
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "fleet_forecast/serving").rglob("*.py"))
    routes = {re.sub(r"\{\w+(:path)?\}", "*", route) for route in re.findall(r'"(/api/v1/[\w/{}:-]+)"', source)}
    for route in re.findall(r"/api/v1/[\w/{}-]*\w\}?", text_of(document)):
        assert re.sub(r"(?<=/servers/|silences/)[\w{}]+", "*", route) in routes, route


def test_exposed_metrics_named_in_documents_exist():
    from fleet_forecast.contract.specs import METRICS

    forecasts = tuple(f"fleet_forecast_{name.removesuffix('_mb_s').rpartition('_')[0] or name}_" for name in METRICS)
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "fleet_forecast/serving").rglob("*.py"))
    for document in DOCUMENTS:
        for name in re.findall(r"`(fleet_(?!forecast[/`])\w+)", text_of(document)):
            if not name.startswith(forecasts):
                assert name.removesuffix("_total") in source, name


def test_promises_in_operations_are_those_of_the_reliability_tests():
    from tests.reliability.promises import PROMISES

    table = text_of(ROOT / "docs" / "operations.md").partition("| promise | test |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([^-].*?) \|", table, re.MULTILINE) == [promise.text for promise in PROMISES]


# --- messages -------------------------------------------------------------------------------------------------------


def test_messages_in_troubleshooting_are_in_the_code():
    rows = re.findall(r"^\| (.*?) \|", text_of(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    messages = [message for row in rows for message in re.findall("`(.+?)`", row)]
    assert len(messages) >= 30
    files = [*ROOT.glob("*.py"), *ROOT.glob("fleet_forecast/**/*.py"), ROOT / "Makefile"]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # string literals over several lines
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in source, message


def test_the_newest_version_in_the_changelog_is_dated():
    assert re.search(r"^## \d+\.\d+\.\d+ \(\d{4}-\d{2}-\d{2}\)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)


def test_continuous_integration_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert script.read_text().splitlines()[-1] == "make test"
    assert script.stat().st_mode & 0o111


# --- writing docs/cli.md --------------------------------------------------------------------------------------------


def with_current_tables(text: str) -> str:
    """The text of docs/cli.md with the flag tables of now; a missing table gets a section of its own at the end."""
    for script in SCRIPTS:
        old = re.search(re.escape(f"| `{script}.py` | effect |\n") + r"(?:\|.*\n)*", text)
        table = flag_table(script) + "\n"
        text = text.replace(old[0], table) if old else f"{text}\n## {script}.py\n\n{table}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Flag tables of docs/cli.md, from the scripts' parsers.")
    parser.add_argument("--write", action="store_true", help="write them into docs/cli.md instead of printing them")
    if parser.parse_args().write:
        CLI.write_text(with_current_tables(text_of(CLI)), encoding="utf-8")
    else:
        print("\n\n".join(flag_table(script) for script in SCRIPTS))


if __name__ == "__main__":
    main()
