"""The tables and pictures that README.md and docs/ show, and how they get there.

A document has a place for each, two lines of its own with what is generated between them:

    <!-- bench:NAME -->
    <!-- /bench -->
"""

from __future__ import annotations

import functools
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.report import plots, tables
from bench.report.results import (
    OURS,
    ByTransport,
    Results,
    Row,
    Suite,
    by_case,
    family,
    fastest,
    representative,
)
from bench.run.case import Case

SUMMARY = (
    ("peers", Case("49 B", 1, 0.3)),
    ("peers", Case("49 B", 1, 1.0)),
    ("peers", Case("49 B", 1, 10.0)),
    ("peers", Case("49 B", 8, 1.0)),
    ("steps", Case("decode 64", 1, 10.0)),
    ("peers", Case("16 MiB", 1, 1.0)),
    ("peers", Case("49 B", 1, 0.0)),
)
"""The lines of the README's first table: suite and case."""

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
"""Its columns: transports, or families of which the fastest is shown."""

CODECS = (OURS, "shmcast, Structs pickled", "shmcast msgspec")
WAITING = {"readers": (1,), "gaps": (1.0, 10.0), "patterns": ("steady", "jitter")}
LARGE = {
    ("1 MiB array", 1),
    ("16 MiB array", 1),
    ("64 MiB array", 1),
    ("16 MiB array", 8),
    ("256 MiB array", 4),
}
TENSORS = (
    "metadata only",
    "1 x 64 KiB tensors, flat",
    "8 x 64 KiB tensors, flat",
    "8 x 4 MiB tensors, nested",
    "64 x 1 KiB tensors, flat",
)
ONE_BY_ONE = "tensors one by one"
GLOO = "gloo between hosts"

_BEGIN = re.compile(r"<!-- bench:(\S+) -->")
_END = "<!-- /bench -->"

Block = Callable[[], str]


def fill(text: str, blocks: Mapping[str, Block]) -> str:
    """The document with what lies in its places generated anew, all else as it is.

    Raises:
        ValueError: a place is unknown, not closed, or closed without having begun; says where.
    """
    lines, place = [], ""
    for number, line in enumerate(text.split("\n"), 1):
        if begin := _BEGIN.fullmatch(line):
            name = begin[1]
            if place:
                raise ValueError(f"line {number}: {line} inside of {place}, which is not closed")
            if name not in blocks:
                raise ValueError(f"line {number}: {line} is none of {', '.join(blocks)}")
            place = f"{line} of line {number}"
            lines += [line, "", blocks[name](), ""]
        elif line == _END:
            if not place:
                raise ValueError(f"line {number}: {line} closes nothing")
            place = ""
            lines.append(line)
        elif not place:
            lines.append(line)
    if place:
        raise ValueError(f"{place} is not closed: no {_END} follows")
    return "\n".join(lines)


def blocks(results: Results, document: Path) -> Mapping[str, Block]:
    """All that a document may have, by name; each raises LookupError if its suite is not there."""
    found: dict[str, Block] = {
        name: functools.partial(block, results) for name, block in _TABLES.items()
    }
    folder = os.path.relpath(results.folder, document.parent)
    pictures: dict[str, Block] = {
        f"plot-{picture.name}": functools.partial(_link, results, picture, folder)
        for picture in plots.PICTURES
    }
    return found | pictures


def _link(results: Results, picture: plots.Picture, folder: str) -> str:
    """The picture, with a link to the one that can be enlarged."""
    results[picture.suite]
    path = f"{folder}/{picture.name}"
    return f"[![{picture.title}]({path}.png)]({path}.svg)"


def summary(results: Results) -> str:
    """The README's first table: the cases that matter, the peers that one would take instead."""
    lines: list[tuple[Case, dict[str, str]]] = []
    for suite, case in SUMMARY:
        own = _own(results[suite], case)
        shown = {name: row for name in COLUMNS if (row := representative(own, name))}
        best = fastest(shown.values())
        cells = {name: _summary_cell(name, row, own, row is best) for name, row in shown.items()}
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
    return f"{table}\n\n{_wrapped(note)}"


def _own(suite: Suite, case: Case) -> ByTransport:
    cases = by_case(suite.rows)
    if case not in cases:
        raise LookupError(
            f"suite {suite.name!r} has no case {case} (it has: {list(map(str, cases))})"
        )
    return cases[case]


def _summary_cell(column: str, row: Row, own: ByTransport, bold: bool) -> str:
    figures = tables.latency(row, own)
    if bold:
        figures = f"**{figures}**"
    variants = [name for name in own if family(name) == column and "," not in name]
    variant = row["transport"].removeprefix(column) if len(variants) > 1 else ""
    return f"{figures}{variant}"


def msgspec(results: Results) -> str:
    """What engines send as pickles, of dataclasses and of Structs, and as msgspec encodes it."""
    suite = results["steps"]
    rows = [
        row for own in by_case(suite.rows).values() if CODECS[-1] in own for row in own.values()
    ]
    table = tables.compare(rows, tables.times_less_than(OURS), CODECS, bold=False)
    return f"{table}\n\n{_note(suite, f'and by how much less than {OURS}, which pickles')}"


def waiting(results: Results) -> str:
    """The wait policies at the cadences of `WAITING`: latency and CPU time of a reader."""
    chosen = [
        row
        for row in results["waiting"].rows
        if row["readers"] in WAITING["readers"]
        and row["gap_ms"] in WAITING["gaps"]
        and row["pattern"] in WAITING["patterns"]
    ]
    return _waiting(results["waiting"], chosen)


def waiting_all(results: Results) -> str:
    """The same for all cadences."""
    return _waiting(results["waiting"], results["waiting"].rows)


def _waiting(suite: Suite, rows: list[Row]) -> str:
    table = tables.compare(rows, tables.latency_and_cpu, bold=False)
    return f"{table}\n\n{_note(suite, 'and the CPU time of a reader over wall time')}"


def large(results: Results) -> str:
    """Arrays, those of `LARGE`; loans to one reader; and what reading costs."""
    rows = results["large"].rows
    loans = [row for row in rows if "loan" in row["transport"] and row["readers"] == 1]
    ways = [
        row
        for row in rows
        if "loan" not in row["transport"] and (row["workload"], row["readers"]) in LARGE
    ]
    reads = [row for row in rows if "read_p50_us" in row and row["readers"] == 1]
    found = [tables.compare(part, bold=False) for part in (ways, loans) if part]
    found.append(_note(results["large"]))
    if reads:
        found.append("What it takes a reader to sum it, p50 in µs:")
        found.append(tables.compare(reads, tables.reading_time, bold=False))
    return "\n\n".join(found)


def tensors(results: Results) -> str:
    """Dicts of tensors, those of `TENSORS`, and by how much faster than tensor by tensor."""
    chosen = [row for row in results["tensors"].rows if row["workload"] in TENSORS]
    return _tensors(results["tensors"], chosen)


def tensors_all(results: Results) -> str:
    """The same for all dicts."""
    return _tensors(results["tensors"], results["tensors"].rows)


def _tensors(suite: Suite, rows: list[Row]) -> str:
    table = tables.compare(rows, tables.times_less_than(ONE_BY_ONE), bold=False)
    return f"{table}\n\n{_note(suite, f'and by how much less than {ONE_BY_ONE}')}"


def nodes(results: Results) -> str:
    """Two hosts: latency, by how much less than gloo's, and what crossed the link."""
    suite = results["nodes"]
    rows = [own for own in by_case(suite.rows).values() if GLOO in own]
    chosen = [row for own in rows for row in own.values()]
    crossed = [row for row in chosen if row.get("extra", {}).get("bytes_in")]
    parts = [
        tables.compare(chosen, tables.times_less_than(GLOO), bold=False),
        _note(suite, f"and by how much less than {GLOO}"),
    ]
    if crossed:
        parts.append("Bytes that crossed the link, headers included, over one copy of the message:")
        parts.append(tables.compare(crossed, tables.copies, bold=False))
    return "\n\n".join(parts)


def busy_leader(results: Results) -> str:
    """Latency to the neighbour of a leader that computes, by who relays."""
    suite = results["nodes"]
    rows = [row for row in suite.rows if row.get("busy")]
    table = tables.compare(rows, tables.three_percentiles, bold=False)
    return f"{table}\n\np50 / p90 / p99 in µs. {tables.where(suite.machine)}."


def job(results: Results) -> str:
    """A whole job: tokens per second, and what of its time is broadcast."""
    suite = results["job"]
    note = (
        "Tokens per second with the 95 % interval; p50 / p99 of the time to the first token and of "
        "a broadcast; the share of the time that is spent in broadcasts. "
        f"{tables.where(suite.machine)}."
    )
    return f"{tables.job(suite.job)}\n\n{_wrapped(note)}"


def _note(suite: Suite, also: str = "") -> str:
    figures = f"p50 / p99 in µs{', ' + also if also else ''}"
    return _wrapped(f"One way, to the last reader: {figures}. {tables.where(suite.machine)}.")


def _wrapped(note: str) -> str:
    return textwrap.fill(note, 110, break_long_words=False, break_on_hyphens=False)


_TABLES: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    "msgspec": msgspec,
    "waiting": waiting,
    "waiting-all": waiting_all,
    "large": large,
    "tensors": tensors,
    "tensors-all": tensors_all,
    "nodes": nodes,
    "busy-leader": busy_leader,
    "job": job,
}
