"""List where a peer is faster than shmcast, so that no reader has to search for it."""

from __future__ import annotations

from collections.abc import Iterable

from bench.report.results import (
    OURS,
    ByTransport,
    Interval,
    Row,
    by_case,
    family,
    fastest,
    is_rate,
    time_of,
)
from bench.report.tables import median, ratio, short
from bench.run.case import Case

LESS = ("memcpy", "loan, ", "shmcast within")
"""How the names of transports begin that do less than broadcast an object to all readers."""


def losses(rows: Iterable[Row]) -> str:
    """Return a line for each case in which a peer has the better p50, rate or p99.

    A line names the peer and says how much faster it is. shmcast is the transport of just that name
    or, where there is none, its fastest variant.
    """
    lines, count = [], 0
    for case, all_rows in by_case(rows).items():
        own = {name: row for name, row in all_rows.items() if not name.startswith(LESS)}
        peers = [row for name, row in own.items() if family(name) != OURS]
        variants = [row for name, row in own.items() if family(name) == OURS]
        ours, peer = own.get(OURS) or fastest(variants), fastest(peers)
        if ours and peer:
            count += 1
            lines += _of_median(case, own, ours, peer)
            lines += _of_tail(case, ours, peers)
    return "\n".join(lines) or f"Nowhere: p50 and p99 are the least in all {count} cases."


def _of_median(case: Case, own: ByTransport, ours: Row, peer: Row) -> list[str]:
    figures = f"{_named(peer)}, {_named(ours)}"
    found = _loss(str(case), figures, time_of(ours), time_of(peer))
    best = fastest(own.values())
    if found and best and family(best["transport"]) == OURS:
        found = [f"{found[0]} {_named(best)}."]
    return found


def _of_tail(case: Case, ours: Row, peers: list[Row]) -> list[str]:
    if is_rate(ours):
        return []
    peer = min(peers, key=lambda row: row["p99_us"])
    figures = ", ".join(f"{row['transport']} {short(row['p99_us'])} µs" for row in (peer, ours))
    return _loss(f"{case}, p99", figures, _tail(ours), _tail(peer))


def _loss(what: str, figures: str, ours: Interval, theirs: Interval) -> list[str]:
    if ours.value <= theirs.value:
        return []
    overlap = " (the 95 % intervals overlap)" if theirs.high >= ours.low else ""
    return [f"- {what}: {figures}: {ratio(ours.value / theirs.value)} times as fast{overlap}."]


def _tail(row: Row) -> Interval:
    return Interval(row["p99_low_us"], row["p99_us"], row["p99_high_us"])


def _named(row: Row) -> str:
    return f"{row['transport']} {median(row)}"
