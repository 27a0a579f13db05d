"""Prints the results of tensors.py as a Markdown table: one row a payload, one column a way.

python bench/tensors_table.py bench/results/tensors.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import tensors

Only = Annotated[list[str] | None, typer.Option(help="payloads to show, repeatable; all")]


def _cell(row: dict[str, Any], plain: dict[str, Any]) -> str:
    figures = f"{row['p50_us']:,.0f} / {row['p99_us']:,.0f}"
    return figures if row is plain else f"{figures}, {plain['p50_us'] / row['p50_us']:.1f}x"


def main(
    results: Annotated[Path, typer.Argument(help="JSON from tensors.py --output")],
    only: Only = None,
) -> None:
    """A cell is p50 / p99 in µs, and by how much p50 is less than the plain way's."""
    by_payload: dict[str, dict[str, dict[str, Any]]] = {}
    for row in json.loads(results.read_text())["rows"]:
        by_payload.setdefault(row["payload"], {})[row["way"]] = row
    console = Console(soft_wrap=True)
    console.print(f"| dict | {' | '.join(tensors.NAMES)} |", markup=False)
    console.print(f"| {' | '.join(['---'] * (1 + len(tensors.NAMES)))} |", markup=False)
    for payload, by_way in by_payload.items():
        if not only or payload in only:
            cells = (_cell(by_way[name], by_way[tensors.PLAIN]) for name in tensors.NAMES)
            line = f"| {payload} | {' | '.join(cells)} |"
            console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
