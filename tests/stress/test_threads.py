"""Endpoints that threads get in each other's way with: one at a time, the others are told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from shmcast import Closed, ConcurrentUse, Hub, Member, NoMessage, Reader, WaitPolicy, Writer

T = TypeVar("T")
SECONDS = 30.0
MESSAGES = 300
POLICIES = [WaitPolicy.adaptive(), WaitPolicy.semaphore()]


def until_it_is_free(call: Callable[[], T]) -> T:
    """Call again for as long as another thread is inside."""
    while True:
        try:
            return call()
        except ConcurrentUse:
            continue


def together(*work: Callable[[], object]) -> None:
    """Run all of them in threads of their own, begun at once; raise what one raises."""
    errors: list[BaseException] = []
    begin = threading.Barrier(len(work))

    def run(each: Callable[[], object]) -> None:
        try:
            begin.wait(SECONDS)
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("wait", POLICIES, ids=["adaptive", "semaphore"])
def test_two_senders_and_two_receivers_lose_and_double_nothing(wait: WaitPolicy) -> None:
    got: list[list[Any]] = [[], []]
    over = threading.Event()
    ended = [False, False]

    def send(writer: Writer, who: int) -> None:
        for k in range(MESSAGES):
            until_it_is_free(lambda k=k: writer.send((who, k, "x" * (k % 700)), SECONDS))  # type: ignore[misc]
        ended[who] = True
        if all(ended):
            for _ in got:
                until_it_is_free(lambda: writer.send(None, SECONDS))

    def receive(reader: Reader, into: list[Any]) -> None:
        while (message := until_it_is_free(lambda: reader.recv(SECONDS))) is not None:
            into.append(message)
        if sum(map(len, got)) == 2 * MESSAGES:
            over.set()

    def look(*ends: Writer | Reader) -> None:
        seen = [0, 0]
        while not over.is_set():
            for i, end in enumerate(ends):
                now = end.statistics()
                assert now.messages >= seen[i]
                assert now.latency(0.5) is None or now.latency(0.5) >= 0
                seen[i] = now.messages

    with (
        Writer(1, slots=4, slot_bytes=256, wait=wait) as writer,
        Reader(writer.handle, 0, wait=wait) as reader,
    ):
        together(
            lambda: send(writer, 0),
            lambda: send(writer, 1),
            lambda: receive(reader, got[0]),
            lambda: receive(reader, got[1]),
            lambda: look(writer, reader),
        )
    for messages in got:  # (each thread has had its part of both, in order)
        for who in (0, 1):
            mine = [k for sender, k, _ in messages if sender == who]
            assert mine == sorted(mine)
    assert sorted((who, k) for who, k, _ in got[0] + got[1]) == [
        (who, k) for who in (0, 1) for k in range(MESSAGES)
    ]


@pytest.mark.parametrize("wait", POLICIES, ids=["adaptive", "semaphore"])
def test_a_close_ends_the_wait_of_another_thread_at_any_moment(wait: WaitPolicy) -> None:
    for k in range(100):
        with Writer(1, slots=2, wait=wait) as writer, Reader(writer.handle, 0, wait=wait) as reader:

            def receive(reader: Reader = reader) -> None:
                with pytest.raises(Closed):
                    until_it_is_free(reader.recv)

            def close(closes: Writer | Reader = (writer, reader)[k % 2]) -> None:
                closes.close()

            together(receive, receive, close, reader.statistics, writer.statistics)


def test_threads_share_a_hub_for_its_messages_and_replies() -> None:
    got: list[list[Any]] = [[], []]

    def ask(hub: Hub) -> None:
        for k in range(MESSAGES):
            until_it_is_free(lambda k=k: hub.send(k, SECONDS))  # type: ignore[misc]

    def answer(member: Member, index: int) -> None:
        for _ in range(MESSAGES):
            member.reply((index, member.recv(SECONDS)), SECONDS)

    def receive(hub: Hub, index: int) -> None:
        while len(got[index]) < MESSAGES:
            with contextlib.suppress(NoMessage):  # not sent yet
                got[index].append(until_it_is_free(lambda: hub.recv(index, SECONDS)))

    with Hub(2) as hub, Member(hub.handle, 0) as first, Member(hub.handle, 1) as second:
        together(
            lambda: ask(hub),
            lambda: answer(first, 0),
            lambda: answer(second, 1),
            lambda: receive(hub, 0),
            lambda: receive(hub, 1),
        )
    assert got == [[(index, k) for k in range(MESSAGES)] for index in (0, 1)]
