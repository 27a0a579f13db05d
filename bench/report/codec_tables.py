"""The suite "codec" as Markdown tables: a line for each message, a column for each codec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.report.results import OURS, CodecRow
from bench.report.tables import markdown, ratio, short

BASELINE = "pickle"
OTHER_TYPES = "*"
"""Marks figures of what arrives with other types than were sent: dicts for dataclasses, say."""


def by_workload(rows: Iterable[CodecRow], evicted_mib: int) -> dict[str, dict[str, CodecRow]]:
    """Group the rows of one state of the caches by message and codec, in their order."""
    found: dict[str, dict[str, CodecRow]] = {}
    for row in rows:
        if row["evicted_mib"] == evicted_mib:
            found.setdefault(row["workload"], {})[row["codec"]] = row
    return found


def evictions(rows: Iterable[CodecRow]) -> list[int]:
    """Return the states of the caches that were measured."""
    return sorted({row["evicted_mib"] for row in rows})


def state(evicted_mib: int) -> str:
    """Return what one says of such caches."""
    return f"{evicted_mib} MiB evicted" if evicted_mib else "warm"


def table(
    rows: Sequence[CodecRow], evicted_mib: int = 0, codecs: Sequence[str] | None = None
) -> str:
    """Return the times to encode and decode, and how many times as fast as pickle that is.

    Raises:
        LookupError: nothing was measured with such caches.
    """
    codecs = codecs or list(dict.fromkeys(row["codec"] for row in rows))
    lines = []
    for workload, own in by_workload(rows, evicted_mib).items():
        lines.append([workload, *(_cell(own, name) for name in codecs)])
    return markdown([f"message, {state(evicted_mib)}", *codecs], lines)


def _cell(own: dict[str, CodecRow], name: str) -> str:
    if name not in own:
        return "can't" if name != OURS else ""
    row = own[name]
    figure = short(row["both_p50_us"]) + ("" if row["is_same"] else OTHER_TYPES)
    if name == BASELINE or BASELINE not in own:
        return figure
    return f"{figure}, {ratio(own[BASELINE]['both_p50_us'] / row['both_p50_us'])}x"


def of_caches(rows: Sequence[CodecRow], workloads: Sequence[str]) -> str:
    """Return shmcast and pickle side by side, in each state of the caches."""
    states = evictions(rows)
    grouped = {mib: by_workload(rows, mib) for mib in states}
    lines = []
    for workload in workloads:
        cells = []
        for mib in states:
            own = grouped[mib].get(workload, {})
            for name in (BASELINE, OURS):
                cells.append(_cell(own, name) if name in own else "")
        if any(cells):
            lines.append([workload, *cells])
    head = [f"{name}, {state(mib)}" for mib in states for name in (BASELINE, OURS)]
    return markdown(["message", *head], lines)
