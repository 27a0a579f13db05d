"""What a hub and its members do in a round of chaos, each in a process of its own."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from shmcast import Closed, Hub, HubHandle, Interrupted, Member, PeerDied, ShmcastError
from tests.support.chaos_roles import SPILL_BYTES, Awaited, Report, Role, message

AHEAD = 3
"""So many messages are sent before the first reply must have come."""


@contextlib.contextmanager
def interrupting(end: Hub | Member, rng: random.Random) -> Iterator[None]:
    """Interrupt calls of an end from another thread, at random, or never.

    More and more seldom: an interrupted send begins anew, and one that takes longer than from one
    interrupt to the next would never end.
    """
    over = threading.Event()
    longest = rng.choice((0.0, 0.003, 0.03))

    def interrupt() -> None:
        pause = longest
        while not over.wait(rng.random() * pause):
            end.interrupt()
            pause *= 1.02

    thread = threading.Thread(target=interrupt)
    if longest:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if longest:
            thread.join()


def insisting(report: Report, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Make a call, again and again if it is interrupted."""
    while True:
        try:
            report.waited_from_ns = time.monotonic_ns()
            return call(*args, **options)
        except Interrupted:
            report.interrupts += 1


class _Replies:
    """What a hub has received: each member's replies, in order and complete."""

    def __init__(self, role: Role, members: int) -> None:
        self._seed = role.seed
        self._last = [-1] * members
        self._died = [False] * members

    def add(self, index: int, reply: Any) -> str:
        """Take in a reply; return what is wrong with it."""
        if isinstance(reply, PeerDied):
            self._died[index] = True
            return ""
        number, data = reply
        last, died = self._last[index], self._died[index]
        self._last[index], self._died[index] = number, False
        if number <= last or (number != last + 1 and not died):
            return f"member {index}'s reply to {number} came after that to {last}"
        if data != message(self._seed + index, number):
            return f"member {index}'s reply to {number} has other bytes"
        return ""

    def are_there(self, number: int) -> bool:
        """Return whether all who live have replied to this message."""
        return all(
            died or last >= number for last, died in zip(self._last, self._died, strict=True)
        )


def drive(connection: Connection, role: Role, members: int, on_death: Any) -> Report:
    """Send and receive until told to end, or until that is impossible."""
    rng = random.Random(role.seed)  # noqa: S311
    report = Report()
    with (
        Hub(
            members,
            slots=4,
            slot_bytes=1024,
            spill_bytes=SPILL_BYTES,
            reply_slots=2,
            reply_slot_bytes=512,
            wait=role.policy,
            on_member_death=on_death,
        ) as hub,
        contextlib.closing(Awaited(hub.recv_any_async, rng)) as awaited,
    ):
        connection.send(hub.handle)
        receive = awaited.receive if role.awaits else hub.recv_any
        replies = _Replies(role, members)

        def receive_all(number: int) -> None:
            while not replies.are_there(number):
                report.wrong = report.wrong or replies.add(*insisting(report, receive))

        number = 0
        try:
            hub.wait_ready()
            with interrupting(hub, rng):
                while not connection.poll():
                    if rng.random() < 0.02:
                        time.sleep(role.slow)
                    insisting(report, hub.send, (number, message(role.seed, number)))
                    report.last = number
                    receive_all(number - rng.randrange(AHEAD))
                    number += 1
                    time.sleep(role.pace)
                connection.recv()
                receive_all(number - 1)
        except ShmcastError as error:
            report.error = type(error).__name__
        report.cancels = awaited.cancels
        report.spilled = hub.statistics().spilled
    report.ended_ns = time.monotonic_ns()
    return report


def answer(
    connection: Connection, role: Role, handle: HubHandle, index: int, _rejoin: bool
) -> Report:
    """Answer every message until the end."""
    rng = random.Random(role.seed + index)  # noqa: S311
    report = Report()
    with (
        Member(handle, index, wait=role.policy) as member,
        contextlib.closing(Awaited(member.recv_async, rng)) as awaited,
    ):
        connection.send("attached")
        receive = awaited.receive if role.awaits else member.recv
        try:
            with interrupting(member, rng):
                while True:
                    if rng.random() < 0.1:
                        time.sleep(role.slow)
                    number, data = insisting(report, receive)
                    if report.first is not None and number != (report.last or 0) + 1:
                        report.wrong = f"message {number} came after {report.last}"
                    if data != message(role.seed, number):
                        report.wrong = f"message {number} has other bytes"
                    report.first = number if report.first is None else report.first
                    report.last = number
                    # What was sent is received first. (A hub does not wait for whoever takes the
                    # place of a dead member, and may be closed before that one's first reply.)
                    with contextlib.suppress(PeerDied, Closed):
                        reply = (number, message(role.seed + index, number))
                        insisting(report, member.reply, reply)
        except ShmcastError as error:
            report.error = type(error).__name__
        report.cancels = awaited.cancels
    report.ended_ns = time.monotonic_ns()
    return report
