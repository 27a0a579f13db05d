"""Prints the tables of docs/nodes.md from the results of nodes.py.

python bench/nodes_table.py bench/results/2026-11-23-xeon-2cpu-nodes.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

Row = dict[str, Any]


def ladder(rows: list[Row]) -> str:
    """Latencies of each way, and by how much less than gloo's; bytes over one copy."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = [
        f"| ranks, message | {' | '.join(ways)} | bytes, gloo : known : shmcast |",
        "| --- |" + " --- |" * (len(ways) + 1),
    ]
    for case in dict.fromkeys((row["ranks_per_node"], row["payload"]) for row in rows):
        own = {r["way"]: r for r in rows if (r["ranks_per_node"], r["payload"]) == case}
        slowest = own[ways[0]]["p50_us"]
        cells = [
            f"{r['p50_us']:,.0f} / {r['p99_us']:,.0f}, {slowest / r['p50_us']:.1f}x"
            for r in own.values()
        ]
        bytes_in = [f"{own[way]['bytes_in'] / own[way]['one_copy_bytes']:.2f}" for way in ways[:3]]
        ranks, message = case
        lines.append(f"| 2 x {ranks}, {message} | {' | '.join(cells)} | {' : '.join(bytes_in)} |")
    return "\n".join(lines)


def busy(rows: list[Row]) -> str:
    """Latencies to the neighbour of a leader that computes."""
    lines = ["| leader | thread: p50 / p90 / p99 µs | in `recv` |", "| --- | --- | --- |"]
    for load in dict.fromkeys(row["load"] for row in rows):
        cells = [
            f"{r['p50_us']:,.0f} / {r['p90_us']:,.0f} / {r['p99_us']:,.0f}"
            for r in rows
            if r["load"] == load
        ]
        lines.append(f"| {load} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(results: Path) -> None:
    """Prints the tables."""
    found = json.loads(results.read_text())
    print(busy(found["busy_leader"]), ladder(found["rows"]), found["trace"], sep="\n\n")  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
