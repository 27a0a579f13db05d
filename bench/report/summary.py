"""The cases that matter most, as README.md's readers and a terminal see them."""

from __future__ import annotations

from rich.table import Table

from bench import terminal
from bench.report import tables
from bench.report.results import (
    OURS,
    ByTransport,
    Results,
    Row,
    SuiteResults,
    by_case,
    family,
    fastest,
    representative,
    time_of,
)
from bench.run.case import Case

CASES = (
    ("peers", Case("49 B", 1, 0.3)),
    ("peers", Case("49 B", 1, 1.0)),
    ("peers", Case("49 B", 1, 10.0)),
    ("peers", Case("49 B", 8, 1.0)),
    ("steps", Case("decode 64", 1, 10.0)),
    ("peers", Case("16 MiB", 1, 1.0)),
    ("peers", Case("49 B", 1, 0.0)),
)
"""The lines: suite and case."""

COLUMNS = (
    OURS,
    "shmcast, warmed",
    "shmcast spin",
    "kickmsg",
    "MPI",
    "iceoryx2",
    "SGLang",
    "vLLM",
    "pipe",
    "pyzmq",
    "gloo",
)
"""The columns: transports, or families of which the fastest is shown."""


def markdown(results: Results) -> tuple[str, str]:
    """Return the table of the cases by column, and the note that belongs below it."""
    lines: list[tuple[Case, dict[str, str]]] = []
    for suite, case in CASES:
        own = _own(results[suite], case)
        shown = {name: row for name in COLUMNS if (row := representative(own, name))}
        best = fastest(shown.values())
        cells = {name: _cell(name, row, own, row is best) for name, row in shown.items()}
        lines.append((case, cells))
    columns = [name for name in COLUMNS if any(name in cells for _, cells in lines)]
    table = tables.markdown(
        ["message, readers, gap", *columns],
        [[str(case), *(cells.get(name, "") for name in columns)] for case, cells in lines],
    )
    peers = results["peers"]
    absent = [name for name in peers.skipped if family(name) in {*COLUMNS} - {*columns}]
    note = (
        "µs, p50 / p99, one way: from the call on the source to the return on the last reader; the "
        "source computes in the gap. Of a peer's variants the fastest of each line is shown. "
        f"{tables.where(peers.machine)}."
    )
    if absent:
        reasons = "; ".join(f"{name} ({peers.skipped[name]})" for name in absent)
        note += f" Did not run: {reasons}."
    return table, note


def _own(suite: SuiteResults, case: Case) -> ByTransport:
    cases = by_case(suite.rows)
    if case not in cases:
        raise LookupError(
            f"suite {suite.name!r} has no case {case} (it has: {list(map(str, cases))})"
        )
    return cases[case]


def _cell(column: str, row: Row, own: ByTransport, bold: bool) -> str:
    figures = tables.latency(row, own)
    if bold:
        figures = f"**{figures}**"
    variants = [name for name in own if family(name) == column and "," not in name]
    variant = row["transport"].removeprefix(column) if len(variants) > 1 else ""
    return f"{figures}{variant}"


_TITLE = "p50 one way, and how many times shmcast's the fastest peer takes"


def table(results: Results) -> Table:
    """Return, for a terminal, shmcast beside its fastest peer in those cases that were measured."""
    made = terminal.table("message, readers, gap", OURS, "fastest peer", "times", title=_TITLE)
    for suite, case in CASES:
        if suite not in results.suites:
            continue
        own = by_case(results[suite].rows).get(case, {})
        peers = [
            row for name in COLUMNS if family(name) != OURS if (row := representative(own, name))
        ]
        ours, peer = own.get(OURS), fastest(peers)
        if ours and peer:
            factor = time_of(peer).value / time_of(ours).value
            against = f"{peer['transport']} {tables.median(peer)}"
            made.add_row(str(case), tables.median(ours), against, tables.ratio(factor))
    return made
