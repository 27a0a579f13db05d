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

from tests.support import confined
from tests.support import engine_roles as roles
from tests.support.permissions import needs_mounts, needs_root
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


def exchange_as_rays_executor_does(_: int) -> list[Any]:
    """Return what a worker on the driver's host answers, and one that is told to be elsewhere.

    And the classes' modules of the queues of both, to the driver.
    """
    import pickle
    import threading
    from queue import SimpleQueue

    _installed()
    from vllm.v1.executor import ray_executor_v2

    made = ray_executor_v2.MessageQueue
    here = "127.0.0.1"
    calls = made(2, 1, max_chunk_bytes=1 << 20, connect_ip=here)
    handle = pickle.dumps(calls.export_handle())
    handles: SimpleQueue[Any] = SimpleQueue()

    def work(rank: int) -> None:
        asked = made.create_from_handle(pickle.loads(handle), rank)  # noqa: S301 (our own bytes)
        answers = made(n_reader=1, n_local_reader=1 - rank, connect_ip=here)
        handles.put((rank, type(answers).__module__, pickle.dumps(answers.export_handle())))
        asked.wait_until_ready()
        answers.wait_until_ready()
        answers.enqueue((rank, asked.dequeue(SECONDS)))

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    told = sorted(handles.get(timeout=SECONDS) for _ in workers)
    readers = [made.create_from_handle(pickle.loads(own), 0) for _, _, own in told]  # noqa: S301
    calls.wait_until_ready()
    for reader in readers:
        reader.wait_until_ready()
    calls.enqueue("a call")
    got = [reader.dequeue(SECONDS) for reader in readers]
    for worker in workers:
        worker.join(SECONDS)
    return [module.split(".")[0] for _, module, _ in told] + got


def refuse_a_changed_queue(_: int) -> tuple[list[str], str, Any]:
    """Return the log's lines where vLLM's queue has a method more; whose carries what, then."""
    import os

    from vllm.distributed.device_communicators import shm_broadcast

    from shmcast.compat import vllm

    shm_broadcast.MessageQueue.peek = lambda self: None
    os.environ["SHMCAST_VLLM"] = "1"
    lines = roles.told_by("vllm.shmcast")
    vllm.plugin()
    queue = shm_broadcast.MessageQueue(1, 1)
    reader = shm_broadcast.MessageQueue.create_from_handle(queue.export_handle(), 0)
    queue.enqueue([1, 2])
    return lines(), type(queue).__module__.split(".")[0], reader.dequeue(timeout=SECONDS)


def need_shared_memory(how: str) -> tuple[list[str], str]:
    """Return the log's lines, and the error of a queue, where there is no shared memory."""
    own = _installed()
    lines = roles.told_by(own.logger.name)
    roles.without_shared_memory(how)
    try:
        own.MessageQueue(1, 1)
    except (OSError, RuntimeError) as error:
        return lines(), str(error)
    return lines(), ""


def carry_in_64_mib(_: int) -> Any:
    """Return what a queue carries that has as much shared memory as a container of Docker's."""
    own = _installed()
    confined.mount_over("/dev/shm", "size=64m")
    queue = own.MessageQueue(1, 1)
    reader = own.MessageQueue.create_from_handle(queue.export_handle(), 0)
    queue.enqueue([1, 2])
    return type(queue).__module__, reader.dequeue(timeout=SECONDS)


def call_into_another_pid_namespace(_: int) -> tuple[Any, str, str]:
    """Return what a worker there answers, what is told of its death, and how it ended."""
    import multiprocessing

    from shmcast import PeerDied

    made = _installed().MessageQueue
    calls = made(1, 1)
    ours, theirs = multiprocessing.Pipe()
    ended = roles.in_another_pid_namespace(roles.answer, made, calls.export_handle(), theirs)
    reader = made.create_from_handle(ours.recv(), 0)
    calls.wait_until_ready()
    reader.wait_until_ready()
    calls.enqueue("a call")
    answered = reader.dequeue(SECONDS)
    calls.enqueue("end")
    try:
        reader.dequeue(indefinite=True)
    except PeerDied as error:
        return answered, type(error).__name__, ended()
    return answered, "nothing", ended()


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


def test_ray_workers_here_and_elsewhere_answer(group: Crew) -> None:
    got = group.run(1, exchange_as_rays_executor_does)
    assert got == [["shmcast", "vllm", (0, "a call"), (1, "a call")]]


def test_a_changed_queue_is_left_as_it_is(ranks: Crew) -> None:
    [([line], carried_by, received)] = ranks.run(1, refuse_a_changed_queue)
    assert "has what this version of shmcast does not know (peek(self))" in line
    assert (carried_by, received) == ("vllm", [1, 2])


@needs_mounts
@pytest.mark.parametrize("how", ["read-only", "small", "gone"])
def test_without_shared_memory_its_own_says_what_it_needs(ranks: Crew, how: str) -> None:
    lines, error = ranks.workers[0].start(need_shared_memory, how).result()
    [line] = [line for line in lines if "shmcast" in line]
    assert line.startswith("vLLM's own queue is used, not shmcast's: ")
    assert error


@needs_mounts
def test_it_takes_less_shared_memory_than_its_own(ranks: Crew) -> None:
    assert ranks.run(1, carry_in_64_mib) == [("shmcast.compat.vllm", [1, 2])]


@needs_root
def test_a_worker_in_another_pid_namespace_is_heard_and_its_death_told(ranks: Crew) -> None:
    got = ranks.run(1, call_into_another_pid_namespace)
    assert got == [("a call", "PeerDied", "exit code 9")]
