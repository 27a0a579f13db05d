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
"""The columns: suite and case."""

TRANSPORTS = (
    OURS,
    "shmcast, warmed",
    "shmcast spin",
    "kickmsg",
    "SubEtha",
    "MPI",
    "iceoryx2",
    "SGLang",
    "vLLM",
    "pipe",
    "pyzmq",
    "gloo",
)
"""The lines: transports, or families of which the fastest is shown."""


def markdown(results: Results) -> tuple[str, str]:
    """Return the table of the transports by case, and the note that belongs below it."""
    cells: dict[str, dict[Case, str]] = {}
    for suite, case in CASES:
        own = _own(results[suite], case)
        shown = {name: row for name in TRANSPORTS if (row := representative(own, name))}
        best = fastest(shown.values())
        for name, row in shown.items():
            cells.setdefault(name, {})[case] = _cell(name, row, own, row is best)
    cases = [case for _, case in CASES]
    table = tables.markdown(
        ["transport", *map(str, cases)],
        [
            [name, *(cells[name].get(case, "") for case in cases)]
            for name in TRANSPORTS
            if name in cells
        ],
    )
    peers = results["peers"]
    absent = [name for name in peers.skipped if family(name) in {*TRANSPORTS} - {*cells}]
    note = (
        "µs, p50 / p99, one way: from the call on the source to the return on the last reader; the "
        "source computes in the gap. Of a peer's variants the fastest of each case is shown. "
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


def _cell(transport: str, row: Row, own: ByTransport, bold: bool) -> str:
    figures = tables.latency(row, own)
    if bold:
        figures = f"**{figures}**"
    variants = [name for name in own if family(name) == transport and "," not in name]
    variant = row["transport"].removeprefix(transport).strip() if len(variants) > 1 else ""
    return f"{figures}<br>{variant}" if variant else figures


_TITLE = "p50 one way, and how many times shmcast's the fastest peer takes"


def table(results: Results) -> Table:
    """Return, for a terminal, shmcast beside its fastest peer in those cases that were measured."""
    made = terminal.table("message, readers, gap", OURS, "fastest peer", "times", title=_TITLE)
    for suite, case in CASES:
        if suite not in results.suites:
            continue
        own = by_case(results[suite].rows).get(case, {})
        peers = [
            row for name in TRANSPORTS if family(name) != OURS if (row := representative(own, name))
        ]
        ours, peer = own.get(OURS), fastest(peers)
        if ours and peer:
            factor = time_of(peer).value / time_of(ours).value
            against = f"{peer['transport']} {tables.median(peer)}"
            made.add_row(str(case), tables.median(ours), against, tables.ratio(factor))
    return made
