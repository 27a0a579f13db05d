"""Prints the results of large.py as Markdown tables: copies, loans, reading.

python bench/large_table.py bench/results/large.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import large
import memory

Row = dict[str, Any]


def _lines(first: str, rows: list[Row], ways: tuple[str, ...]) -> list[str]:
    """A line for each size and number of readers that has one of `ways`."""
    by_case: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["transport"] in ways:
            case = f"{row['payload']}, {row['readers']}"
            by_case.setdefault(case, {})[row["transport"]] = row
    lines = [[first, *ways], ["---"] * (1 + len(ways))]
    for case, by_way in by_case.items():
        lines.append([case, *(_cell(by_way.get(way)) for way in ways)])
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(row: Row | None) -> str:
    return f"{_figure(row['p50_us'])} / {_figure(row['p99_us'])}" if row else ""


def _figure(microseconds: float) -> str:
    return f"{microseconds:,.1f}" if microseconds < 100 else f"{microseconds:,.0f}"


def _reading_lines(rows: list[Row]) -> list[str]:
    by_size: dict[str, dict[str, float]] = {}
    for row in rows:
        by_size.setdefault(row["payload"], {})[row["what"]] = row["p50_us"]
    heads = next(iter(by_size.values()), {})
    lines = [["read once", *heads], ["---"] * (1 + len(heads))]
    lines += [[size, *map(_figure, found.values())] for size, found in by_size.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


def main(results: Annotated[Path, typer.Argument(help="JSON from large.py --output")]) -> None:
    """A cell is p50 / p99 in µs; of what is read, the median."""
    result = json.loads(results.read_text())
    console = Console(soft_wrap=True, highlight=False, markup=False)
    tables = (
        _lines("array, readers", result["rows"], large.COPYING),
        _lines("loan, readers", result["rows"], (*large.LOANS, *large.REFILLED)),
        _reading_lines(result["reading"]),
        [memory.describe(result["memory"])],
    )
    console.print("\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    typer.run(main)
