"""The commands of `python -m bench`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import terminal
from bench.engines import runs as engines
from bench.engines.process import NotThere
from bench.report import codec_tables, report
from bench.report.tables import cadence, ratio, short
from bench.run import (
    codecs,
    collectives,
    deaths,
    job,
    machine,
    replies,
    result_files,
    smoke,
    versions,
)
from bench.run.case import Case
from bench.run.harness import TURNS, Harness, Row
from bench.run.selection import Chosen, NoSuchName, choose
from bench.run.suites import SUITES
from bench.transports import exchanges, registry

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
app.command("report")(report.main)
app.command("smoke")(smoke.main)

Measured = tuple[list[Row], dict[str, str]]
"""A suite's rows, and why transports have none."""

Names = Annotated[list[str] | None, typer.Option(help="repeatable")]
Numbers = Annotated[list[int] | None, typer.Option(help="repeatable")]
Gaps = Annotated[list[float] | None, typer.Option(help="ms, repeatable; 0: back to back")]
Scale = Annotated[float, typer.Option(help="factor on how long a turn may take")]
Folder = Annotated[Path | None, typer.Option(help="for the results")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace results that the folder has")]


@app.command("list")
def list_all() -> None:
    """Print the suites, the transports, and how they are set up."""
    console = terminal.console()
    suites = [
        (name, f"{suite.what} ({len(suite.cases(1.0))} cases): {'; '.join(suite.transports)}")
        for name, suite in SUITES.items()
    ]
    suites.append((job.SUITE, f"{job.WHAT}: {'; '.join(job.TRANSPORTS)}"))
    suites.append((f"bench {codecs.SUITE}", f"{codecs.WHAT}: {'; '.join(codecs.CODECS)}"))
    suites.append((f"bench {deaths.SUITE}", deaths.WHAT))
    suites.append((f"bench {collectives.SUITE}", collectives.WHAT))
    suites.append((f"bench {replies.SUITE}", replies.WHAT))
    suites.append((f"bench {engines.SUITE}", engines.WHAT))
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
    scale: Scale = 1.0,
    folder: Folder = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure suites, print a table for each case, and write a file of results for each suite.

    --only, --workloads, --readers and --gaps choose transports and cases of a suite by name and
    number. Without --folder the results go to bench/results/<date>-<machine>, with a report. Each
    case is written when it is done. Results that are there are kept unless --overwrite is given.
    """
    try:
        chosen = choose(suites or [], only or [], workloads or [], readers or [], gaps or [], scale)
    except NoSuchName as error:
        raise typer.BadParameter(str(error)) from None
    console = terminal.console()
    here = machine.describe()
    if folder is None:
        folder = _default_folder()
    result_files.check_free(folder, [one.suite for one in chosen], overwrite)
    facts = [(name.replace("_", " "), str(fact)) for name, fact in here.items()]
    console.print(terminal.definitions(facts, "Machine"), highlight=False)
    for one in chosen:
        _measure(console, folder, one, turns)
    _write_report(console, folder)


@app.command("codec")
def codec(
    only: Names = None,
    workloads: Names = None,
    evicted: Annotated[
        list[int] | None, typer.Option(help="MiB of caches, repeatable; 0: warm")
    ] = None,
    turns: Annotated[int, typer.Option(help="of each codec in a case", min=1)] = codecs.TURNS,
    scale: Scale = 1.0,
    folder: Folder = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure codecs: encode and decode what engines and users send, caches warm and evicted.

    Everything runs in this process. Results go where those of `run` go. A * marks codecs from which
    messages arrive with other types than they had: dicts for dataclasses, say.
    """
    names = only or [*codecs.CODECS]
    try:
        for name in names:
            if name not in codecs.CODECS:
                raise ValueError(f"codec {name!r} is none of {'; '.join(codecs.CODECS)}")
        for mebibytes in evicted or []:
            if mebibytes not in codecs.EVICTED_MIB:
                raise ValueError(f"{mebibytes} MiB is none of {codecs.EVICTED_MIB}")
        cases = codecs.cases(workloads or (), evicted or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console = terminal.console()
    folder = folder or _default_folder()
    result_files.check_free(folder, [codecs.SUITE], overwrite)
    peers = {
        name: {"settings": codecs.CODECS[name].settings, "version": codecs.CODECS[name].version}
        for name in names
    }
    write = result_files.writer(folder, codecs.SUITE, peers)
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for case in cases:
        found, why = codecs.measure(case, names, turns, scale)
        rows += found
        skipped |= why
        console.print(codec_table(case, found), "")
        write(rows, skipped)
    for what, reason in skipped.items():
        console.print(f"skipped: {what}: {reason}", style="yellow", highlight=False)
    _write_report(console, folder)


@app.command("deaths")
def measure_deaths(
    kills: Annotated[int, typer.Option(help="at each cadence", min=1)] = deaths.KILLS,
    gaps: Gaps = None,
    folder: Folder = None,
    overwrite: Overwrite = False,
) -> None:
    """Kill one of two readers, and of two members, again and again: when are the others told?

    --gaps chooses the cadences; -1: no messages.
    """
    console = terminal.console()
    folder = folder or _default_folder()
    result_files.check_free(folder, [deaths.SUITE], overwrite)
    write = result_files.writer(folder, deaths.SUITE, {})
    rows = deaths.run(console, gaps or deaths.GAPS_MS, kills, lambda rows: write(rows, {}))
    console.print(deaths_table(rows))
    _write_report(console, folder)


@app.command("collectives")
def measure_collectives(
    ranks: Annotated[int, typer.Option(help="of the group", min=2)] = collectives.RANKS,
    calls: Annotated[int, typer.Option(help="in a turn", min=2)] = collectives.CALLS,
    turns: Annotated[int, typer.Option(help="of each", min=1)] = collectives.TURNS,
) -> None:
    """Measure barrier, gather and all-gather beside gloo's, and print a table. Writes nothing."""
    console = terminal.console()
    console.print(collectives_table(collectives.run(console, ranks, calls, turns)))


@app.command("replies")
def measure_replies(
    members: Numbers = None,
    turns: Annotated[int, typer.Option(help="of each", min=1)] = replies.TURNS,
    scale: Scale = 1.0,
    folder: Folder = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure round trips of a hub and its members beside others', `recv_any`, and `await`."""
    console = terminal.console()
    folder = folder or _default_folder()
    result_files.check_free(folder, [replies.SUITE], overwrite)
    write = result_files.writer(folder, replies.SUITE, {})
    skipped = exchanges.missing()
    counts = members or replies.MEMBERS
    replies.run(console, counts, turns, lambda rows: write(rows, skipped), scale)
    _write_report(console, folder)


@app.command("engines")
def measure_engines(
    ranks: Annotated[
        list[int] | None, typer.Option(help="of tensor parallelism, repeatable")
    ] = None,
    rounds: Annotated[int, typer.Option(help="of each engine", min=1)] = engines.ROUNDS,
    cases: Annotated[
        list[str] | None, typer.Option(help=f"repeatable: {', '.join(engines.CASES)}")
    ] = None,
    folder: Folder = None,
    overwrite: Overwrite = False,
) -> None:
    """Let real engines work with their own queues and with shmcast's, in turns.

    `make engines` makes the environment that they run in, and calls this. With --overwrite, what
    the folder has of other ranks and cases than are measured stays, if it is of this machine.
    """
    console = terminal.console()
    folder = folder or _default_folder()
    for case in cases or []:
        if case not in engines.CASES:
            raise typer.BadParameter(f"case {case!r} is none of {', '.join(engines.CASES)}")
    result_files.check_free(folder, [engines.SUITE], overwrite)
    try:
        peers = engines.peers()
        kept = result_files.kept(folder, engines.SUITE, peers)
        write = result_files.writer(folder, engines.SUITE, peers)
        engines.run(
            console,
            ranks or engines.RANKS,
            rounds,
            lambda rows: write(engines.merged(kept, rows), {}),
            cases or engines.CASES,
        )
    except NotThere as error:
        raise typer.BadParameter(str(error)) from None
    _write_report(console, folder)


def codec_table(case: codecs.CodecCase, rows: list[Row]) -> Table:
    """Return the rows of a case of codecs, for a terminal."""
    figures = ("encode\nµs", "decode\nµs", "both\nµs", "95 %", "times as fast\nas pickle", "bytes")
    made = terminal.table("codec", *figures, title=str(case))
    baseline = next((row["both_p50_us"] for row in rows if row["codec"] == codecs.BASELINE), None)
    for row in rows:
        both = row["both_p50_us"]
        made.add_row(
            row["codec"] + ("" if row["is_same"] else codec_tables.OTHER_TYPES),
            short(row["encode_p50_us"]),
            short(row["decode_p50_us"]),
            short(both),
            f"±{(row['both_p50_high_us'] - row['both_p50_low_us']) / 2 / both:.0%}",
            ratio(baseline / both) if baseline else "",
            f"{row['bytes']:,}",
        )
    return made


def deaths_table(rows: list[Row]) -> Table:
    """Return the rows for a terminal."""
    made = terminal.table("messages, who is told", "kills", "p50 ms", "p99 ms", "worst ms")
    for row in rows:
        figures = (short(row[name]) for name in ("p50_ms", "p99_ms", "max_ms"))
        made.add_row(f"{cadence(row['gap_ms'])}, {row['who']}", str(row["kills"]), *figures)
    return made


def collectives_table(rows: list[Row]) -> Table:
    """Return the rows for a terminal: all transports of an operation in one line."""
    figures = ("shmcast\np50 / p99 µs", "gloo\np50 / p99 µs", "pthread\np50 µs", "gloo/\nours")
    made = terminal.table("operation, arrival", *figures)
    lines: dict[str, dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(f"{row['operation']}, {row['arrival']}", {})[row["transport"]] = row
    for name, by in lines.items():
        ours, gloo, pthread = (
            by[collectives.OURS],
            by[collectives.GLOO],
            by.get(collectives.PTHREAD),
        )
        made.add_row(
            name,
            *(f"{short(row['p50_us'])} / {short(row['p99_us'])}" for row in (ours, gloo)),
            short(pthread["p50_us"]) if pthread else "",
            ratio(gloo["p50_us"] / ours["p50_us"]),
        )
    return made


def _write_report(console: Console, folder: Path) -> None:
    console.print(f"wrote {report.write(folder)}", soft_wrap=True, highlight=False)


def _default_folder() -> Path:
    return report.RESULTS / f"{time.strftime('%Y-%m-%d')}-{machine.describe()['name']}"


def _measure(console: Console, folder: Path, chosen: Chosen, turns: int) -> None:
    """Run a suite, and write what there is of it after each case."""
    write = result_files.writer(folder, chosen.suite, versions.described(chosen.transports))
    if chosen.suite == job.SUITE:
        rows, skipped = job.run(console, chosen.transports, turns, write)
    else:
        rows, skipped = run_cases(
            console, chosen.suite, chosen.transports, chosen.cases, turns, write
        )
    for what, why in skipped.items():
        console.print(f"skipped: {what}: {why}", style="yellow", highlight=False)
    if rows:
        console.print(
            f"wrote {result_files.path_of(folder, chosen.suite)}", soft_wrap=True, highlight=False
        )
    else:
        console.print(
            f"{chosen.suite}: nothing was measured, so nothing is written", style="yellow"
        )


def run_cases(
    console: Console,
    suite: str,
    names: list[str],
    cases: list[Case],
    turns: int,
    write: result_files.Write = lambda _rows, _skipped: None,
) -> Measured:
    """Run cases and print a table of each; return the rows, and why some are missing.

    Args:
        console: where to print.
        suite: its name, for the bar.
        names: of the transports.
        cases: to run.
        turns: of each transport in a case.
        write: called with all rows so far, and with what is skipped, when a case has made some.
    """
    rows: list[Row] = []
    columns = (
        TextColumn("{task.description}", markup=False),
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
                    write(rows, harness.skipped)
                progress.advance(task)
    if rows:
        write(rows, harness.skipped)
    return rows, harness.skipped


def _place(rows: list[Row]) -> str:
    """Return where the CPUs were, for a table's title."""
    return (
        f"\n({row['line']}, {row['line_after_ns']:.0f} ns)" if (row := rows[0]).get("line") else ""
    )


def table(case: Case, rows: list[Row]) -> Table:
    """Return the rows of a case, for a terminal; report.md has all figures."""
    figures = ("messages/s",) if case.is_rate else ("p50 µs", "p99 µs")
    made = terminal.table(
        "transport", *figures, "95 %", "reader's\nCPU", title=str(case) + _place(rows)
    )
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
