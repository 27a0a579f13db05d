"""Writes to live segments while a writer and readers use them, as a program of its own.

    python -m tests.support.fuzzing in_turn|at_once FIRST COUNT

runs the segments of the seeds from FIRST. Each endpoint may deliver whatever it likes or raise a
`ShmcastError`, in time. The last line printed tells the seed if the process dies of it.
"""

from __future__ import annotations

import collections
import faulthandler
import functools
import mmap
import os
import random
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from shmcast import Handle, Reader, ShmcastError, WaitPolicy, Writer
from shmcast._codecs.base import Frame
from shmcast._endpoints.handle import geometry_of

MEMORY_BYTES = 1 << 27  # more than enough for all that was sent
ADDRESS_SPACE_BYTES = 1 << 31
SLACK_SECONDS = 5.0  # how late a time-out may be on a busy machine
SLOTS = 4
SLOT_BYTES = 128
SLOT_STRIDE = 384
SLOT_HEADER = 24
READERS = 2
HELD_BYTES = 1024  # a reader's counts of views
LARGE = 256 * 1024
ARENA_BYTES = 4 * LARGE
ALL_ONES = (1 << 64) - 1


LARGE_FRAME = b"\xa5" * LARGE


class Raw:
    """A codec of lists of bytes: nothing is unpickled."""

    def encode(self, obj: Any) -> Sequence[Frame]:
        frames: Sequence[Frame] = obj
        return frames

    def decode(self, frames: Sequence[bytearray | memoryview]) -> Any:
        for frame in frames:  # to be looked at wherever it lies
            assert len(frame) == 0 or frame[0] + frame[-1] >= 0
        return frames


class Vandal:
    """Writes to the words of one segment."""

    def __init__(self, handle: Handle, chance: random.Random) -> None:
        self.chance = chance
        fd = os.open(f"/dev/shm{handle.name}", os.O_RDWR)
        self.memory = mmap.mmap(fd, geometry_of(handle).segment_bytes)
        os.close(fd)
        self.mutations = 0
        self.slots = len(self.memory) - SLOTS * SLOT_STRIDE
        self.held = self.slots - (READERS * HELD_BYTES if handle.arena else 0)
        self.replaced: list[tuple[int, bytes]] = []

    def mutate(self) -> None:
        self.mutations += 1
        place = self.place()
        if self.chance.randrange(4):
            self.put(place, self.value())
        elif place + 16 <= len(self.memory):  # two sizes of a frame table that still add up
            one, two = struct.unpack_from("<QQ", self.memory, place)
            moved = self.value()
            self.put(place, (one + moved) & ALL_ONES)
            self.put(place + 8, (two - moved) & ALL_ONES)

    def put(self, place: int, word: int) -> None:
        self.replaced.append((place, self.memory[place : place + 8]))
        struct.pack_into("<Q", self.memory, place, word)

    def undo(self) -> None:
        """Put back what was there, mostly: a segment broken for good is soon dull."""
        for place, word in reversed(self.replaced):
            if self.chance.randrange(16):
                self.memory[place : place + 8] = word
        self.replaced.clear()

    def place(self) -> int:
        """Choose a place: mostly where it steers an endpoint, now and then astride two words."""
        chance = self.chance
        slot = self.slots + chance.randrange(SLOTS) * SLOT_STRIDE
        kind = chance.randrange(16)
        if kind == 0:
            return chance.randrange(len(self.memory) - 7)
        if kind == 1 and self.held < self.slots:
            return chance.randrange(self.held, self.slots, 8)
        if kind < 8:
            return chance.randrange(self.held // 8) * 8
        if kind < 14:
            return slot + chance.randrange(SLOT_HEADER // 8) * 8
        return slot + SLOT_HEADER + chance.randrange(4) * 8

    def value(self) -> int:
        chance = self.chance
        little = chance.randrange(300)
        match chance.randrange(13):
            case 0:
                word = 0
            case 1:
                word = ALL_ONES
            case 2:
                word = 1 << chance.randrange(64)
            case 3:
                word = ALL_ONES >> chance.randrange(64)
            case 4:
                word = little
            case 5:
                word = little << 32 | chance.randrange(4)
            case 6:
                # A descriptor that may fit.
                word = 1 << 63 | chance.randrange(chance.choice((5, 300))) << 40 | little
            case 7:
                word = 1 << 63 | chance.randrange(1 << 20) << 40 | little << 30
            case 8:
                # A frame in the arena.
                extent, nbytes = chance.choice((0, 1, 255, 256, 65535)), chance.choice((0, LARGE))
                word = 1 << 63 | extent << 40 | nbytes + chance.choice((0, little))
            case 9:
                word = chance.choice((0, ARENA_BYTES, ALL_ONES)) - little & ALL_ONES  # an offset
            case 10:
                # A spilled fragment.
                word = 1 << 62 | chance.choice((0, LARGE, 1 << 40)) - chance.choice((0, little))
                word &= ALL_ONES
            case 11:
                (word,) = struct.unpack_from("<Q", self.memory, self.place())
            case _:
                word = chance.getrandbits(64)
        return word


class Run:
    """What has happened so far."""

    def __init__(self) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()

    def attempt(self, timeout: float, call: Callable[..., object], *args: object) -> None:
        """Make a call that may fail as the library does, but not later than its time-out."""
        name = "recv" if isinstance(call, functools.partial) else call.__name__
        began = time.monotonic()
        try:
            call(*args, timeout)
            self.outcomes[name] += 1
        except ShmcastError as error:
            self.outcomes[type(error).__name__] += 1
        took = time.monotonic() - began
        assert took < timeout + SLACK_SECONDS, f"{name}: {took} s"


@contextmanager
def endpoints(run: Run, chance: random.Random) -> Iterator[tuple[Vandal, Writer, list[Reader]]]:
    """Make a segment with two readers, or as many as could attach, perhaps with arena and spill."""
    arena_bytes, spill_bytes = chance.choice((0, ARENA_BYTES)), chance.choice((0, ARENA_BYTES))
    shape: dict[str, Any] = {"codec": Raw(), "wait": WaitPolicy.semaphore()}
    with ExitStack() as stack:
        writer = stack.enter_context(
            Writer(
                READERS,
                slots=SLOTS,
                slot_bytes=SLOT_BYTES,
                arena_bytes=arena_bytes,
                spill_bytes=spill_bytes,
                **shape,
            )
        )
        vandal = Vandal(writer.handle, chance)
        stack.callback(vandal.memory.close)
        readers = []
        for index in range(READERS):
            if chance.randrange(4) == 0:
                vandal.mutate()
            try:
                readers.append(stack.enter_context(Reader(writer.handle, index, **shape)))
            except ShmcastError as error:
                run.outcomes[type(error).__name__] += 1
            vandal.undo()
        yield vandal, writer, readers
        run.outcomes["mutations"] += vandal.mutations
        # (The count, too, may be the vandal's.)
        run.outcomes["spilled"] += 0 < writer.statistics().spilled < 1000


def make_message(chance: random.Random, most: int) -> list[bytes]:
    """Make up to 4 frames of up to `most` bytes, mostly of few; now and then two large ones."""
    frames = [
        b"\xa5" * (chance.randrange(most) if chance.randrange(4) == 0 else chance.randrange(40))
        for _ in range(chance.randrange(5))
    ]
    return [b"", LARGE_FRAME, LARGE_FRAME] if chance.randrange(8) == 0 else frames


def receive(reader: Reader, kept: list[Any], copy: bool, timeout: float) -> None:
    """Receive a message, and keep it for a while."""
    kept.append(reader.recv(timeout, copy))


def in_turn(run: Run, chance: random.Random) -> None:
    """Use all endpoints in one thread, with mutations between any two calls."""
    with endpoints(run, chance) as (vandal, writer, readers):
        kept: list[Any] = []
        for _ in range(30):
            timeout = 0.001 if chance.randrange(100) == 0 else 0
            run.attempt(timeout, writer.send, make_message(chance, SLOT_BYTES))
            for reader in readers:
                vandal.mutate()
                copy = bool(chance.randrange(2))
                run.attempt(timeout, functools.partial(receive, reader, kept, copy))
            del kept[: chance.randrange(len(kept) + 1)]
            vandal.mutate()
            if chance.randrange(2):
                vandal.undo()
        members: tuple[Writer | Reader, ...] = (writer, *readers)
        for endpoint in members:
            run.attempt(0, endpoint.wait_ready)
            endpoint._end.tensor_sets()
            endpoint.statistics()


def receive_and_drop(reader: Reader, timeout: float) -> None:
    reader.recv(timeout, copy=False)


def at_once(run: Run, chance: random.Random) -> None:
    """Use each endpoint in a thread, messages larger than the ring, mutations at any moment."""
    with endpoints(run, chance) as (vandal, writer, readers):
        message = make_message(chance, 50 * SLOT_BYTES)
        done = threading.Event()

        def repeat(call: Callable[..., object], *args: object) -> None:
            while not done.is_set():
                run.attempt(0.002, call, *args)

        threads = [
            threading.Thread(target=repeat, args=args)
            for args in (
                (writer.send, message),
                *((functools.partial(receive_and_drop, reader),) for reader in readers),
            )
        ]
        for thread in threads:
            thread.start()
        for _ in range(20):
            for _ in range(10):
                vandal.mutate()
            time.sleep(0.0002)
            vandal.undo()
        done.set()
        for thread in threads:
            thread.join()


def peak_bytes() -> int:
    """Return the most memory this process has had (getrusage() counts its parent's, too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main(way: str, first: int, count: int) -> None:
    """Run the segments of the seeds; raise what is not allowed to happen."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(50, exit=True)
    sys.setswitchinterval(0.0001)
    # A descriptor may promise what it likes: either that is refused, or it costs no memory.
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))
    raised: list[object] = []
    threading.excepthook = raised.append
    run = Run()
    step = {"in_turn": in_turn, "at_once": at_once}[way]
    for seed in range(first, first + count):
        print("seed", seed, flush=True)  # noqa: T201
        step(run, random.Random(seed))  # noqa: S311
        assert not raised, raised
    peak = peak_bytes()
    assert peak < MEMORY_BYTES, f"{peak} bytes of memory in use"
    print(peak >> 20, "MiB:", dict(run.outcomes))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
