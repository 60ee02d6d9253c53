"""Every command of the documentation is run by a test, or has a reason not to be; all of their options exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from tests.docs.documents import PAGES, ROOT, commands
from tests.docs.ledger import NOT_RUN, RUN_BY, places_of
from ucseg_export.cli.app import app as export_app
from ucseg_runtime.cli.app import app as runtime_app
from ucseg_serving.cli.app import app as serving_app
from ucseg_training.cli.app import app as training_app

ALL = [(page, command) for page in PAGES for command in commands(page)]
PROGRAMS = {
    "ucseg": typer.main.get_command(runtime_app),
    "ucseg-export": typer.main.get_command(export_app),
    "ucseg-serve": typer.main.get_command(serving_app),
    "ucseg-train": typer.main.get_command(training_app),
}
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def test_every_command_is_run_by_one_test_or_has_one_reason() -> None:
    assert len(ALL) > 100, "commands are found"
    doubtful = [(page, command, places) for page, command in ALL if len(places := places_of(page, command)) != 1]
    assert doubtful == []


def test_tests_that_run_commands_are_there_and_read_them_from_the_pages() -> None:
    for test in RUN_BY:
        text = (ROOT / test).read_text(encoding="utf-8")
        read = {page for page, command in ALL if test in places_of(page, command)}
        assert "ledger" in text or {page for page in read if page.removeprefix("docs/") in text} == read, test


@pytest.mark.parametrize(
    "pattern", [pattern for table in (RUN_BY, NOT_RUN) for item in table.values() for pattern in item]
)
def test_nothing_in_the_ledger_is_left_over(pattern: str) -> None:
    assert any(re.search(pattern, f"{page}: {command}") for page, command in ALL)


def parts(command: str) -> Iterator[list[str]]:
    """The words of each program that a line starts, without redirections and brackets."""
    for part in re.split(r"&&|\|(?= )", command):
        words = shlex.split(re.sub(r"\s>\s*\S+", "", part).replace("[--", " --"))
        yield [word for word in words if not re.match(r"[A-Z_]+=", word)]


def options_of(words: list[str]) -> tuple[set[str], list[str]]:
    """The options of the command of ours that a line calls, and the words after its name."""
    command, rest = PROGRAMS[words[0]], words[1:]
    while isinstance(command, TyperGroup):
        command, rest = command.commands[rest[0]], rest[1:]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}, rest


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_of_ucseg_and_their_options_exist(page: str) -> None:
    for line in commands(page):
        for words in parts(line):
            if words and words[0] in PROGRAMS:
                known, rest = options_of(words)
                assert set(_OPTION.findall(" ".join(rest))) <= known, line


@pytest.mark.parametrize("line", sorted({line for _, line in ALL if "benchmarks/" in line}))
def test_scripts_and_their_options_exist(line: str) -> None:
    (script,) = re.findall(r"benchmarks/\w+\.py", line)
    text = with_imports(ROOT / script)
    for option in _OPTION.findall(line):
        parameter = option.removeprefix("--").replace("-", "_")
        assert f'"{option}"' in text or re.search(rf"\b{parameter}:", text), option


def with_imports(script: Path) -> str:
    """The text of a script and of what it imports from its own folder."""
    text = script.read_text(encoding="utf-8")
    names = re.findall(r"^from (?:benchmarks\.)?(\w+) import", text, re.MULTILINE)
    neighbours = [script.with_name(f"{name}.py") for name in names]
    return "".join([text, *(path.read_text(encoding="utf-8") for path in neighbours if path.is_file())])


def test_targets_of_make_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for _, line in ALL:
        for target in re.findall(r"^make (\S+)", line):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
        for names in re.findall(r"(?:ucseg|'\.)\[([\w,-]+)\]", line):
            assert set(names.split(",")) <= set(extras), line
