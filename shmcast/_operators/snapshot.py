"""A segment at one moment: its members, what they have done, and what their processes do."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shmcast import _core
from shmcast._endpoints.members import LIVING, check_pid, never_came
from shmcast._host.process import UNKNOWN_START, is_alive, pid_namespace, state_of
from shmcast._operators.discovery import NoSegment, OpenSegment, open_segments

NOT_ATTACHED = "not attached"
DEAD = "dead"
ELSEWHERE = "in another pid namespace"
UNKNOWN = "unknown"
GONE = "the processes that had it open have ended"
"""The error of a segment that was there a moment ago."""
STUCK = ("stopped", "traced (at a breakpoint)", DEAD)
"""States of a process that does nothing, whatever others wait for."""


@dataclass(frozen=True)
class Member:
    """A writer or reader, at that moment.

    Attributes:
        index: a reader's; the writer's is the number of readers.
        name: how errors name it; "" for who has not come.
        pid: its process, as its own pid namespace numbers it; None: nobody has come.
        seat: what the segment says: attached, vacant, left, dropped, claimed, rejoining, failed.
        state: of the process in words, as far as there should be one: running, sleeping, stopped,
            dead, ...; else what the seat says.
        lag: fragments published that it has not consumed; the writer's is 0.
        cpu_seconds: CPU time of its process so far.
        figures: the fields of `Statistics`.
        is_here: its pid is one of this pid namespace.
        start_time: of its process; UNKNOWN_START: that is not known.
        waited: seconds that it has waited so far, in whichever call.
        sleeps: it sleeps until it is woken, as far as `_core.observe` can see.
    """

    index: int
    name: str
    pid: int | None
    seat: str
    state: str
    lag: int
    cpu_seconds: float
    figures: dict[str, Any]
    is_here: bool = True
    start_time: int = UNKNOWN_START
    waited: float = 0.0
    sleeps: bool = False

    @property
    def is_stuck(self) -> bool:
        """Whether its process does nothing, and should."""
        return self.seat in LIVING and self.state in STUCK


@dataclass(frozen=True)
class Replies:
    """What a hub has of a member's replies.

    Attributes:
        messages: that the member has sent.
        lag: fragments of them that the hub has not taken.
        has_no_room: the member can send no more of them before the hub takes some.
    """

    messages: int
    lag: int
    has_no_room: bool


@dataclass(frozen=True)
class Snapshot:
    """A segment at one moment. Of one that can't be read there are name, holders and error only.

    Attributes:
        name: of its file.
        holders: the pids of the processes that have it open.
        error: why there is nothing to see; "": there is.
        label: what its writer calls it.
        age: seconds since it was made.
        nodes: over how many its group is spread.
        slots: of the ring.
        slot_bytes: of a slot.
        arena_bytes: the arena's, at most.
        is_hub: its members reply.
        sent_age: seconds since the last message was sent; None: that is not known.
        quiet: seconds since the last message or reply was sent; None: that is not known.
        waits_until: see `_core.observe`.
        readers: by index.
        writer: who sends.
        replies: of a hub, those of each member.
        barriers: of a hub, how many barriers each of the members has come to, the hub last; None:
            nobody waits for it any more.
        is_between_two: one rank's messages to another, which the sender holds back for as long as
            they are not received, while its program goes on.
        taken: when it was taken, in seconds of the monotonic clock.
    """

    name: str
    holders: tuple[int, ...]
    error: str = ""
    label: str = ""
    age: float = 0.0
    nodes: int = 1
    slots: int = 0
    slot_bytes: int = 0
    arena_bytes: int = 0
    is_hub: bool = False
    sent_age: float | None = None
    quiet: float | None = None
    waits_until: int | None = None
    readers: tuple[Member, ...] = ()
    writer: Member | None = None
    replies: tuple[Replies, ...] = ()
    barriers: tuple[int | None, ...] = ()
    is_between_two: bool = False
    taken: float = field(default_factory=time.monotonic)

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, the writer last."""
        return self.readers if self.writer is None else (*self.readers, self.writer)

    @property
    def is_over(self) -> bool:
        """Whether all have left, and only objects that are not collected hold it."""
        return self.writer is not None and all(m.seat not in LIVING for m in self.members)


def all_snapshots() -> list[Snapshot]:
    """Look at every segment of this user that a process has open.

    Raises:
        HostError: there is no /proc.
    """
    return [take(segment) for segment in open_segments()]


def take(segment: OpenSegment) -> Snapshot:
    """Look at a segment; whatever is wrong with it is its `error`."""
    holders = tuple(segment.holders)
    try:
        with segment.opened() as fd:
            seen = _core.observe(fd)
        return _snapshot(segment.name, holders, seen)
    except (NoSegment, _core.LayoutMismatch, _core.SegmentCorrupted) as error:
        return Snapshot(segment.name, holders, str(error))
    except (FileNotFoundError, ProcessLookupError):
        return Snapshot(segment.name, holders, GONE)
    except OSError as error:
        return Snapshot(segment.name, holders, f"it can't be read: {os.strerror(error.errno or 0)}")


def _snapshot(name: str, holders: tuple[int, ...], seen: dict[str, Any]) -> Snapshot:
    of_replies = [waited for _, _, waited, _ in seen["replies"]]
    waited = [
        figures["spun_seconds"] + figures["parked_seconds"] + (of_replies[i : i + 1] or [0.0])[0]
        for i, figures in enumerate(seen["figures"])
    ]
    members = [
        dataclasses.replace(_member(*each), waited=seconds, sleeps=sleeps)
        for *each, seconds, sleeps in zip(
            seen["peers"], seen["names"], seen["figures"], waited, seen["sleeps"], strict=True
        )
    ]
    return Snapshot(
        name,
        holders,
        label=printable(seen["label"]),
        age=max(0.0, time.time() - seen["made"]),
        nodes=seen["nodes"],
        slots=seen["slots"],
        slot_bytes=seen["slot_bytes"],
        arena_bytes=seen["arena_bytes"],
        is_hub=seen["is_hub"],
        sent_age=_age(seen["sent"]),
        quiet=_age(max(seen["sent"], seen["replied"])),
        waits_until=seen["waits_until"],
        readers=tuple(members[:-1]),
        writer=members[-1],
        replies=tuple(Replies(count, lag, full) for count, lag, _, full in seen["replies"]),
        barriers=tuple(seen["barriers"]),
        is_between_two=seen["is_between_two"],
    )


def _age(sent: float) -> float | None:
    """Return the seconds since then, by CLOCK_MONOTONIC; None: 0, which is not known."""
    return max(0.0, time.monotonic() - sent) if sent else None


def _member(peer: _core.Peer, name: str, figures: dict[str, Any]) -> Member:
    seat = peer.state
    if never_came(peer):
        return Member(peer.index, "", None, seat, NOT_ATTACHED, peer.behind, 0.0, figures)
    check_pid(peer)
    state, cpu_seconds = (seat, 0.0) if seat not in LIVING else process_state(peer)
    lag = peer.behind if seat in LIVING else 0
    return Member(
        peer.index, printable(name), peer.pid, seat, state, lag, cpu_seconds, figures,
        is_here=peer.pid_namespace == pid_namespace(),
        start_time=peer.start_time or UNKNOWN_START,  # (it writes its start time last)
    )  # fmt: skip


def process_state(peer: _core.Peer) -> tuple[str, float]:
    """Return what a member's process does, in words, and the seconds of CPU time it has used."""
    if peer.pid_namespace != pid_namespace():
        return ELSEWHERE, 0.0
    try:
        found = state_of(peer.pid)
        # (It writes its start time last.)
        if found is None or not is_alive(peer.pid, peer.start_time or UNKNOWN_START):
            return DEAD, 0.0
    except OSError:  # /proc hides it
        return UNKNOWN, 0.0
    return found.name, found.cpu_seconds


def printable(text: str) -> str:
    """Return a text without what a terminal takes for a command."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def chosen(snapshots: Sequence[Snapshot], what: str | None) -> list[Snapshot]:
    """Return those of a process, by its pid, or with a text in their label; None: all.

    A pid is a holder's, or a member's of this pid namespace, also if that has ended.
    """
    if what is None:
        return [*snapshots]
    pid = int(what) if what.isascii() and what.isdigit() else None
    return [
        s
        for s in snapshots
        if what in s.label
        or pid in s.holders
        or (pid and pid in [m.pid for m in s.members if m.is_here])
    ]
