"""`PackedReplies`: the replies of all members, where those of another host come packed together.

A signal's handler that raises loses none. Python calls it at the begin of a function, at a loop's
turn and after a call of C, but not between a subscription and what stores its result: nothing is
taken from one place by any other step than that which brings it to the next.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, cast

from shmcast import _core
from shmcast._host.log import tell
from shmcast._hub.answers import Reply, Whom
from shmcast._hub.hosts.relay import LEFT
from shmcast._nodes.parcel import Parcel
from shmcast.errors import PeerDied

_FIRST_LOOK_SECONDS = 0.05


class PackedReplies:
    """Gives what `Answers` promises, out of the replies of seats.

    Args:
        seats: their replies.
        members: which members each seat stands for; of those that stand for one of their own host,
            the replies are not packed.
        at_home: how many such seats there are; they come first.
        label: how errors name the hub.
        on_death: called with each death on another host, when that is received.
    """

    def __init__(
        self,
        seats: _core.Hub,
        members: Sequence[Sequence[int]],
        at_home: int,
        label: str,
        on_death: Callable[[PeerDied], object] | None,
    ) -> None:
        self._seats: Any = seats  # (its stub tells what is found of each kind of whom)
        self._members = members
        self._at_home = at_home
        self._seat_of = {m: seat for seat, those in enumerate(members) for m in those}
        self._queues: dict[int, deque[Reply]] = {
            member: deque() for those in members[at_home:] for member in those
        }
        self._order = [*self._queues]  # who has waited longest to be taken by `recv_any`
        self._label = label
        self._on_death = on_death
        self._awaited: list[int] | None = []  # None: any of the seats that are awaited
        self._parcel: Reply = None  # as it has come
        self._opened: list[tuple[int, Any]] = []  # what is in it: who has replied, or else ended
        self._sorted = 0  # so many of these are where they belong
        self._whom: Whom = None
        self.left: set[int] = set()
        """Who has closed, of other hosts."""
        self.deaths: dict[int, PeerDied] = {}
        """Who has died, of other hosts."""
        self._is_queues_turn = True

    def __getitem__(self, call: tuple[Any, ...], /) -> Any:
        """Return what `Answers` says."""
        self._open()  # what a call has left that was interrupted
        *when, copy, whom = call
        self._whom = whom
        wait = _Wait(when[0] if when else ..., copy)
        if whom is None:
            return self._any(wait)
        if whom is ...:
            return self._all(wait)
        self._awaited = [whom]
        return self._one(whom, wait)

    def keep(self, whom: Whom, received: Any, /) -> None:
        """Take back what was received; see `Answers.keep`."""
        if whom is None:
            self.keep(*received)
        elif isinstance(whom, EllipsisType):
            for member, frames in enumerate(received):
                self.keep(member, frames)
        elif whom in self._queues:
            self._queues[whom].appendleft(received)
        else:
            self._seats.keep(self._seat_of[whom], received)

    def discard(self, member: int, /) -> Reply:
        """Forget a reply that was taken back; see `Answers.discard`."""
        if member in self._queues:
            return self._queues[member].popleft()
        frames: Reply = self._seats.discard(self._seat_of[member])
        return frames

    def awaited(self) -> list[int]:
        """Return whose replies the last call has waited for, by index."""
        if self._awaited is not None:
            return self._awaited
        members = (member for seat in self._seats.awaited() for member in self._members[seat])
        return sorted(m for m in members if m not in self.left and m not in self.deaths)

    def asked(self) -> Whom:
        """Return whose reply the last call was to return."""
        return self._whom

    def _one(self, member: int, wait: _Wait, at_most: float = math.inf) -> Reply | EllipsisType:
        seat = self._seat_of.get(member)
        if seat is None:
            raise IndexError(member)
        if seat < self._at_home:
            found: Reply | EllipsisType = self._seats[wait.key(seat, at_most)]
            return found
        queue = self._queues[member]
        while not queue:
            if member in self.deaths:
                return None
            if member in self.left:
                raise _core.EndpointClosed
            key = wait.key(seat, at_most)
            self._parcel = self._seats[key]
            if self._parcel is ...:
                self._parcel = None
                return ...
            self._open()
        reply = queue[0]
        del queue[0]  # (no call)
        return reply

    def _any(self, wait: _Wait) -> tuple[int, Reply] | EllipsisType:
        self._awaited = None
        while True:
            # In turns with the seats: nobody is passed over for ever.
            self._is_queues_turn = not self._is_queues_turn
            if self._is_queues_turn and (queued := self._queued()) is not None:
                return queued
            has_queued = any(self._queues.values())
            try:
                found = self._seats[wait.key(None, 0.0 if has_queued else math.inf)]
            except (_core.TimedOut, _core.EndpointClosed):
                if not has_queued:
                    raise
                found = ...
            if found is ...:
                return self._queued() or ...
            if found[0] < self._at_home:
                return self._members[found[0]][0], found[1]
            self._parcel = found[1]
            self._open()
            if (queued := self._queued()) is not None:
                return queued

    def _queued(self) -> tuple[int, Reply] | None:
        """Return a reply that was received with others, of whom has waited longest."""
        for member in self._order:
            queue = self._queues[member]
            if queue:
                self._order = [*(other for other in self._order if other != member), member]
                reply = queue[0]
                del queue[0]  # (no call)
                return member, reply
        return None

    def _all(self, wait: _Wait) -> list[Reply] | EllipsisType:
        found: dict[int, Reply | EllipsisType] = {}
        try:
            self._awaited = self._look_at_all(range(len(self._seat_of)), wait.look(), found)
            if wait.is_look and self._awaited:
                self._keep_all(found)
                return ...
            self._wait_for_all(wait, found)
            replies = [cast("Reply", found[member]) for member in sorted(found)]
        except BaseException:
            self._keep_all(found)
            raise
        return replies

    def _keep_all(self, found: dict[int, Reply | EllipsisType]) -> None:
        for member, reply in found.items():
            if not isinstance(reply, EllipsisType):
                self.keep(member, reply)

    def _wait_for_all(self, wait: _Wait, found: dict[int, Reply | EllipsisType]) -> None:
        """Find a reply of each who is awaited, one after the other.

        Now and then, the longer it lasts the rarer, look at the others: one may have closed.
        """
        seconds = _FIRST_LOOK_SECONDS
        while awaited := self._awaited:
            try:
                found[awaited[0]] = self._one(awaited[0], wait, seconds)
            except _core.TimedOut:
                self._awaited = self._look_at_all(awaited, wait.look(), found)
                if self._awaited and wait.is_over:
                    raise
                seconds *= 2
            else:
                del awaited[0]

    def _look_at_all(
        self, members: Sequence[int], look: _Wait, found: dict[int, Reply | EllipsisType]
    ) -> list[int]:
        """Find a reply of each of these, without waiting; return who has none."""
        missing = []
        for member in members:
            found[member] = self._one(member, look)
            if found[member] is ...:
                del found[member]
                missing.append(member)
        return missing

    def _open(self) -> None:
        """Take what the members of another host have said out of a parcel, if there is one."""
        if self._parcel is not None:
            parcel = Parcel.of(self._parcel)
            told = [
                (member, ... if parcel.purpose == LEFT else part)
                for member, part in parcel.parts.items()
            ]
            self._opened, self._sorted, self._parcel = told, 0, None
        while self._sorted < len(self._opened):
            self._sort(*self._opened[self._sorted])

    def _sort(self, member: int, told: Any) -> None:
        """Take what a member has said where it belongs, perhaps for a second time."""
        queue = self._queues[member]
        death = None
        if told is ...:
            self.left.add(member)
        elif not isinstance(told, PeerDied):
            if not queue or queue[-1] is not told:
                queue.append(told)
        elif member not in self.left and member not in self.deaths:
            death = PeerDied(f"{self._label}: {told}", told.peer, told.pid, told.how)
            if not queue or queue[-1] is not None:
                queue.append(None)
            self.deaths[member] = death
        self._sorted += 1
        if death is not None:
            tell(logging.WARNING, "%s; it is dropped, the others go on", death)
            if self._on_death is not None:
                self._on_death(death)

    def close(self) -> None:
        """Forget what was not received."""
        self._parcel, self._opened, self._sorted = None, [], 0
        for queue in self._queues.values():
            queue.clear()


class _Wait:
    """How long a call goes on, and how it is put to the seats.

    Args:
        timeout: the call's; Ellipsis: it is a look.
        copy: the call's.
    """

    def __init__(self, timeout: Any, copy: bool) -> None:
        self.is_look: bool = timeout is ...
        self._timeout = timeout
        self._copy = copy
        self._ends: float | None = None

    def look(self) -> _Wait:
        """Return how to look without waiting."""
        return _Wait(..., self._copy)

    def key(self, whom: int | None, at_most: float) -> tuple[Any, ...]:
        """Return what is to be put in brackets.

        Args:
            whom: see `Whom`.
            at_most: seconds that this part of the call may take.
        """
        if self.is_look:
            return (self._copy, whom)
        left = self._timeout
        if self._ends is not None:
            left = max(0.0, self._ends - time.monotonic())
        elif isinstance(left, int | float):
            self._ends = time.monotonic() + left
        elif left is not None:
            return (left, self._copy, whom)  # of which the seats say what is wrong
        if at_most < math.inf and (left is None or left > at_most):
            left = at_most
        return (left, self._copy, whom)

    @property
    def is_over(self) -> bool:
        """Whether the call has had its time."""
        return self._ends is not None and time.monotonic() >= self._ends
