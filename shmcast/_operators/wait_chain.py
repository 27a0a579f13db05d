"""Who waits for whom in a segment, followed to whoever moves last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shmcast._operators.formats import duration
from shmcast._operators.snapshot import NOT_ATTACHED, Member, Snapshot


@dataclass(frozen=True)
class Link:
    """One step of a chain: members that do the same.

    Attributes:
        members: who.
        does: what, "waits for room" say.
    """

    members: tuple[Member, ...]
    does: str


@dataclass(frozen=True)
class Chain:
    """Who waits for whom in a segment.

    Attributes:
        links: from those who wait longest to whoever moves last: the root.
        is_stuck: nothing moves: somebody waits, and the root has not moved between two looks, or
            does nothing at all.
    """

    links: tuple[Link, ...]
    is_stuck: bool

    @property
    def root(self) -> Member:
        """Who moves last; of several the one that is furthest behind."""
        return self.links[-1].members[0]


def follow(before: Snapshot, now: Snapshot) -> Chain:
    """Find out who waits for whom, from two looks at a readable segment."""
    assert now.writer is not None  # noqa: S101 (readable)
    present = [r for r in now.readers if r.seat not in ("left", "dropped", "failed")]
    full = _in_the_way(now, present)
    stuck = [m for m in (now.writer, *present) if m.is_stuck]
    vacant = [r for r in present if r.state == NOT_ATTACHED]
    owing = _owing(now, present)
    if full and not _moves(before, now):
        room = Link((now.writer,), "waits for room")
        return Chain((*_for_a_message(present, full), room, _last(full, ())), True)
    if stuck and stuck[0] is not now.writer:
        stuck.sort(key=lambda m: m not in owing)
        return Chain((*_for_replies(now, stuck, owing), _last(stuck, owing)), True)
    if stuck:
        return Chain(_for_the_writer(now, present), True)
    if vacant:
        link = Link((now.writer,), "waits for readers to attach")
        return Chain((link, Link(tuple(vacant), "has not attached")), False)
    if owing:
        return Chain((*_for_replies(now, owing, owing), _last(owing, owing)), False)
    busy = sorted((r for r in present if r.lag), key=lambda r: -r.lag)
    if busy:
        return Chain((_last(busy, ()),), False)
    return Chain(_for_the_writer(now, present), False)


def _in_the_way(now: Snapshot, present: Sequence[Member]) -> list[Member]:
    """Return the readers that the writer waits for, the one that will move last first."""
    assert now.writer is not None  # noqa: S101
    if now.waits_until is None:
        behind = [r for r in present if r.lag >= now.slots]  # (one that spins does not say)
    else:
        published = now.writer.figures["fragments"]
        behind = [r for r in present if r.lag and published - r.lag < now.waits_until]
    return sorted(behind, key=lambda r: (not r.is_stuck, -r.lag))


def _moves(before: Snapshot, now: Snapshot) -> bool:
    """Return whether the writer or its slowest reader has gone on between two looks."""
    if before.writer is None or now.writer is None:
        return True
    published = (before.writer.figures["fragments"], now.writer.figures["fragments"])
    return published[0] != published[1] or max((r.lag for r in before.readers), default=0) != max(
        (r.lag for r in now.readers), default=0
    )


def _owing(now: Snapshot, present: Sequence[Member]) -> tuple[Member, ...]:
    """Return the members of a hub that have not replied to what others have replied to.

    (That nobody has replied says nothing: a message need not be answered.)
    """
    if not any(now.replies):
        return ()
    # (What was not received is one message or more.)
    owed = {
        r.index: r.figures["messages"] - now.replies[r.index] + bool(r.lag)
        for r in present
        if r.index < len(now.replies)
    }
    return tuple(r for r in present if owed.get(r.index, 0) > min(owed.values()))


def _for_replies(
    now: Snapshot, late: Sequence[Member], owing: Sequence[Member]
) -> tuple[Link, ...]:
    """Return the link of the hub that waits for the replies of these members, if it does."""
    assert now.writer is not None  # noqa: S101
    waits = any(member in owing for member in late)
    return (Link((now.writer,), "waits for replies"),) if waits else ()


def _last(late: Sequence[Member], owing: Sequence[Member]) -> Link:
    """Return the link of whom the others wait for."""
    first = late[0]
    does = "has not replied" if first in owing and not first.lag else _behind(first)
    return Link(tuple(late), does)


def _for_a_message(present: Sequence[Member], but: Sequence[Member]) -> tuple[Link, ...]:
    """Return the link of the readers that have received everything, if there are any."""
    waiting = tuple(r for r in present if not r.lag and r not in but and r.pid is not None)
    does = f"wait{'s' if len(waiting) == 1 else ''} for a message"
    return (Link(waiting, does),) if waiting else ()


def _for_the_writer(now: Snapshot, present: Sequence[Member]) -> tuple[Link, ...]:
    assert now.writer is not None  # noqa: S101
    sent = "yet" if now.sent_age is None else f"for {duration(now.sent_age)}"
    return (*_for_a_message(present, ()), Link((now.writer,), f"has sent nothing {sent}"))


def _behind(member: Member) -> str:
    if not member.lag:
        return "has received everything"
    return f"is {member.lag} fragment{'' if member.lag == 1 else 's'} behind"
