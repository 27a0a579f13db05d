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

from bench import terminal
from bench.report import report
from bench.report.tables import short
from bench.run import job, machine, smoke, versions
from bench.run.case import Case
from bench.run.harness import TURNS, Harness, Row
from bench.run.suites import SUITES
from bench.transports import registry

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
    """Print the suites, the transports, and how they are set up."""
    console = Console()
    suites = [
        (name, f"{suite.what} ({len(suite.cases(1.0))} cases): {'; '.join(suite.transports)}")
        for name, suite in SUITES.items()
    ]
    suites.append((job.SUITE, f"{job.WHAT}: {'; '.join(job.TRANSPORTS)}"))
    console.print(terminal.definitions(suites, "Suites"), "", highlight=False)
    transports = [
        (peer.name, f"{versions.of(peer)}: {peer.settings}") for peer in registry.peers().values()
    ]
    console.print(terminal.definitions(transports, "Transports"), highlight=False)


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
    """Measure suites, print a table for each case, and write a file of results for each suite.

    --only, --workloads, --readers and --gaps choose transports and cases of a suite by name and
    number. Without --folder the results go to bench/results/<date>-<machine>, with a report.
    """
    console = Console()
    here = machine.describe()
    facts = [(name.replace("_", " "), str(fact)) for name, fact in here.items()]
    console.print(terminal.definitions(facts, "Machine"), highlight=False)
    if folder is None:
        folder = report.RESULTS / f"{time.strftime('%Y-%m-%d')}-{here['name']}"
    for name in suites or [*SUITES, job.SUITE]:
        if name == job.SUITE:
            names = [transport for transport in job.TRANSPORTS if not only or transport in only]
            measure = functools.partial(job.run, console, names, turns)
            _write(console, folder, _measured(console, name, names, measure))
            continue
        if name not in SUITES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(SUITES)}, {job.SUITE}")
        names = only or [*SUITES[name].transports]
        cases = [
            case
            for case in SUITES[name].cases(scale)
            if (not workloads or case.workload in workloads)
            and (not readers or case.readers in readers)
            and (not gaps or case.gap_ms in gaps)
        ]
        measure = functools.partial(run_cases, console, name, names, cases, turns)
        _write(console, folder, _measured(console, name, names, measure))
    console.print(f"wrote {report.write(folder)}", soft_wrap=True, highlight=False)


def _measured(
    console: Console, suite: str, names: list[str], measure: Callable[[], Measured]
) -> dict[str, Any]:
    """Run a suite by `measure`, and return what is to be written of it."""
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
    """Run cases and print a table of each; return the rows, and why some are missing."""
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

        with Harness([*map(registry.peer, names)], turns, show) as harness:
            for case, found in harness.run(cases):
                rows += found
                if found:
                    console.print(table(case, found), "")
                progress.advance(task)
    return rows, harness.skipped


def table(case: Case, rows: list[Row]) -> Table:
    """Return the rows of a case, for a terminal; report.md has all figures."""
    figures = ("messages/s",) if case.is_rate else ("p50 µs", "p99 µs")
    made = terminal.table("transport", *figures, "95 %", "reader's\nCPU", title=str(case))
    for row in rows:
        if case.is_rate:
            values = [f"{row['rate_per_s']:,.0f}"]
            low, high = (f"{row[f'rate_{end}_per_s']:,.0f}" for end in ("low", "high"))
        else:
            values = [short(row["p50_us"]), short(row["p99_us"])]
            low, high = (short(row[f"p50_{end}_us"]) for end in ("low", "high"))
        cpu = f"{row['reader_cpu']:.1%}"
        made.add_row(row["transport"], *values, f"{low} to {high}", cpu)
    return made


def _write(console: Console, folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['suite']}.json"
    path.write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n")
    console.print(f"wrote {path}", soft_wrap=True, highlight=False)
