"""Who waits for whom in a segment, followed to whoever moves last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shmcast._host.words import counted
from shmcast._operators.formats import duration
from shmcast._operators.snapshot import NOT_ATTACHED, Member, Snapshot

Verdict = Literal["stuck", "waits", "moves"]


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
        waits: somebody waits, and nothing has moved between two looks.
    """

    links: tuple[Link, ...]
    is_stuck: bool
    waits: bool = False

    @property
    def root(self) -> Member:
        """Who moves last; of several the one that is furthest behind."""
        return self.links[-1].members[0]

    @property
    def verdict(self) -> Verdict:
        """How it is to be taken.

        stuck: the root can't go on, or leaves no room to others. waits: others wait for the root,
        of which nobody can know from outside whether it computes or hangs. moves: neither, which
        includes that there is nothing to do.
        """
        return "stuck" if self.is_stuck else "waits" if self.waits else "moves"


def follow(before: Snapshot, now: Snapshot) -> Chain:
    """Find out who waits for whom, from two looks at a readable segment."""
    looks = _Looks(before, now)
    links, is_stuck = looks.chain()
    return Chain(links, is_stuck, looks.has_wait(links) and not looks.anything_moves())


class _Looks:
    """Two looks at a segment."""

    def __init__(self, before: Snapshot, now: Snapshot) -> None:
        assert now.writer is not None  # noqa: S101 (readable)
        self._before = before
        self._now = now
        self._writer = now.writer
        self._present = [r for r in now.readers if r.seat not in ("left", "dropped", "failed")]
        self._waited = {m.index: m.waited for m in before.members}

    def chain(self) -> tuple[tuple[Link, ...], bool]:
        """Return the chain's links, and whether the root is stuck."""
        now, writer, present = self._now, self._writer, self._present
        came, absent = self._at_the_barrier()
        stuck = [m for m in (writer, *present) if m.is_stuck]
        if absent and all(m in absent for m in stuck):
            return (_wait(came, "in the barrier"), _absent(absent)), bool(stuck)
        waiting = self._for_room_for_replies()
        if waiting and not stuck and not self._waits(writer):
            root = Link((writer,), "does not receive")
            is_stuck = now.replies == self._before.replies
            return (_wait(waiting, "for room for replies"), root), is_stuck
        full = self._in_the_way()
        if full and not self._moves():
            return self._for_room(full)
        return self._for_who_is_late(stuck)

    def has_wait(self, links: Sequence[Link]) -> bool:
        """Return whether somebody waits in a chain of these links, for the last one's members."""
        return any(self._waits(m) for link in links[:-1] for m in link.members)

    def anything_moves(self) -> bool:
        """Return whether anybody has done anything between the two looks."""
        return _progress(self._before) != _progress(self._now)

    def _waits(self, member: Member) -> bool:
        """Return whether a member has waited between the two looks, or sleeps for what comes."""
        return member.sleeps or member.waited > self._waited.get(member.index, member.waited)

    def _at_the_barrier(self) -> tuple[list[Member], list[Member]]:
        """Return who waits in a barrier, and who has not come to it."""
        numbers = dict(enumerate(self._now.barriers))  # (None: nobody waits for it)
        awaited = [m for m in (*self._present, self._writer) if numbers.get(m.index) is not None]
        last = max((numbers[m.index] or 0 for m in awaited), default=0)
        came = [m for m in awaited if numbers[m.index] == last and self._waits(m)]
        absent = [m for m in awaited if numbers[m.index] != last]
        absent.sort(key=lambda m: not m.is_stuck)
        return (came, absent) if came else ([], [])

    def _for_room_for_replies(self) -> list[Member]:
        """Return the members that wait for their hub to take replies."""
        full = {i for i, replies in enumerate(self._now.replies) if replies.has_no_room}
        return [r for r in self._present if r.index in full and self._waits(r)]

    def _for_room(self, full: Sequence[Member]) -> tuple[tuple[Link, ...], bool]:
        """Return the chain of a writer that waits for room, or that holds messages back."""
        if self._now.is_between_two:
            kept = Link((self._writer,), "holds messages back")
            late = Link(tuple(full), f"has not received {counted(full[0].lag, 'fragment')}")
            return (kept, late), full[0].is_stuck
        room = _wait([self._writer], "for room")
        return (*self._for_a_message(full), room, _last(full, ())), True

    def _for_who_is_late(self, stuck: list[Member]) -> tuple[tuple[Link, ...], bool]:
        """Return the chain of a writer that does not wait for room, or moves."""
        present, vacant = self._present, [r for r in self._present if r.state == NOT_ATTACHED]
        if self._now.is_between_two:  # (its sender waits for nobody to come)
            vacant = []
        owing = self._owing(vacant)
        if stuck and stuck[0] is not self._writer:
            stuck.sort(key=lambda m: m not in owing)
            return (*self._for_replies(stuck, owing), _last(stuck, owing)), True
        if stuck:
            return self._for_the_writer(), True
        if vacant:
            link = _wait([self._writer], "for readers to attach")
            return (link, Link(tuple(vacant), "has not attached")), False
        if owing:
            return (*self._for_replies(owing, owing), _last(owing, owing)), False
        busy = sorted((r for r in present if r.lag), key=lambda r: -r.lag)
        return ((_last(busy, ()),) if busy else self._for_the_writer()), False

    def _in_the_way(self) -> list[Member]:
        """Return the readers that the writer waits for, the one that will move last first."""
        now = self._now
        if now.waits_until is None:
            # (one that spins does not say)
            behind = [r for r in self._present if r.lag >= now.slots]
        else:
            published = self._writer.figures["fragments"]
            behind = [r for r in self._present if r.lag and published - r.lag < now.waits_until]
        return sorted(behind, key=lambda r: (not r.is_stuck, -r.lag))

    def _moves(self) -> bool:
        """Return whether the writer or its slowest reader has gone on between two looks."""
        before, now = self._before, self._now
        if before.writer is None:
            return True
        published = (before.writer.figures["fragments"], self._writer.figures["fragments"])
        lags = [max((r.lag for r in seen.readers), default=0) for seen in (before, now)]
        return published[0] != published[1] or lags[0] != lags[1]

    def _owing(self, vacant: Sequence[Member]) -> tuple[Member, ...]:
        """Return the members of a hub that have not replied to what others have replied to.

        That nobody has replied says nothing: a message need not be answered. But the hub may wait:
        then it is for those who do not wait themselves.
        """
        replies = [reply.messages for reply in self._now.replies]
        # (What was not received is one message or more.)
        owed = {
            r.index: r.figures["messages"] - replies[r.index] + bool(r.lag)
            for r in self._present
            if r.index < len(replies)
        }
        if any(replies):
            late = tuple(r for r in self._present if owed.get(r.index, 0) > min(owed.values()))
            if late:
                return late
        if owed and not vacant and self._waits(self._writer):
            return tuple(r for r in self._present if not self._waits(r))
        return ()

    def _for_replies(self, late: Sequence[Member], owing: Sequence[Member]) -> tuple[Link, ...]:
        """Return the link of the hub that waits for the replies of these members, if it does."""
        if not any(member in owing for member in late):
            return ()
        return (*self._for_a_message(late), _wait([self._writer], "for replies"))

    def _for_a_message(self, but: Sequence[Member]) -> tuple[Link, ...]:
        """Return the link of the readers that have received everything and wait, if any do.

        Whoever does something else, in its own code, is no part of a chain.
        """
        waiting = [r for r in self._present if not r.lag and r not in but and self._waits(r)]
        return (_wait(waiting, "for a message"),) if waiting else ()

    def _for_the_writer(self) -> tuple[Link, ...]:
        age = self._now.sent_age
        sent = "yet" if age is None else f"for {duration(age)}"
        return (*self._for_a_message(()), Link((self._writer,), f"has sent nothing {sent}"))


def _progress(seen: Snapshot) -> object:
    """Return what changes when anybody in a segment does something."""
    done = [(m.figures["messages"], m.figures["fragments"], m.lag) for m in seen.members]
    return done, seen.replies, seen.barriers


def _wait(members: Sequence[Member], what: str) -> Link:
    return Link(tuple(members), f"wait{'s' if len(members) == 1 else ''} {what}")


def _absent(members: Sequence[Member]) -> Link:
    has = "has" if len(members) == 1 else "have"
    return Link(tuple(members), f"{has} not come to the barrier")


def _last(late: Sequence[Member], owing: Sequence[Member]) -> Link:
    """Return the link of whom the others wait for."""
    first = late[0]
    does = "has not replied" if first in owing and not first.lag else _behind(first)
    return Link(tuple(late), does)


def _behind(member: Member) -> str:
    if not member.lag:
        return "has received everything"
    return f"is {counted(member.lag, 'fragment')} behind"
