"""What the processes of test_arena.py do. Without torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import shmcast
from shmcast import Handle, Reader, Writer
from shmcast._codecs.base import Frame, Received
from tests.support.ring_roles import hand_over
from tests.support.shared_memory import make_private
from tests.support.subprocess_programs import wait_until

Array = npt.NDArray[Any]
SECONDS = 30.0
KIB, MIB = 1 << 10, 1 << 20
LARGE = 256 * KIB
ARENA = 4 * MIB


def filled(nbytes: int, value: int = 1) -> Array:
    return np.full(nbytes, value % 256, np.uint8)


@dataclass
class Held:
    array: Array
    value: int

    def check(self) -> None:
        assert not np.any(self.array != self.value)


class RawCodec:
    """Sends lists of buffers as they are."""

    def encode(self, obj: Sequence[Frame], /) -> Sequence[Frame]:
        return obj

    def decode(self, frames: list[Received], /) -> list[Received]:
        return frames


def fill_shared_memory(_index: int) -> tuple[int, int, int]:
    make_private(16 * MIB)
    with Writer(1, arena_bytes=64 * MIB) as writer, Reader(writer.handle, 0) as reader:
        kept = []
        for k in range(20):
            writer.send(filled(MIB, k), SECONDS)
            kept.append(reader.recv(SECONDS, copy=False))
        loan = writer.empty(20 * MIB, np.uint8)  # ordinary memory
        loan[:] = 1
        before = writer.statistics()
        for k, array in enumerate(kept):
            assert np.array_equal(array, filled(MIB, k))
        in_arena = sum(not array.flags.writeable for array in kept)
        assert before.arena_full == 21 - in_arena
        assert before.arena_reserved_bytes >= in_arena * MIB
        assert writer.handle.arena is not None  # has as much as it says
        assert os.fstat(writer.handle.arena.fd).st_blocks * 512 == before.arena_reserved_bytes
        assert before.arena_huge_bytes <= before.arena_reserved_bytes
        kept.clear()
        for k in range(20):  # goes on with what there is
            writer.send(filled(MIB, k), SECONDS)
            assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, k))
        return in_arena, writer.statistics().arena_full - before.arena_full, os.getpid()


SMALL_SHM = 64 * MIB  # Docker's default
LARGE_ARRAYS = (213_000_000, *[20_000_000] * 4, 213_000_000)  # pixel values, grammar bitmasks


def pass_large_arrays(_index: int, arena_bytes: int) -> tuple[list[int], int, int]:
    """Send arrays that are larger than all shared memory to a reader that keeps what it gets.

    Returns:
        The sum of each array that arrived, and the most bytes that the arena had, and all of
        shared memory, as looked at after each arrival.
    """
    make_private(SMALL_SHM)
    kept: list[Array] = []
    most_arena = most_shm = 0
    with Writer(1, arena_bytes=arena_bytes) as writer, Reader(writer.handle, 0) as reader:
        arena = writer.handle.arena

        def send_all() -> None:
            for i, nbytes in enumerate(LARGE_ARRAYS):
                writer.send(filled(nbytes, i + 1), SECONDS)

        sender = threading.Thread(target=send_all)
        sender.start()
        for _ in LARGE_ARRAYS:
            kept.append(reader.recv(SECONDS, copy=False))
            if arena is not None:
                most_arena = max(most_arena, os.fstat(arena.fd).st_blocks * 512)
            shm = os.statvfs("/dev/shm")
            most_shm = max(most_shm, (shm.f_blocks - shm.f_bfree) * shm.f_frsize)
        sender.join()
    return [int(array.sum(dtype=np.uint64)) for array in kept], most_arena, most_shm


def receive_slowly(index: int, handle: Handle) -> int:
    """Begin when the ring is full; return how many messages there were, all as they were sent."""
    count = 0
    with Reader(handle, index) as reader:
        wait_until(lambda: reader._end._ring.peers()[index].behind >= 2)
        with contextlib.suppress(shmcast.Closed):
            while True:
                number, array = reader.recv(SECONDS, copy=False)
                assert np.array_equal(array, filled(MIB // 4, number))
                count += 1
    return count


def hold(index: int, handle: Handle, messages: int, rejoin: bool = False) -> None:
    """Keep all that is received, until killed."""
    with Reader(handle, index, rejoin=rejoin) as reader:
        kept = [reader.recv(SECONDS, copy=False) for _ in range(messages)]
        reader._end.begin_tensor_set()  # says that it has them
        signal.pause()
        del kept


def hold_until_told(index: int, handle: Handle) -> None:
    """Keep the first message until the second comes."""
    with Reader(handle, index) as reader:
        kept = [reader.recv(SECONDS, copy=False)]
        reader._end.begin_tensor_set()
        reader.recv(SECONDS)
        kept.clear()
        reader._end.begin_tensor_set()
        reader.recv(SECONDS)


def hold_raw(index: int, handle: Handle) -> None:
    with Reader(handle, index, codec=RawCodec()) as reader:
        kept = reader.recv(SECONDS, copy=False)
        reader._end.begin_tensor_set()
        signal.pause()
        del kept


def write_and_die(_index: int, path: Path) -> None:
    with Writer(1, arena_bytes=ARENA) as writer:
        hand_over(writer.handle, path)
        writer.wait_ready(SECONDS)
        writer.send([filled(MIB, 3), filled(MIB, 4)])
        writer.send(filled(MIB, 5))
        signal.pause()


def receive_and_keep(index: int, handle: Handle, seed: int) -> int:
    """Keep some of the messages for a while; return the number of views."""
    rng = random.Random(seed + index)  # noqa: S311
    held: list[Held] = []
    expected = views = 0
    with Reader(handle, index) as reader:
        while True:
            copy = rng.random() < (0.0, 0.3, 0.7, 1.0)[index]
            got = reader.recv(SECONDS, copy)
            if got is None:
                break
            number, array = got
            assert number == expected
            expected += 1
            one = Held(array, number % 256)
            one.check()
            views += not array.flags.writeable
            assert not copy or array.flags.writeable
            held.append(one)
            while len(held) > 2 or (held and rng.random() < 0.3):
                held.pop(rng.randrange(len(held))).check()
        for one in held:
            one.check()
    return views
