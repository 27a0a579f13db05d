"""A message to all members of a group, and a reply of each: ours, by hand, and as engines do it."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import shmcast
from bench.transports.vllm_queue import Queue

Gather = Callable[[Any], list[Any]]
"""Returns what each rank has passed, by rank. Collective."""


class Exchange(Protocol):
    """One process's ends: the driver's has rank 0, the members' the others."""

    def ask(self, message: Any, /) -> Sequence[Any]:
        """Send a message to all members, and return their replies, in their order. The driver's."""

    def answer(self, reply: Any, /) -> None:
        """Receive a message, and reply. A member's."""

    def close(self) -> None:
        """Close this process's ends."""


class Hub(Exchange):
    """A `shmcast.Hub` and its `Member`s.

    Args:
        rank: this process's.
        size: of the group.
        gather: tells the others of handles.
    """

    def __init__(self, rank: int, size: int, gather: Gather) -> None:
        self._end: shmcast.Hub | shmcast.Member
        if rank == 0:
            self._end = shmcast.Hub(size - 1)
            gather(self._end.handle)
        else:
            self._end = shmcast.Member(gather(None)[0], rank - 1)

    def ask(self, message: Any, /) -> Sequence[Any]:
        assert isinstance(self._end, shmcast.Hub)  # noqa: S101 (the driver's)
        self._end.send(message)
        return self._end.recv_all()

    def answer(self, reply: Any, /) -> None:
        assert isinstance(self._end, shmcast.Member)  # noqa: S101 (a member's)
        self._end.recv()
        self._end.reply(reply)

    def close(self) -> None:
        self._end.close()


class Pairs(Exchange):
    """A `Writer` for the messages, and one of each member for its replies."""

    def __init__(self, rank: int, size: int, gather: Gather) -> None:
        self._writer = shmcast.Writer(size - 1 if rank == 0 else 1)
        handles = gather(self._writer.handle)
        others = [(handles[0], rank - 1)] if rank else [(handle, 0) for handle in handles[1:]]
        self._readers = [shmcast.Reader(handle, index) for handle, index in others]

    def ask(self, message: Any, /) -> Sequence[Any]:
        self._writer.send(message)
        return [reader.recv() for reader in self._readers]

    def answer(self, reply: Any, /) -> None:
        self._readers[0].recv()
        self._writer.send(reply)

    def close(self) -> None:
        for end in (self._writer, *self._readers):
            end.close()


class OneWay(Pairs):
    """A `Writer` and its `Reader`s: nobody replies."""

    def ask(self, message: Any, /) -> Sequence[Any]:
        self._writer.send(message)
        return ()

    def answer(self, _reply: Any, /) -> None:
        self._readers[0].recv()


class VllmQueues(Exchange):
    """A `MessageQueue` for the messages, and one of each member, as vLLM's executor has them."""

    def __init__(self, rank: int, size: int, gather: Gather) -> None:
        queue = importlib.import_module(Queue.module).MessageQueue
        self._out = queue(size - 1, size - 1) if rank == 0 else queue(1, 1)
        handles = [pickle.loads(each) for each in gather(pickle.dumps(self._out.export_handle()))]  # noqa: S301
        others = [(handles[0], rank - 1)] if rank else [(handle, 0) for handle in handles[1:]]
        self._in = [queue.create_from_handle(handle, index) for handle, index in others]
        # All wait for the messages' first, then the driver for each member's in turn.
        for each in (self._out, *self._in) if rank == 0 else (*self._in, self._out):
            each.wait_until_ready()

    def ask(self, message: Any, /) -> Sequence[Any]:
        self._out.enqueue(message)
        return [queue.dequeue() for queue in self._in]

    def answer(self, reply: Any, /) -> None:
        self._in[0].dequeue()
        self._out.enqueue(reply)

    def close(self) -> None:
        del self._out, self._in  # which unlinks their rings


class Gloo(Exchange):
    """`broadcast_object_list`, then `gather_object`."""

    def __init__(self, rank: int, size: int, _gather: Gather) -> None:
        self._gathered: list[Any] | None = None if rank else [None] * size

    def ask(self, message: Any, /) -> Sequence[Any]:
        import torch.distributed as dist

        dist.broadcast_object_list([message], 0)
        dist.gather_object(None, self._gathered, 0)
        assert self._gathered is not None  # noqa: S101 (the driver's)
        return self._gathered[1:]

    def answer(self, reply: Any, /) -> None:
        import torch.distributed as dist

        dist.broadcast_object_list([None], 0)
        dist.gather_object(reply, None, 0)

    def close(self) -> None:
        return


class Semaphores(Exchange):
    """A POSIX semaphore for each process, and no data: what waking all and being woken cost."""

    def __init__(self, rank: int, _size: int, gather: Gather) -> None:
        posix_ipc = importlib.import_module("posix_ipc")
        own = posix_ipc.Semaphore(None, posix_ipc.O_CREX)
        everybody = [posix_ipc.Semaphore(name) for name in gather(own.name)]
        gather(None)  # all have opened it
        own.unlink()
        self._own = own
        self._others = everybody[1:] if rank == 0 else everybody[:1]

    def ask(self, _message: Any, /) -> Sequence[Any]:
        for other in self._others:
            other.release()
        for _ in self._others:
            self._own.acquire()
        return ()

    def answer(self, _reply: Any, /) -> None:
        self._own.acquire()
        self._others[0].release()

    def close(self) -> None:
        for each in (self._own, *self._others):
            each.close()


HUB, PAIRS, VLLM, GLOO = "Hub", "a Writer of each", "vLLM", "gloo"
ONE_WAY, SEMAPHORES = "one way", "semaphores, no data"

EXCHANGES: dict[str, Callable[[int, int, Gather], Exchange]] = {
    HUB: Hub,
    PAIRS: Pairs,
    VLLM: VllmQueues,
    GLOO: Gloo,
    ONE_WAY: OneWay,
    SEMAPHORES: Semaphores,
}
"""By name, what makes a process's ends; collective."""


WITHOUT_REPLIES = (ONE_WAY, SEMAPHORES)
"""Of them, those in which nobody sends an object back."""

_MODULES = {VLLM: Queue.module, SEMAPHORES: "posix_ipc"}


def missing() -> dict[str, str]:
    """Return the exchanges that can't run here, by name, and why."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    reasons = {}
    for who, module in _MODULES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            reasons[who] = str(error)
    return reasons
