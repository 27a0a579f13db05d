"""What other processes of an engine do with its message queue."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable
from logging import LogRecord
from logging.handlers import QueueHandler
from multiprocessing.connection import Client, Connection
from queue import SimpleQueue
from typing import Any

import numpy as np

from shmcast.compat._queues.stacks import offer_stacks
from shmcast.errors import ShmcastError
from tests.support import confined
from tests.support.engine_queue import LOGGER, MessageQueue

SECONDS = 30.0


def receive(rank: int, handle: Any, count: int) -> list[Any]:
    """Return what a reader receives."""
    queue = MessageQueue.create_from_handle(handle, rank)
    queue.wait_until_ready()
    return [queue.dequeue(SECONDS) for _ in range(count)]


def receive_in_a_busy_loop(rank: int, handle: Any) -> Any:
    """Return what a reader receives that never waits."""
    queue = MessageQueue.create_from_handle(handle, rank)
    while True:
        try:
            return queue.dequeue(timeout=0)
        except TimeoutError:
            continue


def look_at_an_array(rank: int, handle: Any) -> tuple[bool, bool, float]:
    """Return whether an array that arrives is writable, and owns its memory; and its sum."""
    array = MessageQueue.create_from_handle(handle, rank).dequeue(SECONDS)
    assert isinstance(array, np.ndarray)
    return array.flags.writeable, array.flags.owndata, float(array.sum())


def read_a_block(rank: int, handle: Any) -> Any:
    """Return the first bytes of a block, and the message behind it."""
    queue = MessageQueue.create_from_handle(handle, rank)
    with queue.acquire_read(SECONDS) as block:
        data = bytes(block[:5])
    return data + queue.dequeue(SECONDS)


def write_and_be_killed(_: int, address: Any, count: int) -> None:
    """Make a queue, tell where, send so many messages, and be killed."""
    queue = MessageQueue(1, 1)
    with Client(address) as told:
        told.send(queue.export_handle())
        queue.wait_until_ready()
        for number in range(count):
            queue.enqueue(number)
        os.kill(os.getpid(), signal.SIGKILL)


def write_and_leave(_: int, address: Any) -> None:
    """Make a queue, tell where, wait for an answer, and end in order."""
    queue = MessageQueue(1, 1)
    with Client(address) as told:
        told.send(queue.export_handle())
        queue.wait_until_ready()
        told.recv()
    del queue
    os._exit(0)


def work(rank: int, cores: list[Any], address: Any) -> None:
    """Answer what comes from a core, as a worker of it does: the first two have one core."""
    calls = MessageQueue.create_from_handle(cores[rank // 2], rank % 2)
    replies = MessageQueue(1, 1)
    with Client(address) as told:
        told.send((rank, replies.export_handle()))
        calls.wait_until_ready()
        replies.wait_until_ready()
        with contextlib.suppress(ShmcastError):  # the other worker has died
            while (call := calls.dequeue(indefinite=True)) is not None:
                replies.enqueue(call)
        told.recv()


def write_nothing(_: int, address: Any, how: str) -> None:
    """Make a queue, tell where, and never write to it: stopped, in C with the GIL, or asleep."""
    offer_stacks()
    queue = MessageQueue(1, 1)
    with Client(address) as told:
        told.send(queue.export_handle())
        queue.wait_until_ready()
        told.send("hangs now")
        hang_here(how)


def without_shared_memory(how: str) -> None:
    """Go on without it: it is "gone", "read-only", or too "small"."""
    if how == "gone":
        confined.hide("/dev/shm")
    else:
        confined.mount_over("/dev/shm", "size=64k" * (how == "small"), how == "read-only")


def send_without_shared_memory(how: str) -> tuple[list[Any], list[str]]:
    """Return what a queue carries where there is no shared memory, and the log's lines."""
    lines = told_by(LOGGER)
    without_shared_memory(how)
    queue = MessageQueue(1, 1)
    reader = MessageQueue.create_from_handle(queue.export_handle(), 0)
    queue.wait_until_ready()
    queue.enqueue("carried")
    return [reader.dequeue(SECONDS)], lines()


def told_by(logger: str) -> Callable[[], list[str]]:
    """Listen to a log from now on; return what gives its lines so far."""
    lines: SimpleQueue[LogRecord] = SimpleQueue()
    logging.getLogger(logger).addHandler(QueueHandler(lines))
    return lambda: [lines.get().getMessage() for _ in range(lines.qsize())]


def answer_from_another_pid_namespace(handle: Any, address: Any) -> str:
    """Let a worker there answer each message by itself; tell how it ended, when it was told to."""
    with Client(address) as told:
        return in_another_pid_namespace(answer, MessageQueue, handle, told)()


def in_another_pid_namespace(function: Callable[..., None], *args: Any) -> Callable[[], str]:
    """Run a function in a fork there; return what waits for its end, and tells how it was."""
    confined.make_pid_namespace()
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
        finally:
            os._exit(1)
    return lambda: f"exit code {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"


def answer(queue: Any, handle: Any, told: Connection) -> None:
    """Answer each message by itself, over a queue of which it tells; die of "end"."""
    answers = queue(1, 1)
    told.send(answers.export_handle())
    calls = queue.create_from_handle(handle, 0)
    calls.wait_until_ready()
    answers.wait_until_ready()
    while (call := calls.dequeue(SECONDS)) != "end":
        answers.enqueue(call)
    os._exit(9)  # at once: who returns would let go of its queues, in order


def hang_here(how: str) -> None:
    """Hang."""
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "in C":
        sum(range(10**12))
    signal.pause()
