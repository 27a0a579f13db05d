"""A stream's end says why it has ended, and what ends a call in between leaves nothing in doubt."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import linecache
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any
from unittest import mock

import pytest

import shmcast
from shmcast._nodes import silence, stream
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import Stream, Turn
from tests.support.alarms import Alarmed, AlarmedError

FOREVER = Deadline.after(None)
NOW = Deadline.after(0.0)
LARGE = [bytes(range(256)) * 40_000, b"", b"end"]  # more than the kernel takes


@pytest.fixture
def ends() -> Iterator[list[Stream]]:
    """Rank 0's end, and rank 1's."""
    ends = [
        Stream(end, f"rank {me}", f"rank {1 - me}", lambda: None, cause_seconds=0.0)
        for me, end in enumerate(socket.socketpair())
    ]
    yield ends
    for end in ends:
        end.close()


def test_who_sends_to_one_that_has_closed_in_order_is_told_so(ends: list[Stream]) -> None:
    here, there = ends
    there.send([b"first"], FOREVER, "gather")
    there.close()
    with pytest.raises(shmcast.Closed, match=r"^rank 0: barrier: rank 1 has closed$"):
        here.send([b"lost"], FOREVER, "barrier")
    assert [*map(bytes, here.receive(FOREVER, "gather"))] == [
        b"first"
    ]  # what had come is still there
    for _ in range(2):
        with pytest.raises(shmcast.Closed, match=r"^rank 0: gather: rank 1 has closed$"):
            here.receive(FOREVER, "gather")


def test_an_end_that_is_not_in_order_is_a_death(ends: list[Stream]) -> None:
    here, there = ends
    there.send([b"first"], FOREVER, "gather")
    there.close(in_order=False)
    with pytest.raises(shmcast.PeerDied, match="rank 0: rank 1 has died"):
        here.send([b"lost"], FOREVER, "barrier")
    assert [*map(bytes, here.receive(FOREVER, "gather"))] == [b"first"]
    with pytest.raises(shmcast.PeerDied, match="rank 0: rank 1 has died: its connection has ended"):
        here.receive(FOREVER, "gather")


def received(end: Stream) -> tuple[threading.Thread, list[list[bytes]]]:
    """Receive in a thread, until the other end closes."""
    got: list[list[bytes]] = []

    def run() -> None:
        with contextlib.suppress(shmcast.Closed):
            while True:
                got.append([*map(bytes, end.receive(FOREVER, "gather"))])

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def test_a_message_that_has_begun_goes_on_where_it_was(ends: list[Stream]) -> None:
    here, there = ends
    turn = Turn()
    for _ in range(3):
        with pytest.raises(shmcast.Timeout):
            here.send(LARGE, NOW, "gather", turn)
        assert here.is_partial
    thread, got = received(there)
    here.send(LARGE, FOREVER, "gather", turn)
    here.send(LARGE, FOREVER, "gather", turn)  # it was sent
    assert not here.is_partial
    here.send([b"next"], FOREVER, "gather", Turn())
    here.close()
    thread.join()
    assert got == [LARGE, [b"next"]]


def test_the_rest_of_a_message_comes_before_the_next_one(ends: list[Stream]) -> None:
    here, there = ends
    with pytest.raises(shmcast.Timeout):
        here.send(LARGE, NOW, "gather", Turn())
    with pytest.raises(shmcast.Timeout):
        here.send([b"next"], NOW, "gather", turn := Turn())
    thread, got = received(there)
    here.send([b"next"], FOREVER, "gather", turn)
    here.close()
    thread.join()
    assert got == [LARGE, [b"next"]]


def test_an_abandoned_message_is_no_end_in_order(ends: list[Stream]) -> None:
    here, there = ends
    with pytest.raises(shmcast.Timeout):
        here.send(LARGE, NOW, "gather")
    here.abandon()
    with pytest.raises(shmcast.Closed, match="an earlier message to rank 1 was not ended"):
        here.send([b"next"], FOREVER, "gather")
    here.close()
    with pytest.raises(shmcast.PeerDied):
        there.receive(FOREVER, "gather")


def is_interrupted(call: Callable[[], object], at: int, raises: type[BaseException]) -> bool:
    """Call, and raise at the `at`-th line of streams; return whether there are so many."""
    left = at

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != stream.__file__:
            return None
        # (The line of a lock is also run on the way out, where no handler runs before it is free.)
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "return" or (event == "line" and not line.startswith("with ")):
            left -= 1
            if left < 0:
                raise raises
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except raises:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("raises", [Alarmed, AlarmedError])
def test_a_signal_at_any_moment_neither_loses_nor_doubles_a_message(
    ends: list[Stream], raises: type[BaseException]
) -> None:
    here, there = ends
    for at in itertools.count():
        sent = [f"message {at}".encode(), b"x" * at]
        turn = Turn()
        send = functools.partial(here.send, sent, FOREVER, "gather", turn)
        receive = functools.partial(there.receive, FOREVER, "gather", turn)
        was_interrupted = is_interrupted(send, at, raises)
        send()
        if is_interrupted(receive, at, raises):
            was_interrupted = True
        assert [*map(bytes, receive())] == sent
        assert not here.is_broken
        if not was_interrupted:
            assert at > 30
            return


@pytest.fixture
def connections() -> Iterator[list[socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    with here, there:
        yield [here, there]


def test_an_end_that_has_no_room_but_answers_is_not_silent(
    connections: list[socket.socket],
) -> None:
    here, there = connections
    here.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100)  # as Keepalive.apply
    sender = Stream(here, "rank 0", "rank 1", lambda: None)
    with pytest.raises(shmcast.Timeout):
        sender.send(LARGE, Deadline.after(1.5), "gather", turn := Turn())
    thread, got = received(Stream(there, "rank 1", "rank 0", lambda: None))
    sender.send(LARGE, FOREVER, "gather", turn)
    sender.close()
    thread.join()
    assert got == [LARGE]


def test_an_end_that_answers_nothing_for_so_long_is_lost(
    connections: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the kernel would tell, and a clock of its own."""
    now, told = 100.0, (0, 0, 0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    connection = mock.Mock(wraps=connections[0], family=socket.AF_INET)
    connection.getsockopt = lambda *_: silence._INFO.pack(*told)
    watched = silence.Silence(connection)
    watched.check()
    for told in ((1, 0, 500), (0, 1, 500)):
        watched.check()
        now += 9.9
        told = (*told[:2], 9800)  # something was acknowledged since: a new count begins
        watched.check()
        now += 9.9
        told = (*told[:2], 19700)
        watched.check()
        now += 0.2
        with pytest.raises(TimeoutError) as error:
            watched.check()
        assert error.value.errno == errno.ETIMEDOUT
        told = (0, 0, 20000)  # all was answered
        watched.check()
