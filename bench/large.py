"""Large arrays: streamed, in the arena, as views, as loans; gloo, Pipe and memcpy in the same run.

    python bench/large.py                        # everything, about ten minutes
    python bench/large.py --quick                # about two minutes
    python bench/large.py --readers 1 --sizes "16 MiB" --ways "arena, view" --ways memcpy

A time is from the call on the source to the return of the last reader's call, with the array there;
nobody reads it yet. The next gap begins when every reader has dropped it: nothing queues up. The
ways take turns, several each, in one group of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import harness
import memory
import shmcast
import transports

KIB, MIB = 1 << 10, 1 << 20
SIZES = {
    "64 KiB": 64 * KIB,
    "256 KiB": 256 * KIB,
    "1 MiB": MIB,
    "16 MiB": 16 * MIB,
    "64 MiB": 64 * MIB,
    "256 MiB": 256 * MIB,
}
READERS = (1, 4, 8)
READ_SIZES = ("1 MiB", "16 MiB", "256 MiB")

MEMCPY = "memcpy"
STREAMED = "streamed"
COPIED = "arena, copied"
VIEW = "arena, view"
FILLED = "loan, filled before"
TENSOR = "loan, filled before, tensor"
JUST = "loan, just filled"
WARMED = "loan, just filled, warmed"
GLOO = "gloo, known shape"
PIPE = "pipe, known shape"
COPYING = (MEMCPY, STREAMED, COPIED, VIEW, GLOO, transports.Gloo.name, PIPE)
LOANS = (FILLED, TENSOR)
REFILLED = (JUST, WARMED)
NAMES = (*COPYING, *LOANS, *REFILLED)
KINDS = (COPYING, LOANS, REFILLED)

TURNS = 5
CASE_SECONDS = {COPYING: 25.0, LOANS: 5.0, REFILLED: 10.0}
QUICK_SECONDS = 8.0

Array = npt.NDArray[np.float32]
Texts = Annotated[list[str], typer.Option(help="repeatable")]
Numbers = Annotated[list[int], typer.Option(help="repeatable")]
Row = dict[str, Any]


def payload(name: str) -> Array:
    """An array of a size's name."""
    return np.ones(SIZES[name] // 4, np.float32)


def size_of(array: Array) -> int:
    """Its bytes, which are all that is on the wire where its shape is known."""
    return array.nbytes


class Shmcast(transports.Transport):
    """A `Writer`, or a `Reader` that takes copies or views."""

    def __init__(self, name: str, end: shmcast.Writer | shmcast.Reader, copy: bool) -> None:
        self.name = name
        self._copy = copy
        self._end = end

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        if isinstance(self._end, shmcast.Writer):
            return self._end.send(obj)
        return self._end.recv(copy=self._copy)


class Loan(Shmcast):
    """What is sent is an array or tensor of the writer's arena, filled with what was asked for."""

    def __init__(self, name: str) -> None:
        # One for each way: the readers learn the pace.
        super().__init__(name, _join(max(SIZES.values()) + MIB), copy=False)
        self._loan: Any = None
        self._nbytes = 0
        if isinstance(self._end, shmcast.Writer):
            self._writer = self._end
            self.settle = self._settle
            if name in REFILLED:
                self.fill = self._fill

    def broadcast(self, _obj: Any, wire_bytes: int, /) -> Any:
        return super().broadcast(self._loan, wire_bytes)

    def _settle(self, obj: Array) -> None:
        if self._nbytes != obj.nbytes:
            self._loan = None  # its room is needed
            self._nbytes = obj.nbytes
            if self.name == TENSOR:
                self._loan = self._writer.empty_tensor(obj.shape, torch.float32)
                self._loan.copy_(torch.from_numpy(obj))
            else:
                self._loan = self._writer.empty(obj.shape, obj.dtype)
                np.copyto(self._loan, obj)
        while not self._writer.thaw(self._loan):  # (which also says if it is no loan)
            pass

    def _fill(self) -> None:
        self._loan.fill(1.0)
        if self.name == WARMED:
            self._writer.warm()


class GlooKnownShape(transports.Transport):
    """One gloo collective from the array's memory to a tensor that each reader has already."""

    name = GLOO

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)

    def broadcast(self, obj: Array | None, wire_bytes: int, /) -> Any:
        if obj is not None:
            dist.broadcast(torch.from_numpy(obj), src=0)
            return obj
        if self._room.nbytes != wire_bytes:
            self._room = torch.empty(wire_bytes, dtype=torch.uint8)
        dist.broadcast(self._room.view(torch.float32), src=0)
        return self._room


class PipeKnownShape(transports.Transport):
    """One Pipe for each reader: the array's bytes, to memory that the reader has already."""

    name = PIPE

    def __init__(self, ends: list[Connection]) -> None:
        self._ends = ends
        self._room = bytearray()

    def broadcast(self, obj: Array | None, wire_bytes: int, /) -> Any:
        if obj is not None:
            data = obj.data.cast("B")
            for end in self._ends:
                end.send_bytes(data)
            return obj
        if len(self._room) != wire_bytes:
            self._room = bytearray(wire_bytes)
        self._ends[0].recv_bytes_into(self._room)
        return self._room


class Memcpy(transports.Transport):
    """One copy on the source, to memory that it has already. Readers get nothing."""

    name = MEMCPY

    def __init__(self) -> None:
        self._target = np.empty(0, np.float32)
        self.settle = self._settle if dist.get_rank() == 0 else None

    def broadcast(self, obj: Array | None, _wire_bytes: int, /) -> Any:
        if obj is not None:
            np.copyto(self._target, obj)

    def _settle(self, obj: Array) -> None:
        if self._target.nbytes != obj.nbytes:
            self._target = np.zeros_like(obj)


def make(name: str, pipe_ends: list[Connection]) -> transports.Transport:
    """This process's end of a way; called in the same order on every rank."""
    if name in (*LOANS, *REFILLED):
        return Loan(name)
    if name == STREAMED:
        return Shmcast(name, _join(0), copy=True)
    if name in (COPIED, VIEW):
        return Shmcast(name, _shared_arena(), copy=name == COPIED)
    match name:
        case transports.Gloo.name:
            return transports.Gloo()
        case GlooKnownShape.name:
            return GlooKnownShape()
        case PipeKnownShape.name:
            return PipeKnownShape(pipe_ends)
        case Memcpy.name:
            return Memcpy()
    raise ValueError(f"way {name!r} is none of {', '.join(NAMES)}")


@functools.cache
def _shared_arena() -> shmcast.Writer | shmcast.Reader:
    return _join(2 * max(SIZES.values()) + MIB)


def _join(arena_bytes: int) -> shmcast.Writer | shmcast.Reader:
    rank = dist.get_rank()
    if rank == 0:
        writer = shmcast.Writer(dist.get_world_size() - 1, arena_bytes=arena_bytes)
        dist.broadcast_object_list([writer.handle], src=0)
        return writer
    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=0)
    return shmcast.Reader(box[0], rank - 1)


def _case(
    size: str, ways: tuple[str, ...], readers: int, gap_ms: float, seconds: float
) -> harness.Case:
    """As many messages as `seconds` have, by what each costs where this was written."""
    mebibytes = SIZES[size] / MIB
    if set(ways) <= set(LOANS):
        each = 0.005  # so many that the readers learn the pace, as for small messages
    elif set(ways) <= set(REFILLED):
        each = 0.005 + 0.0004 * mebibytes
    else:
        each = 0.01 + (0.004 + 0.0031 * readers) * mebibytes
    in_turn = min(int(seconds / each / TURNS), 110)
    warm_up = min(harness.WARM_UP, max(1, in_turn // 4))
    counted = max(1, in_turn - warm_up) * TURNS
    return harness.Case(size, gap_ms, False, counted, "steady", warm_up, True, ways)


def _cases(
    sizes: list[str], ways: list[str], readers: int, gap_ms: float, seconds: dict[Any, float]
) -> list[harness.Case]:
    """Of each size three, as loans are many in the time of one copy by a socket."""
    return [
        _case(size, chosen, readers, gap_ms, seconds[kind])
        for size in sizes
        for kind in KINDS
        if (chosen := tuple(way for way in kind if way in ways))
    ]


def _quick(ways: list[str], readers: int, gap_ms: float) -> list[harness.Case]:
    seconds = {kind: min(QUICK_SECONDS, CASE_SECONDS[kind]) for kind in CASE_SECONDS}
    if readers == 8:
        few = [way for way in (MEMCPY, VIEW) if way in ways]
        return _cases(["16 MiB"], few, readers, gap_ms, seconds)
    if readers != 1:
        return []
    loans = [way for way in ways if way in (*LOANS, *REFILLED)]
    both = _cases(["1 MiB", "16 MiB"], ways, readers, gap_ms, seconds)
    return both + _cases(["256 MiB"], loans, readers, gap_ms, seconds)


def _rows(case: harness.Case, readers: int, times: dict[str, harness.Times]) -> list[Row]:
    rows = []
    for name, each in times.items():
        ends = [each.sent_ns] if name == MEMCPY else each.received_ns
        found = harness.row(case, readers, name, dataclasses.replace(each, received_ns=ends))
        rows.append(found)
    return rows


def _table(rows: list[Row], memcpy_us: float | None) -> Table:
    first = rows[0]
    plural = "s" if first["readers"] > 1 else ""
    title = f"{first['payload']}, {first['readers']} reader{plural}, gap {first['gap_ms']:g} ms"
    table = Table("way", title=title)
    for heading in ("p50 µs", "p99 µs", "send p50 µs", "messages", "this / memcpy"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (f"{row[key]:,.1f}" for key in ("p50_us", "p99_us", "send_p50_us"))
        ratio = f"{row['p50_us'] / memcpy_us:.2f}" if memcpy_us else ""
        table.add_row(row["transport"], *figures, str(row["messages"]), ratio)
    return table


READS = ("numpy view", "tensor view", "own copy")
_READ_ROUNDS = 15


def reading(size: str) -> list[Row]:
    """How long a reader takes to sum what it has received, in a process of its own.

    The first row is of the first numpy view that lies in its part of the arena. Later ones find its
    pages mapped. A tensor view has a mapping of its own each time.
    """
    context = multiprocessing.get_context("spawn")
    spent = context.SimpleQueue()
    elements = SIZES[size] // 4
    with shmcast.Writer(1, arena_bytes=2 * SIZES[size] + MIB) as writer:
        array, tensor = writer.empty(elements, np.float32), writer.empty_tensor(elements)
        array.fill(1.0)
        tensor.fill_(1.0)
        process = context.Process(target=_sum_all, args=(writer.handle, spent), daemon=True)
        process.start()
        times: dict[str, list[float]] = {kind: [] for kind in READS}
        for _ in range(_READ_ROUNDS):
            for kind in READS:
                writer.send(tensor if kind == "tensor view" else array, harness.JOIN_SECONDS)
                times[kind].append(spent.get())
        process.join(harness.JOIN_SECONDS)
        del array, tensor
    first = times[READS[0]][0]
    rows = [{"payload": size, "what": f"{READS[0]}, first", "messages": 1, "p50_us": first}]
    for kind, each in times.items():
        p50 = float(np.median(each[1:]))
        rows.append({"payload": size, "what": kind, "messages": len(each) - 1, "p50_us": p50})
    return rows


def _sum_all(handle: shmcast.Handle, spent: SimpleQueue[float]) -> None:
    torch.set_num_threads(1)
    with shmcast.Reader(handle, 0) as reader:
        for _ in range(_READ_ROUNDS):
            for kind in READS:
                got = reader.recv(harness.JOIN_SECONDS, copy=kind == "own copy")
                plain = got.numpy() if isinstance(got, torch.Tensor) else got
                start = time.monotonic_ns()
                plain.view(np.int64).sum()  # the same loop for all
                microseconds = (time.monotonic_ns() - start) / 1e3
                del got, plain
                spent.put(microseconds)


def _reading_table(rows: list[Row]) -> Table:
    table = Table("what is read", title=f"{rows[0]['payload']}, summed once by a reader")
    table.add_column("p50 µs", justify="right")
    for row in rows:
        table.add_row(row["what"], f"{row['p50_us']:,.1f}")
    return table


def main(
    sizes: Texts = [*SIZES],  # noqa: B006 (typer copies it)
    readers: Numbers = [*READERS],  # noqa: B006
    ways: Texts = [*NAMES],  # noqa: B006
    gap: Annotated[float, typer.Option(help="ms that the source computes before a send")] = 0.3,
    quick: Annotated[bool, typer.Option(help="the cases with goals; takes no --sizes")] = False,
    scale: Annotated[float, typer.Option(help="factor on the time that a case may take")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Measures and prints one table a case; writes JSON if asked to."""
    if gap <= 0:
        raise typer.BadParameter("a message needs a gap before it", param_hint="--gap")
    console = Console()
    machine = harness.describe_machine()
    console.print(machine)
    found_memory = memory.check()
    console.print(memory.describe(found_memory))
    rows: list[Row] = []
    seconds = {kind: each * scale for kind, each in CASE_SECONDS.items()}
    for count in readers:
        every = _cases(sizes, ways, count, gap, seconds)
        cases = _quick(ways, count, gap) if quick else every
        if not cases:
            continue
        memcpy: dict[str, float] = {}
        names = [way for way in ways if any(way in case.transports for case in cases)]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{count} readers", total=len(cases))
            for case, times in harness.run(names, cases, count, TURNS, make, payload, size_of):
                found = _rows(case, count, times)
                rows += found
                memcpy |= {x["payload"]: x["p50_us"] for x in found if x["transport"] == MEMCPY}
                console.print(_table(found, memcpy.get(case.payload)))
                progress.advance(task)
    read: list[Row] = []
    for size in READ_SIZES:
        if quick or size in sizes:
            read += (found := reading(size))
            console.print(_reading_table(found))
    if output:
        result = {
            "machine": machine,
            "turns": TURNS,
            "rows": rows,
            "reading": read,
            "memory": found_memory,
        }
        harness.write(output, result, console)


if __name__ == "__main__":
    typer.run(main)
