"""The ends of a hub that spans hosts: what they add to `HubEnd` and `MemberEnd`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from shmcast._endpoints.frame_end import FrameEnd
from shmcast._endpoints.handle import Handle
from shmcast._host.log import tell
from shmcast._hub.handle import HubHandle
from shmcast._hub.hosts.packed_replies import PackedReplies
from shmcast._hub.hosts.relay import EXIT_SECONDS, Relay
from shmcast._hub.hosts.seating import Seating
from shmcast._hub.hub_end import HubEnd
from shmcast._hub.member_end import MemberEnd
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.failure import FailurePage
from shmcast.errors import PeerDied, ShmcastError


class HostHandle(HubHandle):
    """The handle of one host's part of a hub, where no other `Member` can attach.

    Its `readers` are who sits there: the members of that host and, at the hub, each other host.
    """

    __slots__ = ()
    spans_hosts = True

    @property
    def tail_bytes(self) -> int:
        """Bytes of the segment behind the ring of messages."""
        return super().tail_bytes


class _PagedEnd(FrameEnd):
    """An end whose segment may end because of another host, and which then says why.

    To be named before the class of the end.
    """

    _page: FailurePage

    def _meaning(
        self, error: Exception, action: str, timeout: float | None
    ) -> ShmcastError | SystemExit | None:
        known = self._cause(error, f"{self.label}: {action}")
        return super()._meaning(error, action, timeout) if known is None else known

    def _cause(self, error: BaseException, what: str) -> ShmcastError | None:
        """Return what is behind the death of a peer; None: nothing else."""
        failure = self._page.read() if isinstance(error, PeerDied) else None
        return None if failure is None else failure.error(what)

    def check_peers(self) -> None:
        """Look whether a peer has died, or another host has ended this one's segment."""
        try:
            super().check_peers()
        except PeerDied as error:
            raise self._cause(error, self.label) or error from None

    def _end_error(self, what: str) -> ShmcastError:
        failure = self._page.read()
        return super()._end_error(what) if failure is None else failure.error(what)


class HostMemberEnd(_PagedEnd, MemberEnd):
    """A member's end at the part of a hub on its host.

    Args:
        handle: see `MemberEnd`; so for what is not named here.
        index: see `MemberEnd`.
        page: where to read why the segment is closed.
        members: how many there are, on all hosts.
    """

    _handle_type = HostHandle

    @property
    def reader_count(self) -> int:
        """How many members there are, on all hosts."""
        return self._members

    def _cause(self, error: BaseException, what: str) -> ShmcastError | None:
        known = super()._cause(error, what)
        if known is None and isinstance(error, PeerDied) and error.pid == self.handle.holder[0]:
            # The process of this segment's hub, in which members sit, too.
            hub = self._names(self.handle.readers)
            text = f"{what}: {hub} (pid {error.pid}) has died: {error.how or 'unknown how'}"
            return PeerDied(text, hub, error.pid, error.how)
        return known

    def __init__(
        self, handle: HubHandle, index: int, *, page: FailurePage, members: int, **options: Any
    ) -> None:
        self._page = page
        self._members = members
        super().__init__(handle, index, **options)

    def not_published(self, error: BaseException, timeout: float | None, /) -> NoReturn:
        """Raise what an error of `outbox` means here; others pass unchanged."""
        super().not_published(self._cause(error, f"{self.label}: reply") or error, timeout)


class HostHubEnd(HubEnd):
    """The part of a hub on another host than its own."""

    def _handle(self, ring: Handle) -> HostHandle:
        return host_handle(super()._handle(ring))


class HostsHubEnd(_PagedEnd, HubEnd):
    """The end of a hub whose members are on several hosts; each other one has a seat.

    Args:
        members: see `HubEnd`; so for what is not named here.
        seating: of the members.
        page: where members on this host read why the segment is closed.
    """

    def __init__(
        self,
        members: int,
        *,
        seating: Seating,
        page: FailurePage,
        label: str,
        member_label: Callable[[int], str],
        on_death: Callable[[PeerDied], object] | None,
        **options: Any,
    ) -> None:
        self._page = page
        self._member_names = seating.names()
        self._seats = seating.seats()
        self._at_home = len(seating.members_on(seating.home))
        self._relays: list[Relay] = []
        del members, member_label  # (both are in the seating)
        super().__init__(
            len(self._seats),
            label=label,
            member_label=seating.names_at(seating.home).__getitem__,
            on_death=on_death,
            **options,
        )
        self._watch.stand_ins = range(self._at_home, len(self._seats))
        self._packed = PackedReplies(self.replies, self._seats, self._at_home, label, on_death)
        self.answers = self._packed

    def _handle(self, ring: Handle) -> HostHandle:
        return host_handle(super()._handle(ring))

    def _awaited_seats(self) -> Collection[int]:
        awaited = {*self._packed.awaited()}
        return [seat for seat, members in enumerate(self._seats) if awaited.intersection(members)]

    def relay_by(self, relay: Relay) -> None:
        """End only when a relay has passed on what was sent, or has had time for it."""
        self._relays.append(relay)

    def not_published(self, error: BaseException, timeout: float | None, /) -> NoReturn:
        """Raise what an error of `outbox` means here; others pass unchanged."""
        super().not_published(self._cause(error, f"{self.label}: send") or error, timeout)

    @property
    def members(self) -> int:
        """How many members there are, on all hosts."""
        return len(self._member_names)

    @property
    def reader_count(self) -> int:
        """The same."""
        return self.members

    def member_name(self, index: int) -> str:
        """Return how errors name a member."""
        return self._member_names[index]

    def death_of(self, index: int) -> PeerDied:
        """Return how a member has died, whose replies end with that."""
        death = self._packed.deaths.get(index)
        if death is None:
            return super().death_of(self._seats.index((index,)))
        return PeerDied(str(death), death.peer, death.pid, death.how)

    def dropped(self) -> dict[int, PeerDied]:
        """Return how the members have died that are dropped, by index."""
        at_home = {self._seats[seat][0]: error for seat, error in super().dropped().items()}
        return at_home | self._packed.deaths

    def left(self) -> list[int]:
        """Return which members have closed, by index."""
        gone = {member for seat in super().left() for member in self._seats[seat]}
        return sorted((gone | self._packed.left) - {*self._packed.deaths})

    def close(self) -> None:
        """End this end, and wait until other hosts have what was sent, for up to 10 s."""
        for relay in self._relays:
            relay.is_closing = True
        super().close()
        self._join()

    def give_up(self) -> None:
        """End this end otherwise than in order."""
        super().give_up()
        self._join()

    def _join(self) -> None:
        self._packed.close()
        deadline = Deadline.after(EXIT_SECONDS)
        while self._relays:
            relay = self._relays.pop()
            if not relay.join(deadline):
                text = "%s: closed although %s has not confirmed in %g s what was sent"
                tell(logging.WARNING, text, self.label, relay.far.node, EXIT_SECONDS)


def host_handle(handle: HubHandle) -> HostHandle:
    """Return a handle at which only the members of a hub that spans hosts attach."""
    return HostHandle(**{f.name: getattr(handle, f.name) for f in dataclasses.fields(handle)})
