"""Prints the results of waiting.py as a Markdown table: one row a case, one column a policy.

python bench/waiting_table.py bench/results/waiting.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


def _cell(row: dict[str, Any]) -> str:
    return f"{row['p50_us']:,.1f} / {row['p99_us']:,.0f}, {row['reader_cpu']:.1%}"


def main(results: Annotated[Path, typer.Argument(help="JSON from waiting.py --output")]) -> None:
    """A cell is p50 / p99 in µs and the CPU time of a reader over wall time."""
    rows = [row for row in json.loads(results.read_text())["rows"] if row["gap_ms"]]
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    cases: dict[tuple[int, float, str], dict[str, Any]] = {}
    for row in rows:
        cases.setdefault((row["readers"], row["gap_ms"], row["pattern"]), {})[row["policy"]] = row
    console = Console(soft_wrap=True)
    console.print(f"| readers, gap | {' | '.join(policies)} |", markup=False)
    console.print(f"| {' | '.join(['---'] * (1 + len(policies)))} |", markup=False)
    for (readers, gap, pattern), by_policy in cases.items():
        cells = (_cell(by_policy[policy]) if policy in by_policy else "" for policy in policies)
        line = f"| {readers}, {gap:g} ms {pattern} | {' | '.join(cells)} |"
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
