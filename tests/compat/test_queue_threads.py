"""Several threads of a process may use one end of an engine's queue, as with the engine's own."""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import pytest

import shmcast
from shmcast.compat._queues.patience import wait_in_parts
from tests.support.engine_queue import MessageQueue
from tests.support.engine_roles import SECONDS

_THREADS = 3
_EACH = 500


@pytest.fixture
def pair() -> tuple[Any, Any]:
    """Make a writer and its one reader, both in this process."""
    writer = MessageQueue(1, 1)
    return writer, MessageQueue.create_from_handle(writer.export_handle(), 0)


def _start(count: int, work: Any, *args: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(n, *args), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_what_several_threads_enqueue_arrives_in_each_ones_order(pair: tuple[Any, Any]) -> None:
    writer, reader = pair

    def write(me: int) -> None:
        for number in range(_EACH):
            writer.enqueue((me, number))

    threads = _start(_THREADS, write)
    got = [reader.dequeue(SECONDS) for _ in range(_THREADS * _EACH)]
    _join(threads)
    for me in range(_THREADS):
        assert [number for who, number in got if who == me] == [*range(_EACH)]


def test_several_threads_that_dequeue_share_the_messages(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    got: list[list[Any]] = [[] for _ in range(_THREADS)]

    def read(me: int) -> None:
        while (number := reader.dequeue(SECONDS)) is not None:
            got[me].append(number)

    threads = _start(_THREADS, read)
    for number in [*range(_EACH), *[None] * _THREADS]:
        writer.enqueue(number, SECONDS)
    _join(threads)
    assert all(numbers == sorted(numbers) for numbers in got)
    assert sorted(number for numbers in got for number in numbers) == [*range(_EACH)]


def _while_another_waits(reader: Any, wait: Any) -> list[threading.Thread]:
    """Return a thread that has the turn."""
    waits = _start(1, lambda _: wait())
    while reader._turn.acquire(blocking=False):  # until the other thread has it
        reader._turn.release()
    return waits


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_a_thread_times_out_while_another_waits_longer(
    pair: tuple[Any, Any], timeout: float
) -> None:
    writer, reader = pair
    got: list[Any] = []
    waits = _while_another_waits(reader, lambda: got.append(reader.dequeue(indefinite=True)))
    with pytest.raises(TimeoutError):
        reader.dequeue(timeout=timeout)
    writer.enqueue("for who waits")
    _join(waits)
    assert got == ["for who waits"]


def test_shutdown_ends_the_waits_of_all_threads(pair: tuple[Any, Any]) -> None:
    _, reader = pair
    ended: list[str] = []

    def wait(_: int) -> None:
        with pytest.raises(RuntimeError, match=r"^cancelled$") as raised:
            reader.dequeue(indefinite=True)
        ended.append(str(raised.value))

    threads = _start(_THREADS, wait)
    reader.shutdown()  # (whether they wait by now or not)
    _join(threads)
    assert ended == ["cancelled"] * _THREADS


def test_an_object_may_enqueue_another_while_it_is_pickled(pair: tuple[Any, Any]) -> None:
    writer, reader = pair

    class Announced:
        def __reduce__(self) -> Any:
            writer.enqueue("comes next")
            return int, (7,)

    writer.enqueue(Announced())
    assert [reader.dequeue(SECONDS) for _ in range(2)] == ["comes next", 7]


@pytest.mark.parametrize("is_held", [False, True])
def test_a_fork_is_told_how_to_make_an_end_of_its_own(pair: tuple[Any, Any], is_held: bool) -> None:
    writer, reader = pair
    makes = {
        "enqueue": r"make one here: MessageQueue\(\.\.\.\)",
        "dequeue": r"make one here: MessageQueue\.create_from_handle\(handle, 0\)",
    }
    waits = _while_another_waits(reader, reader.dequeue) if is_held else []
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(shmcast.Forked, match=makes["enqueue"]):
                writer.enqueue(1)
            with pytest.raises(shmcast.Forked, match=makes["dequeue"]):
                reader.dequeue()
            with pytest.raises(shmcast.Forked, match=makes["dequeue"]):
                reader.wait_until_ready()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    writer.enqueue("still here")
    if not is_held:
        assert reader.dequeue(SECONDS) == "still here"
    _join(waits)


def test_a_signal_whose_handler_raises_leaves_the_turn_to_others(pair: tuple[Any, Any]) -> None:
    writer, reader = pair
    turn = reader._turn

    class Interrupted:
        def acquire(self, blocking: bool) -> bool:
            turn.acquire(blocking)
            raise KeyboardInterrupt

        release = turn.release

    reader._turn = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        reader.dequeue()
    reader._turn = turn
    got: list[Any] = []
    threads = _start(1, lambda _: got.append(reader.dequeue(SECONDS)))
    writer.enqueue("for another thread")
    _join(threads)
    assert got == ["for another thread"]


def test_a_thread_waits_for_a_turn_for_ever() -> None:
    """Infinity is more than a lock takes."""
    turn = threading.RLock()
    wait_in_parts(turn, lambda _: None, math.inf, math.inf, lambda: None)
    turn.acquire()
    waits = _start(1, lambda _: wait_in_parts(turn, lambda _: None, None, math.inf, lambda: None))
    turn.release()
    _join(waits)
