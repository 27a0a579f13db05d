"""Dicts of tensors: shmcast against the way engines do it, side by side in one run.

    python bench/tensors.py                         # everything, about ten minutes
    python bench/tensors.py --quick                 # the cases of the README
    python bench/tensors.py --device cuda           # over NCCL, one rank a GPU

The plain way: broadcast_object_list of the metadata, then one dist.broadcast for each tensor.
shmcast carries the same tensors once over the device group, which is gloo unless there is a GPU
(the CPU is declared to be the device), and once as buffers of its message.

A time is from the call on the source to the return of the last rank's call, when its tensors are
there. The ways take turns, several each, so that a noisy minute hits all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import harness
import shmcast
import transports

COUNTS = (0, 1, 8, 64)
SIZES = {"1 KiB": 1 << 10, "64 KiB": 1 << 16, "4 MiB": 1 << 22}
LAYOUTS = ("flat", "nested")
QUICK = ("64 x 1 KiB, flat", "8 x 64 KiB, flat", "metadata only")

PLAIN = "plain"
LANE = "shmcast, device group"
MESSAGE = "shmcast, in the message"
OBJECT = "shmcast, broadcast_object"
NAMES = (LANE, MESSAGE, OBJECT, PLAIN)

Numbers = Annotated[list[int], typer.Option(help="repeatable")]
Texts = Annotated[list[str], typer.Option(help="repeatable")]
Row = dict[str, Any]


def payload(name: str, device: str) -> dict[str, Any]:
    """The dict of a case's name, such as "64 x 1 KiB, nested": some metadata, and the tensors."""
    d: dict[str, Any] = {"step": 1234, "ids": [1, 2, 3], "done": False}
    if name == "metadata only":
        return d
    what, layout = name.split(", ")
    count, size = what.split(" x ")
    tensors = [torch.ones(SIZES[size] // 4, device=device) for _ in range(int(count))]
    if layout == "flat":
        return d | {f"tensor {i}": tensor for i, tensor in enumerate(tensors)}
    pairs = [tensors[i : i + 2] for i in range(0, len(tensors), 2)]
    return d | {"layers": [{"name": str(i), "kv": tuple(pair)} for i, pair in enumerate(pairs)]}


class Plain(transports.Transport):
    """The engines' way: the metadata by broadcast_object_list, each tensor by a broadcast."""

    def __init__(self, name: str, group: dist.ProcessGroup | None, synchronize: bool) -> None:
        self.name = name
        self._group = group
        self._synchronize = synchronize

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        if dist.get_rank() == 0:
            tensors: list[torch.Tensor] = []
            box = [_replaced(obj, torch.Tensor, functools.partial(_take_out, tensors))]
            dist.broadcast_object_list(box, src=0)
            for tensor in tensors:
                dist.broadcast(tensor, src=0, group=self._group)
        else:
            box = [None]
            dist.broadcast_object_list(box, src=0)
            obj = _replaced(box[0], _Stub, self._receive)
        if self._synchronize:
            torch.cuda.synchronize()
        return obj

    def _receive(self, stub: _Stub) -> torch.Tensor:
        tensor = torch.empty(stub.shape, dtype=stub.dtype, device=stub.device)
        dist.broadcast(tensor, src=0, group=self._group)
        return tensor


class _Stub:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device.type


def _take_out(tensors: list[torch.Tensor], tensor: torch.Tensor) -> _Stub:
    tensors.append(tensor)
    return _Stub(tensor)


def _replaced(obj: Any, kind: type, replace: Callable[[Any], Any]) -> Any:
    """`obj` with `replace(x)` for each x of a kind in its dicts, lists and tuples."""
    if isinstance(obj, kind):
        return replace(obj)
    if isinstance(obj, dict):
        return {key: _replaced(value, kind, replace) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return type(obj)(_replaced(value, kind, replace) for value in obj)
    return obj


class Shmcast(transports.Transport):
    """A ShmBroadcaster's `broadcast_tensor_dict`, or `broadcast_object`."""

    def __init__(self, name: str, broadcaster: shmcast.ShmBroadcaster, synchronize: bool) -> None:
        self.name = name
        is_object = name == OBJECT
        self._call = (
            broadcaster.broadcast_object if is_object else broadcaster.broadcast_tensor_dict
        )
        self._synchronize = synchronize

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        got = self._call(obj)
        if self._synchronize:
            torch.cuda.synchronize()
        return got


def make(device: str, name: str, _pipe_ends: list[Connection]) -> transports.Transport:
    """This process's end of a way; called in the same order on every rank."""
    group = None
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank())
        group = dist.new_group(backend="nccl")
    synchronize = device == "cuda"
    if name == PLAIN:
        return Plain(name, group, synchronize)
    if name == LANE:
        broadcaster = shmcast.ShmBroadcaster(device_group=group, device_types={device})
    elif name in (MESSAGE, OBJECT):
        broadcaster = _without_device()
    else:
        raise ValueError(f"way {name!r} is none of {', '.join(NAMES)}")
    return Shmcast(name, broadcaster, synchronize)


@functools.cache
def _without_device() -> shmcast.ShmBroadcaster:
    """One for both ways, whose difference is a call's. On a GPU tensors are staged: it says so."""
    return shmcast.ShmBroadcaster()


def _case(name: str, turns: int, scale: float) -> harness.Case:
    if name == "metadata only":
        return harness.Case(name, 1.0, False, max(1, int(1000 * scale)) * turns)
    count, size = name.split(", ")[0].split(" x ")
    mebibytes = int(count) * SIZES[size] / (1 << 20)
    # The last message's readers must be through when the next one is sent.
    messages = max(1, int(40 * scale)) if mebibytes <= 1 else 2
    return harness.Case(name, 1 + 2 * mebibytes, False, messages * turns)


def _rows(case: harness.Case, times: dict[str, harness.Times]) -> list[Row]:
    rows = []
    for name, each in times.items():
        p50, p99 = np.percentile(each.latencies_us, [50, 99])
        row = {"payload": case.payload, "way": name, "messages": len(each.start_ns)}
        rows.append(row | {"p50_us": float(p50), "p99_us": float(p99)})
    return rows


def _table(rows: list[Row]) -> Table:
    plain = next((row["p50_us"] for row in rows if row["way"] == PLAIN), None)
    table = Table("way", title=rows[0]["payload"])
    for heading in ("p50 µs", "p99 µs", "plain / this"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = f"{plain / row['p50_us']:.1f}" if plain else ""
        table.add_row(row["way"], f"{row['p50_us']:,.1f}", f"{row['p99_us']:,.1f}", ratio)
    return table


def main(
    counts: Numbers = [*COUNTS],  # noqa: B006 (typer copies it)
    sizes: Texts = [*SIZES],  # noqa: B006
    layouts: Texts = [*LAYOUTS],  # noqa: B006
    ways: Texts = [*NAMES],  # noqa: B006
    quick: Annotated[bool, typer.Option(help="only the cases of the README")] = False,
    readers: Annotated[int, typer.Option(help="ranks beside the source", min=1)] = 1,
    turns: Annotated[int, typer.Option(help="turns of each way in a case", min=1)] = 5,
    scale: Annotated[float, typer.Option(help="factor on the number of messages")] = 1.0,
    device: Annotated[str, typer.Option(help="cpu, or cuda: one GPU a rank")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Measures and prints one table a case; writes JSON if asked to."""
    console = Console()
    machine = harness.describe_machine()
    console.print(machine)
    payloads = [f"{n} x {s}, {layout}" for n in counts if n for s in sizes for layout in layouts]
    if 0 in counts:
        payloads.append("metadata only")
    cases = [_case(name, turns, scale) for name in (QUICK if quick else payloads)]
    rows: list[Row] = []
    makers = (functools.partial(make, device), functools.partial(payload, device=device))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("cases", total=len(cases))
        for case, times in harness.run(ways, cases, readers, turns, *makers):
            found = _rows(case, times)
            rows += found
            console.print(_table(found))
            progress.advance(task)
    if output:
        result = {"machine": machine, "device": device, "ranks": readers + 1, "rows": rows}
        harness.write(output, result, console)


if __name__ == "__main__":
    typer.run(main)
