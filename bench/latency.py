"""One-way latency and message rate of shmcast and its peers, side by side in one run.

    python bench/latency.py                        # everything, about a quarter of an hour
    python bench/latency.py --quick                # the cases of the README's table
    python bench/latency.py --readers 1 --gaps 0.3 --payloads "49 B"

Latency is from the call on the source to the return of the last reader's call. Each message is
preceded by a gap in which the source computes (or sleeps, --sleep), so that nothing queues up.
The transports take turns, several each, so that a noisy minute hits all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import harness
import readme_table
import shmcast
import transports

GAPS_MS = (0.3, 1.0, 10.0)
READERS = (1, 4, 8)

MESSAGES = {"49 B": 500, "0.5 KB": 500, "16 KB": 500, "1 MiB": 100, "16 MiB": 25}
BACK_TO_BACK = {"49 B": 5000, "0.5 KB": 2000, "16 KB": 1000, "1 MiB": 100, "16 MiB": 25}


def _messages(payload: str, gap_ms: float, scale: float) -> int:
    """How many messages of a transport a case takes: a few seconds of the slowest one."""
    base = BACK_TO_BACK[payload] if gap_ms == 0 else MESSAGES[payload]
    if gap_ms >= 10:
        base = min(base, 200)
    return max(10, int(base * scale))


def _table(case: harness.Case, readers: int, rows: list[dict[str, Any]]) -> Table:
    what = f"{case.payload}, {readers} reader{'s' if readers > 1 else ''}"
    gloo = next((row for row in rows if row["transport"] == transports.Gloo.name), None)
    if case.gap_ms == 0:
        table = Table("transport", title=f"{what}, back to back")
        for heading in ("messages/s", "this / gloo"):
            table.add_column(heading, justify="right")
        for row in rows:
            ratio = f"{row['rate_per_s'] / gloo['rate_per_s']:.1f}" if gloo else ""
            table.add_row(row["transport"], f"{row['rate_per_s']:,.0f}", ratio)
        return table
    title = f"{what}, gap {case.gap_ms:g} ms, source {rows[0]['source']}"
    table = Table("transport", title=title)
    for heading in ("p50 µs", "p99 µs", "max µs", "send p50 µs", "gloo / this"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (row[key] for key in ("p50_us", "p99_us", "max_us", "send_p50_us"))
        ratio = f"{gloo['p50_us'] / row['p50_us']:.1f}" if gloo else ""
        table.add_row(row["transport"], *(f"{figure:,.1f}" for figure in figures), ratio)
    return table


Floats = Annotated[list[float], typer.Option(help="ms, repeatable")]
Names = Annotated[list[str], typer.Option("--transports", help="repeatable")]
Texts = Annotated[list[str], typer.Option(help="repeatable")]
Numbers = Annotated[list[int], typer.Option(help="repeatable")]


def main(
    payloads: Texts = [*harness.PAYLOADS],  # noqa: B006 (typer copies it)
    readers: Numbers = [*READERS],  # noqa: B006
    gaps: Floats = [*GAPS_MS],  # noqa: B006
    names: Names = [*transports.NAMES],  # noqa: B006
    rates: Annotated[bool, typer.Option(help="also back to back, without a gap")] = True,
    sleep: Annotated[bool, typer.Option(help="the source sleeps through the gaps")] = False,
    quick: Annotated[bool, typer.Option(help="only the cases of the README's table")] = False,
    turns: Annotated[int, typer.Option(help="turns of each transport in a case", min=1)] = 5,
    idle_seconds: Annotated[float, typer.Option(help="how long 8 readers are idle")] = 10.0,
    scale: Annotated[float, typer.Option(help="factor on the number of messages")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Measures and prints one table a case; writes JSON if asked to."""
    console = Console()
    machine = harness.describe_machine()
    console.print(machine)
    memcpy = {name: harness.memcpy_us(harness.payload(name).nbytes) for name in ("1 MiB", "16 MiB")}
    rows: list[dict[str, Any]] = []
    cadences = [*gaps, *([0.0] if rates else [])]
    for count in readers:
        cases = [
            harness.Case(payload, gap, sleep, _messages(payload, gap, scale) // turns * turns)
            for payload in payloads
            for gap in cadences
            if not quick or (payload, count, gap) in readme_table.CASES
        ]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{count} readers", total=len(cases))
            for case, times in harness.run(names, cases, count, turns):
                found = [harness.row(case, count, name, times[name]) for name in names]
                rows += found
                console.print(_table(case, count, found))
                progress.advance(task)
    for name, microseconds in memcpy.items():
        console.print(f"one memcpy of {name}: {microseconds:,.0f} µs")
    idle = harness.idle_cpu(8, idle_seconds, shmcast.WaitPolicy.adaptive())
    console.print(f"8 idle readers for {idle_seconds:g} s: at most {max(idle):.2%} of a core each")
    if output:
        result = {
            "machine": machine,
            "turns": turns,
            "memcpy_us": memcpy,
            "idle_cpu": idle,
            "rows": rows,
        }
        harness.write(output, result, console)


if __name__ == "__main__":
    typer.run(main)
