"""Calls of a hub or a member that are ended from outside: by interrupt(), and by signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

import shmcast
from shmcast import Hub, Interrupted, Member, PickleCodec, WaitPolicy
from tests.support import signals
from tests.support.hub_roles import SECONDS
from tests.support.signals import another_pending, not_on_310
from tests.support.subprocess_programs import wait_until


class Handled(Exception):
    """What a signal's handler raises."""


@contextmanager
def once(condition: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Act in another thread once something is so."""

    def watch() -> None:
        wait_until(condition)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def parked(statistics: Callable[[], shmcast.Statistics]) -> Callable[[], bool]:
    before = statistics().parks
    return lambda: statistics().parks > before


RECEIVE: dict[str, Callable[[Hub], Any]] = {
    "recv": lambda hub: hub.recv(1),
    "recv_any": lambda hub: hub.recv_any(),
    "recv_all": lambda hub: hub.recv_all(),
}


@pytest.mark.parametrize("call", RECEIVE)
def test_a_hub_that_waits_is_interrupted_and_goes_on(call: str) -> None:
    with Hub(2, wait=WaitPolicy.semaphore()) as hub, Member(hub.handle, 0) as member:
        with (
            once(parked(hub.reply_statistics), hub.interrupt),
            pytest.raises(Interrupted, match=rf"hub: {call}\S* was ended by interrupt\(\); call"),
        ):
            RECEIVE[call](hub)
        hub.send(1)
        member.reply(member.recv(SECONDS))
        assert hub.recv(0, SECONDS) == 1


def test_an_interrupt_with_nobody_inside_ends_the_next_call_that_receives() -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        hub.interrupt()
        hub.send(1)
        with pytest.raises(Interrupted):
            hub.recv(0)
        member.interrupt()
        with pytest.raises(Interrupted, match="member 0: recv was ended"):
            member.recv()
        member.reply(member.recv())
        assert hub.recv(0) == 1


def test_what_waits_for_room_is_interrupted_and_sends_nothing() -> None:
    with (
        Hub(1, slots=2, reply_slots=2, wait=WaitPolicy.semaphore()) as hub,
        Member(hub.handle, 0, wait=WaitPolicy.semaphore()) as member,
    ):
        for k in range(2):
            hub.send(k)
        with (
            once(parked(hub.statistics), hub.interrupt),
            pytest.raises(Interrupted, match="hub: send was ended"),
        ):
            hub.send(2)
        for _ in range(2):
            member.reply(member.recv())
        hub.send(2)
        assert member.recv() == 2
        with (
            once(parked(member.reply_statistics), member.interrupt),
            pytest.raises(Interrupted, match="member 0: reply was ended"),
        ):
            member.reply("no room")
        assert [hub.recv(0) for _ in range(2)] == [0, 1]
        member.reply("room")
        assert hub.recv(0) == "room"


def test_one_thread_in_each_direction_is_interrupted() -> None:
    with Hub(1, slots=2, wait=WaitPolicy.semaphore()) as hub:
        hub.send(0)
        hub.send(1)
        told: list[str] = []

        def run(call: Callable[[], object]) -> None:
            try:
                call()
            except Interrupted as error:
                told.append(str(error).split()[1])

        both = parked(hub.statistics), parked(hub.reply_statistics)
        threads = [
            threading.Thread(target=run, args=(call,))
            for call in (lambda: hub.send(2), lambda: hub.recv_any())
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(is_parked() for is_parked in both))
        hub.interrupt()
        for thread in threads:
            thread.join(SECONDS)
        assert sorted(told) == ["recv_any", "send"]


@pytest.mark.parametrize("call", RECEIVE)
def test_a_handler_that_raises_ends_a_wait_and_loses_nothing(call: str) -> None:
    def fail(*_: object) -> NoReturn:
        raise Handled

    before = signal.signal(signal.SIGUSR1, fail)
    main = threading.get_ident()
    try:
        with (
            Hub(2, wait=WaitPolicy.semaphore()) as hub,
            Member(hub.handle, 0) as first,
            Member(hub.handle, 1) as second,
        ):
            hub.send("x")
            if call == "recv_all":
                first.reply(first.recv())
            with (
                once(
                    parked(hub.reply_statistics),
                    lambda: signal.pthread_kill(main, signal.SIGUSR1),
                ),
                pytest.raises(Handled),
            ):
                RECEIVE[call](hub)
            second.reply(second.recv())
            if call != "recv_all":
                first.reply(first.recv())
            assert hub.recv_all(SECONDS) == ["x", "x"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_raises_while_replies_are_decoded_loses_none() -> None:
    class Signals:
        """Sends a signal to this process, once, when it is decoded."""

        def __reduce__(self) -> tuple[Any, tuple[()]]:
            return (_signal_once, ())

    def fail(*_: object) -> NoReturn:
        raise Handled

    before = signal.signal(signal.SIGUSR1, fail)
    try:
        with Hub(2) as hub, Member(hub.handle, 0) as first, Member(hub.handle, 1) as second:
            calls: list[Callable[[], list[Any]]] = [
                hub.recv_all,
                lambda: [hub.recv_any()[1], hub.recv_any()[1]],
                lambda: [hub.recv(0), hub.recv(1)],
            ]
            for receive in calls:
                hub.send("x")
                first.reply([first.recv(), Signals()])
                second.reply(second.recv())
                _signals.append(None)
                with pytest.raises(Handled):
                    receive()
                assert sorted(receive(), key=len) == ["x", ["x", None]]
                with pytest.raises(shmcast.Timeout):
                    hub.recv_any(0)
    finally:
        signal.signal(signal.SIGUSR1, before)


@not_on_310
@pytest.mark.parametrize("call", RECEIVE)
def test_two_signals_while_a_reply_is_decoded_lose_none(call: str) -> None:
    class Interrupts(PickleCodec):
        due: list[Callable[[], Any]] = []  # noqa: RUF012 (of this test)

        def decode(self, frames: Any) -> Any:
            if self.due:
                self.due.pop()()
            return super().decode(frames)

    codec = Interrupts()
    with (
        Hub(2, codec=codec) as hub,
        Member(hub.handle, 0, codec=PickleCodec()) as first,
        Member(hub.handle, 1, codec=PickleCodec()) as second,
    ):
        hub.send("x")
        for member in (first, second):
            member.reply(member.recv())
        with another_pending() as interrupt:
            codec.due.append(interrupt)
            with pytest.raises(signals.Handled):
                RECEIVE[call](hub)
        assert hub.recv_all(SECONDS) == ["x", "x"]


_signals: list[None] = []


def _signal_once() -> None:
    if _signals:
        _signals.pop()
        signal.raise_signal(signal.SIGUSR1)


def test_close_in_another_thread_ends_what_waits() -> None:
    for call in RECEIVE.values():
        hub = Hub(2, wait=WaitPolicy.semaphore())
        with (
            once(parked(hub.reply_statistics), hub.close),
            pytest.raises(shmcast.Closed, match=r"hub: recv\S* after close\(\)"),
        ):
            call(hub)


def test_both_directions_of_a_hub_wait_by_a_changed_policy() -> None:
    with Hub(1, wait=WaitPolicy.spin()) as hub, Member(hub.handle, 0) as member:
        for end in (hub, member):
            end.change_wait_policy(WaitPolicy.semaphore())
            assert end.wait_policy == WaitPolicy.semaphore()
        for call, statistics in (
            (hub.recv_any, hub.reply_statistics),
            (member.recv, member.statistics),
        ):
            is_parked = parked(statistics)
            with pytest.raises(shmcast.Timeout):
                call(0.01)
            assert is_parked()
