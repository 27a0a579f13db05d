"""`python -m bench report`: write report.md, the pictures, and what documents show of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from bench import terminal
from bench.report import (
    codec_tables,
    doc_blocks,
    engine_tables,
    losses,
    overview,
    plots,
    reply_tables,
    summary,
    tables,
)
from bench.report.results import OURS, Results, SuiteResults, load, transports_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
SHOWN = "2026-11-25-epyc-2cpu"
"""The folder whose results the documents show."""
ELSEWHERE = {"server": "2026-11-26-xeon-16cpu-h200"}
"""Folders of other machines of which they show something, too."""

PICTURES = ROOT / "docs" / "pictures"
REPORT = "report.md"


def documents() -> list[Path]:
    """Return the documents that may show results."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(document: Path, results: Results) -> str:
    """Return the document's text with its blocks generated from the results.

    Raises:
        ValueError: a block is unknown or not closed.
        LookupError: what a block shows was not measured.
    """
    elsewhere = {machine: load(RESULTS / name) for machine, name in ELSEWHERE.items()}
    return doc_blocks.fill(
        document.read_text(), doc_blocks.blocks(results, PICTURES, document.parent, elsewhere)
    )


def stale(results: Results) -> list[Path]:
    """Return the documents and pictures that don't show these results."""
    texts = [path for path in documents() if filled(path, results) != path.read_text()]
    return texts + plots.stale(results, PICTURES)


def report(results: Results) -> str:
    """Return everything that was measured, as one Markdown document."""
    parts = [f"# Results: {results.folder.name}", _INTRODUCTION]
    parts += ["## Where we lose", _LOSSES_NOTE, overview.table(results)]
    for suite in results.suites.values():
        parts += _suite(suite)
    if any(suite.peers for suite in results.suites.values()):
        parts += ["## Transports", tables.settings(results)]
    parts += ["## What did not run", tables.skipped(results)]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = (
    "Written by `python -m bench report` from the JSON files beside it. One way, from the call on "
    "the source to the return on the last reader: p50 / p99 in µs; back to back, messages per "
    "second. The fastest of a line is bold; an empty cell was not measured."
)


_LOSSES_NOTE = (
    "Each case, and each figure of it, in which any transport of a peer has less time (or a higher "
    f"rate) than `{OURS}` as it comes: its default, not the best of its policies. Of a peer it is "
    "the best policy that counts. What was not measured is listed, too."
)


_CODEC_NOTE = (
    "Encode and decode in one process, the sum of both, p50 in µs, and how many times as fast as "
    "pickle that is. *: what arrives has other types than what was sent. Codecs that can't take a "
    "message are named below with the reason."
)


def _suite(suite: SuiteResults) -> Iterator[str]:
    yield f"## {suite.name}"
    yield tables.where_in_full(suite.machine)
    if suite.job:
        yield tables.job(suite.job)
    if suite.deaths:
        yield tables.deaths(suite.deaths)
    yield from engine_tables.all_tables(suite.engines)
    yield from reply_tables.all_tables(suite.replies)
    for mebibytes in codec_tables.evictions(suite.codec):
        yield f"### {codec_tables.state(mebibytes).capitalize()}"
        yield _CODEC_NOTE
        yield codec_tables.table(suite.codec, mebibytes)
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
    if engines := [row for row in suite.rows if "steps_per_s" in row]:
        yield "### Steps of an engine per second"
        yield tables.compare(engines, tables.steps, bold=False)
    if where := tables.lines(suite.rows):
        yield "### A cache line's trip from one CPU to another, one way"
        yield where
    if tails := [row for row in suite.rows if "p999_us" in row]:
        yield "### p99 / p99.9, µs, with their 95 % intervals"
        yield tables.compare(tails, tables.tail, bold=False)
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


def write(folder: Path) -> Path:
    """Write and return folder/report.md.

    Raises:
        LookupError: the folder has no results.
    """
    results = load(folder)
    if not results.suites:
        raise LookupError(f"{folder} has no results")
    path = folder / REPORT
    path.write_text(report(results))
    return path


def main(
    folder: Annotated[Path, typer.Argument(help="the results")] = RESULTS / SHOWN,
    pictures: Annotated[
        Path | None, typer.Option(help="draw the results into this folder, too")
    ] = None,
    fill: Annotated[
        bool,
        typer.Option("--documents", help=f"fill README.md, docs/ and docs/pictures from {SHOWN}"),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; fail if a document is out of date")
    ] = False,
) -> None:
    """Write the report of a folder of results, and print the cases that matter most."""
    shown = load(RESULTS / SHOWN)
    if check:
        if outdated := stale(shown):
            names = ", ".join(path.name for path in outdated)
            raise SystemExit(
                f"{names}: not what {SHOWN} has; run python -m bench report --documents"
            )
        return
    console = terminal.console()
    written = [write(folder)]
    if pictures:
        written += plots.write(load(folder), pictures)
    if fill:
        written += plots.write(shown, PICTURES)
        for path in documents():
            path.write_text(filled(path, shown))
            written.append(path)
    console.print(summary.table(load(folder)))
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)
