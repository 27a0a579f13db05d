"""What members of a hub do, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shmcast
from shmcast import Hub, HubHandle, Member, WaitPolicy
from tests.support.subprocess_programs import wait_until

SECONDS = 30.0
LARGE = 300_000
"""Bytes: through rings of replies many times."""


def answer(number: int, index: int) -> Any:
    """Return what a member replies to a number: much from 10 on, and not the same for all."""
    sizes = (0, 100, 3_000, LARGE) if number >= 10 else (0, 100, 3_000)
    return (index, number, b"x" * sizes[(number + index) % len(sizes)])


def echo(index: int, handle: HubHandle, wait: WaitPolicy | None = None) -> tuple[int, str]:
    """Answer every message; return how many there were, and the error at the end."""
    count = 0
    with Member(handle, index, wait=wait) as member:
        try:
            while True:
                member.reply(answer(member.recv(SECONDS), index), SECONDS)
                count += 1
        except shmcast.ShmcastError as error:
            return count, type(error).__name__


def echo_even(index: int, handle: HubHandle) -> None:
    """Answer every even number, until the hub closes."""
    with Member(handle, index) as member, contextlib.suppress(shmcast.Closed):
        while True:
            if (number := member.recv(SECONDS)) % 2 == 0:
                member.reply(answer(number, index), SECONDS)


def echo_some(index: int, handle: HubHandle, count: int) -> None:
    """Answer so many messages, and close."""
    with Member(handle, index) as member:
        for _ in range(count):
            member.reply(answer(member.recv(SECONDS), index), SECONDS)


def echo_and_die(index: int, handle: HubHandle, count: int) -> None:
    """Answer so many messages, and be killed."""
    member = Member(handle, index)
    for _ in range(count):
        member.reply(answer(member.recv(SECONDS), index), SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def echo_and_fail(index: int, handle: HubHandle, count: int) -> None:
    """Answer so many messages, and let the member be collected."""
    member = Member(handle, index)
    for _ in range(count):
        member.reply(answer(member.recv(SECONDS), index), SECONDS)
    del member


def be_killed_in_mid_reply(index: int, handle: HubHandle) -> None:
    """Answer with something that the ring does not hold, and be killed before the hub has it."""
    member = Member(handle, index)
    member.recv(SECONDS)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    member.reply(b"x" * LARGE)


def be_told_late(index: int, handle: HubHandle, closed: Path) -> list[str]:
    """Receive one message, and return what is told once the hub has closed."""
    member = Member(handle, index)
    member.recv(SECONDS)
    wait_until(closed.exists)
    told = []
    for call in (lambda: member.reply(1), lambda: member.recv(SECONDS)):
        try:
            call()
        except shmcast.ShmcastError as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


def receive_and_wait(index: int, handle: HubHandle) -> None:
    """Take every message and answer none."""
    with Member(handle, index) as member:
        while True:
            member.recv()


def receive_and_exit(index: int, handle: HubHandle) -> None:
    """Do the same, and end with a code when another has died: the kernel tells of it."""
    member = Member(handle, index)
    try:
        while True:
            member.recv()
    except shmcast.PeerDied:
        os._exit(1)


def attach_and_wait(index: int, handle: HubHandle) -> None:
    with Member(handle, index):
        signal.pause()


def reply_all(index: int, handle: HubHandle, count: int, nbytes: int, first: int = 0) -> int:
    """Answer so many numbers, from the first on, with so many bytes; return how many there were."""
    with Member(handle, index) as member:
        for k in range(first, first + count):
            assert member.recv(SECONDS) == k
            member.reply((index, k, bytes(nbytes)), SECONDS)
        return member.reply_statistics().messages


def reply_arrays(index: int, handle: HubHandle) -> None:
    """Answer with what was received, doubled: arrays and tensors."""
    with Member(handle, index) as member:
        for _ in range(2):
            obj = member.recv(SECONDS)
            member.reply({name: value * 2 for name, value in obj.items()}, SECONDS)


class Undecodable:
    """An object that only its sender can make anything of."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (_refuse, ("no",))


def _refuse(text: str) -> None:
    raise ValueError(text)


def reply_badly(index: int, handle: HubHandle) -> str:
    """Answer the first message with what can't be sent, then with what can't be received."""
    with Member(handle, index) as member:
        member.recv(SECONDS)
        try:
            member.reply({"why": lambda: None})
        except shmcast.EncodeError as error:
            told = str(error)
        member.reply(Undecodable() if index == 1 else ("first", index))
        member.recv(SECONDS)
        member.reply(("second", index))
        return told


def misuse(index: int, handle: HubHandle) -> list[str]:
    """Do what a member must not; return the errors."""
    told = []

    def note(call: Callable[[], object]) -> None:
        try:
            call()
        except shmcast.ShmcastError as error:
            told.append(f"{type(error).__name__}: {error}")

    with Member(handle, index) as member:
        note(lambda: member.reply("unasked"))
        note(lambda: Member(handle, index))
        member.reply(member.recv(SECONDS))
        note(lambda: member.reply("again"))
    note(lambda: member.reply("after all"))
    note(lambda: Member(handle, index))
    return told


def fill_ring(index: int, handle: HubHandle, replies: int, timeout: float) -> str:
    """Answer more messages than find room for their replies; return the error."""
    with Member(handle, index) as member:
        try:
            for _ in range(replies):
                member.reply(member.recv(SECONDS), timeout)
        except shmcast.ShmcastError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def hub_of_two(_index: int, path: Path, messages: int) -> None:
    """Be a hub whose member 1 finds no room for its replies; write files once it is so."""
    with Hub(2, reply_slots=2, reply_slot_bytes=128) as hub:
        (path.parent / "new").write_bytes(pickle.dumps(hub.handle))
        (path.parent / "new").rename(path)
        for k in range(messages):
            hub.send(k)
            hub.recv(0, SECONDS)
        wait_until(lambda: hub.reply_statistics().lag[1] == 2)
        (path.parent / "full").touch()
        signal.pause()
