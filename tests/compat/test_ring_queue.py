"""An engine's message queue over a ring does what the engine's own does."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import shmcast
from shmcast.compat._queues import deaths, ring_queue, stacks
from shmcast.compat._queues.ring_queue import queue_class
from tests.support import engine_roles as roles
from tests.support.engine_queue import ENGINE, LOGGER, LONG_WAIT, MessageQueue, OwnQueue
from tests.support.processes import Crew, results
from tests.support.subprocess_programs import wait_until

SECONDS = roles.SECONDS


@pytest.fixture
def pair() -> tuple[Any, Any]:
    """Make a writer and its one reader, both in this process."""
    return _pair(MessageQueue)


def _pair(kind: type[Any], **arguments: Any) -> tuple[Any, Any]:
    writer = kind(1, 1, **arguments)
    return writer, kind.create_from_handle(writer.export_handle(), 0)


@pytest.fixture
def told() -> Iterator[Listener]:
    """Where other processes tell of themselves."""
    with Listener(("127.0.0.1", 0)) as listener:
        yield listener


def test_every_reader_gets_every_object_in_order(crew: Crew) -> None:
    queue = MessageQueue(3, 3, [0, 1, 2])
    jobs = crew.start(3, roles.receive, queue.export_handle(), 40)
    queue.wait_until_ready()
    sent = [{"step": number, "tokens": [number] * number} for number in range(40)]
    for obj in sent:
        assert queue.broadcast_object(obj) is obj
    assert results(jobs) == [sent] * 3


def test_a_time_out_is_a_timeout_error_and_loses_nothing(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    for timeout in (0, 0.01, -1):
        with pytest.raises(TimeoutError):
            reader.dequeue(timeout=timeout)
    writer.enqueue("kept")
    assert reader.broadcast_object() == "kept"


def test_a_writer_without_room_times_out_and_has_sent_nothing(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    slots = writer.handle.ring.slots
    for number in range(slots):
        writer.enqueue(number, timeout=SECONDS)
    with pytest.raises(TimeoutError, match=f"reader rank 0 is {slots} fragments behind"):
        writer.enqueue(slots, timeout=0.01)
    assert [reader.dequeue(SECONDS) for _ in range(slots)] == [*range(slots)]
    with pytest.raises(TimeoutError):
        reader.dequeue(timeout=0)


def test_each_end_does_its_own_part_only(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    with pytest.raises(RuntimeError, match="Only readers can dequeue"):
        writer.dequeue()
    with pytest.raises(RuntimeError, match="Only writers can enqueue"):
        reader.enqueue(1)
    with pytest.raises(RuntimeError, match="Only readers can acquire read"), writer.acquire_read():
        pass
    with pytest.raises(RuntimeError, match="Only writers can acquire"), reader.acquire_write():
        pass


def test_shutdown_ends_a_wait_in_another_thread(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    ended: list[str] = []

    def wait() -> None:
        with pytest.raises(RuntimeError, match=r"^cancelled$") as raised:
            reader.dequeue(indefinite=True)
        ended.append(str(raised.value))

    thread = threading.Thread(target=wait)
    thread.start()
    reader.shutdown()  # (whether the thread waits by now or not)
    thread.join()
    assert ended == ["cancelled"]
    writer.shutdown()
    writer.enqueue("after all")
    assert reader.dequeue() == "after all"
    with pytest.raises(RuntimeError, match=r"^cancelled$"):
        reader.dequeue()


def test_an_interrupt_of_the_end_itself_ends_no_wait(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    reader._reader.interrupt()
    writer.enqueue(1)
    assert reader.dequeue() == 1


def test_a_busy_loop_of_looks_receives(crew: Crew) -> None:
    queue = MessageQueue(2, 2)
    jobs = crew.start(2, roles.receive_in_a_busy_loop, queue.export_handle())
    queue.wait_until_ready()
    queue.enqueue("seen")
    assert results(jobs) == ["seen"] * 2


@pytest.mark.parametrize("shape", [10, 100_000])
def test_an_array_arrives_as_writable_as_it_was(crew: Crew, shape: int) -> None:
    for is_writable in (True, False):
        queue = MessageQueue(1, 1)
        assert isinstance(queue, MessageQueue)
        [job] = crew.start(1, roles.look_at_an_array, queue.export_handle())
        array = np.ones(shape)
        array.flags.writeable = is_writable
        queue.enqueue(array)
        writable, _, total = job.result()
        assert (writable, total) == (is_writable, shape)


def test_where_the_engine_asks_for_an_arena_arrays_are_copies_still(crew: Crew) -> None:
    queue = MessageQueue(1, 1, enable_shm_tensor_arena=True)
    [job] = crew.start(1, roles.look_at_an_array, queue.export_handle())
    queue.enqueue(np.ones(100_000))
    assert job.result() == (True, False, 100_000)
    assert queue._writer.statistics().arena_frames == 1


def test_a_reader_on_another_host_reads_from_a_queue_of_the_engines_own(crew: Crew) -> None:
    queue = MessageQueue(3, 1, [1], connect_ip="127.0.0.1")
    jobs = crew.start(3, roles.receive, queue.export_handle(), 5)
    queue.wait_until_ready()
    for number in range(5):
        queue.enqueue(number)
    assert results(jobs) == [[*range(5)]] * 3
    assert (queue.n_local_reader, queue.n_remote_reader) == (1, 2)


def test_without_readers_on_this_host_it_is_the_engines_own() -> None:
    queue = MessageQueue(1, 0)
    assert type(queue) is OwnQueue
    reader = MessageQueue.create_from_handle(queue.export_handle(), 0)
    assert type(reader) is OwnQueue
    assert isinstance(queue, MessageQueue)
    assert isinstance(reader, MessageQueue)
    assert not isinstance(reader, type("Derived", (MessageQueue,), {}))
    queue.wait_until_ready()
    queue.enqueue(1)
    assert reader.dequeue(SECONDS) == 1


def test_without_shared_memory_it_is_the_engines_own_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise shmcast.SharedMemoryFull("no room in /dev/shm")

    monkeypatch.setattr(ring_queue, "Writer", refuse)
    assert type(MessageQueue(2, 2)) is OwnQueue
    [record] = caplog.records
    assert record.getMessage() == (
        "this engine's own queue is used, not shmcast's: no room in /dev/shm"
    )


def test_as_many_ranks_as_readers(pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"local_reader_ranks=\[1\] are not 2"):
        MessageQueue(2, 2, [1])
    with pytest.raises(TypeError):
        MessageQueue(2, 2, unknown=1)


def test_blocks_are_filled_and_read(crew: Crew) -> None:
    queue = MessageQueue(1, 1, max_chunk_bytes=64)
    [job] = crew.start(1, roles.read_a_block, queue.export_handle())
    with queue.acquire_write(SECONDS) as block:
        assert len(block) == 64
        block[:5] = b"block"
    queue.enqueue(b" and more")
    assert job.result() == b"block and more"


def test_a_block_is_not_sent_to_other_hosts(crew: Crew) -> None:
    queue = MessageQueue(2, 1, [0], connect_ip="127.0.0.1")
    blocks = crew.start(1, roles.read_a_block, queue.export_handle())
    elsewhere = crew.workers[1].start(roles.receive, 1, queue.export_handle(), 1)
    queue.wait_until_ready()
    with queue.acquire_write(SECONDS) as block:
        block[:5] = b"block"
    queue.enqueue(b" and more")
    assert results([*blocks, elsewhere]) == [b"block and more", [b" and more"]]


def test_what_is_no_block_is_not_read_as_one(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    writer.enqueue({"a": 1})
    with pytest.raises(RuntimeError, match=r"is a dict: call dequeue\(\)"), reader.acquire_read():
        pass


class _Ending(logging.Handler):
    """Ends the wait of which the log tells first."""

    def __init__(self, end: Callable[[], object]) -> None:
        super().__init__()
        self._end = end
        logging.getLogger(LOGGER).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(LOGGER).removeHandler(self)
        self._end()


def test_a_long_wait_is_told_in_the_engines_words_and_an_indefinite_one_is_not(
    caplog: pytest.LogCaptureFixture, crew: Crew
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    kind, _ = queue_class(dataclasses.replace(ENGINE, warning_interval=lambda: 0.02), __name__)
    writer, reader = _pair(kind)
    with pytest.raises(TimeoutError):
        reader.dequeue(timeout=0.2, indefinite=True)
    assert not caplog.records
    _Ending(lambda: writer.enqueue("late"))
    assert reader.dequeue(SECONDS) == "late"
    assert {record.getMessage() for record in caplog.records} == {LONG_WAIT % 0}
    caplog.clear()
    slots = writer.handle.ring.slots
    for number in range(slots):
        writer.enqueue(number)
    _Ending(reader.dequeue)
    writer.enqueue(slots, SECONDS)
    words = {record.getMessage() for record in caplog.records}
    assert words == {f"{LONG_WAIT % 0}\n  reader rank 0 is {slots} fragments behind"}


def test_a_killed_writer_ends_the_wait_by_its_name(crew: Crew, told: Listener) -> None:
    [job] = crew.start(1, roles.write_and_be_killed, told.address, 3)
    with told.accept() as worker:
        reader = MessageQueue.create_from_handle(worker.recv(), 0)
    reader.wait_until_ready()
    assert [reader.dequeue() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(shmcast.PeerDied) as died:
        reader.dequeue(indefinite=True)
    assert died.value.peer == "worker 0"
    with pytest.raises(AssertionError, match="exit code -9"):
        job.result()


@pytest.mark.parametrize("by", ["its first word", "its pidfd"])
def test_the_death_of_a_worker_ends_the_wait_for_another_one(
    children: Crew, told: Listener, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "its pidfd":
        monkeypatch.setattr(deaths, "FirstWord", _refuse)
    else:
        monkeypatch.setattr(deaths, "epoll_thread", lambda _: mock.Mock())
    children.start(3, roles.write_and_leave, told.address)
    workers = [told.accept() for _ in range(3)]
    readers = [MessageQueue.create_from_handle(worker.recv(), 0) for worker in workers]
    for reader in readers:
        reader.wait_until_ready()
    leaving, dying, asked = (reader.handle.writer for reader in readers)
    monkeypatch.setattr(ring_queue, "_LEFT_ALONE_S", 0.0)
    workers[0].send("leave")
    with pytest.raises(shmcast.Closed):
        readers[0].dequeue(indefinite=True)
    _wait_for_end(leaving.pid)
    with pytest.raises(TimeoutError):  # who ends in order is missed by nobody
        readers[2].dequeue(timeout=0)
    os.kill(dying.pid, signal.SIGKILL)
    with pytest.raises(shmcast.PeerDied, match=r" \(pid \d+\) has died: killed by SIGKILL") as died:
        readers[2].dequeue(indefinite=True)
    assert (died.value.peer, died.value.pid) == (dying.name, dying.pid)
    os.kill(asked.pid, signal.SIGKILL)
    wait_until(lambda: readers[2]._death.pid == asked.pid)
    with pytest.raises(shmcast.PeerDied):
        readers[2].dequeue()
    for worker in workers:
        worker.close()


def test_the_death_of_a_worker_is_no_business_of_another_engine(
    children: Crew, told: Listener
) -> None:
    cores = [MessageQueue(2, 2), MessageQueue(1, 1)]
    children.start(3, roles.work, [core.export_handle() for core in cores], told.address)
    workers = [told.accept() for _ in range(3)]
    handles = dict(worker.recv() for worker in workers)
    replies = [MessageQueue.create_from_handle(handles[rank], 0) for rank in range(3)]
    for queue in [*cores, *replies]:
        queue.wait_until_ready()
    os.kill(handles[0].writer.pid, signal.SIGKILL)
    for rank in (0, 1):  # its own reply, and that of its engine's other worker
        with pytest.raises(shmcast.PeerDied) as died:
            replies[rank].dequeue(SECONDS)
        assert died.value.pid == handles[0].writer.pid
    for number in range(3):
        cores[1].enqueue(number)
        assert replies[2].dequeue(SECONDS) == number
    cores[1].enqueue(None)
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("how", ["stopped", "in C", "asleep"])
def test_a_time_out_says_who_hangs_and_where(
    crew: Crew,
    told: Listener,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr(stacks, "stack_of", lambda pid: "")  # as without py-spy
    [job] = crew.start(1, roles.write_nothing, told.address, how)
    pid = job.worker.pid
    with told.accept() as worker:
        reader = MessageQueue.create_from_handle(worker.recv(), 0)
        reader.wait_until_ready()
        assert worker.recv() == "hangs now"
    _wait_for_state(pid, {"stopped": "T", "in C": "R", "asleep": "S"}[how])
    with pytest.raises(TimeoutError, match="dequeue timed out after 1 s") as raised:
        reader.dequeue(timeout=1)
    text = str(raised.value)
    if how == "stopped":
        assert f"worker 0, pid {pid}: stopped" in text
    else:  # (shmcast's own thread in it has come later, and is listed first)
        assert 0 < text.find("hang_here") < text.find("hold_for_good")
    assert "CPU time" in text
    assert [record.getMessage() for record in caplog.records] == [text]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: reader._death is not None)  # (and the next test's queues are not told)


def _refuse(*_: object) -> None:
    raise PermissionError("may not be asked")


def _wait_for_end(pid: int) -> None:
    wait_until(lambda: ring_queue._watch._pidfds.get(pid) is None)


def _wait_for_state(pid: int, state: str) -> None:
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == state)


def test_a_queue_that_nobody_has_any_more_ends_in_order() -> None:
    writer, reader = _pair(MessageQueue)
    writer.enqueue("last")
    del writer
    gc.collect()
    assert reader.dequeue() == "last"
    with pytest.raises(shmcast.Closed):
        reader.dequeue()


def test_a_worker_without_work_whose_core_has_closed_is_left_to_who_ends_it(
    pair: tuple[Any, Any],
) -> None:
    writer, reader = pair
    writer._writer.close()
    ended: list[str] = []

    def work() -> None:
        with pytest.raises(RuntimeError) as raised:
            reader.dequeue(indefinite=True)
        ended.append(str(raised.value))

    worker = threading.Thread(target=work)
    worker.start()
    reader.shutdown()  # (whether the thread waits by now or not)
    worker.join()
    assert ended == ["cancelled"]
    with pytest.raises(RuntimeError, match=r"^cancelled$"):
        reader.dequeue()


def test_a_worker_that_nobody_ends_is_told_that_its_core_has_closed(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_queue, "_LEFT_ALONE_S", 0.01)
    writer, reader = pair
    writer._writer.close()
    with pytest.raises(shmcast.Closed):
        reader.dequeue(indefinite=True)


def test_a_death_ends_the_wait_of_a_worker_whose_core_has_closed(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    writer._writer.close()
    reader.note_death(shmcast.PeerDied("core has died", "core", 1, "killed by SIGKILL"))
    with pytest.raises(shmcast.PeerDied):
        reader.dequeue(indefinite=True)
