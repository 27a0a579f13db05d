"""An engine's load: the driver broadcasts a step, the workers compute, the first of them replies.

A step goes by one transport, the reply by another of the same kind in which the first worker is the
source. While workers compute, with as many threads in all as there are CPUs, the driver waits.
"""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.run import intervals
from bench.run.measure import Done, Turn, schedule
from bench.transports.base import Peer, Seat, Transport
from bench.workloads import catalogue

_LEAST_MS, _MOST_MS = 2.0, 12.0  # of computing
_DRIVER_NS = 300_000  # of the driver's own work before a step


class Turned(Seat):
    """The seat of a process in a transport whose source is rank 1.

    Args:
        seat: the process's own; rank 1 has rank 0 here, and rank 0 the last one.
    """

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._shared = 0
        self.rank = (seat.rank - 1) % seat.size
        self.size = seat.size
        self.source = 1
        self.inherited = {}  # (what the launcher made goes the other way)
        self.folder: Path = seat.folder / "turned"
        self.folder.mkdir(exist_ok=True)

    def share(self, obj: Any = None) -> Any:
        self._shared += 1
        path = self.folder / f"shared-{self._shared}"
        if self.is_source:
            path.write_bytes(pickle.dumps(obj))
        self._seat.meet()
        return pickle.loads(path.read_bytes())  # noqa: S301 (our own bytes)

    def meet(self) -> None:
        self._seat.meet()


class Engine:
    """One process's ends of the two transports.

    Args:
        peer: what kind they are.
        forth: the end of the one by which steps go.
        seat: this process's.
    """

    def __init__(self, peer: Peer, forth: Transport, seat: Seat) -> None:
        self._seat = seat
        self._forth = forth
        self._back = peer.make(Turned(seat))
        self._reply = catalogue.tiny()
        self._back.expect(self._reply)

    def close(self) -> None:
        """Close the one for replies. Collective."""
        self._back.close()

    def turn(self, messages: list[Any], turn: Turn) -> Done:
        """Take all steps of a turn. Collective."""
        rng = np.random.default_rng(turn.number)
        work_ms = rng.uniform(_LEAST_MS, _MOST_MS, turn.total)
        self._seat.meet()
        if self._seat.is_source:
            return self._drive(messages, turn)
        return self._work(work_ms, turn)

    def _drive(self, messages: list[Any], turn: Turn) -> Done:
        clock, cpu_clock = time.monotonic_ns, time.process_time_ns
        calls, replies = [], []
        begin, cpu_begin = clock(), cpu_clock()
        for obj in messages:
            schedule(clock() + _DRIVER_NS, None)
            calls.append(clock())
            self._forth.broadcast(obj)
            self._back.broadcast(None)
            replies.append(clock())
        wall_ns, cpu_ns = clock() - begin, cpu_clock() - cpu_begin
        is_rpc = turn.case.engine == "rpc"
        starts, ends = (calls, calls) if is_rpc else ([], replies)
        return _done(starts, ends, turn, cpu_ns, wall_ns)

    def _work(self, work_ms: Any, turn: Turn) -> Done:
        import torch

        threads = torch.get_num_threads()
        # (More than CPUs in all, and their barriers, which spin, are what would be measured.)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // (self._seat.size - 1)))
        matrix = torch.ones(256, 256)
        clock = time.monotonic_ns
        arrivals, replies, returns = [], [], []
        begin, cpu_begin = clock(), time.process_time_ns()
        for ms in work_ms:
            self._forth.broadcast(None)
            arrivals.append(clock())
            until = arrivals[-1] + int(ms * 1e6)
            while clock() < until:
                torch.mm(matrix, matrix)
            replies.append(clock())
            self._back.broadcast(self._reply if self._seat.rank == 1 else None)
            returns.append(clock())
        wall_ns, cpu_ns = clock() - begin, time.process_time_ns() - cpu_begin
        torch.set_num_threads(threads)
        if turn.case.engine == "rpc":
            return _done([], arrivals, turn, cpu_ns, wall_ns)
        if self._seat.rank == 1:
            return _done(replies, returns, turn, cpu_ns, wall_ns)
        return _done([], [], turn, cpu_ns, wall_ns)


def by_part(part: str, turn: list[Done]) -> list[Done]:
    """Return what the ranks did in a turn with the source of that part first."""
    driver, first, *others = turn
    return turn if part == "rpc" else [first, driver, *others]


def steps(turns: list[list[Done]]) -> dict[str, float]:
    """Return how many steps a second the driver made: the median turn, with its interval."""
    rates = [driver.messages * 1e9 / driver.wall_ns for driver, *_ in turns]
    of_turns = [np.array([rate]) for rate in rates]
    low, high = intervals.interval(of_turns, intervals.percentile(50))
    found = {"steps_per_s": np.median(rates), "steps_low_per_s": low, "steps_high_per_s": high}
    return {name: round(float(value), 2) for name, value in found.items()}


def _done(starts: list[int], ends: list[int], turn: Turn, cpu_ns: int, wall_ns: int) -> Done:
    first = turn.warm_up
    return Done(starts[first:], ends[first:], [], cpu_ns, wall_ns, turn.total, turn.count)
