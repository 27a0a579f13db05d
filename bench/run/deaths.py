"""The suite "deaths": how soon the others are told that a member was killed, by cadence.

Of two readers, or of a hub's two members, one is killed at a moment by chance, while messages flow
or none do. Times are from the kill to the PeerDied, on CLOCK_MONOTONIC, which all processes of a
host share.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

import shmcast
from bench.run import processes
from bench.run.measure import schedule

Row = dict[str, Any]

SUITE = "deaths"
WHAT = "one of two readers or members is killed: when the source, the other reader, the hub say so"
KILLS = 100
IDLE = -1.0
GAPS_MS = (0.0, 1.0, 20.0, IDLE)
SOURCE, READER = "the source's next call", "the other reader, which waits"
HUB = "a hub that waits for another"

_SECONDS = 60.0
_LIFE_SECONDS = (0.02, 0.06)  # of a victim, from the first message on


def run(
    console: Console, gaps_ms: Sequence[float], kills: int, write: Callable[[list[Row]], None]
) -> list[Row]:
    """Kill a reader and a hub's member `kills` times at each cadence.

    Args:
        console: where to print.
        gaps_ms: between messages, or before the other member's replies; 0: back to back; IDLE:
            there are none.
        kills: of each.
        write: called with the rows so far after each cadence.

    Raises:
        RuntimeError: a member was told something else than the death, or nothing.
    """
    rows: list[Row] = []
    rng = random.Random(0)  # noqa: S311 (the same in each run, no more)
    with contextlib.ExitStack() as stack, Progress(console=console, transient=True) as progress:
        task = progress.add_task(SUITE, total=2 * len(gaps_ms) * kills)
        source, reader, hub, other = (
            stack.enter_context(processes.member(role)) for role in (_write, _read, _drive, _answer)
        )
        for gap_ms in gaps_ms:
            told: dict[str, list[float]] = {SOURCE: [], READER: [], HUB: []}
            for _ in range(kills):
                for who, ms in _kill_reader(source, reader, gap_ms, rng.uniform(*_LIFE_SECONDS)):
                    told[who].append(ms)
                progress.advance(task)
            for _ in range(kills):
                told[HUB].append(_kill_member(hub, other, gap_ms, rng.uniform(*_LIFE_SECONDS)))
                progress.advance(task)
            rows += [_row(gap_ms, who, np.array(ms)) for who, ms in told.items()]
            write(rows)
    return rows


class _Victim:
    """A process that plays a role until it is killed."""

    def __init__(self, role: Callable[[Connection], None]) -> None:
        self.pipe, its = processes.CONTEXT.Pipe()
        self._process = processes.CONTEXT.Process(target=role, args=(its,), daemon=True)
        self._process.start()
        its.close()

    def kill(self) -> int:
        """Return when, on CLOCK_MONOTONIC in ns."""
        killed_ns = time.monotonic_ns()
        self._process.kill()
        self._process.join()
        self.pipe.close()
        return killed_ns


def _kill_reader(
    source: Connection, reader: Connection, gap_ms: float, life_seconds: float
) -> list[tuple[str, float]]:
    """Kill a reader once; return after how many ms the source and the other reader have said so."""
    victim = _Victim(_read)
    source.send(gap_ms)
    handle = processes.answer(source, SUITE)
    victim.pipe.send((handle, 0))
    reader.send((handle, 1))
    processes.answer(source, SUITE)  # messages flow
    time.sleep(life_seconds)
    killed_ns = victim.kill()
    if gap_ms == IDLE:  # the call after the other has been told
        reader_ms = _told(reader, killed_ns)
        called_ns = time.monotonic_ns()
        source.send("call")
        source_ms = _told(source, called_ns)
    else:
        source_ms, reader_ms = _told(source, killed_ns), _told(reader, killed_ns)
    source.send("over")
    return [(SOURCE, source_ms), (READER, reader_ms)]


def _kill_member(hub: Connection, other: Connection, gap_ms: float, life_seconds: float) -> float:
    """Kill a hub's member once; return after how many ms the hub has said so."""
    victim = _Victim(_answer)
    hub.send("begin")
    handle = processes.answer(hub, SUITE)
    victim.pipe.send((handle, 0, IDLE))
    other.send((handle, 1, gap_ms))
    processes.answer(hub, SUITE)  # messages flow
    time.sleep(life_seconds)
    told_ms = _told(hub, victim.kill())
    hub.send("over")
    return told_ms


def _told(connection: Connection, since_ns: int) -> float:
    """Return after how many ms a member was told of the kill."""
    at_ns, error = processes.answer(connection, SUITE)
    if f"killed by {signal.SIGKILL.name}" not in error:
        raise RuntimeError(f"deaths: a member was told {error!r}")
    return float(at_ns - since_ns) / 1e6


def _tell(control: Connection, error: shmcast.ShmcastError) -> None:
    """Say when this member was told, and what; `_told` reads it."""
    control.send((time.monotonic_ns(), str(error)))


def _write(control: Connection) -> None:
    """Send messages with a gap until that raises, and say when and what, for each gap asked for."""
    with contextlib.suppress(EOFError):
        while True:
            gap_ms = control.recv()
            with shmcast.Writer(2) as writer:
                control.send(writer.handle)
                writer.wait_ready(_SECONDS)
                writer.send(0)
                control.send("ready")
                if gap_ms == IDLE:
                    control.recv()
                try:
                    while True:
                        if gap_ms > 0:
                            schedule(time.monotonic_ns() + int(gap_ms * 1e6), None)
                        writer.send(0, _SECONDS)
                except shmcast.ShmcastError as error:
                    _tell(control, error)
                    # (Its end is no news until the other reader has heard of the death.)
                    control.recv()


def _read(control: Connection) -> None:
    """Receive until that raises, and say when and what, for each ring that comes."""
    with contextlib.suppress(EOFError):
        while True:
            handle, index = control.recv()
            with shmcast.Reader(handle, index) as reader:
                try:
                    while True:
                        reader.recv(_SECONDS)
                except shmcast.ShmcastError as error:
                    _tell(control, error)


def _drive(control: Connection) -> None:
    """Wait for the replies of one of two members until that raises, and say when and what."""
    with contextlib.suppress(EOFError):
        while control.recv():
            with shmcast.Hub(2) as hub:
                control.send(hub.handle)
                hub.send(0)
                hub.recv_all(_SECONDS)
                control.send("ready")
                try:
                    while True:
                        hub.send(0, _SECONDS)
                        hub.recv(1, _SECONDS)
                except shmcast.ShmcastError as error:
                    _tell(control, error)
                    control.recv()


def _answer(control: Connection) -> None:
    """Reply once, and from then on a gap after each message, or never, to each hub that comes."""
    with contextlib.suppress(EOFError):
        while True:
            handle, index, gap_ms = control.recv()
            with (
                shmcast.Member(handle, index) as member,
                contextlib.suppress(shmcast.ShmcastError),  # the hub has closed
            ):
                member.recv(_SECONDS)
                member.reply(0)
                while True:
                    member.recv(_SECONDS)
                    if gap_ms != IDLE:
                        schedule(time.monotonic_ns() + int(gap_ms * 1e6), None)
                        member.reply(0)


def _row(gap_ms: float, who: str, told_ms: Any) -> Row:
    return {
        "gap_ms": gap_ms,
        "who": who,
        "kills": len(told_ms),
        "p50_ms": float(np.median(told_ms)),
        "p99_ms": float(np.percentile(told_ms, 99)),
        "max_ms": float(told_ms.max()),
    }
