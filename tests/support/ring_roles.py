"""What writers and readers do that die, stop or leave; each in a process of its own."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmcast
from shmcast import PeerDied, Reader, WaitPolicy, Writer
from shmcast._endpoints.handle import Handle
from shmcast._host.places import Places
from tests.support.subprocess_programs import wait_until

SECONDS = 30.0


def receive_all(index: int, handle: Handle, wait: WaitPolicy, rejoin: bool = False) -> Any:
    """Receive until there is an error, twice; return what came, and the error."""
    got = []
    with Reader(handle, index, wait=wait, rejoin=rejoin) as reader:
        try:
            while True:
                got.append(reader.recv(SECONDS))
        except shmcast.ShmcastError as error:
            with pytest.raises(type(error)):
                reader.recv(SECONDS)
            return got, type(error).__name__, str(error)


def receive_one(index: int, handle: Handle) -> None:
    """Take one message and never another one."""
    with Reader(handle, index) as reader:
        reader.recv(SECONDS)
        wait_for_death()


def attach_only(index: int, handle: Handle) -> None:
    with Reader(handle, index):
        wait_for_death()


def attach_without_lock(index: int, handle: Handle) -> None:
    """Attach as where the kernel has no locks of open files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Places, "hold", lambda _self, _place: None)
        attach_only(index, handle)


def leave_in_order(index: int, handle: Handle) -> None:
    with Reader(handle, index) as reader:
        reader.recv(SECONDS)


def rejoin_and_wait(index: int, handle: Handle) -> None:
    with Reader(handle, index, rejoin=True) as reader:
        reader.recv()


def wait_for_death() -> None:
    signal.pause()


def write(_index: int, path: Path, readers: int, messages: list[Any], drops: bool = False) -> None:
    """Send some messages and stay."""
    death = "drop" if drops else "raise"
    with Writer(readers, slots=2, slot_bytes=128, on_reader_death=death) as writer:  # type: ignore[arg-type]
        hand_over(writer.handle, path)
        writer.wait_ready(SECONDS)
        for message in messages:
            writer.send(message, SECONDS)
        path.with_suffix(".sent").touch()
        wait_for_death()


def hand_over(handle: Handle, path: Path) -> None:
    """Write a handle where `handle_at` finds it whole."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(pickle.dumps(handle))
    draft.rename(path)


def handle_at(path: Path) -> Handle:
    wait_until(path.exists)
    handle = pickle.loads(path.read_bytes())  # noqa: S301
    assert isinstance(handle, Handle)
    return handle


def has_received(writer: Writer, index: int, messages: int) -> Callable[[], bool]:
    return lambda: writer.statistics().readers[index].messages >= messages


def fill(writer: Writer, timeout: float = SECONDS) -> None:
    """Send until somebody who reads no more is in the way."""
    for _ in range(1000):
        writer.send(b"x", timeout)
    raise AssertionError("the ring never was full")


def send_until_told(writer: Writer) -> PeerDied:
    """Send, as to readers that keep up, until the writer learns of a death."""
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        try:
            writer.send("more", SECONDS)
        except PeerDied as error:
            return error
        time.sleep(0.001)
    raise AssertionError("nobody told the writer")


def send_numbered(_index: int, path: Path, count: int, nbytes: int) -> None:
    """Send numbers with some bytes, at an uneven pace, and close once the reader has them."""
    with Writer(1, slots=8, slot_bytes=1024) as writer:
        hand_over(writer.handle, path)
        writer.wait_ready(SECONDS)
        for k in range(count):
            writer.send((k, bytes([k % 256]) * nbytes), SECONDS)
            if k % 7 == 0:
                time.sleep(0.0003)
        wait_until(lambda: writer.statistics().lag == (0,))
