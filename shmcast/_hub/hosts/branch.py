"""`Branch`: another host's seat at the hub, in the process of the hub."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from shmcast._hub.hosts.relay import MESSAGE, REPLIES, FarEnd, Relay
from shmcast._hub.member_end import MemberEnd
from shmcast._nodes.failure import Failure, FailurePage
from shmcast._nodes.parcel import Parcel
from shmcast.errors import PeerDied, ShmcastError


class Branch(Relay):
    """Sends another host what the hub sends, and gives the hub what its members reply.

    Parcels of replies go into the seat's ring of replies as they are: who receives them opens them.

    Args:
        end: has the seat; ends with this.
        connection: to the host's leader.
        far: the leader.
        members: those on that host.
        page: where members at home look why the hub has ended.
        drops: the hub goes on without members that have died.
    """

    def __init__(
        self,
        end: MemberEnd,
        connection: socket.socket,
        far: FarEnd,
        members: Sequence[int],
        page: FailurePage,
        drops: bool,
    ) -> None:
        super().__init__(connection, end.label, far)
        self._seat = end
        self._members = members
        self._page = page
        self._drops = drops

    def _pass_on(self) -> None:
        while True:
            # (What lies in the arena is sent from there.)
            self._send(MESSAGE, {0: self._seat.consume(None, copy=False)})

    def _take(self, parcel: Parcel) -> None:
        self._reply(parcel)

    def _reply(self, parcel: Parcel) -> None:
        with contextlib.suppress(ShmcastError):  # (the hub has ended, and the other thread tells)
            self._seat.publish(parcel.frames())

    def _end_here(self, failure: Failure | None) -> None:
        if failure is None:
            self._seat.close()
        elif self._drops:
            self._reply(Parcel(REPLIES, {member: self._death(failure) for member in self._members}))
            self._seat.close()
        else:
            self._page.write(failure)
            self._seat.give_up()

    def _death(self, failure: Failure) -> PeerDied:
        return PeerDied(failure.text, failure.peer or str(self.far.node), failure.pid, failure.how)
