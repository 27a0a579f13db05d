"""A short time-out may be the last part of a long wait, or a mere look."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Listener
from typing import Any

import pytest

from shmcast.compat._queues import ring_queue
from tests.support import engine_roles as roles
from tests.support.engine_queue import LOGGER, MessageQueue
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let seconds pass, as queues see it."""

    def let_pass(seconds: float) -> None:
        monkeypatch.setattr(ring_queue, "monotonic", lambda: time.monotonic() + seconds)

    return let_pass


@pytest.fixture
def pair() -> tuple[Any, Any]:
    """Make a writer and its one reader, both in this process."""
    return _pair()


def _pair() -> tuple[Any, Any]:
    writer = MessageQueue(1, 1)
    return writer, MessageQueue.create_from_handle(writer.export_handle(), 0)


@pytest.fixture
def worker(crew: Crew) -> Iterator[tuple[int, Any]]:
    """Start a worker that never replies; return its pid, and this process's end of its replies."""
    with Listener(("127.0.0.1", 0)) as listener:
        [job] = crew.start(1, roles.write_nothing, listener.address, "asleep")
        with listener.accept() as told:
            reader = MessageQueue.create_from_handle(told.recv(), 0)
            reader.wait_until_ready()
            told.recv()
    pid = job.worker.pid
    yield pid, reader
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: reader._death is not None)  # (and the next test's queues are not told)


@pytest.mark.parametrize("left", [0.5, 0.001, 0.0])
def test_what_is_left_of_a_call_tells_who_hangs(
    pair: tuple[Any, Any],
    worker: tuple[int, Any],
    later: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    left: float,
) -> None:
    calls, first_replies = pair  # (by itself, as it were)
    pid, replies = worker
    calls.enqueue("call")
    assert first_replies.dequeue() == "call"
    later(3)
    with pytest.raises(
        TimeoutError, match=rf"timed out after {left:.3g} s, 3\S* s after"
    ) as raised:
        replies.dequeue(timeout=left)
    text = str(raised.value)
    assert f"worker 0, pid {pid}: asleep" in text or f"worker 0, pid {pid}: sleeping" in text
    assert "hang_here" in text
    assert [record.getMessage() for record in caplog.records] == [text]


def test_looks_in_a_loop_ask_nobody(
    pair: tuple[Any, Any],
    later: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ring_queue, "describe", lambda _: pytest.fail("somebody was asked"))
    (calls, _workers_end), (_, replies) = _pair(), pair
    calls.enqueue("call")
    for seconds in (0, 0.5, 1, 5, 50):
        later(seconds)
        with pytest.raises(TimeoutError):
            replies.dequeue(timeout=0.001)
    assert not caplog.records


def test_who_has_sent_nothing_only_looks(
    pair: tuple[Any, Any],
    later: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ring_queue, "_sent_at", ring_queue.RingQueue._looked_after)
    later(50)
    with pytest.raises(TimeoutError):
        pair[1].dequeue(timeout=0.001)
    assert not caplog.records


def test_each_call_is_told_of_once(
    pair: tuple[Any, Any], later: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, LOGGER)
    (calls, _workers_end), (_, replies) = _pair(), pair
    for call in range(2):
        later(10 * call)
        calls.enqueue(call)
        for seconds in (2, 3):
            later(10 * call + seconds)
            with pytest.raises(TimeoutError):
                replies.dequeue(timeout=0.001)
    assert len(caplog.records) == 2
