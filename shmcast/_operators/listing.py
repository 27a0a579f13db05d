"""Every segment of this user as a row: for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shmcast._endpoints.members import LIVING
from shmcast._host import proc
from shmcast._host.process import is_alive
from shmcast._operators.formats import duration, size, table
from shmcast._operators.snapshot import Member, Snapshot

_HEADS = ("LABEL", "KIND", "WRITER", "READERS", "NODES", "SLOTS", "ARENA", "AGE")
_MOST = (30, 4, 8, 10, 5, 11, 8, 7)


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return what programs read of a segment."""
    row: dict[str, Any] = {
        "label": snapshot.label,
        "name": snapshot.name,
        "error": snapshot.error,
        "holders": [*snapshot.holders],
        "writer_pid": None,
        "readers": [],
    }
    if snapshot.writer is None:
        return row
    return {
        **row,
        "writer_pid": snapshot.writer.pid,
        "writer_state": snapshot.writer.state,
        "command": _command_line(snapshot.writer),
        "kind": _kind(snapshot),
        "readers": [
            {"index": r.index, "pid": r.pid, "lag": r.lag, "state": r.state, "name": r.name}
            for r in snapshot.readers
        ],
        "nodes": snapshot.nodes,
        "slots": snapshot.slots,
        "slot_bytes": snapshot.slot_bytes,
        "arena_bytes": snapshot.arena_bytes,
        "messages": snapshot.writer.figures["messages"],
        "age_seconds": snapshot.age,
        "last_sent_seconds": snapshot.sent_age,
    }


def nobody(what: str | None) -> str:
    """Say that there is no broadcaster, or none that was asked for."""
    asked = "" if what is None else f" of the label or pid {what!r}"
    return f"No process of this user has a broadcaster{asked} on this host."


def as_text(snapshots: Sequence[Snapshot], what: str | None = None) -> str:
    """Return what people read: a table, then what can't be read.

    Args:
        snapshots: of what was asked for.
        what: the label or pid that was.
    """
    if not snapshots:
        return nobody(what)
    rows = [_row(s) for s in snapshots if not s.error]
    parts = [table(_HEADS, rows, _MOST)] if rows else []
    for s in snapshots:
        if s.error:
            who = ", ".join(map(str, s.holders)) or "nobody"
            parts.append(f"A segment of pid {who}: {s.error}")
    return "\n".join(parts)


def _command_line(member: Member) -> str:
    """Return the command line of a member's process; "" if that has ended, or is elsewhere."""
    if member.pid is None or not member.is_here or not is_alive(member.pid, member.start_time):
        return ""
    return proc.command_line(member.pid)


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    assert snapshot.writer is not None  # noqa: S101 (readable)
    there = [r for r in snapshot.readers if r.seat in LIVING]
    return (
        snapshot.label,
        _kind(snapshot),
        _process(snapshot.writer),
        "closed" if snapshot.is_over else f"{len(there)} of {len(snapshot.readers)}{_mark(there)}",
        str(snapshot.nodes),
        f"{snapshot.slots}x{size(snapshot.slot_bytes)}",
        size(snapshot.arena_bytes) if snapshot.arena_bytes else "none",
        duration(snapshot.age),
    )


def _kind(snapshot: Snapshot) -> str:
    return "hub" if snapshot.is_hub else "ring"


def _process(member: Member) -> str:
    return f"{member.pid}{'!' if member.is_stuck else ''}"


def _mark(readers: Sequence[Member]) -> str:
    return "!" if any(r.is_stuck for r in readers) else ""
