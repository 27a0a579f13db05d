"""What the members of a round of chaos do, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from shmcast import Reader, ShmcastError, WaitPolicy, Writer
from shmcast._endpoints.handle import Handle

ENDINGS = {
    "killed": signal.SIGKILL,
    "crashed": signal.SIGSEGV,
    "an exception": signal.SIGUSR1,
    "an exit code": signal.SIGUSR2,
    "another program": signal.SIGHUP,
}
"""How a member ends, and the signal that makes it do so."""

HANG_SECONDS = 20.0
"""Nobody needs so long, whatever the machine does."""


class RoundFailed(AssertionError):
    """Something that must hold did not."""


ARENA_BYTES = 1 << 20
LARGE = 300_000


def message(seed: int, number: int) -> bytes:
    """Return a number's message: mostly small, some larger than the ring, some for the arena."""
    rng = random.Random(seed * 1_000_003 + number)  # noqa: S311 (no secret)
    size = rng.choice((0, 10, 100, 100, 1000, 1000, 5000, 5000, 40_000, LARGE))
    return rng.randbytes(1000) * (size // 1000) if size == LARGE else rng.randbytes(size)


class Kept:
    """Views that a reader has not let go of."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._views: list[tuple[int, int, Any]] = []

    def add(self, number: int, data: Any) -> None:
        self._views.append((number, zlib.crc32(data), data))
        while len(self._views) > 2 or (self._views and self._rng.random() < 0.3):
            self._drop(self._rng.randrange(len(self._views)))

    def drop_all(self) -> None:
        while self._views:
            self._drop(0)

    def _drop(self, index: int) -> None:
        number, crc, data = self._views.pop(index)
        if zlib.crc32(data) != crc:
            raise RoundFailed(f"a view of message {number} has changed")


def wait_until_free(writer: Writer) -> bool:
    """Return whether the whole arena is one free extent, once readers have let go of it."""
    give_up = time.monotonic() + HANG_SECONDS / 2
    while writer._end._ring.loan(ARENA_BYTES) is None:
        if time.monotonic() > give_up:
            return False
        time.sleep(0.001)
    return True


@dataclass
class Report:
    """How a member ended."""

    first: int | None = None  # message; None: none at all
    last: int | None = None
    error: str = ""  # its type
    wrong: str = ""  # what must not be
    waited_from_ns: int = 0  # the call that ended in the error
    ended_ns: int = 0


@dataclass(frozen=True)
class Role:
    """What a process is to do in a round."""

    seed: int
    policy: WaitPolicy
    slow: float  # seconds, now and then


def write(connection: Connection, role: Role, readers: int, on_death: Any) -> Report:
    """Send until told to end, or until that is impossible."""
    rng = random.Random(role.seed)  # noqa: S311
    report = Report()
    with Writer(
        readers,
        slots=4,
        slot_bytes=1024,
        arena_bytes=ARENA_BYTES,
        wait=role.policy,
        on_reader_death=on_death,
    ) as writer:
        connection.send(writer.handle)
        number = 0
        try:
            report.waited_from_ns = time.monotonic_ns()
            writer.wait_ready()
            while not connection.poll():
                if rng.random() < 0.02:
                    time.sleep(role.slow)
                report.waited_from_ns = time.monotonic_ns()
                data: Any = message(role.seed, number)
                writer.send((number, pickle.PickleBuffer(data) if len(data) == LARGE else data))
                report.last = number
                number += 1
            connection.recv()
            report.waited_from_ns = time.monotonic_ns()
            writer.send((number, None))  # let go of everything
            report.last = number
            if not wait_until_free(writer):
                report.wrong = "extents of the arena were not given back"
        except ShmcastError as error:
            report.error = type(error).__name__
    report.ended_ns = time.monotonic_ns()
    return report


def read(connection: Connection, role: Role, handle: Handle, index: int, rejoin: bool) -> Report:
    """Receive until the end."""
    rng = random.Random(role.seed + index)  # noqa: S311
    report = Report()
    kept = Kept(rng)
    with Reader(handle, index, wait=role.policy, rejoin=rejoin) as reader:
        connection.send("attached")
        try:
            while True:
                if rng.random() < 0.02:
                    time.sleep(role.slow)
                report.waited_from_ns = time.monotonic_ns()
                number, data = reader.recv(copy=rng.random() < 0.3)
                if report.first is None:
                    report.first = number
                elif number != (report.last or 0) + 1:
                    report.wrong = f"message {number} came after {report.last}"
                report.last = number
                if data is None:
                    kept.drop_all()
                    continue
                if bytes(data) != message(role.seed, number):
                    report.wrong = f"message {number} has other bytes: crc {zlib.crc32(data)}"
                kept.add(number, data)
                del data
        except ShmcastError as error:
            report.error = type(error).__name__
    report.ended_ns = time.monotonic_ns()
    kept.drop_all()  # views outlive the reader
    return report


def _raise(_signal: int, _frame: object) -> None:
    raise SystemExit(1)  # passes through everything, and so out of the endpoint's with block


def _exit(_signal: int, _frame: object) -> None:
    os._exit(3)


def _execute(_signal: int, _frame: object) -> None:
    os.execv("/bin/sleep", ["sleep", "0.2"])  # noqa: S606


def serve(connection: Connection) -> None:
    """Play one role after the other."""
    signal.signal(ENDINGS["an exception"], _raise)
    signal.signal(ENDINGS["an exit code"], _exit)
    signal.signal(ENDINGS["another program"], _execute)
    roles: dict[str, Callable[..., Report]] = {"write": write, "read": read}
    while True:
        name, args = connection.recv()
        try:
            report = roles[name](connection, *args)
        except Exception as error:
            report = Report(wrong=f"{type(error).__name__}: {error}")
        connection.send(report)
