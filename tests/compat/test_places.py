"""Where an engine's processes can't share all, its queue works, or one line says why not."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Listener

import pytest

import shmcast
from tests.support import confined
from tests.support import engine_roles as roles
from tests.support.engine_queue import MessageQueue
from tests.support.permissions import needs_mounts, needs_root
from tests.support.processes import Worker

SECONDS = roles.SECONDS


@pytest.fixture
def alone() -> Iterator[Worker]:
    with confined.process() as worker:
        yield worker


@needs_mounts
@pytest.mark.parametrize("how", ["read-only", "small", "gone"])
def test_without_shared_memory_the_engines_own_carries_all(alone: Worker, how: str) -> None:
    alone.start(roles.send_without_shared_memory, how)
    received, lines = alone.answer()
    assert received == ["carried"]
    [line] = lines
    assert line.startswith("this engine's own queue is used, not shmcast's: ")
    assert "/dev/shm" in line


@needs_root
def test_a_worker_in_another_pid_namespace_is_heard_and_its_death_told(alone: Worker) -> None:
    queue = MessageQueue(1, 1)
    with Listener(("127.0.0.1", 0)) as told:
        alone.start(roles.answer_from_another_pid_namespace, queue.export_handle(), told.address)
        with told.accept() as worker:
            reader = MessageQueue.create_from_handle(worker.recv(), 0)
    queue.wait_until_ready()
    reader.wait_until_ready()
    queue.enqueue("a call")
    assert reader.dequeue(SECONDS) == "a call"
    with pytest.raises(TimeoutError, match="pid 1: in another pid namespace"):
        reader.dequeue(timeout=1)
    queue.enqueue("end")
    with pytest.raises(shmcast.PeerDied):
        reader.dequeue(indefinite=True)
    assert alone.answer() == "exit code 9"
    reader.shutdown()  # (or a later test would hear of it, as long as the error above lives)
