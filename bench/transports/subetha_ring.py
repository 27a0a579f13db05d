"""SubEtha: a `BroadcastRing` in a file of shared memory, of slots of 52 bytes.

Readers poll: the ring has no wait. A longer message fits no slot.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from bench.transports.base import Peer, Seat, Skipped, Transport

CAPACITY = 1024
_FOLDER = Path("/dev/shm")  # noqa: S108 (the crew's own folder may be on a disk)
_WAIT_SECONDS = 30.0


class Polling(Transport):
    """Readers ask for messages in a loop; so does the source for room."""

    def __init__(self, seat: Seat) -> None:
        import subetha

        path = seat.share(str(_FOLDER / f"bench-subetha-{os.getpid()}"))
        self._is_source = seat.is_source
        self._path = Path(path)
        if seat.is_source:
            self._ring = subetha.BroadcastRing(path, CAPACITY)
        seat.meet()
        if not seat.is_source:
            self._ring = subetha.BroadcastRing.open(path, CAPACITY)
            self._consumer = self._ring.register_consumer()
        else:
            self._ring.wait_for_consumers(seat.size - 1, _WAIT_SECONDS)
        self._room: int = self._ring.payload_size
        seat.meet()

    def expect(self, obj: Any) -> None:
        size = len(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))
        if size > self._room:
            raise Skipped(f"its slots have {self._room} bytes, and the message's pickle {size}")

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            data = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
            while not self._ring.push(data):
                pass
            return obj
        while (received := self._ring.recv(self._consumer)) is None:
            pass
        return pickle.loads(received)  # noqa: S301 (our own bytes, and zeros behind them)

    def close(self) -> None:
        if self._is_source:
            for file in _FOLDER.glob(f"{self._path.name}*"):
                file.unlink(missing_ok=True)
        del self._ring


PEERS = (
    Peer(
        name="SubEtha polling",
        make=Polling,
        crew="subetha",
        settings=(
            f"BroadcastRing of {CAPACITY} slots in /dev/shm, pickled once; readers call recv() in "
            "a Python loop; messages of 52 bytes at most"
        ),
        modules=("subetha",),
    ),
)
