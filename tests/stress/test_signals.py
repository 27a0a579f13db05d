"""Signals whose handlers raise, in every call: nothing is lost but what is said."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmcast
from shmcast import Reader, WaitPolicy, Writer
from shmcast._host import proc
from shmcast._host.cpus import CpuQuota
from shmcast._host.memory_limit import MemoryLimit
from shmcast._host.process import how_it_ends, is_alive
from tests.support.alarms import Alarmed, AlarmedError, Alarms
from tests.support.shared_memory import segments_of

# (An error in what the garbage collector calls goes to nobody.)
pytestmark = pytest.mark.usefixtures("no_gc")

ROUNDS = 1000
KINDS = [Alarmed, AlarmedError, KeyboardInterrupt]
SECONDS = 30.0


def descriptors() -> list[str]:
    """Return what this process's descriptors of segments refer to."""
    all_files = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            all_files.append(str(fd.readlink()))
    return sorted(file for file in all_files if "shmcast" in file)


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """Import what large messages need: an interrupted import leaves its file to the collector."""
    codec = shmcast.PickleCodec()
    assert codec.decode([bytearray(frame) for frame in codec.encode(bytes(300_000))])


def received(get: Callable[[], Any], alarms: Alarms, within: float) -> list[Any]:
    """Get until there is no more, interrupted in every call; return what came.

    (A last item that says so could be lost.)
    """
    got: list[Any] = []
    while True:
        try:
            got.append(alarms.during(get, within))
        except shmcast.Closed:
            return got
        except BaseException as error:
            if type(error) not in KINDS:
                raise


def rounds(alarms: Alarms, most: int = ROUNDS, share: int = 10) -> Iterator[int]:
    """Count rounds, and go on until one in `share` was interrupted, however fast the machine."""
    for k in itertools.count():
        if k >= most and alarms.count > ROUNDS // share:
            return
        yield k


def assert_none_is_lost(got: list[int], sent: list[int], alarms: Alarms) -> None:
    if sys.version_info >= (3, 11):
        assert got == sent
    else:  # Python looks for signals once more when recv has returned: docs/limits.md
        assert got == sorted(set(got) & set(sent))
        assert len(sent) - len(got) <= alarms.count // 50


def test_recv_loses_no_small_message() -> None:
    items = [*range(20 * ROUNDS)]
    with (
        Alarms(Alarmed).in_place() as alarms,
        Writer(1) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.semaphore()) as reader,
    ):

        def send() -> None:
            for k in items:
                writer.send(k)
            writer.close()

        sending = threading.Thread(target=send)
        sending.start()
        got = received(reader.recv, alarms, 4e-5)
        sending.join()
    assert_none_is_lost(got, items, alarms)
    assert alarms.count > ROUNDS


@pytest.mark.parametrize("raises", KINDS)
def test_recv_loses_no_streamed_message(raises: type[BaseException]) -> None:
    with (
        Alarms(raises).in_place() as alarms,
        Writer(1, slots=8, slot_bytes=4096) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.semaphore()) as reader,
    ):
        sent: list[int] = []

        def send() -> None:
            for k in rounds(alarms, share=4):
                writer.send((k, bytes(300_000)))
                sent.append(k)
            writer.close()

        sending = threading.Thread(target=send)
        sending.start()
        got = [k for k, _ in received(reader.recv, alarms, 4e-4)]
        sending.join()
    assert_none_is_lost(got, sent, alarms)


@pytest.mark.parametrize("raises", KINDS)
@pytest.mark.parametrize("size", [1, 300_000])
def test_send_says_whether_it_sent(raises: type[BaseException], size: int) -> None:
    got: list[int] = []
    with (
        Alarms(raises).in_place() as alarms,
        Writer(1, slots=8, slot_bytes=4096, wait=WaitPolicy.semaphore()) as writer,
        Reader(writer.handle, 0) as reader,
    ):

        def receive() -> None:
            while (item := reader.recv()) is not None:
                got.append(item[0])

        receiving = threading.Thread(target=receive)
        receiving.start()
        sent, too_late = [], 0
        for k in rounds(alarms):
            message = (k, bytes(size))
            try:
                alarms.during(lambda message=message: writer.send(message), size * 2e-9 + 2e-5)  # type: ignore[misc]
                sent.append(k)
            except raises:
                if len(sent_before := got[-1:]) and sent_before[0] == k:
                    assert writer.was_sent
                if writer.was_sent and writer.statistics().messages > len(sent):
                    sent.append(k)
                    too_late += 1
        writer.send(None)
        receiving.join()
    assert got == sent
    if size > 1:
        assert too_late < alarms.count / 2  # (most are looked for before the last fragment)


def test_what_was_sent_is_frozen_whatever_interrupts() -> None:
    with (
        Alarms(Alarmed).in_place() as alarms,
        Writer(1, arena_bytes=1 << 24, wait=WaitPolicy.semaphore()) as writer,
        Reader(writer.handle, 0) as reader,
    ):
        writer.send([np.zeros(1)])  # imports what it needs
        reader.recv(SECONDS)
        for _ in rounds(alarms):
            loan = writer.empty(300_000, np.uint8)
            # (Ordinary memory where the arena has no room: what is sent of it is a copy.)
            is_lent = not loan.flags.owndata
            before = writer.statistics().messages
            with contextlib.suppress(Alarmed):
                alarms.during(lambda loan=loan: writer.send([loan]), 1e-4)  # type: ignore[misc]
            if writer.statistics().messages > before:
                assert loan.flags.writeable != is_lent
                reader.recv(SECONDS)
            else:
                assert loan.flags.writeable


def test_close_finishes_when_it_is_called_again() -> None:
    alarms = Alarms(Alarmed)
    Writer(1).close()  # (makes what all endpoints share)
    gc.collect()
    before = set(descriptors())
    with alarms.in_place():
        for _ in rounds(alarms, ROUNDS // 4, share=40):
            writer = Writer(2, arena_bytes=1 << 20)
            reader = Reader(writer.handle, 0)
            try:
                alarms.during(writer.close, 2e-4)
            except Alarmed:
                writer.close()
            with pytest.raises(shmcast.Closed, match="the writer has closed"):
                reader.recv(SECONDS)
            try:
                alarms.during(reader.close, 2e-4)
            except Alarmed:
                reader.close()
            assert not segments_of(os.getpid())
    del writer, reader
    gc.collect()
    assert set(descriptors()) <= before


def test_a_handler_that_closes_ends_the_call() -> None:
    with Writer(1, slots=2, slot_bytes=128) as writer, Reader(writer.handle, 0) as reader:

        def close(_number: int, _frame: FrameType | None) -> None:
            (reader if is_reading else writer).close()

        before = signal.signal(signal.SIGALRM, close)
        timer = signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            is_reading = False
            with pytest.raises(shmcast.Closed, match=r"send after close\(\)"):
                writer.send(bytes(10_000))
            is_reading = True
            writer_of_another = Writer(1)
            reader = Reader(writer_of_another.handle, 0)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(shmcast.Closed, match=r"recv after close\(\)"):
                reader.recv()
            writer_of_another.close()
        finally:
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.parametrize("raises", KINDS)
def test_a_look_at_the_host_passes_on_what_a_handler_raises(raises: type[BaseException]) -> None:
    pid, quota, limit = os.getpid(), CpuQuota(), MemoryLimit()
    looks: list[Callable[[], object]] = [
        quota.read,
        limit.room,
        lambda: proc.stat(pid),
        lambda: proc.command_line(pid),
        lambda: how_it_ends(pid),
        lambda: is_alive(pid),
    ]
    passed_on = 0
    with Alarms(raises).in_place() as alarms:
        for k in rounds(alarms):
            try:
                alarms.during(looks[k % len(looks)], 100e-6)
            except raises:
                passed_on += 1
        assert passed_on == alarms.count  # (and no file was left open: its warning is an error)
