"""The suite "replies": a message to all members and a reply of each, `recv_any`, and `await`.

A round trip is from the driver's call to when it has all replies. On CLOCK_MONOTONIC, which all
processes of a host share.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

import shmcast
from bench.run import processes
from bench.run.measure import schedule
from bench.transports import exchanges
from bench.transports.exchanges import EXCHANGES, ONE_WAY, WITHOUT_REPLIES, Exchange
from bench.workloads import catalogue

Row = dict[str, Any]

SUITE = "replies"
WHAT = "a message to 1, 4 or 8 members and a reply of each; recv_any; awaited receives"
MEMBERS = (1, 4, 8)
MESSAGES = ("49 B", "decode 64")
GAPS_MS = (0.3, 1.0, 10.0)
TURNS = 5
ROUND_TRIP, ANY, AWAITED = "round trip", "any", "awaited"
ANY_OF = (8, 62)
AWAITED_GAP_MS = 1.0
KNOWN, WHOEVER = "recv", "recv_any"
BLOCKING = "recv()"

_SECONDS = 0.4  # of a turn, in which
_FEWEST, _MOST = 40, 400  # calls
_WARM_UP = 20
_REPLY = "49 B"


class _Turn(NamedTuple):
    who: str
    message: str
    gap_ms: float
    calls: int


def run(
    console: Console,
    members: Sequence[int],
    turns: int,
    write: Callable[[list[Row]], None],
    scale: float = 1.0,
) -> list[Row]:
    """Measure everything, each in turns with its peers.

    Args:
        console: where to print.
        members: how many, of the round trips.
        turns: of each.
        write: called with the rows so far after each part.
        scale: factor on how long a turn takes.

    Raises:
        RuntimeError: a process has not answered, or a reply was another one.
    """
    rows: list[Row] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(SUITE, total=len(members) + len(ANY_OF) + 1)
        for count in members:
            rows += _round_trips(count, turns, scale)
            write(rows)
            progress.advance(task)
        for count in ANY_OF:
            rows += _any(count, turns, _calls(0.1, scale))
            write(rows)
            progress.advance(task)
        rows += _awaited(turns, _calls(AWAITED_GAP_MS, scale))
        write(rows)
    return rows


def _calls(gap_ms: float, scale: float) -> int:
    return max(2, int(scale * min(max(1e3 * _SECONDS / gap_ms, _FEWEST), _MOST)))


def _row(case: str, who: str, times_ns: Any, **where: Any) -> Row:
    times_us = np.concatenate(times_ns) / 1e3
    return {
        "case": case,
        "who": who,
        "message": _REPLY,
        "members": 1,
        "gap_ms": 0.0,
        **where,
        "calls": len(times_us),
        "p50_us": float(np.median(times_us)),
        "p99_us": float(np.percentile(times_us, 99)),
    }


# Round trips.


def _round_trips(members: int, turns: int, scale: float) -> list[Row]:
    names = [name for name in EXCHANGES if name not in exchanges.missing()]
    rows = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        crew = [
            stack.enter_context(processes.member(_serve, rank, 1 + members, folder, names))
            for rank in range(1 + members)
        ]
        for message in MESSAGES:
            for gap_ms in GAPS_MS:
                times: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in names}
                for _ in range(turns):
                    for who in names:
                        turn = _Turn(who, message, gap_ms, _calls(gap_ms, scale))
                        times[who].append(_round_trip(crew, turn))
                where = {"message": message, "members": members, "gap_ms": gap_ms}
                rows += [_row(ROUND_TRIP, who, times[who], **where) for who in names]
    return rows


def _round_trip(crew: Sequence[Connection], turn: _Turn) -> npt.NDArray[np.int64]:
    """Let all take a turn; return the time of each call in ns."""
    for process in crew:
        process.send(turn)
    began, had = np.array(processes.answer(crew[0], SUITE)).T
    received = np.array([processes.answer(process, SUITE) for process in crew[1:]])
    times: npt.NDArray[np.int64] = (
        received.max(axis=0) - began if turn.who == ONE_WAY else had - began
    )
    return times


def _serve(control: Connection, rank: int, size: int, folder: str, names: Sequence[str]) -> None:
    """Take turns until the pipe ends."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)

    def gather(obj: Any) -> list[Any]:
        everybody: list[Any] = [None] * size
        dist.all_gather_object(everybody, obj)
        return everybody

    with contextlib.ExitStack() as stack, contextlib.suppress(EOFError):
        ends = {name: EXCHANGES[name](rank, size, gather) for name in names}
        for end in ends.values():
            stack.callback(end.close)
        while True:
            turn = control.recv()
            dist.barrier()
            control.send((_drive if rank == 0 else _work)(ends[turn.who], turn, rank, size))


def _drive(end: Exchange, turn: _Turn, _rank: int, size: int) -> list[tuple[int, int]]:
    message = _message(turn.message)
    expected = [] if turn.who in WITHOUT_REPLIES else [_reply(rank) for rank in range(1, size)]
    times = []
    for _ in range(_WARM_UP + turn.calls):
        schedule(time.monotonic_ns() + int(turn.gap_ms * 1e6), None)
        began = time.monotonic_ns()
        replies = end.ask(message)
        times.append((began, time.monotonic_ns()))
        if list(replies) != expected:
            raise RuntimeError(f"{SUITE}: {turn.who}: {replies!r} in place of {expected!r}")
    return times[_WARM_UP:]


def _work(end: Exchange, turn: _Turn, rank: int, _size: int) -> list[int]:
    reply = _reply(rank)
    received = []
    for _ in range(_WARM_UP + turn.calls):
        end.answer(reply)
        received.append(time.monotonic_ns())
    return received[_WARM_UP:]


def _message(name: str) -> Any:
    return catalogue.workload(name).make()[0]


def _reply(rank: int) -> Any:
    return _message(_REPLY) | {"step": rank}


# recv_any, of a reply that is there, beside recv of the member that has sent it: in one process.


def _any(members: int, turns: int, calls: int) -> list[Row]:
    rng = random.Random(0)  # noqa: S311 (the same in each run, no more)
    times: dict[str, list[npt.NDArray[np.int64]]] = {KNOWN: [], WHOEVER: []}
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(shmcast.Hub(members))
        all_members = [
            stack.enter_context(shmcast.Member(hub.handle, index)) for index in range(members)
        ]
        for turn in range(2 * turns):
            who = (KNOWN, WHOEVER)[turn % 2]
            taken = []
            for _ in range(calls):
                hub.send(0)
                for member in all_members:
                    member.recv()
                index = rng.randrange(members)
                all_members[index].reply(index)
                began = time.monotonic_ns()
                got = (index, hub.recv(index)) if who == KNOWN else hub.recv_any()
                taken.append(time.monotonic_ns() - began)
                if got != (index, index):
                    raise RuntimeError(f"{SUITE}: {got} in place of {(index, index)}")
            times[who].append(np.array(taken))
    return [_row(ANY, who, times[who], members=members) for who in times]


# Awaited: one way, and everybody parks.


async def _in_tasks(receive: Callable[[], Any], calls: int) -> list[int]:
    received = []
    for _ in range(calls):
        await receive()
        received.append(time.monotonic_ns())
    return received


def _blocking(reader: shmcast.Reader, calls: int) -> list[int]:
    received = []
    for _ in range(calls):
        reader.recv()
        received.append(time.monotonic_ns())
    return received


def _in_asyncio(reader: shmcast.Reader, calls: int) -> list[int]:
    return asyncio.run(_in_tasks(reader.recv_async, calls))


def _in_uvloop(reader: shmcast.Reader, calls: int) -> list[int]:
    received: list[int] = importlib.import_module("uvloop").run(_in_tasks(reader.recv_async, calls))
    return received


def _in_trio(reader: shmcast.Reader, calls: int) -> list[int]:
    run = importlib.import_module("trio").run
    received: list[int] = run(_in_tasks, reader.recv_async, calls)
    return received


def _to_thread(reader: shmcast.Reader, calls: int) -> list[int]:
    return asyncio.run(_in_tasks(lambda: asyncio.to_thread(reader.recv), calls))


WAYS: dict[str, tuple[str, Callable[[shmcast.Reader, int], list[int]]]] = {
    BLOCKING: ("asyncio", _blocking),
    "await recv_async(), uvloop": ("uvloop", _in_uvloop),
    "await recv_async(), asyncio": ("asyncio", _in_asyncio),
    "await recv_async(), trio": ("trio", _in_trio),
    "await asyncio.to_thread(recv)": ("asyncio", _to_thread),
}
"""By name, the module that each needs, and what it does."""


def _awaited(turns: int, calls: int) -> list[Row]:
    times: dict[str, list[npt.NDArray[np.int64]]] = {}
    with (
        shmcast.Writer(1, wait=shmcast.WaitPolicy.semaphore()) as writer,
        processes.member(_await, writer.handle) as reader,
    ):
        ways = processes.answer(reader, SUITE)
        for _ in range(turns):
            for who in ways:
                reader.send((who, calls))
                processes.answer(reader, SUITE)  # (it begins)
                sent = []
                for _ in range(_WARM_UP + calls):
                    schedule(time.monotonic_ns() + int(AWAITED_GAP_MS * 1e6), None)
                    sent.append(time.monotonic_ns())
                    writer.send(0)
                received = processes.answer(reader, SUITE)
                taken = np.array(received) - np.array(sent)
                times.setdefault(who, []).append(taken[_WARM_UP:])
    return [_row(AWAITED, who, times[who], gap_ms=AWAITED_GAP_MS) for who in times]


def _await(control: Connection, handle: shmcast.Handle) -> None:
    ways = {}
    for who, (module, way) in WAYS.items():
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
            ways[who] = way
    with (
        shmcast.Reader(handle, 0, wait=shmcast.WaitPolicy.semaphore()) as reader,
        contextlib.suppress(EOFError),
    ):
        control.send(list(ways))
        while True:
            who, calls = control.recv()
            control.send("begins")
            control.send(ways[who](reader, _WARM_UP + calls))
