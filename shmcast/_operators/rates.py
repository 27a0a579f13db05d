"""How a segment did between two looks: rates, latencies, shares of time, and who moves last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shmcast._endpoints.latencies import merged, quantile, since
from shmcast._operators.snapshot import Member, Snapshot
from shmcast._operators.wait_chain import follow

SORT_KEYS: dict[str, Callable[[Rates], Any]] = {
    "l": lambda r: r.label,
    "m": lambda r: -r.messages,
    "b": lambda r: -r.nbytes,
    "p": lambda r: -r.p99,
    "g": lambda r: -r.lag,
    "c": lambda r: -r.cpu,
}
"""By the key that chooses it: label, messages, bytes, p99, lag, CPU time."""


def ordered(found: Iterable[Rates], key: str) -> list[Rates]:
    """Return rows in the order of a key of `SORT_KEYS`, after those that are stuck."""
    by = SORT_KEYS[key]
    return sorted(found, key=lambda row: (not row.is_stuck, by(row)))


@dataclass(frozen=True)
class Rates:
    """A segment's figures between two looks.

    Attributes:
        label: what its writer calls it, or why it can't be read.
        name: of its file.
        messages: sent each second.
        nbytes: of their frames, each second.
        p50: the median of the one-way latency to any reader, in seconds; 0: none came.
        p99: the 99th percentile.
        lag: fragments that the slowest reader is behind.
        spun: the part of its time that a reader spent spinning, of all readers.
        parked: the part that it slept.
        cpu: CPU time of all members' processes, in CPUs.
        waits_for: who moves last, with what its process does.
        is_stuck: it holds others up.
    """

    label: str
    name: str
    messages: float = 0.0
    nbytes: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    lag: int = 0
    spun: float = 0.0
    parked: float = 0.0
    cpu: float = 0.0
    waits_for: str = ""
    is_stuck: bool = False


def rates(before: Snapshot, now: Snapshot) -> Rates:
    """Compare two looks at one segment."""
    if now.writer is None or before.writer is None:
        return Rates(now.label or now.error, now.name)
    seconds = max(now.taken - before.taken, 1e-9)
    pairs = [*zip(before.readers, now.readers, strict=False)]  # (a stray write changes counts)
    counts = merged(since(_latencies(a), _latencies(b)) for a, b in pairs)
    chain = follow(before, now)
    return Rates(
        now.label,
        now.name,
        messages=_grown(before.writer, now.writer, "messages") / seconds,
        nbytes=_grown(before.writer, now.writer, "payload_bytes") / seconds,
        p50=quantile(counts, 0.5),
        p99=quantile(counts, 0.99),
        lag=max((r.lag for r in now.readers), default=0),
        spun=_share(pairs, "spun_seconds", seconds),
        parked=_share(pairs, "parked_seconds", seconds),
        cpu=_cpu_seconds(before, now) / seconds,
        waits_for=f"{_short_name(now, chain.root)}: {chain.root.state}",
        is_stuck=chain.is_stuck,
    )


def _short_name(snapshot: Snapshot, member: Member) -> str:
    if member is snapshot.writer:
        return "writer"
    return member.name.partition(" of ")[0] or f"reader {member.index}"


def _latencies(reader: Member) -> tuple[int, ...]:
    counts: tuple[int, ...] = reader.figures["latencies"]
    return counts


def _grown(before: Member, now: Member, figure: str) -> float:
    return max(0.0, float(now.figures[figure]) - float(before.figures[figure]))


def _share(pairs: Sequence[tuple[Member, Member]], figure: str, seconds: float) -> float:
    there = [(a, b) for a, b in pairs if b.pid is not None]
    if not there:
        return 0.0
    total = sum(_grown(a, b, figure) for a, b in there)
    return min(1.0, total / len(there) / seconds)


def _cpu_seconds(before: Snapshot, now: Snapshot) -> float:
    """Return what all members' processes have used between two looks, each counted once.

    Those of other pid namespaces are not seen, and may have pids that are others' here.
    """
    used = {m.pid: m.cpu_seconds for m in before.members if m.is_here}
    here = [m for m in now.members if m.is_here]
    grown = {m.pid: m.cpu_seconds - used.get(m.pid, m.cpu_seconds) for m in here}
    return sum(max(0.0, seconds) for seconds in grown.values())
