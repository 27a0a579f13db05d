"""Sends and receives between two ranks: in order from each to each, whatever else they do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from shmcast._codecs.base import Codec
from shmcast._devices.work import Work
from shmcast._endpoints.arguments import check_timeout, integer
from shmcast._group.company import Company
from shmcast._group.incoming import Incoming
from shmcast._group.outgoing import Outgoing
from shmcast._nodes.deadline import Deadline
from shmcast.errors import InvalidArgument

_LINGER_SECONDS = 10.0  # a close waits so long until others have what was sent


class PointToPoint:
    """What a rank sends to others, and receives from them.

    Args:
        company: the group's.
        make_codec: makes a codec of its own for each direction.
    """

    def __init__(self, company: Company, make_codec: Callable[[], Codec]) -> None:
        self._company = company
        self._make_codec = make_codec
        self._outgoing: dict[int, Outgoing] = {}
        self._incoming: dict[int, Incoming] = {}
        self._lock = threading.Lock()

    def isend(self, obj: Any, dst: int, timeout: float | None, action: str) -> Work:
        """See `ShmBroadcaster.isend_object`."""
        dst = self._checked(dst, "dst", action)
        deadline = Deadline.after(check_timeout(timeout, self._company.label, action))
        with self._lock:
            channel = self._outgoing.get(dst)
            if channel is None:
                with self._company.telling_causes():
                    channel = Outgoing(self._company, dst, self._make_codec())
                self._outgoing[dst] = channel
        return channel.begin(obj, deadline, action)

    def irecv(
        self, src: int, timeout: float | None, action: str, finish: Callable[[Any], Any]
    ) -> Work:
        """See `ShmBroadcaster.irecv_object`; `finish` makes the result of the object."""
        channel, deadline = self._channel_from(src, timeout, action)
        return channel.begin(deadline, action, finish)

    def recv(
        self, src: int, timeout: float | None, action: str, finish: Callable[[Any], Any]
    ) -> Any:
        """See `ShmBroadcaster.recv_object`; `finish` makes the result of the object."""
        channel, deadline = self._channel_from(src, timeout, action)
        return channel.receive(deadline, action, finish)

    def _channel_from(
        self, src: int, timeout: float | None, action: str
    ) -> tuple[Incoming, Deadline]:
        src = self._checked(src, "src", action)
        deadline = Deadline.after(check_timeout(timeout, self._company.label, action))
        with self._lock:
            channel = self._incoming.get(src)
            if channel is None:
                channel = self._incoming[src] = Incoming(self._company, src, self._make_codec())
        return channel, deadline

    def _checked(self, rank: int, name: str, action: str) -> int:
        """Return another rank of the group, as its number there is known."""
        company = self._company
        company.check_open()
        others = [r for r in company.ranks if r != company.me]
        if (place := integer(rank)) in others:
            return place
        what = "is this rank itself" if rank == company.me else "is no rank of the group"
        raise InvalidArgument(
            f"{company.label}: {action}({name}={rank!r}): {what}; the others are {others}"
        )

    def interrupt(self) -> bool:
        """End the calls that wait in other threads; return whether there were any."""
        sends = [channel for channel in [*self._outgoing.values()] if channel.interrupt()]
        receives = [channel for channel in [*self._incoming.values()] if channel.interrupt()]
        return bool(sends or receives)

    def close(self, in_order: bool) -> None:
        """End all ends; idempotent. What has found no room yet is never sent."""
        until = Deadline.after(_LINGER_SECONDS)
        outgoing = [*self._outgoing.values()]
        if outgoing and in_order:
            self._company.departures.tell_all_of_close(self._company.me)
        for channel in outgoing:
            channel.begin_to_close(in_order, until)
        for incoming in [*self._incoming.values()]:
            incoming.close(in_order)
        for channel in outgoing:
            channel.close(in_order, until)
