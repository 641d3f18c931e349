"""README is held to the code: flags, commands, files, make targets, messages.

python tests/test_docs.py        # prints README's flag tables as the scripts have them
"""

import argparse
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("metrics_generator", "tft_trainer", "tft_inference")
sys.path.insert(0, str(ROOT))


class _ParserCaughtError(Exception):
    def __init__(self, parser):
        self.parser = parser


def parser_of(script):
    """The argument parser of a script, caught at the moment it parses."""

    def catch(self, *_arguments, **_options):
        raise _ParserCaughtError(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        try:
            importlib.import_module(script).main([])
        except _ParserCaughtError as caught:
            return caught.parser
    raise AssertionError(f"{script}.main parsed no flags")


def flags_of(parser):
    """(flag, effect) of each flag, by its first spelling."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.dest == "help":
            continue
        flag = action.option_strings[0]
        value = (
            ""
            if action.nargs == 0
            else " " + formatter._format_args(action, formatter._metavar_formatter(action, action.dest.upper())(1)[0])
        )
        yield f"{flag}{value}", " ".join(formatter._expand_help(action).split())


def flag_table(script):
    rows = [f"| `{flag.replace('|', chr(92) + '|')}` | {effect} |" for flag, effect in flags_of(parser_of(script))]
    return "\n".join([f"| `{script}.py` | effect |", "|---|---|", *rows])


def readme():
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_readme_has_every_flag_with_its_effect(script):
    table = flag_table(script)
    assert table in readme(), f"run python tests/test_docs.py; README's table of flags should read:\n\n{table}"


def shell_commands():
    """Commands of README's code blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", readme(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def script_commands():
    found = [re.search(r"python (\S+\.py)\b(.*)", command) for command in shell_commands()]
    return [(match[1], match[2]) for match in found if match]


def test_readme_shows_each_script():
    assert {f"{script}.py" for script in SCRIPTS} <= {script for script, _ in script_commands()}


@pytest.mark.parametrize(("script", "arguments"), script_commands())
def test_every_command_in_readme_uses_flags_that_exist(script, arguments):
    assert (ROOT / script).is_file()
    used = set(re.findall(r"(?<!\S)--[a-z][\w-]*", arguments))
    known = (ROOT / script).read_text()
    if script.removesuffix(".py") in SCRIPTS:
        known = " ".join(flag for flag, _ in flags_of(parser_of(script.removesuffix(".py"))))
    for flag in used:
        assert flag in known or flag.replace("_", "-") in known, f"python {script}{arguments}: no flag {flag}"


def test_every_message_in_troubleshooting_is_one_of_ours():
    section = readme().partition("## Troubleshooting")[2].partition("\n## ")[0]
    messages = [
        text for row in re.findall(r"^\| (.*?) \|", section, re.MULTILINE) for text in re.findall("`(.+?)`", row)
    ]
    assert len(messages) >= 12
    files = [
        *ROOT.glob("*.py"),
        *ROOT.glob("fleet_forecast/**/*.py"),
    ]
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))  # literals over several lines
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in source, message


def test_every_make_target_in_readme_exists_and_each_target_is_described():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)(?= |`|$)", "\n".join(shell_commands()), re.MULTILINE))
    assert named <= targets
    assert targets - {"help", "install"} <= set(re.findall(r"`?make ([a-z-]+)", readme()))


def test_every_local_link_in_readme_leads_somewhere():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", readme())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_newest_version_in_the_changelog_is_dated():
    assert re.search(r"^## \d+\.\d+\.\d+ \(\d{4}-\d{2}-\d{2}\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_continuous_integration_runs_the_tests():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def write_flag_tables():
    text = readme()
    for script in SCRIPTS:
        old = re.search(re.escape(f"| `{script}.py` | effect |\n") + r"(?:\|.*\n)*", text)
        text = text.replace(old[0], flag_table(script) + "\n")
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_flag_tables()
