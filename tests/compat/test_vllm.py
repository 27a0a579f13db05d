"""With vLLM's own module: what is known of it holds, and its constructors make queues over rings.

Runs where a vLLM is installed, or the part of it for which bench/README.md has a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.processes import Crew, results

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

SECONDS = 30.0


def _installed() -> Any:
    """Put shmcast in place in this process; return vLLM's module."""
    from vllm.distributed.device_communicators import shm_broadcast

    from shmcast.compat import vllm

    assert vllm.install()
    return shm_broadcast


def _group(rank: int, size: int, folder: str) -> Any:
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    return dist.group.WORLD


def broadcast_in_a_group(rank: int, size: int, folder: str) -> tuple[str, list[Any]]:
    """Return the class of a group's queue, and what a rank has of the objects of rank 1."""
    own = _installed()
    queue = own.MessageQueue.create_from_process_group(_group(rank, size, folder), 1 << 20, 6, 1)
    got = [queue.broadcast_object({"n": n} if rank == 1 else None) for n in range(20)]
    return type(queue).__module__, got


def reply_in_a_group(rank: int, size: int, folder: str) -> tuple[str, list[Any]]:
    """Return the class of a rank's queue to rank 0, and what rank 0 gets of each."""
    own = _installed()
    own.current_platform = SimpleNamespace(device_count=lambda: size)  # (a CPU has none)
    group = _group(rank, size, folder)
    queue, handles = own.MessageQueue.create_from_process_group_single_reader(group, 1 << 20, 6)
    readers = [own.MessageQueue.create_from_handle(handle, 0) for handle in handles]
    queue.enqueue(f"of rank {rank}", timeout=SECONDS)
    got = [reader.dequeue(SECONDS) for reader in readers]
    import torch.distributed as dist

    dist.barrier()  # nobody lets go of what is not read yet
    return type(queue).__module__, got


def send_to_another_host(_: int) -> list[Any]:
    """Return what a reader here and one that is told to be elsewhere get, by zmq."""
    import threading

    own = _installed()
    queue = own.MessageQueue(2, 1, connect_ip="127.0.0.1")
    ends = [own.MessageQueue.create_from_handle(queue.export_handle(), rank) for rank in (0, 1)]
    waits = [threading.Thread(target=end.wait_until_ready) for end in (queue, *ends)]
    for wait in waits:
        wait.start()
    for wait in waits:
        wait.join(SECONDS)
    queue.enqueue({"a": 1})
    return [type(end).__module__.split(".")[0] for end in ends] + [
        end.dequeue(timeout=SECONDS) for end in ends
    ]


def read_the_engines_own(_: int) -> Any:
    """Return what a reader gets of a queue that was made before shmcast was put in place."""
    from vllm.distributed.device_communicators import shm_broadcast

    queue = shm_broadcast.MessageQueue(1, 1)
    reader = _installed().MessageQueue.create_from_handle(queue.export_handle(), 0)
    queue.enqueue([1, 2])
    return reader.dequeue(timeout=SECONDS)


def names_of_signatures(_: int) -> list[str]:
    """Return which methods of ours lack a parameter of vLLM's, or have it elsewhere."""
    import inspect

    from vllm.distributed.device_communicators import shm_broadcast

    own = shm_broadcast.MessageQueue
    _installed()
    differ = []
    for name in ("acquire_read", "acquire_write", "enqueue", "dequeue", "create_from_handle"):
        theirs = [*inspect.signature(getattr(own, name)).parameters]
        ours = [*inspect.signature(getattr(shm_broadcast.MessageQueue, name)).parameters]
        if ours[: len(theirs)] != theirs:
            differ.append(name)
    return differ


def has_groups(_: int) -> bool:
    """Return whether there is as much of vLLM as its process groups take."""
    try:
        import vllm.distributed.parallel_state
    except ImportError:
        return False
    return bool(vllm.distributed.parallel_state)


@pytest.fixture
def ranks() -> Iterator[Crew]:
    """Start processes that get vLLM's module, for one test alone."""
    with Crew(3) as crew:
        yield crew


@pytest.fixture
def group(ranks: Crew) -> Crew:
    """Skip a test of groups where there is only a part of vLLM."""
    if ranks.run(1, has_groups) == [False]:
        pytest.skip("a part of vLLM only")
    return ranks


def test_its_interface_is_known(ranks: Crew) -> None:
    assert ranks.run(1, names_of_signatures) == [[]]


def test_a_groups_queue_broadcasts(group: Crew, tmp_path: Path) -> None:
    got = group.run(3, broadcast_in_a_group, 3, str(tmp_path))
    assert got == [("shmcast.compat.vllm", [{"n": n} for n in range(20)])] * 3


def test_a_groups_ranks_reply_to_one(group: Crew, tmp_path: Path) -> None:
    first, *others = group.run(3, reply_in_a_group, 3, str(tmp_path))
    assert first == ("shmcast.compat.vllm", [f"of rank {rank}" for rank in range(3)])
    assert others == [("shmcast.compat.vllm", [])] * 2


def test_readers_here_and_elsewhere(ranks: Crew) -> None:
    assert ranks.run(1, send_to_another_host) == [["shmcast", "vllm", {"a": 1}, {"a": 1}]]


def test_a_queue_of_its_own_is_read_as_before(ranks: Crew) -> None:
    assert results(ranks.start(1, read_the_engines_own)) == [[1, 2]]
