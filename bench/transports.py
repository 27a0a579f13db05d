"""Ways to bring one object from a source to N readers, each behind the same three lines."""

from __future__ import annotations

import os
import pickle
from abc import abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
import torch.distributed as dist

import shmcast


class Transport(Protocol):
    """One end of a broadcast. Every process of the group makes its own."""

    name: str
    settle: Callable[[Any], None] | None = None
    """What the source calls with its object before the gap, to be as before the first message."""
    prepare: Callable[[], None] | None = None
    """What the source may call while it has time, to make its next call faster."""
    fill: Callable[[], None] | None = None
    """What the source calls at the end of the gap, to make what it is about to send."""

    @abstractmethod
    def broadcast(self, obj: Any, wire_bytes: int, /) -> Any:
        """Sends `obj` on rank 0, receives and returns it elsewhere.

        `wire_bytes` is its size on the wire, for those who may know it beforehand.
        """


class Shmcast(Transport):
    """`shmcast.ShmBroadcaster` with a wait policy; `warm`: the source calls `warm()`."""

    def __init__(self, name: str, wait: shmcast.WaitPolicy, warm: bool = False) -> None:
        self.name = name
        self._broadcaster = shmcast.ShmBroadcaster(wait=wait)
        self.prepare = self._broadcaster.warm if warm else None

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        return self._broadcaster.broadcast_object(obj)


class Gloo(Transport):
    """`torch.distributed.broadcast_object_list`: two collectives, one for the size."""

    name = "gloo"

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        objects = [obj]
        dist.broadcast_object_list(objects, src=0)
        return objects[0]


class GlooKnownSize(Transport):
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


class Pipe(Transport):
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


class Kickmsg(Transport):
    """kickmsg (PyPI), a lock-free pub/sub ring in shared memory; the reader polls in a loop.

    Needs `pip install kickmsg`. Lossy by design: nothing here comes near its 64 slots.
    """

    name = "kickmsg polling"

    def __init__(self) -> None:
        import kickmsg

        rank, size = dist.get_rank(), dist.get_world_size()
        name = [f"/shmcast-bench-{os.getpid()}"]
        dist.broadcast_object_list(name, src=0)
        if rank == 0:
            config = kickmsg.Config()
            config.max_payload_size = 32 * 1024
            config.max_subscribers = size
            config.sub_ring_capacity = 64
            config.pool_size = 128
            kind = kickmsg.ChannelType.PubSub
            self._region = kickmsg.SharedRegion.create(name[0], kind, config)
        dist.barrier()
        if rank == 0:
            self._send = kickmsg.Publisher(self._region).send
        else:
            self._region = kickmsg.SharedRegion.open(name[0])
            self._look: Callable[[], Any] = kickmsg.Subscriber(self._region).try_receive
        dist.barrier()
        if rank == 0:
            self._region.unlink()  # all are in: the mapping lives on

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        if dist.get_rank() == 0:
            self._send(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))
            return obj
        look = self._look
        while (data := look()) is None:
            pass
        return pickle.loads(data)  # noqa: S301 (our own bytes)


_POLICIES = {
    "shmcast": shmcast.WaitPolicy.adaptive(),
    "shmcast spin": shmcast.WaitPolicy.spin(),
    "shmcast semaphore": shmcast.WaitPolicy.semaphore(),
}

NAMES = (*_POLICIES, Gloo.name, GlooKnownSize.name, Pipe.name)
"""The transports that are compared unless told otherwise, in the order of tables."""

WARMED = ", warmed"
"""After the name of a shmcast transport: the source calls `warm()` while it has time."""


def make(name: str, pipe_ends: list[Connection]) -> Transport:
    """This process's end of a transport; called in the same order on every rank."""
    policy = _POLICIES.get(name.removesuffix(WARMED))
    if policy is not None:
        return Shmcast(name, policy, warm=name.endswith(WARMED))
    match name:
        case Gloo.name:
            return Gloo()
        case GlooKnownSize.name:
            return GlooKnownSize()
        case Pipe.name:
            return Pipe(pipe_ends)
        case Kickmsg.name:
            return Kickmsg()
    raise ValueError(f"transport {name!r} is none of {', '.join((*NAMES, Kickmsg.name))}")
