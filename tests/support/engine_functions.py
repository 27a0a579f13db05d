"""An engine's own collectives of Python objects over gloo, and what ranks do with ours."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

import shmcast
from shmcast.compat._groups.broadcasters import Broadcasters, timeout_of
from shmcast.compat._groups.coordinator import all_gather_object_over, barrier_over
from shmcast.compat._groups.pyobj import Broadcast, PointToPoint

calls: list[str] = []
"""Which of the engine's own were called in this process."""


def own_broadcast(
    data: list[Any], rank: int, dist_group: Any = None, src: int = 0, force_cpu_device: bool = True
) -> list[Any]:
    calls.append("broadcast_pyobj")
    if dist_group is dist.GroupMember.NON_GROUP_MEMBER:
        return []
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


class OwnCoordinator:
    """A group, with the names that SGLang's has."""

    def __init__(self, cpu_group: Any, ranks: list[int]) -> None:
        self.cpu_group = cpu_group
        self.ranks = ranks

    def barrier(self) -> None:
        calls.append("barrier")
        dist.barrier(self.cpu_group)

    def all_gather_object(self, obj: Any) -> list[Any]:
        calls.append("all_gather_object")
        gathered: list[Any] = [None] * len(self.ranks)
        dist.all_gather_object(gathered, obj, self.cpu_group)
        return gathered


def coordinator_class(broadcasters: Broadcasters) -> type[OwnCoordinator]:
    """Return one of ours."""
    methods = {
        "barrier": barrier_over(broadcasters, OwnCoordinator.barrier),
        "all_gather_object": all_gather_object_over(broadcasters, OwnCoordinator.all_gather_object),
    }
    return type("Coordinator", (OwnCoordinator,), methods)


def what_is_sent(source: int, number: int) -> list[Any]:
    """Return a list; every other one is empty, as most are."""
    return [{"source": source, "number": number}] * (number % 2)


def broadcast(rank: int, sources: list[int], count: int) -> tuple[list[Any], int]:
    """Return what arrives of several sources in turns, and how many calls the engine's own had."""
    calls.clear()
    function = Broadcast(own_broadcast, Broadcasters())
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
    function = Broadcast(own_broadcast, Broadcasters())
    source = rank // 2 * 2
    data = what_is_sent(rank, 1)
    return function(data, rank, halves[rank // 2], src=source)


def _without_shared_memory() -> Any:
    """Return a context in which no broadcaster can be made."""

    def refuse(*_: Any) -> None:
        raise shmcast.SharedMemoryFull("no room")

    return mock.patch("shmcast.compat._groups.broadcasters.ShmBroadcaster", refuse)


def broadcast_without_shared_memory(rank: int) -> tuple[list[Any], int]:
    """Do as `broadcast` where no broadcaster can be made."""
    with _without_shared_memory():
        return broadcast(rank, [1], 3)


def meet(rank: int, size: int, folder: str) -> tuple[list[list[int]], list[str]]:
    """Gather in the whole group and in each half, in turns with broadcasts and barriers.

    Returns:
        What was gathered; which of the engine's own were called; and from then on, of each barrier,
        how many ranks had come to it when this one was past it.
    """
    calls.clear()
    broadcasters = Broadcasters()
    kind = coordinator_class(broadcasters)
    halves = [dist.new_group(ranks) for ranks in _halves(size)]
    whole = kind(dist.group.WORLD, [*range(size)])
    half = kind(halves[2 * rank // size], _halves(size)[2 * rank // size])
    function = Broadcast(own_broadcast, broadcasters)
    gathered = []
    for number in range(10):
        come = Path(folder, f"{number}.{rank}")
        come.touch()
        whole.barrier()
        assert len([*Path(folder).glob(f"{number}.*")]) == size
        gathered.append(whole.all_gather_object(10 * number + rank))
        assert function([number], rank, dist.group.WORLD, 0) == [number]
        gathered.append(half.all_gather_object(rank))
        half.barrier()
    return gathered, calls


def meet_without_shared_memory(rank: int, size: int, folder: str) -> Any:
    """Do as `meet` where no broadcaster can be made."""
    with _without_shared_memory():
        return meet(rank, size, folder)


def meet_where_ranks_may_be_lost(rank: int, size: int, folder: str) -> Any:
    """Do as `meet` in groups of a backend that goes on without ranks."""
    with mock.patch("torch.distributed.get_backend", return_value="mooncake-cpu"):
        return meet(rank, size, folder)


def wait_for_one_that_dies(rank: int) -> str:
    """Return who has died, while a barrier waited for it."""
    whole = coordinator_class(Broadcasters())(dist.group.WORLD, [*range(4)])
    whole.barrier()
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        whole.barrier()
    except shmcast.PeerDied as death:
        return f"{death.peer} {death.how}"
    return "nobody"


def _halves(size: int) -> list[list[int]]:
    return [[*range(size // 2)], [*range(size // 2, size)]]


def send_around(rank: int, size: int, count: int, attaches: bool) -> tuple[bool, int]:
    """Let each rank send to the next one, before it receives from the one before.

    Returns:
        Whether all has arrived in order, and how often the engine's own was called at the end.
    """
    calls.clear()
    no_reader: Any = contextlib.nullcontext()
    if not attaches:
        no_reader = mock.patch("shmcast.compat._groups.pyobj._reader", return_value=None)
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


def send_in_two_groups(rank: int, count: int) -> tuple[list[Any], list[Any]]:
    """Send from rank 0 in two groups in turns; return what rank 1 gets, of the second one first."""
    a, b = (dist.new_group([0, 1]) for _ in range(2))
    function = PointToPoint(own_point_to_point)
    got: tuple[list[Any], list[Any]] = ([], [])
    if rank > 1:
        return got
    pending: list[Any] = []
    for number in range(count):
        if rank == 0:
            for name, group in (("a", a), ("b", b)):
                pending += function([f"{name} {number}"], 0, group, 0, 1, async_send=True)
        else:
            got[1].extend(function([], 1, b, 0, 1))
            got[0].extend(function([], 1, a, 0, 1))
        dist.barrier(a)
    for work, _ in pending:
        work.wait()
    dist.barrier(a)
    return got


def broadcast_in_one_half(rank: int) -> list[Any]:
    """Return what the ranks of the first half get, and what the others are told."""
    half = dist.new_group([0, 1])
    function = Broadcast(own_broadcast, Broadcasters())
    return function(["sent"] if rank == 0 else [], rank, half, src=0)


def groups_come_and_go(rank: int, count: int) -> tuple[list[Any], int]:
    """Return what a rank got in groups that are destroyed, and of how many something is kept."""
    broadcasters = Broadcasters()
    function = Broadcast(own_broadcast, broadcasters)
    got = []
    for number in range(count):
        group = dist.new_group([0, 1, 2, 3])
        got.append(function([number], rank, group))
        dist.destroy_process_group(group)
    return got, len(broadcasters._made)


def _in_the_end(call: Callable[[], Any]) -> None:
    """Call until that is no time-out, as it may be on a busy machine."""
    while True:
        with contextlib.suppress(TimeoutError):
            call()
            return


def wait_as_long_as_the_group(rank: int) -> tuple[float | None, list[str]]:
    """Return a group's time-out, and what rank 1 is told when the others do nothing so long."""
    group = dist.new_group([0, 1, 2, 3], timeout=timedelta(seconds=77))
    with (
        mock.patch("shmcast.compat._groups.broadcasters.timeout_of", return_value=0.05),
        mock.patch("shmcast.compat._groups.pyobj.timeout_of", return_value=0.05),
    ):
        broadcasters = Broadcasters()
        broadcast, send = Broadcast(own_broadcast, broadcasters), PointToPoint(own_point_to_point)
        coordinator = mock.Mock(cpu_group=group, ranks=[0, 1, 2, 3])
        barrier = barrier_over(broadcasters, mock.Mock())
        gather = all_gather_object_over(broadcasters, mock.Mock())
        _in_the_end(lambda: broadcast(["at first"], rank, group))
        for _ in range(3):  # then it goes over a ring
            if rank < 2:
                _in_the_end(lambda: send([], rank, group, 0, 1))
            dist.barrier()
        alone: list[Callable[[], Any]] = [
            lambda: broadcast([], rank, group),
            lambda: send([], rank, group, 0, 1),
            lambda: barrier(coordinator),
            lambda: gather(coordinator, 1),
        ]
        told = [_ended_by(call, TimeoutError) for call in alone if rank == 1]
    dist.barrier()
    return timeout_of(group), told


def send_no_list(rank: int) -> list[Any]:
    """Return what ranks get: of a source that sends None, a list, a tuple; then one rank alone."""
    broadcast = Broadcast(own_broadcast, Broadcasters())
    send = PointToPoint(own_point_to_point)
    got: list[Any] = [broadcast([], rank)]  # (which makes what is then used, on all ranks)
    if rank == 0:
        got += [_ended_by(lambda: broadcast(None, 0), TypeError)]  # type: ignore[arg-type]
    got += [broadcast([1], rank), broadcast((), rank)]  # type: ignore[arg-type]
    if rank == 0:
        got += [_ended_by(lambda: send(None, 0, None, 0, 1), TypeError)]  # type: ignore[arg-type]
    for data in ({"a": 1}, ()):
        if rank < 2:
            got += [send(data if rank == 0 else [], rank, None, 0, 1)]  # type: ignore[arg-type]
        dist.barrier()
    return got


def _ended_by(call: Callable[[], Any], kind: type[Exception]) -> str:
    """Return the name of the error of that kind that ends a call; "nothing": none does."""
    try:
        call()
    except kind as error:
        return type(error).__name__
    return "nothing"
