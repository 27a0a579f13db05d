"""One transport's turn on one member: send or receive, and note when.

Times are CLOCK_MONOTONIC nanoseconds, which all processes of a host share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.run.case import BURST, Case
from bench.transports.base import Transport

_LOOK_SECONDS = 50e-6
BUSY_SECONDS = 0.02


@dataclass
class Done:
    """What one member did in one turn, with the counted messages only, in order.

    Back to back there is one start and one end, of all of them: a look at the clocks takes as long
    as a send.
    """

    starts: list[int] = field(default_factory=list)
    """When the source called."""
    ends: list[int] = field(default_factory=list)
    """When the calls returned."""
    reads: list[int] = field(default_factory=list)
    """How long a reader took to read what had arrived, in ns, where a case asks for it."""
    cpu_ns: int = 0
    """A reader's CPU time of the whole turn; the source's in its calls and its other threads."""
    wall_ns: int = 0
    """The duration of the whole turn."""
    messages: int = 0
    """All messages of the turn, those that don't count included."""
    counted: int = 0
    """Those that count."""


@dataclass(frozen=True)
class Turn:
    """`count` messages of a case's workload, from message `number` x `count` on."""

    case: Case
    number: int
    count: int
    warm_up: int

    def of(self, messages: list[Any]) -> list[Any]:
        """Return the messages of this turn; a workload that has fewer begins anew."""
        first = self.number * self.count - self.warm_up
        return [messages[i % len(messages)] for i in range(first, first + self.total)]

    @property
    def total(self) -> int:
        """Return the number of messages, those that don't count included."""
        return self.warm_up + self.count

    def gaps_ns(self, own: list[float] | None) -> list[int]:
        """Return the gap before each message, the same in every call.

        Args:
            own: the workload's own gaps in ms, one for each of its messages.

        Raises:
            ValueError: the case wants the workload's own timing, and it has none.
        """
        count, mean = self.total, self.case.gap_ms * 1e6
        rng = np.random.default_rng(len(self.case.pattern))
        match self.case.pattern:
            case "steady":
                gaps = np.full(count, mean)
            case "jitter":
                gaps = rng.uniform(0.9 * mean, 1.1 * mean, count)
            case "poisson":
                gaps = rng.exponential(mean, count)
            case "uniform":
                gaps = rng.uniform(0, 2 * mean, count)
            case "bursts":
                gaps = np.where(np.arange(count) % BURST == 0, mean * BURST, 0.0)
            case _ if own is None:
                raise ValueError(f"workload {self.case.workload!r} has no timing of its own")
            case _:
                gaps = np.array(self.of(own)) * 1e6
        return [int(gap) for gap in gaps]


def send(
    transport: Transport,
    messages: list[Any],
    gaps_ns: list[int],
    turn: Turn,
    taken: npt.NDArray[np.int64],
) -> Done:
    """Take the source's turn; `taken` is how many messages each reader has taken in it."""
    if turn.case.is_rate:
        return _send_at_once(transport, messages, turn)
    starts, ends = [], []
    cpu_ns = 0
    case = turn.case
    clock, cpu_clock = time.monotonic_ns, time.thread_time_ns
    others_begin = time.process_time_ns() - cpu_clock()
    begin = clock()
    for number, (gap_ns, obj) in enumerate(zip(gaps_ns, messages, strict=True), 1):
        if transport.settle is not None:
            transport.settle(obj)
        if gap_ns:
            schedule(clock() + gap_ns, transport.prepare)
        if transport.fill is not None:
            transport.fill(obj)
        cpu_start = cpu_clock()
        start = clock()
        transport.broadcast(obj)
        ends.append(clock())
        cpu_ns += cpu_clock() - cpu_start
        starts.append(start)
        while case.lockstep and (taken < number).any():
            time.sleep(_LOOK_SECONDS)
    wall_ns = clock() - begin
    others_ns = time.process_time_ns() - cpu_clock() - others_begin
    return Done(
        starts[turn.warm_up :],
        ends[turn.warm_up :],
        cpu_ns=cpu_ns + max(0, others_ns),
        wall_ns=wall_ns,
        messages=turn.total,
        counted=turn.count,
    )


def _send_at_once(transport: Transport, messages: list[Any], turn: Turn) -> Done:
    """Send without gaps, and do nothing else."""
    if transport.settle is not None:
        transport.settle(messages[0])
    broadcast, clock = transport.broadcast, time.monotonic_ns
    begin, cpu_begin = clock(), time.process_time_ns()
    for obj in messages[: turn.warm_up]:
        broadcast(obj)
    start = clock()
    for obj in messages[turn.warm_up :]:
        broadcast(obj)
    end = clock()
    cpu_ns = time.process_time_ns() - cpu_begin
    return Done(
        [start], [end], cpu_ns=cpu_ns, wall_ns=end - begin, messages=turn.total, counted=turn.count
    )


def receive(transport: Transport, turn: Turn, taken: npt.NDArray[np.int64], is_busy: bool) -> Done:
    """Take a reader's turn; `taken` is its own count, `is_busy`: it computes after each message."""
    ends, reads = [], []
    clock = time.monotonic_ns
    begin, cpu_begin = clock(), time.process_time_ns()
    if turn.case.is_rate:
        broadcast = transport.broadcast
        for _ in range(turn.total):
            broadcast(None)
        end = clock()
        cpu_ns = time.process_time_ns() - cpu_begin
        return Done([], [end], cpu_ns=cpu_ns, wall_ns=end - begin, messages=turn.total)
    for number in range(1, turn.total + 1):
        obj = transport.broadcast(None)
        ends.append(clock())
        if turn.case.reads:
            reads.append(_read(obj))
        del obj  # not before: it takes time to free 256 MiB
        taken[0] = number
        if is_busy:
            _compute(turn.case.busy)
    cpu_ns = time.process_time_ns() - cpu_begin
    return Done(
        [], ends[turn.warm_up :], reads[turn.warm_up :], cpu_ns, clock() - begin, turn.total
    )


def schedule(until_ns: int, prepare: Callable[[], None] | None) -> None:
    """Work as a scheduler does between steps: small dicts and lists come, are sorted, and go.

    In the last millisecond call `prepare` every 100 µs, as a driver does that looks now and then
    whether its GPU is ready.
    """
    queue: dict[int, list[int]] = {}
    step = 0
    prepare_ns = until_ns - 1_000_000
    while (now := time.monotonic_ns()) < until_ns:
        if prepare is not None and now >= prepare_ns:
            prepare()
            prepare_ns = now + 100_000
        queue[step % 512] = sorted((step * 7919 + i * 104729) % 4093 for i in range(16))
        step += 1


def _read(obj: Any) -> int:
    """Sum an array, tensor or bytes once; return how long it took, in ns."""
    if isinstance(obj, bytearray):
        plain = np.frombuffer(obj, np.uint8)
    else:
        plain = obj if isinstance(obj, np.ndarray) else obj.numpy()
    start = time.monotonic_ns()
    plain.reshape(-1).view(np.int64).sum()  # the same loop for all
    return time.monotonic_ns() - start


def _compute(what: str) -> None:
    until = time.monotonic() + BUSY_SECONDS
    if what == "torch":
        import torch

        matrix = torch.ones(400, 400)
        while time.monotonic() < until:
            torch.mm(matrix, matrix)
    elif what == "python":
        while time.monotonic() < until:
            sorted((k * 7919) % 4093 for k in range(100))


def latencies_us(source: Iterable[int], readers: list[list[int]]) -> list[float]:
    """Return the time from each call on the source to the return on the last reader."""
    last = map(max, zip(*readers, strict=True))
    return [(end - start) / 1e3 for start, end in zip(source, last, strict=True)]
