"""Prints the README's table from a result of latency.py, so that no figure is typed by hand.

python bench/readme_table.py bench/results/2026-11-22-xeon-2cpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("shmcast", "shmcast spin", "shmcast semaphore", "gloo", "gloo, known size", "pipe")
CASES = (
    ("49 B", 1, 0.3),
    ("49 B", 1, 1.0),
    ("49 B", 1, 10.0),
    ("0.5 KB", 1, 0.3),
    ("16 KB", 1, 1.0),
    ("1 MiB", 1, 1.0),
    ("16 MiB", 1, 1.0),
    ("49 B", 4, 1.0),
    ("49 B", 8, 1.0),
    ("16 KB", 8, 0.3),
    ("16 KB", 8, 1.0),
    ("16 MiB", 8, 1.0),
    ("49 B", 1, 0.0),
    ("49 B", 8, 0.0),
)


def table(result: dict[str, Any]) -> str:
    """Markdown: a row for each case, p50 / p99 in µs, or messages per second back to back."""
    cells = {
        (row["payload"], row["readers"], row["gap_ms"], row["transport"]): row
        for row in result["rows"]
    }
    lines = [f"| message, readers, gap | {' | '.join(COLUMNS)} |", "| --- " * 7 + "|"]
    for payload, readers, gap in CASES:
        rows = [cells[payload, readers, gap, name] for name in COLUMNS]
        if gap:
            name = f"{payload}, {readers}, {gap:g} ms"
            figures = [f"{_short(row['p50_us'])} / {_short(row['p99_us'])}" for row in rows]
        else:
            name = f"{payload}, {readers}, none"
            figures = [f"{row['rate_per_s']:,.0f} /s" for row in rows]
        lines.append(f"| {name} | {' | '.join([f'**{figures[0]}**', *figures[1:]])} |")
    machine = result["machine"]
    lines += [
        "",
        f"µs, p50 / p99, one way: from the call on the source to the return on the last reader. "
        f"{machine['cpu']}, {machine['usable_cpus']:g} CPUs (shared, with noisy neighbours), "
        f"Python {machine['python']}, torch {machine['torch']}, {machine['date'][:10]}. The source "
        f"computes in the gap. One memcpy of 1 MiB took {result['memcpy_us']['1 MiB']:.0f} µs, of "
        f"16 MiB {result['memcpy_us']['16 MiB']:.0f} µs; 8 idle readers used at most "
        f"{max(result['idle_cpu']):.2%} of a core each.",
    ]
    return "\n".join(lines)


def _short(microseconds: float) -> str:
    return f"{microseconds:.1f}" if microseconds < 100 else f"{microseconds:,.0f}"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))  # noqa: T201 (its purpose)
