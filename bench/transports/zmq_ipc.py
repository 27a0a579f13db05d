"""ZeroMQ: a publisher on a Unix socket, and a subscriber in each reader."""

from __future__ import annotations

import pickle
from typing import Any

from bench.transports.base import Peer, Seat, Transport


class ZmqIpc(Transport):
    """One XPUB socket, which is a PUB that hears of its subscribers; drops nothing."""

    address = "zmq"

    def __init__(self, seat: Seat) -> None:
        import zmq

        self._is_source = seat.is_source
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.XPUB if seat.is_source else zmq.SUB)
        self._socket.set_hwm(0)  # no limit, so no loss
        self._copies = True
        address = f"ipc://{seat.folder}/{self.address}"
        if seat.is_source:
            self._socket.xpub_verbose = True  # tells of every subscriber, not only of the first
            self._socket.bind(address)
            for _ in range(seat.size - 1):
                self._socket.recv()
        else:
            self._socket.subscribe(b"")
            self._socket.connect(address)

    def expect(self, obj: Any) -> None:
        import zmq

        self._copies = len(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)) < zmq.COPY_THRESHOLD

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            data = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
            self._socket.send(data, 0, self._copies)
            return obj
        if self._copies:
            return pickle.loads(self._socket.recv())  # noqa: S301 (our own bytes)
        return pickle.loads(self._socket.recv(copy=False).buffer)  # noqa: S301

    def close(self) -> None:
        self._context.destroy(linger=0)


class Polling(ZmqIpc):
    """Readers ask for messages in a loop."""

    address = "zmq-polling"

    def broadcast(self, obj: Any, /) -> Any:
        import zmq

        if not self._is_source:
            while not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                pass
        return super().broadcast(obj)


_SETTINGS = (
    "PUB/SUB over ipc://, pickled once; no high-water mark, one I/O thread, copy=False from "
    "pyzmq's own threshold of 64 KiB; "
)
PEERS = (
    Peer(
        name="pyzmq ipc",
        make=ZmqIpc,
        crew="zmq",
        settings=_SETTINGS + "readers wait in recv()",
        modules=("zmq",),
    ),
    Peer(
        name="pyzmq ipc polling",
        make=Polling,
        crew="zmq",
        settings=_SETTINGS + "readers look at zmq.EVENTS in a Python loop",
        modules=("zmq",),
    ),
)
