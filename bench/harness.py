"""Runs cases over transports in one group of processes, interleaved, and returns raw times.

Times are CLOCK_MONOTONIC nanoseconds, which all processes of a host share. A message's latency is
from the call on the source to the return of the *last* reader's call.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import pickle
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from rich.console import Console

import shmcast
import transports
from shmcast.waiting import CpuBudget

WARM_UP = 5
JOIN_SECONDS = 60.0
_APART = 16  # words between the counts of two readers: no cache line is shared
_LOOK_SECONDS = 50e-6


@dataclass(frozen=True)
class Case:
    """Messages of one kind, sent at one cadence.

    Attributes:
        payload: name of an object made by `payload()`.
        gap_ms: what lies between the return of one send and the call of the next; 0: nothing, and
            the rate is measured instead of the latency.
        sleeps: the source sleeps through the gap; otherwise it computes.
        messages: counted messages per transport, over all turns.
        pattern: how gaps vary around `gap_ms`, one of PATTERNS.
        warm_up: messages at the start of each turn of a transport that do not count.
        lockstep: a gap begins when all readers have the message and have dropped it.
        transports: the names of those that take part; none: all.
    """

    payload: str
    gap_ms: float
    sleeps: bool
    messages: int
    pattern: str = "steady"
    warm_up: int = WARM_UP
    lockstep: bool = False
    transports: tuple[str, ...] = ()

    def of(self, names: list[str]) -> list[str]:
        """Those of `names` that take part."""
        return [name for name in names if name in self.transports] if self.transports else names

    def gaps_ns(self, count: int) -> list[int]:
        """The gaps before `count` messages, the same in every call."""
        rng = np.random.default_rng(len(self.pattern))
        mean = self.gap_ms * 1e6
        match self.pattern:
            case "steady":
                gaps = np.full(count, mean)
            case "jitter":
                gaps = rng.uniform(0.9 * mean, 1.1 * mean, count)
            case "poisson":
                gaps = rng.exponential(mean, count)
            case "bursts":
                gaps = np.where(np.arange(count) % BURST == 0, mean * BURST, 0.0)
            case _:
                raise ValueError(f"pattern {self.pattern!r} is none of {', '.join(PATTERNS)}")
        return [int(gap) for gap in gaps]


PATTERNS = ("steady", "jitter", "poisson", "bursts")
"""All gaps alike, uniform within 10 %, exponential, and messages in bursts of `BURST`."""

BURST = 8


PAYLOADS = ("49 B", "0.5 KB", "16 KB", "1 MiB", "16 MiB")


def payload(name: str) -> Any:
    """The object of a payload's name: small pickles, a nested dict, numpy arrays."""
    match name:
        case "49 B":
            return {"step": 1234, "ids": [1, 2, 3], "done": False}
        case "0.5 KB":
            return {
                "step": 1234,
                "new": [{"id": f"request-{i}", "blocks": [i, i + 1], "t": 0.5} for i in range(8)],
                "cached": {"ids": list(range(16)), "computed": {i: 17 * i for i in range(24)}},
            }
        case "16 KB":
            return {"tables": [[i * 64 + j for j in range(64)] for i in range(75)]}
        case "1 MiB":
            return np.arange(1 << 18, dtype=np.int32)
        case "16 MiB":
            return np.arange(1 << 22, dtype=np.int32)
    raise ValueError(f"payload {name!r} is none of {', '.join(PAYLOADS)}")


@dataclass(frozen=True)
class Times:
    """Of one case and transport: counted messages only, in order."""

    start_ns: list[int]
    """Calls on the source."""
    sent_ns: list[int]
    """Returns on the source."""
    received_ns: list[list[int]]
    """Returns on each reader."""
    turn: int
    """Messages per turn of the transport: the lists above are cut into turns of this length."""
    cpu_shares: list[float]
    """CPU seconds per wall second: of the source inside its calls, then of each reader in all."""

    @property
    def latencies_us(self) -> list[float]:
        """From the call on the source to the return on the last reader."""
        last = map(max, zip(*self.received_ns, strict=True))
        return [(end - start) / 1e3 for start, end in zip(self.start_ns, last, strict=True)]

    @property
    def sends_us(self) -> list[float]:
        """From the call on the source to its return there."""
        return [(b - a) / 1e3 for a, b in zip(self.start_ns, self.sent_ns, strict=True)]

    @property
    def rate(self) -> float:
        """Messages per second, the median over the turns."""
        turns = range(0, len(self.start_ns), self.turn)
        return float(np.median([self._turn_rate(first) for first in turns]))

    def _turn_rate(self, first: int) -> float:
        last = first + self.turn - 1
        end = max(reader[last] for reader in self.received_ns)
        return self.turn * 1e9 / (end - self.start_ns[first])


def pickled_bytes(obj: Any) -> int:
    """Size of an object's pickle."""
    return len(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))


def run(
    names: list[str],
    cases: list[Case],
    readers: int,
    turns: int,
    make: Callable[[str, list[Connection]], transports.Transport] = transports.make,
    payload: Callable[[str], Any] = payload,
    size_of: Callable[[Any], int] = pickled_bytes,
) -> Iterator[tuple[Case, dict[str, Times]]]:
    """Runs each case over all transports, `turns` turns each, in a shuffled order.

    `make` makes a process's end of a transport, `payload` the object of a payload's name; `size_of`
    is what `Transport.broadcast` is told of its size. Yields a case as soon as it is through.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(readers)]
    results = [context.Pipe(duplex=False) for _ in range(readers + 1)]
    taken = context.RawArray(ctypes.c_int64, readers * _APART)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = []
        for rank in range(readers + 1):
            ends = [pipes[rank - 1][0]] if rank else [sender for _, sender in pipes]
            what = (names, cases, turns, make, payload, size_of)
            args = (rank, readers + 1, store, *what, ends, taken, results[rank][1])
            process = context.Process(target=_member, args=args, daemon=True)
            process.start()
            processes.append(process)
            results[rank][1].close()  # a member that dies then ends our recv() with EOFError
        for case in cases:
            source, *readers_ends = [end.recv() for end, _ in results]
            yield (
                case,
                {
                    name: Times(
                        source[name].starts,
                        source[name].ends,
                        [reader[name].ends for reader in readers_ends],
                        case.messages // turns,
                        [member[name].cpu_share for member in (source, *readers_ends)],
                    )
                    for name in case.of(names)
                },
            )
        for process in processes:
            process.join(JOIN_SECONDS)


def _member(
    rank: int,
    size: int,
    store: str,
    names: list[str],
    cases: list[Case],
    turns: int,
    make: Callable[[str, list[Connection]], transports.Transport],
    payload: Callable[[str], Any],
    size_of: Callable[[Any], int],
    pipe_ends: list[Connection],
    taken: ctypes.Array[ctypes.c_int64],
    results: Connection,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)
    ways = [make(name, pipe_ends) for name in names]
    last = np.frombuffer(memoryview(taken), np.int64)[
        ::_APART
    ]  # number of the last message, by reader
    first = 1
    for case in cases:
        obj = payload(case.payload)
        wire_bytes = size_of(obj)
        if rank != 0:
            obj = None
        done = {name: Done() for name in case.of(names)}
        order = random.Random(case.payload)  # noqa: S311 (the same on every rank, no more)
        chosen = [way for way in ways if way.name in done]
        for _ in range(turns):
            # Shuffled, so that none always comes after the one that leaves the caches cold.
            for way in order.sample(chosen, len(chosen)):
                numbers = range(first, first + case.messages // turns + case.warm_up)
                first = numbers.stop
                take_turn(way, rank, obj, wire_bytes, case, numbers, last, done[way.name])
                dist.barrier()
        results.send(done)
    dist.barrier()
    dist.destroy_process_group()


@dataclass
class Done:
    """What one member did with one transport in one case."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    cpu_ns: int = 0
    wall_ns: int = 0

    @property
    def cpu_share(self) -> float:
        return self.cpu_ns / self.wall_ns


def take_turn(
    way: transports.Transport,
    rank: int,
    obj: Any,
    wire_bytes: int,
    case: Case,
    numbers: range,
    taken: npt.NDArray[np.int64],
    done: Done,
) -> None:
    """One transport's turn on one member: sends the messages of `numbers`, or receives them.

    `taken` has for each reader the number of the last message that it took, shared by all members
    where the case is in lockstep. What is measured is added to `done`.
    """
    if rank == 0:
        _send(way, obj, wire_bytes, case, numbers, taken, done)
    else:
        _receive(way, wire_bytes, case, numbers, taken[rank - 1 : rank], done)


def _send(
    way: transports.Transport,
    obj: Any,
    wire_bytes: int,
    case: Case,
    numbers: range,
    taken: npt.NDArray[np.int64],
    done: Done,
) -> None:
    """`taken` is the number of the last message that each reader took."""
    starts, ends = [], []
    cpu_ns = 0
    clock, cpu_clock = time.monotonic_ns, time.thread_time_ns
    gaps_ns = case.gaps_ns(len(numbers))
    begin = clock()
    for gap_ns, number in zip(gaps_ns, numbers, strict=True):
        if way.settle is not None:
            way.settle(obj)
        if gap_ns and case.sleeps:
            time.sleep(gap_ns / 1e9)
        elif gap_ns:
            _compute(clock() + gap_ns, way.prepare)
        if way.fill is not None:
            way.fill()
        cpu_start = cpu_clock()
        start = clock()
        way.broadcast(obj, wire_bytes)
        ends.append(clock())
        cpu_ns += cpu_clock() - cpu_start
        starts.append(start)
        while case.lockstep and (taken < number).any():
            time.sleep(_LOOK_SECONDS)
    done.starts += starts[case.warm_up :]
    done.ends += ends[case.warm_up :]
    done.cpu_ns += cpu_ns
    done.wall_ns += clock() - begin


def _receive(
    way: transports.Transport,
    wire_bytes: int,
    case: Case,
    numbers: range,
    taken: npt.NDArray[np.int64],
    done: Done,
) -> None:
    """`taken` is this reader's own."""
    ends = []
    clock = time.monotonic_ns
    begin, cpu_begin = clock(), time.thread_time_ns()
    for number in numbers:
        obj = way.broadcast(None, wire_bytes)
        ends.append(clock())
        del obj  # not before: to free 256 MiB takes time
        taken[0] = number
    done.ends += ends[case.warm_up :]
    done.cpu_ns += time.thread_time_ns() - cpu_begin
    done.wall_ns += clock() - begin


def _compute(until_ns: int, prepare: Callable[[], None] | None) -> None:
    """Works as a scheduler does between steps: small dicts and lists come, are sorted, and go.

    In the last millisecond `prepare` is called every 100 µs, as by a driver that looks now and then
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


def idle_cpu(readers: int, seconds: float, wait: shmcast.WaitPolicy) -> list[float]:
    """CPU time over wall time of each of `readers` while no message comes for `seconds`."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with shmcast.Writer(readers) as writer:
        processes = [
            context.Process(target=_idle_reader, args=(writer.handle, i, wait, queue), daemon=True)
            for i in range(readers)
        ]
        for process in processes:
            process.start()
        writer.wait_ready(JOIN_SECONDS)
        writer.send("start")
        time.sleep(seconds)
        writer.send("stop")
        shares = [queue.get() for _ in processes]
        for process in processes:
            process.join(JOIN_SECONDS)
    return shares


def _idle_reader(
    handle: shmcast.Handle, index: int, wait: shmcast.WaitPolicy, shares: SimpleQueue[float]
) -> None:
    with shmcast.Reader(handle, index, wait=wait) as reader:
        reader.recv()
        start, cpu_start = time.monotonic(), time.process_time()
        reader.recv()
        cpu, wall = time.process_time() - cpu_start, time.monotonic() - start
    shares.put(cpu / wall)


def memcpy_us(nbytes: int, repeats: int = 51) -> float:
    """Median time of one copy of `nbytes` between two warm arrays of one process."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    times = []
    for _ in range(repeats):
        start = time.monotonic_ns()
        np.copyto(target, source)
        times.append((time.monotonic_ns() - start) / 1e3)
    return float(np.median(times))


def row(case: Case, readers: int, name: str, times: Times) -> dict[str, Any]:
    """The figures of a case and transport, as they are written to JSON."""
    row: dict[str, Any] = {
        "payload": case.payload,
        "readers": readers,
        "gap_ms": case.gap_ms,
        "source": "sleeps" if case.sleeps else "computes",
        "transport": name,
        "messages": len(times.start_ns),
    }
    if case.gap_ms == 0:
        return row | {"rate_per_s": times.rate}
    latencies = times.latencies_us
    p50, p99 = np.percentile(latencies, [50, 99])
    return row | {
        "p50_us": float(p50),
        "p99_us": float(p99),
        "max_us": max(latencies),
        "send_p50_us": float(np.median(times.sends_us)),
    }


def write(output: Path, result: dict[str, Any], console: Console) -> None:
    """Writes results as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {output}")


def describe_machine() -> dict[str, Any]:
    """What the numbers are measured on, as of now."""
    info = Path("/proc/cpuinfo").read_text()
    models = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 (the user's own git)
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "usable_cpus": CpuBudget().usable(),
        "idle_hint": shmcast._core.idle_hint(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "shmcast": shmcast.__version__,
        "commit": git.stdout.strip(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
