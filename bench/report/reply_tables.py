"""The suite "replies" as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.report.results import ReplyRow
from bench.report.tables import cadence, markdown, ratio, short, with_notes

HUB, BLOCKING, KNOWN = "Hub", "recv()", "recv"

_ROUND_TRIP = (
    "From the driver's call to when it has a reply of each, p50 / p99 in µs, and how many times as "
    "long as with the Hub that is. One way: to the last reader, nobody replies. Semaphores: what "
    "to wake all and to be woken by each costs, without a message."
)
_ANY = "A reply that is there, of one of so many members: p50 / p99 in µs."
_AWAITED = (
    "From `send` in another process to the object in the task, 1 ms apart and everybody parked: "
    "p50 / p99 in µs, and times a thread's `recv()`."
)


def all_tables(rows: Sequence[ReplyRow]) -> Iterator[str]:
    """Return the tables of the cases that were measured, each with what it shows."""
    return with_notes(
        rows,
        {
            "round trip": (_ROUND_TRIP, round_trips),
            "any": (_ANY, any_of),
            "awaited": (_AWAITED, awaited),
        },
    )


def round_trips(rows: Sequence[ReplyRow]) -> str:
    """Return a line for each case, a column for each way to ask and be answered."""
    cases: dict[str, dict[str, ReplyRow]] = {}
    for row in rows:
        members = f"{row['members']} member{'s' if row['members'] > 1 else ''}"
        case = f"{row['message']}, {members}, {cadence(row['gap_ms'])}"
        cases.setdefault(case, {})[row["who"]] = row
    ways = list(dict.fromkeys(row["who"] for row in rows))
    lines = []
    for case, by in cases.items():
        cells = (_times(by[who], by[HUB]) if who in by else "" for who in ways)
        lines.append([case, *cells])
    return markdown(["message, members, gap", *ways], lines)


def any_of(rows: Sequence[ReplyRow]) -> str:
    """Return a line for each number of members."""
    by: dict[int, dict[str, ReplyRow]] = {}
    for row in rows:
        by.setdefault(row["members"], {})[row["who"]] = row
    lines = [
        [str(members), *(_times(row, each[KNOWN]) for row in each.values())]
        for members, each in by.items()
    ]
    return markdown(["members", *(f"`{who}`" for who in next(iter(by.values())))], lines)


def awaited(rows: Sequence[ReplyRow]) -> str:
    """Return a line for each way to wait."""
    blocking = next(row for row in rows if row["who"] == BLOCKING)
    lines = [[f"`{row['who']}`", _times(row, blocking)] for row in rows]
    return markdown(["how", "µs"], lines)


def _times(row: ReplyRow, base: ReplyRow) -> str:
    """Return p50 / p99, and p50 as a multiple of another's."""
    figures = f"{_figure(row['p50_us'])} / {_figure(row['p99_us'])}"
    return figures if row is base else f"{figures}, {ratio(row['p50_us'] / base['p50_us'])}x"


def _figure(time_us: float) -> str:
    return short(time_us) if time_us >= 0.995 else f"{time_us:.2f}"
