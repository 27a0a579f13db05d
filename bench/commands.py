"""The commands of `python -m bench`."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import transports
from bench.report import report
from bench.run import job, machine, smoke, versions
from bench.run.case import Case
from bench.run.harness import TURNS, Harness, Row
from bench.run.suites import PLANS

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
app.command("report")(report.main)
app.command("smoke")(smoke.main)

Measured = tuple[list[Row], dict[str, str]]
"""A suite's rows, and why transports have none."""

Names = Annotated[list[str] | None, typer.Option(help="repeatable")]
Numbers = Annotated[list[int] | None, typer.Option(help="repeatable")]
Gaps = Annotated[list[float] | None, typer.Option(help="ms, repeatable; 0: back to back")]


@app.command("list")
def list_all() -> None:
    """Names the suites, the transports and how they are set up."""
    console = Console()
    suites = Table("suite", "what", "cases", "transports")
    for name, plan in PLANS.items():
        suites.add_row(name, plan.what, str(len(plan.cases(1.0))), ", ".join(plan.transports))
    suites.add_row(job.SUITE, job.WHAT, str(len(job.RANKS)), ", ".join(job.TRANSPORTS))
    console.print(suites)
    ways = Table("transport", "version", "settings")
    for peer in transports.peers().values():
        ways.add_row(peer.name, versions.of(peer), peer.settings)
    console.print(ways)


@app.command("run")
def run(
    suites: Annotated[list[str] | None, typer.Argument(help="all, if none is named")] = None,
    only: Names = None,
    workloads: Names = None,
    readers: Numbers = None,
    gaps: Gaps = None,
    turns: Annotated[int, typer.Option(help="of each transport in a case", min=1)] = TURNS,
    scale: Annotated[float, typer.Option(help="factor on how long a turn may take")] = 1.0,
    folder: Annotated[Path | None, typer.Option(help="for the results")] = None,
) -> None:
    """Measures suites, prints a table a case, and writes a file of results a suite.

    --only, --workloads, --readers and --gaps choose transports and cases of a suite by name and
    number. Without --folder the results go to bench/results/<date>-<machine>, with a report.
    """
    console = Console()
    here = machine.describe()
    console.print(here)
    if folder is None:
        folder = report.RESULTS / f"{time.strftime('%Y-%m-%d')}-{here['name']}"
    for suite in suites or [*PLANS, job.SUITE]:
        if suite == job.SUITE:
            names = [name for name in job.TRANSPORTS if not only or name in only]
            measure = functools.partial(job.run, console, names, turns)
            _write(folder, _measured(console, suite, names, measure))
            continue
        if suite not in PLANS:
            raise typer.BadParameter(f"{suite!r} is none of {', '.join(PLANS)}, {job.SUITE}")
        plan = PLANS[suite]
        names = only or [*plan.transports]
        cases = [
            case
            for case in plan.cases(scale)
            if (not workloads or case.workload in workloads)
            and (not readers or case.readers in readers)
            and (not gaps or case.gap_ms in gaps)
        ]
        measure = functools.partial(run_cases, console, suite, names, cases, turns)
        _write(folder, _measured(console, suite, names, measure))
    report.write(folder)
    console.print(f"{folder / report.REPORT} has it all")


def _measured(
    console: Console, suite: str, names: list[str], measure: Callable[[], Measured]
) -> dict[str, Any]:
    """What is to be written of a suite, which `measure` runs."""
    here, steal = machine.describe(), machine.Steal()
    rows, skipped = measure()
    for what, why in skipped.items():
        console.print(f"skipped: {what}: {why}", style="yellow", highlight=False)
    return {
        "suite": suite,
        "machine": here | {"steal": steal.share()},
        "peers": versions.described(names),
        "skipped": skipped,
        "rows": rows,
    }


def run_cases(
    console: Console, suite: str, names: list[str], cases: list[Case], turns: int
) -> Measured:
    """Runs cases and prints a table of each; returns the rows, and why some are missing."""
    rows: list[Row] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(suite, total=len(cases))

        def show(what: str) -> None:
            progress.update(task, description=what)

        with Harness([*map(transports.peer, names)], turns, show) as harness:
            for case, found in harness.run(cases):
                rows += found
                if found:
                    console.print(_table(case, found))
                progress.advance(task)
    return rows, harness.skipped


def _table(case: Case, rows: list[Row]) -> Table:
    table = Table("transport", title=str(case))
    headings = ("messages/s",) if case.is_rate else ("p50 µs", "95 %", "p99 µs", "send p50 µs")
    for heading in (*headings, "source CPU µs", "reader CPU µs", "MiB", "messages"):
        table.add_column(heading, justify="right")
    for row in rows:
        if case.is_rate:
            figures = [f"{row['rate_per_s']:,.0f}"]
        else:
            figures = [
                f"{row['p50_us']:,.1f}",
                f"{row['p50_low_us']:,.1f} - {row['p50_high_us']:,.1f}",
                f"{row['p99_us']:,.1f}",
                f"{row['send_p50_us']:,.1f}",
            ]
        figures += [f"{row[key]:,.1f}" for key in ("source_cpu_us", "reader_cpu_us", "memory_mib")]
        table.add_row(row["transport"], *figures, str(row["messages"]))
    return table


def _write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['suite']}.json"
    path.write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n")
    Console().print(f"written to {path}")
