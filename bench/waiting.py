"""What each wait policy costs and gains: latency against CPU time, by cadence and by readers.

    python bench/waiting.py                             # everything, about half an hour
    python bench/waiting.py --readers 1 --gaps 10 --patterns jitter

A 49-byte message; latency is from the call on the source to the return of the last reader's call.
CPU time is that of each process: of readers in all that they do, of the source inside its calls.
The policies take turns, several each, so that a noisy minute hits all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import harness
import shmcast

GAPS_MS = (0.2, 1.0, 5.0, 20.0, 100.0)
READERS = (1, 4, 8)
POLICIES = ("shmcast spin", "shmcast", "shmcast semaphore")
PAYLOAD = "49 B"

Floats = Annotated[list[float], typer.Option(help="mean gap in ms, repeatable")]
Texts = Annotated[list[str], typer.Option(help="repeatable")]
Numbers = Annotated[list[int], typer.Option(help="repeatable")]
Row = dict[str, Any]


def _messages(gap_ms: float, seconds: float, turns: int) -> int:
    """As many as a policy sends in `seconds`; at least 40, in whole bursts."""
    count = min(2000.0, max(40.0, seconds * 1e3 / max(gap_ms, 1e-3)))
    each = harness.BURST * turns
    return max(1, round(count / each)) * each


def _row(case: harness.Case, readers: int, name: str, times: harness.Times) -> Row:
    source, *cpu = times.cpu_shares
    row: Row = {
        "readers": readers,
        "gap_ms": case.gap_ms,
        "pattern": case.pattern,
        "policy": name,
        "messages": len(times.start_ns),
        "reader_cpu": float(np.mean(cpu)),
        "source_cpu": source,
    }
    if case.gap_ms == 0:
        return row | {"rate_per_s": times.rate}
    p50, p99 = np.percentile(times.latencies_us, [50, 99])
    send = float(np.median(times.sends_us))
    return row | {"p50_us": float(p50), "p99_us": float(p99), "send_p50_us": send}


def _table(rows: list[Row]) -> Table:
    first = rows[0]
    plural = "s" if first["readers"] > 1 else ""
    cadence = f"{first['gap_ms']:g} ms, {first['pattern']}" if first["gap_ms"] else "back to back"
    table = Table("policy", title=f"{first['readers']} reader{plural}, {cadence}")
    if not first["gap_ms"]:
        table.add_column("messages/s", justify="right")
        for row in rows:
            table.add_row(row["policy"], f"{row['rate_per_s']:,.0f}")
        return table
    for heading in ("p50 µs", "p99 µs", "send p50 µs", "CPU of a reader", "CPU of the source"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (f"{row[key]:,.1f}" for key in ("p50_us", "p99_us", "send_p50_us"))
        shares = (f"{row[key]:.2%}" for key in ("reader_cpu", "source_cpu"))
        table.add_row(row["policy"], *figures, *shares)
    return table


def main(
    readers: Numbers = [*READERS],  # noqa: B006 (typer copies it)
    gaps: Floats = [*GAPS_MS],  # noqa: B006
    patterns: Texts = [*harness.PATTERNS],  # noqa: B006
    policies: Texts = [*POLICIES],  # noqa: B006
    rates: Annotated[bool, typer.Option(help="also back to back, without a gap")] = True,
    sleep: Annotated[bool, typer.Option(help="the source sleeps through the gaps")] = False,
    seconds: Annotated[float, typer.Option(help="of each policy in a case")] = 6.0,
    turns: Annotated[int, typer.Option(help="turns of each policy in a case", min=1)] = 5,
    idle_seconds: Annotated[float, typer.Option(help="how long 8 readers are idle")] = 60.0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Measures and prints one table a case; writes JSON if asked to."""
    console = Console()
    machine = harness.describe_machine()
    console.print(machine)
    rows: list[Row] = []
    for count in readers:
        cases = [
            harness.Case(PAYLOAD, gap, sleep, _messages(gap, seconds, turns), pattern)
            for gap in gaps
            for pattern in patterns
        ]
        if rates:
            cases.append(harness.Case(PAYLOAD, 0.0, sleep, 40_000 // count * turns))
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{count} readers", total=len(cases))
            for case, times in harness.run(policies, cases, count, turns):
                found = [_row(case, count, name, times[name]) for name in policies]
                rows += found
                console.print(_table(found))
                progress.advance(task)
    idle: list[float] = []
    if idle_seconds:
        idle = harness.idle_cpu(8, idle_seconds, shmcast.WaitPolicy.adaptive())
        console.print(
            f"8 idle readers for {idle_seconds:g} s: at most {max(idle):.2%} of a core each"
        )
    if output:
        result = {"machine": machine, "turns": turns, "idle_cpu": idle, "rows": rows}
        harness.write(output, result, console)


if __name__ == "__main__":
    typer.run(main)
