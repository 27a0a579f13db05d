"""`HostLeader`: relays between a host's members and the hub, in the process of one of them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize

from shmcast import _core
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._hub.hosts.relay import EXIT_SECONDS, LEFT, MESSAGE, REPLIES, FarEnd, Relay
from shmcast._hub.hub_end import HubEnd
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.failure import Failure, FailurePage
from shmcast._nodes.parcel import Parcel, Part
from shmcast.errors import Closed, PeerDied

_LOOK_SECONDS = 0.25
"""So often this looks who has closed."""
_PARCEL_BYTES = 1 << 20
"""Replies are packed together up to about here."""


class HostLeader(Relay):
    """Has a hub for the members of this host; what it receives goes into one connection.

    Args:
        end: that hub; ends with this.
        connection: to the hub of all.
        far: the hub of all.
        members: those on this host, by their seats.
        page: where they look why their hub has ended.
    """

    def __init__(
        self,
        end: HubEnd,
        connection: socket.socket,
        far: FarEnd,
        members: Sequence[int],
        page: FailurePage,
    ) -> None:
        super().__init__(connection, end.label, far)
        self._hub = end
        self._members = members
        self._page = page
        self._own: Callable[[], FrameReader | None]
        self._told: set[int] = set()  # of whom the other side knows that they have closed
        self._looked = 0.0
        self._pid = os.getpid()

    def begin(self, own: FrameReader) -> None:
        """Begin to relay.

        Args:
            own: the end of this process's own member, which is kept by nothing here.
        """
        self._own = weakref.ref(own)
        _open.add(self)
        if not _registered:
            _registered.append(Finalize(None, _leave_all, exitpriority=10))
        self.start()

    def _pass_on(self) -> None:
        try:
            while True:
                leaving = self._leaving()
                parcels, are_all = self._collect()
                for parts in parcels:
                    self._send(REPLIES, parts)
                if leaving and are_all:  # (it was looked for replies after they had closed)
                    self._send(LEFT, {self._members[seat]: [] for seat in leaving})
                    self._told |= leaving
        finally:
            _open.discard(self)

    def _leaving(self) -> set[int]:
        """Return the seats of those who have closed lately."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return set()
        self._looked = now
        return {*self._hub.left()} - self._told

    def _collect(self) -> tuple[list[dict[int, Part]], bool]:
        """Wait for replies, and pack what there is; say whether this is all."""
        parcels: list[dict[int, Part]] = [{}]
        nbytes, timeout = 0, _LOOK_SECONDS
        try:
            while nbytes < _PARCEL_BYTES:
                seat, frames = self._hub.replies[timeout, True, None]
                member = self._members[seat]
                if member in parcels[-1]:
                    parcels.append({})
                parcels[-1][member] = self._death_of(seat) if frames is None else frames
                nbytes += sum(map(len, frames or ()))
                timeout = 0.0
        except _core.TimedOut:
            return [parts for parts in parcels if parts], True
        except Exception as error:
            if not parcels[0]:  # (else the next call raises it again)
                self._hub.not_received(error, None, timeout)
        return parcels, False

    def _death_of(self, seat: int) -> PeerDied:
        """Return how a member has died, without the name of who says so."""
        death = self._hub.death_of(seat)
        text = str(death).removeprefix(f"{self._label}: ")
        return PeerDied(text, death.peer, death.pid, death.how)

    def _take(self, parcel: Parcel) -> None:
        assert parcel.purpose == MESSAGE  # noqa: S101 (the hub says nothing else)
        (frames,) = parcel.parts.values()
        assert not isinstance(frames, PeerDied)  # noqa: S101 (as above)
        with contextlib.suppress(Closed, PeerDied):  # (nobody is left: the other thread tells)
            self._hub.publish(frames)

    def _end_here(self, failure: Failure | None) -> None:
        if failure is not None:
            self._page.write(failure)
        self._hub.close()

    def leave_at_exit(self) -> None:
        """Go on for a while for other members of this host, if this process's own has closed."""
        own = self._own()
        if os.getpid() == self._pid and (own is None or own.closed):
            self.join(Deadline.after(EXIT_SECONDS))


_open: set[HostLeader] = set()
_registered: list[Callable[[], object]] = []


def _leave_all() -> None:
    for leader in [*_open]:
        leader.leave_at_exit()
