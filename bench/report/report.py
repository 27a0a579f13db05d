"""`python -m bench report`: results as Markdown and pictures, and in README.md and docs/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from bench.report import doc_blocks, losses, plots, tables
from bench.report.results import OURS, Results, Suite, load, transports_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
SHOWN = "2026-11-25-epyc-2cpu"
"""The folder whose results the documents show."""

REPORT = "report.md"


def documents() -> list[Path]:
    """Those that may show results."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(document: Path, results: Results) -> str:
    """The document's text with what the results have in its places.

    Raises:
        ValueError: a place is unknown or not closed.
        LookupError: what it shows was not measured.
    """
    return doc_blocks.fill(document.read_text(), doc_blocks.blocks(results, document))


def report(results: Results, pictures: list[plots.Picture]) -> str:
    """All that was measured, as one Markdown document with these pictures."""
    parts = [f"# Results: {results.folder.name}", _INTRODUCTION]
    for suite in results.suites.values():
        parts += _suite(suite)
        parts += [
            f"![{picture.title}]({picture.name}.png)"
            for picture in pictures
            if picture.suite == suite.name
        ]
    if any(suite.peers for suite in results.suites.values()):
        parts += ["## Transports", tables.settings(results)]
    parts += ["## What did not run", tables.skipped(results)]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = (
    "Written by `python -m bench report` from the JSON files beside it. One way, from the call on "
    "the source to the return on the last reader: p50 / p99 in µs; back to back, messages per "
    "second. The fastest of a line is bold; an empty cell was not measured."
)


def _suite(suite: Suite) -> Iterator[str]:
    yield f"## {suite.name}"
    yield tables.where_in_full(suite.machine)
    if suite.job:
        yield tables.job(suite.job)
    for title, rows in tables.groups(suite.rows).items():
        yield f"### {title}"
        yield tables.compare(rows)
    if suite.rows:
        yield f"### Where {OURS} is not the fastest"
        yield losses.losses(suite.rows)
    others = [name for name in transports_of(suite.rows) if name != OURS]
    if others and len(others) < len(transports_of(suite.rows)):
        yield f"### Times the time of {OURS}"
        yield tables.compare(suite.rows, tables.slowdown, others, bold=False)
    if suite.rows:
        yield "### CPU time of a message, source + a reader, µs"
        yield tables.compare(suite.rows, tables.cpu_time, bold=False)
        yield "### Memory of all processes, MiB"
        yield tables.compare(suite.rows, tables.memory, bold=False)
    if reads := [row for row in suite.rows if "read_p50_us" in row]:
        yield "### Reading what has arrived, p50, µs"
        yield tables.compare(reads, tables.reading_time, bold=False)
    if also := tables.extras(suite.rows):
        yield "### Also measured"
        yield also


def write(folder: Path) -> None:
    """Writes folder/report.md and the pictures beside it.

    Raises:
        LookupError: the folder has no results.
    """
    results = load(folder)
    if not results.suites:
        raise LookupError(f"{folder} has no results")
    pictures = plots.write(results)
    (folder / REPORT).write_text(report(results, pictures))


def main(
    folder: Annotated[Path, typer.Argument(help="the results")] = RESULTS / SHOWN,
    fill: Annotated[
        bool, typer.Option("--documents", help=f"fill README.md and docs/ from {SHOWN}, too")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; fail if a document is out of date")
    ] = False,
) -> None:
    """Write the report and the pictures of a folder of results."""
    shown = load(RESULTS / SHOWN)
    if check:
        stale = [path.name for path in documents() if filled(path, shown) != path.read_text()]
        if stale:
            raise SystemExit(
                f"{', '.join(stale)}: not what {SHOWN} has; run python -m bench report --documents"
            )
        return
    write(folder)
    if fill:
        for path in documents():
            path.write_text(filled(path, shown))
