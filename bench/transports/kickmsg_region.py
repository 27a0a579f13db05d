"""kickmsg: a pool of slots in shared memory, and a ring of them for each reader.

Lossy by design: a ring that is full gives up its oldest message. A reader that lost one says so.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

from bench.transports.base import Peer, Seat, Skipped, Transport

ROOM_BYTES = 64 << 10  # of a slot, unless larger messages are expected
MAX_ROOM_BYTES = 32 << 20
RING_BYTES = 128 << 20  # the slots that a ring may hold
DEPTH = 64  # slots of a ring, or fewer of large ones
WAIT_SECONDS = 1.0


class Polling(Transport):
    """Readers ask for messages in a loop. Each case gets a region whose slots fit."""

    kind = "polling"

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._prefix = seat.share(f"/bench-kickmsg-{self.kind}-{os.getpid()}")
        self._regions = 0
        self._name = ""
        self._join(ROOM_BYTES)
        seat.meet()

    def expect(self, obj: Any) -> None:
        room = len(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)) * 9 // 8
        if room > MAX_ROOM_BYTES:
            raise Skipped(f"no slots of {room >> 20} MiB: they would take too much shared memory")
        self._join(max(ROOM_BYTES, room))

    def _join(self, room: int) -> None:
        import kickmsg

        self.close()
        self._regions += 1
        self._name = f"{self._prefix}-{self._regions}"
        config = kickmsg.Config()
        config.max_payload_size = room
        config.max_subscribers = self._seat.size - 1
        config.sub_ring_capacity = min(DEPTH, 1 << (RING_BYTES // room).bit_length() - 1)
        config.pool_size = config.sub_ring_capacity + self._seat.size  # one each is being read
        kind = kickmsg.ChannelType.PubSub
        region = kickmsg.SharedRegion.create_or_open(self._name, kind, config)
        end = kickmsg.Publisher if self._seat.is_source else kickmsg.Subscriber
        self._end: Any = end(region)
        self.settle = self.close

    def broadcast(self, obj: Any, /) -> Any:
        if self._seat.is_source:
            self._end.send(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))
            return obj
        while (view := self._look()) is None:
            pass
        received = pickle.loads(view)  # noqa: S301 (our own bytes)
        view.release()
        if self._end.lost:
            raise Skipped(f"a reader was too slow for its ring: it lost {self._end.lost} messages")
        return received

    def _look(self) -> Any:
        return self._end.try_receive_view()

    def close(self, _obj: Any = None) -> None:
        """Unlink the region, which all have opened by now: mappings stay valid."""
        import kickmsg

        if self._seat.is_source and self._name:
            kickmsg.unlink_shm(self._name)
        self.settle = None


class Blocking(Polling):
    """Readers sleep in kickmsg's own blocking receive."""

    kind = "blocking"

    def _look(self) -> Any:
        return self._end.receive_view(WAIT_SECONDS)


_SETTINGS = (
    f"a region with rings of {DEPTH} slots (4 of 16 MiB) that fit the expected message, pickled "
    "once; "
)
PEERS = (
    Peer(
        name="kickmsg polling",
        make=Polling,
        crew="kickmsg",
        settings=_SETTINGS + "readers call try_receive_view() in a Python loop",
        modules=("kickmsg",),
    ),
    Peer(
        name="kickmsg blocking",
        make=Blocking,
        crew="kickmsg",
        settings=_SETTINGS + "readers wait in receive_view()",
        modules=("kickmsg",),
    ),
)
