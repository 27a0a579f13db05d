"""What the members of a round of chaos do, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import random
import resource
import signal
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from shmcast import Reader, ShmcastError, WaitPolicy, Writer
from shmcast._endpoints.handle import Handle
from tests.support.alarms import Alarmed, AlarmedError, Alarms

ENDINGS = {
    "killed": signal.SIGKILL,
    "crashed": signal.SIGSEGV,
    "an exception": signal.SIGUSR1,
    "an exit code": signal.SIGUSR2,
    "another program": signal.SIGHUP,
}
"""How a member ends, and the signal that makes it do so."""

_CORE_BYTES = 1 << 20
"""A crash dumps core, but not all of it."""

ALARM_SECONDS = 2e-3
"""A signal whose handler raises comes within so long from each call's begin."""

HANG_SECONDS = 20.0
"""Nobody needs so long, whatever the machine does."""


class RoundFailed(AssertionError):
    """Something that must hold did not."""


ARENA_BYTES = 1 << 20
SPILL_BYTES = 1 << 20
LARGE = 300_000


def message(seed: int, number: int) -> bytes:
    """Return a number's message: small, larger than the ring, or for the arena or the spill."""
    rng = random.Random(seed * 1_000_003 + number)  # noqa: S311 (no secret)
    size = rng.choice((0, 10, 100, 1000, 1000, 5000, 40_000, LARGE, LARGE))
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
    alarms: int = 0  # calls in which a signal's handler has raised
    lost: int = 0  # messages, between a recv that one has interrupted and its caller
    spilled: int = 0  # messages
    waited_from_ns: int = 0  # the call that ended in the error
    ended_ns: int = 0
    cancels: int = 0  # tasks that were cancelled while they awaited a message
    interrupts: int = 0  # calls that interrupt() has ended


@dataclass(frozen=True)
class Role:
    """What a process is to do in a round."""

    seed: int
    policy: WaitPolicy
    slow: float  # seconds, now and then
    pace: float  # seconds between two messages
    alarmed: bool  # a signal's handler raises in each call
    arena: bool  # there is one
    awaits: bool = False  # it receives in an event loop, in tasks of which some are cancelled

    def calls(self) -> Calls:
        """Return how its calls are made."""
        return Calls(self.seed) if self.alarmed else Calls(None)


class Calls:
    """Makes a member's calls, and a signal's handler raise in each of them.

    Args:
        seed: of the moments; None: no signals come.
    """

    def __init__(self, seed: int | None) -> None:
        self._alarms = None if seed is None else Alarms(Alarmed, AlarmedError, seed=seed)

    def __enter__(self) -> Calls:
        self._open = contextlib.ExitStack()
        if self._alarms is not None:
            self._open.enter_context(self._alarms.in_place())
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.close()

    @property
    def count(self) -> int:
        """How often the handler has raised."""
        return 0 if self._alarms is None else self._alarms.count

    def make(self, call: Callable[[], Any], within: float = ALARM_SECONDS) -> Any:
        """Make a call; whatever the handler raises passes."""
        return call() if self._alarms is None else self._alarms.during(call, within)


class Awaited:
    """Receives in a loop of its own: by tasks that are cancelled, and by others that go on.

    Args:
        call: what is awaited.
        rng: for how long.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]], rng: random.Random) -> None:
        self._call = call
        self._rng = rng
        self._loop = asyncio.new_event_loop()
        self.cancels = 0

    def close(self) -> None:
        self._loop.close()

    def receive(self, **options: Any) -> Any:
        return self._loop.run_until_complete(self._receive(options))

    async def _receive(self, options: dict[str, Any]) -> Any:
        while True:
            seconds = self._rng.choice((0.0, 0.0001, 0.001, 0.01))
            try:
                return await asyncio.wait_for(self._call(**options), seconds)
            except asyncio.TimeoutError:
                self.cancels += 1


def write(connection: Connection, role: Role, readers: int, on_death: Any) -> Report:
    """Send until told to end, or until that is impossible."""
    rng = random.Random(role.seed)  # noqa: S311
    report = Report()
    with (
        Writer(
            readers,
            slots=4,
            slot_bytes=1024,
            arena_bytes=ARENA_BYTES if role.arena else 0,
            spill_bytes=SPILL_BYTES,
            wait=role.policy,
            on_reader_death=on_death,
        ) as writer,
        role.calls() as calls,
    ):
        connection.send(writer.handle)

        def send(number: int, data: Any) -> None:
            """Send, again and again if need be, until it is sent.

            With later and later alarms: an interrupted send begins anew, and one that takes longer
            than until the last moment of an alarm would never end.
            """
            within = ALARM_SECONDS
            while writer.statistics().messages == number:
                with contextlib.suppress(Alarmed, AlarmedError):
                    calls.make(lambda: writer.send((number, data)), within)
                within *= 1.5

        number = 0
        try:
            report.waited_from_ns = time.monotonic_ns()
            writer.wait_ready()
            while not connection.poll():
                if rng.random() < 0.02:
                    time.sleep(role.slow)
                report.waited_from_ns = time.monotonic_ns()
                data: Any = message(role.seed, number)
                send(number, pickle.PickleBuffer(data) if len(data) == LARGE else data)
                report.last = number
                number += 1
                time.sleep(role.pace)
            connection.recv()
            report.waited_from_ns = time.monotonic_ns()
            send(number, None)  # let go of everything
            report.last = number
            if role.arena and not wait_until_free(writer):
                report.wrong = "extents of the arena were not given back"
        except ShmcastError as error:
            report.error = type(error).__name__
        report.alarms = calls.count
        report.spilled = writer.statistics().spilled
    report.ended_ns = time.monotonic_ns()
    return report


def read(connection: Connection, role: Role, handle: Handle, index: int, rejoin: bool) -> Report:
    """Receive until the end."""
    rng = random.Random(role.seed + index)  # noqa: S311
    report = Report()
    kept = Kept(rng)
    with (
        Reader(handle, index, wait=role.policy, rejoin=rejoin) as reader,
        role.calls() as calls,
        contextlib.closing(Awaited(reader.recv_async, rng)) as awaited,
    ):
        receive = awaited.receive if role.awaits else reader.recv
        connection.send("attached")
        excused = 0  # alarms since the last message
        try:
            while True:
                if rng.random() < 0.1:
                    time.sleep(role.slow)
                report.waited_from_ns = time.monotonic_ns()
                copy = rng.random() < 0.3
                try:
                    number, data = calls.make(functools.partial(receive, copy=copy))
                except (Alarmed, AlarmedError):
                    excused += 1
                    kept.drop_all()  # the message that is lost may have been the one that says so
                    continue
                missing = 0 if report.first is None else number - (report.last or 0) - 1
                if not 0 <= missing <= excused:
                    report.wrong = f"message {number} came after {report.last}"
                report.lost += missing
                report.first = number if report.first is None else report.first
                report.last = number
                excused = 0
                if data is None:
                    kept.drop_all()
                    continue
                if bytes(data) != message(role.seed, number):
                    report.wrong = f"message {number} has other bytes: crc {zlib.crc32(data)}"
                kept.add(number, data)
                del data
        except ShmcastError as error:
            report.error = type(error).__name__
        report.alarms = calls.count
        report.cancels = awaited.cancels
    report.ended_ns = time.monotonic_ns()
    kept.drop_all()  # views outlive the reader
    return report


def _raise(_signal: int, _frame: object) -> None:
    # Instead of what the alarms raise, which would take this one's place. And again, until this
    # process ends: what a handler raises inside of a __del__, a Pidfd's for instance, is lost.
    signal.signal(signal.SIGALRM, _raise_again)
    signal.setitimer(signal.ITIMER_REAL, 5.0, 5.0)
    _raise_again()


def _raise_again(*_signal_and_frame: object) -> None:
    raise SystemExit(1)  # passes through everything, and so out of the endpoint's with block


def _exit(_signal: int, _frame: object) -> None:
    os._exit(3)


def _execute(_signal: int, _frame: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # it would go on
    os.execv("/bin/sleep", ["sleep", "0.2"])  # noqa: S606


def serve(connection: Connection, folder: str) -> None:
    """Play one role after the other, each a function; cores are dumped in the folder."""
    os.chdir(folder)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = _CORE_BYTES if most == resource.RLIM_INFINITY else min(most, _CORE_BYTES)
    resource.setrlimit(resource.RLIMIT_CORE, (wanted, most))
    signal.signal(ENDINGS["an exception"], _raise)
    signal.signal(ENDINGS["an exit code"], _exit)
    signal.signal(ENDINGS["another program"], _execute)
    while True:
        role, args = connection.recv()
        try:
            report = role(connection, *args)
        except Exception as error:
            report = Report(wrong=f"{type(error).__name__}: {error}")
        connection.send(report)
