"""What the page for operators lists is all that there is: variables, warnings, exit codes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcast._operators import environment
from tests.support.operators import run_shmcast

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
SOURCES = sorted((ROOT / "shmcast").rglob("*.py"))


def rows_of(heading: str) -> list[str]:
    """Return the first cells of the tables below a heading, up to the next one of any level."""
    [section] = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]


def text_of(node: ast.AST) -> str:
    """Return the strings in a piece of code, one after the other."""
    nodes = (n for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return "".join(str(n.value) for n in nodes)


def saying(*calls: str) -> Iterator[tuple[str, str]]:
    """Yield each function that calls one of these with a text of its own, and its strings."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(called).startswith(calls) and not _passes_on(node, called)
                for called in ast.walk(node)
                if isinstance(called, ast.Call)
            ):
                yield f"{path.name}: {node.name}", text_of(node)


def _passes_on(function: ast.FunctionDef, call: ast.Call) -> bool:
    """Return whether a call says the text that the function was given."""
    is_given = "text" in {argument.arg for argument in function.args.args}
    return is_given and "text" in map(ast.unparse, call.args)


def test_every_variable_is_listed() -> None:
    read = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"SHMCAST_[A-Z_]*[A-Z]", node.value)
    }
    listed = {name for cell in rows_of("Settings") for name in re.findall(r"`(SHMCAST_\w+)`", cell)}
    assert len(read) > 10
    assert listed == read
    assert read == {*environment.CHECKS}  # the doctor knows each


@pytest.mark.parametrize(
    ("heading", "calls"),
    [
        ("Warnings", ("warnings.warn(", "self._warn(")),
        ("In the log", ("tell(logging.WARNING", "tell(level", "self.log.warning", "_log.warning")),
    ],
)
def test_every_warning_is_listed_and_there_is_no_other(heading: str, calls: tuple[str]) -> None:
    listed = [text for cell in rows_of(heading) for text in re.findall(r"`([^`]+)`", cell)]
    functions = dict(saying(*calls))
    assert len(functions) > 5
    for name, said in functions.items():
        assert any(text in said for text in listed), name
    everything = "\n".join(text_of(ast.parse(path.read_text())) for path in SOURCES)
    assert [text for text in listed if text not in everything] == []


def test_the_exit_codes_are_those_of_the_help() -> None:
    told = run_shmcast().stdout.partition("exit codes: ")[2]
    codes = {int(code) for code in re.findall(r"(?:^|,\s+)(\d+)\s", told)}
    listed = {int(cell) for cell in rows_of("The command line") if cell.isdigit()}
    assert listed == codes == {0, 1, 2, 3, 4, 130}


def test_every_command_is_listed() -> None:
    there = set(re.findall(r"^    (\w+) ", run_shmcast().stdout, re.MULTILINE))
    listed = {
        name for cell in rows_of("The command line") for name in re.findall(r"`shmcast (\w+)", cell)
    }
    assert {"list", "bench"} <= there
    assert listed == there
