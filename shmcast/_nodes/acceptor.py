"""How a stream between ranks of two nodes comes about: one accepts, the other connects."""

from __future__ import annotations

import socket
import time
import weakref
from collections.abc import Callable, Sequence

from shmcast._nodes import control
from shmcast._nodes.addresses import Address, local_addresses
from shmcast._nodes.stream import Stream, wait_for_cause
from shmcast.errors import SegmentError

_PAUSE = 0.0001


class Acceptor:
    """Waits for the connections of other ranks, at whatever port is free.

    Args:
        secret: what they must know.
    """

    def __init__(self, secret: str) -> None:
        self._connections: dict[int, socket.socket] = {}
        self._seen: set[int] = set()  # before they know it: whatever they do then comes after
        # (Not bound to self: the thread of all listeners would keep it alive.)
        connections, seen = self._connections, self._seen
        self._listener = control.Listener(
            secret, lambda rank, _: seen.add(rank), connections.__setitem__
        )
        weakref.finalize(self, self._listener.close).atexit = False

    @property
    def addresses(self) -> list[Address]:
        """Where others may reach this."""
        return local_addresses(self._listener.port)

    def missing(self, ranks: Sequence[int]) -> list[int]:
        """Return to which of these there is no connection yet."""
        return [rank for rank in ranks if rank not in self._connections]

    def unseen(self, ranks: Sequence[int]) -> list[int]:
        """Return which of these have not come, whatever they may have done since."""
        return [rank for rank in ranks if rank not in self._seen]

    def connection(self, rank: int) -> socket.socket:
        """Return the connection of a rank, which has come."""
        while rank in self._seen and rank not in self._connections:
            time.sleep(_PAUSE)  # it may know that it is welcome before this process does
        return self._connections[rank]

    def hand_over(self) -> None:
        """Leave all connections that have come to whom they were returned."""
        self._connections.clear()

    def close(self) -> None:
        """Accept nobody any more; idempotent."""
        self._listener.close()
        while self._connections:
            self._connections.popitem()[1].close()


def stream_to(
    addresses: Sequence[Address],
    secret: str,
    rank: int,
    label: str,
    peer: str,
    check: Callable[[], object],
) -> Stream:
    """Connect to a rank that accepts connections.

    Args:
        addresses: where it may be.
        secret: what it expects.
        rank: this one.
        label: see `Stream`; so for the next.
        peer: how errors name the other.
        check: called while the stream waits.

    Raises:
        SegmentError: it is not to be reached.
    """
    try:
        connection = control.connect(addresses, secret, rank)
    except ConnectionError as error:
        wait_for_cause(check)
        raise SegmentError(f"{label}: {peer} is not to be reached: {error}") from error
    return Stream(connection, label, peer, check)
