"""One process: makes its end of a transport and takes turns, as it is told.

Times are CLOCK_MONOTONIC nanoseconds, which all processes of a host share.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from shmcast._operators.bench.cases import MESSAGES, Case
from shmcast._operators.bench.transports import TRANSPORTS, Seat


@dataclass(frozen=True)
class Turn:
    """So many messages of a case.

    Attributes:
        case: what is sent, and with which gaps.
        warm_up: messages first that don't count.
        count: messages that do.
    """

    case: Case
    warm_up: int
    count: int


Answer = tuple[str, Sequence[int] | str]
"""Of a process: "ready" and "", "took" and times in ns, or "failed" and why."""


_GONE = (EOFError, BrokenPipeError, ConnectionResetError)  # somebody at the other end


def serve(control: Connection, transport: str, rank: int, pipes: Sequence[Connection]) -> None:
    """Take turns until there are no more, or whoever gives them is gone.

    Args:
        control: where turns come from and answers go; None is the end.
        transport: of `TRANSPORTS`.
        rank: 0 is the source.
        pipes: see `Seat`.
    """
    _silence()
    with contextlib.suppress(*_GONE):
        try:
            end = TRANSPORTS[transport](Seat(rank, control.recv(), pipes))
            control.send(("ready", ""))
            while (turn := control.recv()) is not None:
                times = _receive(end.call, turn) if rank else _send(end.call, turn)
                control.send(("took", times))
            end.close()
        except _GONE:
            raise
        except Exception as error:
            control.send(("failed", f"{type(error).__name__}: {error}"))


def _silence() -> None:
    """Let libraries print into the void: what is printed here is a table, or JSON."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _send(send: Callable[[Any], object], turn: Turn) -> list[int]:
    """Return when each message that counts was sent; of those back to back, the first."""
    message = MESSAGES[turn.case.message]()
    clock = time.monotonic_ns
    if not turn.case.gap_ns:
        for _ in range(turn.warm_up):
            send(message)
        start = clock()
        for _ in range(turn.count):
            send(message)
        return [start]
    starts = []
    for _ in range(turn.warm_up + turn.count):
        _schedule(clock() + turn.case.gap_ns)
        starts.append(clock())
        send(message)
    return starts[turn.warm_up :]


def _receive(recv: Callable[[], Any], turn: Turn) -> list[int]:
    """Return when each message that counts was received; of those back to back, the last."""
    clock = time.monotonic_ns
    if not turn.case.gap_ns:
        for _ in range(turn.warm_up + turn.count):
            recv()
        return [clock()]
    ends = []
    for _ in range(turn.warm_up + turn.count):
        recv()
        ends.append(clock())
    return ends[turn.warm_up :]


def _schedule(until_ns: int) -> None:
    """Compute until a time, as a scheduler does between two steps."""
    queue: dict[int, list[int]] = {}
    step = 0
    while time.monotonic_ns() < until_ns:
        queue[step % 512] = sorted((step * 7919 + i * 104729) % 4093 for i in range(16))
        step += 1
