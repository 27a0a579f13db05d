"""An engine's own collectives of Python objects over gloo, and what ranks do with ours."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

import shmcast
from shmcast.compat._pyobj import Broadcast, PointToPoint

calls: list[str] = []
"""Which of the engine's own were called in this process."""


def own_broadcast(
    data: list[Any], rank: int, dist_group: Any = None, src: int = 0, force_cpu_device: bool = True
) -> list[Any]:
    calls.append("broadcast_pyobj")
    box = [data]
    dist.broadcast_object_list(box, src, dist_group)
    return box[0]


def own_point_to_point(
    data: list[Any],
    rank: int,
    group: Any = None,
    src: int = 0,
    dst: int = 1,
    async_send: bool = False,
) -> list[Any]:
    calls.append("point_to_point_pyobj")
    size = torch.zeros(1, dtype=torch.long)
    if rank == src:
        raw = torch.frombuffer(bytearray(pickle.dumps(data)), dtype=torch.uint8)
        size[0] = len(raw)
        works = [(dist.isend(tensor, dst, group), tensor) for tensor in (size, raw)]
        if not async_send:
            for work, _ in works:
                work.wait()  # type: ignore[union-attr]
        return works if async_send else []
    dist.recv(size, src, group)
    raw = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(raw, src, group)
    received: list[Any] = pickle.loads(bytes(raw.numpy()))  # noqa: S301 (our own bytes)
    return received


def what_is_sent(source: int, number: int) -> list[Any]:
    """Return a list; every other one is empty, as most are."""
    return [{"source": source, "number": number}] * (number % 2)


def broadcast(rank: int, sources: list[int], count: int) -> tuple[list[Any], int]:
    """Return what arrives of several sources in turns, and how many calls the engine's own had."""
    calls.clear()
    function = Broadcast(own_broadcast)
    got = []
    for number in range(count):
        for source in sources:
            data = what_is_sent(source, number) if rank == source else []
            received = function(data, rank, None, source)
            assert (received is data) == (rank == source)
            got.append(received)
    return got, len(calls)


def broadcast_in_halves(rank: int) -> list[Any]:
    """Return what the ranks of each half get of its first one."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    function = Broadcast(own_broadcast)
    source = rank // 2 * 2
    data = what_is_sent(rank, 1)
    return function(data, rank, halves[rank // 2], src=source)


def broadcast_without_shared_memory(rank: int) -> tuple[list[Any], int]:
    """Do as `broadcast` where no broadcaster can be made."""

    def refuse(*_: Any) -> None:
        raise shmcast.SharedMemoryFull("no room")

    with mock.patch("shmcast.compat._pyobj.ShmBroadcaster", refuse):
        return broadcast(rank, [1], 3)


def send_around(rank: int, size: int, count: int, attaches: bool) -> tuple[bool, int]:
    """Let each rank send to the next one, before it receives from the one before.

    Returns:
        Whether all has arrived in order, and how often the engine's own was called at the end.
    """
    calls.clear()
    no_reader: Any = contextlib.nullcontext()
    if not attaches:
        no_reader = mock.patch("shmcast.compat._pyobj._reader", return_value=None)
    function = PointToPoint(own_point_to_point)
    following, before = (rank + 1) % size, (rank - 1) % size
    is_right = True
    pending: list[Any] = []
    with no_reader:
        for number in range(count):
            for work, _ in pending:
                work.wait()
            data = what_is_sent(rank, number)
            pending = function(data, rank, None, rank, following, async_send=True)
            received = function([], rank, None, before, rank)
            is_right &= received == what_is_sent(before, number)
            is_right &= function([], rank, None, following, before) == [] or size < 4
            # One rank may be a message ahead of the other, not more: then it has attached.
            dist.barrier()
    return is_right, len(calls)
