"""The tables and pictures that README.md and docs/ show, and how they get there.

A document has a block for each: two lines of their own, with what is generated between them.

    <!-- bench:NAME -->
    <!-- /bench -->
"""

from __future__ import annotations

import functools
import html
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bench.report import codec_tables, engine_tables, plots, reply_tables, tables
from bench.report import summary as cases
from bench.report.plot_style import DARK, LIGHT, WIDTH_PIXELS
from bench.report.results import OURS, Results, Row, SuiteResults, by_case

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
    """Return the document with the content of its blocks generated anew, all else as it is.

    Raises:
        ValueError: a block is unknown, not closed, or closed without a beginning; names the line.
    """
    lines, block = [], ""
    for number, line in enumerate(text.split("\n"), 1):
        if begin := _BEGIN.fullmatch(line):
            name = begin[1]
            if block:
                raise ValueError(f"line {number}: {line} inside of {block}, which is not closed")
            if name not in blocks:
                raise ValueError(f"line {number}: {line} is none of {', '.join(blocks)}")
            block = f"{line} of line {number}"
            lines += [line, "", blocks[name](), ""]
        elif line == _END:
            if not block:
                raise ValueError(f"line {number}: {line} closes nothing")
            block = ""
            lines.append(line)
        elif not block:
            lines.append(line)
    if block:
        raise ValueError(f"{block} is not closed: no {_END} follows")
    return "\n".join(lines)


def blocks(
    results: Results, pictures: Path, folder: Path, elsewhere: Mapping[str, Results]
) -> Mapping[str, Block]:
    """Return what generates each block, by name; each raises LookupError if its suite is missing.

    Args:
        results: what the blocks show.
        pictures: the folder of the pictures.
        folder: the document's own, from which its links start.
        elsewhere: what the blocks `NAME-MACHINE` show, by machine.
    """
    found: dict[str, Block] = {
        name: functools.partial(block, results) for name, block in _TABLES.items()
    }
    for machine, others in elsewhere.items():
        for name, block in _TABLES.items():
            found[f"{name}-{machine}"] = functools.partial(block, others)
    where = os.path.relpath(pictures, folder)
    for picture in plots.PICTURES:
        found[f"plot-{picture.name}"] = functools.partial(_picture, results, picture, where)
    return found


def _picture(results: Results, picture: plots.Picture, where: str) -> str:
    """Return the element that shows a picture as light or as dark as the reader's screen is."""
    alt = html.escape(picture.alt(results), quote=False)
    light, dark = (f"{where}/{picture.file(theme)}" for theme in (LIGHT, DARK))
    return (
        "<picture>\n"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img alt="{alt}" src="{light}" width="{WIDTH_PIXELS}">\n'
        "</picture>"
    )


def summary(results: Results) -> str:
    """Return the cases that matter, with the peers that one would take instead."""
    table, note = cases.markdown(results)
    return _noted(table, note)


def msgspec(results: Results) -> str:
    """Show what engines send: dataclasses and Structs pickled, and Structs encoded by msgspec."""
    suite = results["steps"]
    rows = [
        row for own in by_case(suite.rows).values() if CODECS[-1] in own for row in own.values()
    ]
    table = tables.compare(rows, tables.times_less_than(OURS), CODECS, bold=False)
    return f"{table}\n\n{_note(suite, f'and by how much less than {OURS}, which pickles')}"


def waiting(results: Results) -> str:
    """Show the wait policies at the cadences of `WAITING`: latency and CPU time of a reader."""
    chosen = [
        row
        for row in results["waiting"].rows
        if row["readers"] in WAITING["readers"]
        and row["gap_ms"] in WAITING["gaps"]
        and row["pattern"] in WAITING["patterns"]
    ]
    return _waiting(results["waiting"], chosen)


def waiting_all(results: Results) -> str:
    """Show the wait policies at all cadences."""
    return _waiting(results["waiting"], results["waiting"].rows)


def _waiting(suite: SuiteResults, rows: list[Row]) -> str:
    table = tables.compare(rows, tables.latency_and_cpu, bold=False)
    return f"{table}\n\n{_note(suite, 'and the CPU time of a reader over wall time')}"


def large(results: Results) -> str:
    """Show the arrays of `LARGE`, loans to one reader, and what reading costs."""
    rows = results["large"].rows
    loans = [row for row in rows if "loan" in row["transport"] and row["readers"] == 1]
    copies = [
        row
        for row in rows
        if "loan" not in row["transport"] and (row["workload"], row["readers"]) in LARGE
    ]
    reads = [row for row in rows if "read_p50_us" in row and row["readers"] == 1]
    found = [tables.compare(part, bold=False) for part in (copies, loans) if part]
    found.append(_note(results["large"]))
    if reads:
        found.append("What it takes a reader to sum it, p50 in µs:")
        found.append(tables.compare(reads, tables.reading_time, bold=False))
    return "\n\n".join(found)


def tensors(results: Results) -> str:
    """Show the dicts of `TENSORS`, and how much faster they are than tensor by tensor."""
    chosen = [row for row in results["tensors"].rows if row["workload"] in TENSORS]
    return _tensors(results["tensors"], chosen)


def tensors_all(results: Results) -> str:
    """Show all dicts of tensors."""
    return _tensors(results["tensors"], results["tensors"].rows)


def _tensors(suite: SuiteResults, rows: list[Row]) -> str:
    table = tables.compare(rows, tables.times_less_than(ONE_BY_ONE), bold=False)
    return f"{table}\n\n{_note(suite, f'and by how much less than {ONE_BY_ONE}')}"


def nodes(results: Results) -> str:
    """Show two hosts: latency, how much less it is than gloo's, and what crossed the link."""
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
    """Show the latency to the neighbour of a leader that computes, by who relays."""
    suite = results["nodes"]
    rows = [row for row in suite.rows if row.get("busy")]
    table = tables.compare(rows, tables.three_percentiles, bold=False)
    return f"{table}\n\np50 / p90 / p99 in µs. {tables.where(suite.machine)}."


def job(results: Results) -> str:
    """Show a whole job: tokens per second, and the share of its time spent in broadcasts."""
    suite = results["job"]
    note = (
        "Tokens per second with the 95 % interval; p50 / p99 of the time to the first token and of "
        "a broadcast; the share of the time that is spent in broadcasts."
    )
    return _noted(tables.job(suite.job), f"{note} {tables.where(suite.machine)}.")


def deaths(results: Results) -> str:
    """Show how soon a kill is told."""
    suite = results["deaths"]
    note = (
        "From the kill of one of two readers, or of a hub's two members, to the PeerDied in the "
        "others; where there are no messages, the source's time is that of a call it makes "
        "afterwards. The hub's other member replies so long after each message."
    )
    return _noted(tables.deaths(suite.deaths), f"{note} {tables.where(suite.machine)}.")


def replies(results: Results) -> str:
    """Show round trips over a hub, by hand and as others do it, and `recv_any`."""
    suite = results["replies"]
    rows = [row for row in suite.replies if row["case"] != "awaited"]
    return _all(reply_tables.all_tables(rows), suite)


def awaited(results: Results) -> str:
    """Show what it takes to await."""
    suite = results["replies"]
    rows = [row for row in suite.replies if row["case"] == "awaited"]
    return _all(reply_tables.all_tables(rows), suite)


def engines(results: Results) -> str:
    """Show real engines with their own queues and with shmcast's."""
    suite = results["engines"]
    return _all(engine_tables.all_tables(suite.engines), suite)


def engines_summary(results: Results) -> str:
    """Show what matters most of vLLM with its own queue and with shmcast's."""
    suite = results["engines"]
    note = (
        "The same tokens, by one variable: [`SHMCAST_VLLM=1`](docs/vllm.md), "
        f"[`SHMCAST_SGLANG=1`](docs/sglang.md). {tables.where(suite.machine)}."
    )
    return _noted(engine_tables.summary(suite.engines), note)


def codec(results: Results) -> str:
    """Show what engines send, by all codecs, and by shmcast's and pickle with colder caches."""
    suite = results["codec"]
    rows = [row for row in suite.codec if row["kind"] == "engine"]
    return "\n\n".join(
        [
            codec_tables.table(rows),
            _wrapped(
                "Encode and decode of one message, the sum in µs, p50, and how many times as fast "
                "as pickle; *: what arrives has other types than what was sent. Large arrays are in"
                " pickle's bytes; shmcast hands them on as buffers, for the ring to copy. "
                f"{tables.where(suite.machine)}."
            ),
            codec_tables.of_caches(rows, list(codec_tables.by_workload(rows, 0))),
            _wrapped("The same after so much other memory was written before each call."),
        ]
    )


def codec_users(results: Results) -> str:
    """Show objects as users have them, by all codecs."""
    suite = results["codec"]
    rows = [row for row in suite.codec if row["kind"] == "users"]
    note = f"As above, for one object of each kind. {tables.where(suite.machine)}."
    return _noted(codec_tables.table(rows), note)


def _note(suite: SuiteResults, also: str = "") -> str:
    figures = f"p50 / p99 in µs{', ' + also if also else ''}"
    return _wrapped(f"One way, to the last reader: {figures}. {tables.where(suite.machine)}.")


def _all(parts: Iterable[str], suite: SuiteResults) -> str:
    """Return tables and what stands before each, and where they were measured."""
    blocks = [part if part.startswith("|") else _wrapped(part) for part in parts]
    return "\n\n".join([*blocks, _wrapped(f"{tables.where(suite.machine)}.")])


def _noted(table: str, note: str) -> str:
    return f"{table}\n\n{_wrapped(note)}"


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
    "deaths": deaths,
    "replies": replies,
    "awaited": awaited,
    "engines": engines,
    "engines-summary": engines_summary,
    "codec": codec,
    "codec-users": codec_users,
}
