"""Ways to bring one object from a source to N readers, each behind the same three lines."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
import torch.distributed as dist

import shmcast


class Transport(Protocol):
    """One end of a broadcast. Every process of the group makes its own."""

    name: str

    def broadcast(self, obj: Any, wire_bytes: int, /) -> Any:
        """Sends `obj` on rank 0, receives and returns it elsewhere.

        `wire_bytes` is the size of its pickle, for those who may know it beforehand.
        """


class Shmcast:
    """`shmcast.ShmBroadcaster` with a wait policy."""

    def __init__(self, name: str, wait: shmcast.WaitPolicy) -> None:
        self.name = name
        self._broadcaster = shmcast.ShmBroadcaster(wait=wait)

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        return self._broadcaster.broadcast_object(obj)


class Gloo:
    """`torch.distributed.broadcast_object_list`: two collectives, one for the size."""

    name = "gloo"

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        objects = [obj]
        dist.broadcast_object_list(objects, src=0)
        return objects[0]


class GlooKnownSize:
    """One gloo collective over bytes whose number every rank knows beforehand."""

    name = "gloo, known size"

    def broadcast(self, obj: Any, wire_bytes: int, /) -> Any:
        if dist.get_rank() == 0:
            data = bytearray(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))
            dist.broadcast(torch.frombuffer(data, dtype=torch.uint8), src=0)
            return obj
        data = bytearray(wire_bytes)
        dist.broadcast(torch.frombuffer(data, dtype=torch.uint8), src=0)
        return pickle.loads(data)  # noqa: S301 (our own bytes)


class Pipe:
    """`multiprocessing.Pipe`, one per reader; the source pickles once and writes to each."""

    name = "pipe"

    def __init__(self, ends: list[Connection]) -> None:
        self._ends = ends

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        if dist.get_rank() == 0:
            data = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
            for end in self._ends:
                end.send_bytes(data)
            return obj
        return self._ends[0].recv()


NAMES = ("shmcast", "shmcast spin", "shmcast semaphore", Gloo.name, GlooKnownSize.name, Pipe.name)
"""All transports, in the order of tables."""


def make(name: str, pipe_ends: list[Connection]) -> Transport:
    """This process's end of a transport; called in the same order on every rank."""
    match name:
        case "shmcast":
            return Shmcast(name, shmcast.WaitPolicy.adaptive())
        case "shmcast spin":
            return Shmcast(name, shmcast.WaitPolicy.spin())
        case "shmcast semaphore":
            return Shmcast(name, shmcast.WaitPolicy.semaphore())
        case Gloo.name:
            return Gloo()
        case GlooKnownSize.name:
            return GlooKnownSize()
        case Pipe.name:
            return Pipe(pipe_ends)
    raise ValueError(f"transport {name!r} is none of {', '.join(NAMES)}")
