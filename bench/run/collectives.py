"""The suite "collectives": barrier and gathers of a `ShmBroadcaster` beside gloo's, in turns.

And the C library's own barrier between processes: what is left of a barrier without Python, a
ring and anybody who might die.

Times are from when the last rank comes to when the last one has its result; back to back, from one
result of the source to its next. On CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

import shmcast
from bench.run import processes

Row = dict[str, Any]

SUITE = "collectives"
WHAT = "barrier, gather and all-gather of 49 bytes, of 4 ranks, beside gloo's"
RANKS = 4
CALLS = 300
TURNS = 5
OURS, GLOO, PTHREAD = "shmcast", "gloo", "pthread"
BACK_TO_BACK, RANDOM = "back to back", "random arrival"
OPERATIONS = {
    "barrier": (OURS, GLOO, PTHREAD),
    "gather": (OURS, GLOO),
    "all-gather": (OURS, GLOO),
}
"""And who has each."""

_LATEST_MS = 1.0  # of a random arrival
_WARM_UP = 20
_PTHREAD_PROCESS_SHARED = 1  # of glibc and musl
_ATTRIBUTES_BYTES = 64  # more than they need
_MESSAGE = {"rank": 0, "step": 1, "tokens": [1, 2, 3]}


def run(console: Console, ranks: int, calls: int, turns: int) -> list[Row]:
    """Measure every operation, with either kind of arrival.

    Args:
        console: where to print.
        ranks: how many.
        calls: in each turn.
        turns: of each transport.

    Raises:
        RuntimeError: a rank has not answered.
    """
    rows: list[Row] = []
    cases = [(*each, arrival) for each in OPERATIONS.items() for arrival in (BACK_TO_BACK, RANDOM)]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as stack,
        Progress(console=console, transient=True) as progress,
    ):
        task = progress.add_task(SUITE, total=len(cases) * turns)
        crew = [
            stack.enter_context(processes.member(_serve, rank, ranks, f"{folder}/store"))
            for rank in range(ranks)
        ]
        for name, transports, arrival in cases:
            times: dict[str, list[npt.NDArray[np.float64]]] = {who: [] for who in transports}
            for _ in range(turns):
                for who in transports:
                    for member in crew:
                        member.send((who, name, arrival, calls))
                    times[who].append(
                        _times(np.array([processes.answer(m, SUITE) for m in crew]), arrival)
                    )
                progress.advance(task)
            rows += [_row(name, arrival, who, np.concatenate(each)) for who, each in times.items()]
    return rows


def _times(stamps: npt.NDArray[np.int64], arrival: str) -> npt.NDArray[np.float64]:
    """Return the time of each call in µs.

    Args:
        stamps: in ns, int64 of shape (ranks, calls, 2): when each came, and had its result.
        arrival: as above.
    """
    came, done = stamps[:, :, 0], stamps[:, :, 1]
    times: npt.NDArray[np.int64] = done.max(axis=0) - came.max(axis=0)
    if arrival == BACK_TO_BACK:
        times = np.diff(done[0])
    return times / 1e3


def _row(name: str, arrival: str, who: str, times_us: npt.NDArray[np.float64]) -> Row:
    return {
        "operation": name,
        "arrival": arrival,
        "transport": who,
        "calls": len(times_us),
        "p50_us": float(np.median(times_us)),
        "p99_us": float(np.percentile(times_us, 99)),
    }


def _serve(control: Connection, rank: int, ranks: int, store: str) -> None:
    """Take turns until the pipe ends."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=ranks)
    rng = random.Random(rank)  # noqa: S311 (the same in each run, no more)
    with shmcast.ShmBroadcaster() as bc, contextlib.suppress(EOFError):
        operations = _operations(bc, ranks)
        operations[PTHREAD, "barrier"] = _pthread_barrier(Path(f"{store}.barrier"), rank, ranks)
        while True:
            who, name, arrival, calls = control.recv()
            call = operations[who, name]
            for _ in range(_WARM_UP):
                call()
            control.send(_stamps(call, arrival, calls, rng))


def _operations(
    bc: shmcast.ShmBroadcaster, ranks: int
) -> dict[tuple[str, str], Callable[[], object]]:
    import torch.distributed as dist

    everybody: list[Any] = [None] * ranks
    gathered = everybody if bc.is_src else None
    return {
        (OURS, "barrier"): bc.barrier,
        (GLOO, "barrier"): dist.barrier,
        (OURS, "gather"): lambda: bc.gather_object(_MESSAGE),
        (GLOO, "gather"): lambda: dist.gather_object(_MESSAGE, gathered),
        (OURS, "all-gather"): lambda: bc.all_gather_object(_MESSAGE),
        (GLOO, "all-gather"): lambda: dist.all_gather_object(everybody, _MESSAGE),
    }


def _pthread_barrier(path: Path, rank: int, ranks: int) -> Callable[[], object]:
    """Return the wait of pthread_barrier_wait(3) in memory that all ranks share."""
    import torch.distributed as dist

    library = ctypes.CDLL(None)
    if rank == 0:
        path.write_bytes(bytes(mmap.PAGESIZE))
    dist.barrier()
    with path.open("r+b") as file:
        barrier = ctypes.c_char.from_buffer(mmap.mmap(file.fileno(), mmap.PAGESIZE))
    if rank == 0:
        attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
        library.pthread_barrierattr_init(attributes)
        library.pthread_barrierattr_setpshared(attributes, _PTHREAD_PROCESS_SHARED)
        library.pthread_barrier_init(ctypes.byref(barrier), attributes, ranks)
    dist.barrier()
    return functools.partial(library.pthread_barrier_wait, ctypes.byref(barrier))


def _stamps(
    call: Callable[[], object], arrival: str, calls: int, rng: random.Random
) -> Sequence[tuple[int, int]]:
    stamps = []
    for _ in range(calls):
        if arrival == RANDOM:
            time.sleep(rng.uniform(0, _LATEST_MS) / 1e3)
        came = time.monotonic_ns()
        call()
        stamps.append((came, time.monotonic_ns()))
    return stamps
