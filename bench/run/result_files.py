"""Where results are written, and what is there already."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import typer

from bench.run import machine
from bench.run.harness import Row

Write = Callable[[list[Row], dict[str, str]], None]
"""Writes a suite's rows, and why transports have none."""


def check_free(folder: Path, suites: list[str], overwrite: bool) -> None:
    """Raise BadParameter if a folder has results of a suite that are not to be replaced."""
    there = [file.name for suite in suites if (file := path_of(folder, suite)).exists()]
    if there and not overwrite:
        raise typer.BadParameter(
            f"{folder} has results already ({', '.join(there)}): name another --folder, or pass "
            "--overwrite"
        )


def kept(folder: Path, suite: str, peers: dict[str, dict[str, str]]) -> list[Row]:
    """Return the rows that a folder has of a suite, to which others are to be added.

    Raises:
        BadParameter: they are of another machine, or of other software.
    """
    path = path_of(folder, suite)
    if not path.exists():
        return []
    there, here = json.loads(path.read_text()), machine.describe()
    facts = ("name", "cpu", "python", "torch")
    if there["peers"] != peers or any(there["machine"][fact] != here[fact] for fact in facts):
        raise typer.BadParameter(
            f"{path} is of another machine or other software: name another --folder"
        )
    rows: list[Row] = there["rows"]
    return rows


def writer(folder: Path, suite: str, peers: dict[str, dict[str, str]]) -> Write:
    """Return what writes the results of a suite that begins now."""
    here, steal = machine.describe(), machine.Steal()
    path = path_of(folder, suite)

    def write(rows: list[Row], skipped: dict[str, str]) -> None:
        result = {
            "suite": suite,
            "machine": here | {"steal": steal.share()},
            "peers": peers,
            "skipped": skipped,
            "rows": rows,
        }
        folder.mkdir(parents=True, exist_ok=True)
        # (Replaced at once: what is there is whole, whenever this process ends.)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n")
        part.replace(path)

    return write


def path_of(folder: Path, suite: str) -> Path:
    """Return the file of a suite."""
    return folder / f"{suite}.json"
