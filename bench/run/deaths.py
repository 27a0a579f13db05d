"""The suite "deaths": how soon the others are told that a member was killed, by cadence.

Of two readers one is killed at a moment by chance, while messages flow or none do. Times are from
the kill to the PeerDied, on CLOCK_MONOTONIC, which all processes of a host share.
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
WHAT = "one of two readers is killed: when the source's calls and the other reader's say so"
KILLS = 100
IDLE = -1.0
GAPS_MS = (0.0, 1.0, 20.0, IDLE)
SOURCE, READER = "the source's next call", "the other reader, which waits"

_SECONDS = 60.0
_LIFE_SECONDS = (0.02, 0.06)  # of a victim, from the first message on


def run(
    console: Console, gaps_ms: Sequence[float], kills: int, write: Callable[[list[Row]], None]
) -> list[Row]:
    """Kill a reader `kills` times at each cadence.

    Args:
        console: where to print.
        gaps_ms: between messages; 0: back to back; IDLE: there are none.
        kills: of each.
        write: called with the rows so far after each cadence.

    Raises:
        RuntimeError: a member was told something else than the death, or nothing.
    """
    rows: list[Row] = []
    rng = random.Random(0)  # noqa: S311 (the same in each run, no more)
    with contextlib.ExitStack() as stack, Progress(console=console, transient=True) as progress:
        task = progress.add_task(SUITE, total=len(gaps_ms) * kills)
        source = stack.enter_context(processes.member(_write))
        reader = stack.enter_context(processes.member(_read))
        for gap_ms in gaps_ms:
            told: list[tuple[float, float]] = []
            for _ in range(kills):
                told.append(_kill(source, reader, gap_ms, rng.uniform(*_LIFE_SECONDS)))
                progress.advance(task)
            rows += _rows(gap_ms, np.array(told).T)
            write(rows)
    return rows


def _kill(
    source: Connection, reader: Connection, gap_ms: float, life_seconds: float
) -> tuple[float, float]:
    """Kill a reader once; return after how many ms the source and the other reader have said so."""
    victim, its = processes.CONTEXT.Pipe()
    process = processes.CONTEXT.Process(target=_read, args=(its,), daemon=True)
    process.start()
    its.close()
    source.send(gap_ms)
    handle = processes.answer(source, SUITE)
    victim.send((handle, 0))
    reader.send((handle, 1))
    processes.answer(source, SUITE)  # messages flow
    time.sleep(life_seconds)
    killed_ns = time.monotonic_ns()
    process.kill()
    process.join()
    victim.close()
    if gap_ms == IDLE:  # the call after the other has been told
        told = _told(reader, killed_ns)
        called_ns = time.monotonic_ns()
        source.send("call")
        both = _told(source, called_ns), told
    else:
        both = _told(source, killed_ns), _told(reader, killed_ns)
    source.send("over")
    return both


def _told(connection: Connection, since_ns: int) -> float:
    """Return after how many ms a member was told of the kill."""
    at_ns, error = processes.answer(connection, SUITE)
    if f"killed by {signal.SIGKILL.name}" not in error:
        raise RuntimeError(f"deaths: a member was told {error!r}")
    return float(at_ns - since_ns) / 1e6


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
                    control.send((time.monotonic_ns(), str(error)))
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
                    control.send((time.monotonic_ns(), str(error)))


def _rows(gap_ms: float, told_ms: Any) -> list[Row]:
    return [
        {
            "gap_ms": gap_ms,
            "who": who,
            "kills": len(ms),
            "p50_ms": float(np.median(ms)),
            "p99_ms": float(np.percentile(ms, 99)),
            "max_ms": float(ms.max()),
        }
        for who, ms in zip((SOURCE, READER), told_ms, strict=True)
    ]
