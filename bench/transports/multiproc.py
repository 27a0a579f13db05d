"""What Python's own multiprocessing offers: a Pipe or a Queue for each reader."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import Any

from bench.transports.base import Peer, Seat, Transport, require_array


class Pipe(Transport):
    """The source pickles once and writes to each reader's Pipe."""

    def __init__(self, seat: Seat) -> None:
        self._is_source = seat.is_source
        self._ends: list[Connection] = seat.inherited["pipes"]

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            data = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
            for end in self._ends:
                end.send_bytes(data)
            return obj
        return self._ends[0].recv()


class PipeKnownShape(Pipe):
    """The memory of an array, into an array that each reader has already."""

    def expect(self, obj: Any) -> None:
        import numpy as np

        require_array(obj)
        self._room = np.empty_like(obj)

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            data = obj.data.cast("B")
            for end in self._ends:
                end.send_bytes(data)
            return obj
        self._ends[0].recv_bytes_into(self._room.data.cast("B"))
        return self._room


class Queues(Transport):
    """A Queue for each reader, each with a thread that pickles and writes."""

    def __init__(self, seat: Seat) -> None:
        self._is_source = seat.is_source
        self._queues: list[Queue[Any]] = seat.inherited["queues"]

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            for queue in self._queues:
                queue.put(obj)
            return obj
        return self._queues[0].get()


PEERS = (
    Peer(
        name="pipe",
        make=Pipe,
        crew="multiprocessing",
        settings="a multiprocessing.Pipe for each reader; pickled once, send_bytes",
    ),
    Peer(
        name="queue",
        make=Queues,
        crew="multiprocessing",
        settings="a multiprocessing.Queue for each reader, which pickles for itself in a thread",
    ),
    Peer(
        name="pipe, known shape",
        make=PipeKnownShape,
        crew="multiprocessing",
        settings=(
            "a multiprocessing.Pipe for each reader: send_bytes of the array's memory, "
            "recv_bytes_into an array that the reader has already"
        ),
        one_object=True,
    ),
)
