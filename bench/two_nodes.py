"""What `nodes.py` measures: the ladder of broadcasts over two nodes, bytes, hits, busy leaders.

Latency is from the call on the source to the return of the last reader's call. The ways take turns
in a shuffled order. Bytes are those that the link of the second node has carried, all headers
included.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table

import busy_leader
import harness
import hosts
import processes
import shmcast
import transports
import workloads

ESTIMATED = "shmcast"
WITHIN = "within the source's node"
NAMES = (transports.Gloo.name, transports.GlooKnownSize.name, ESTIMATED, WITHIN)
"""The ladder: two collectives, one, one for each other node, none."""

MESSAGES = {"0.5 KB": 300, "16 KB": 200, "1 MiB": 100}
GAP_MS = 10.0  # a decode loop's; at 1 ms the messages of 1 MiB queue up
TURNS = 5
COUNTED = 200  # messages whose bytes are counted

Row = dict[str, Any]
_ways: dict[str, transports.Transport] = {}  # in a rank


class Within(transports.Transport):
    """`ShmBroadcaster` over the ranks of the source's node; the others have nothing to do."""

    name = WITHIN

    def __init__(self, ranks: int) -> None:
        self._broadcaster: shmcast.ShmBroadcaster | None = None
        group = dist.new_group([*range(ranks)])
        if dist.get_rank() < ranks:
            self._broadcaster = shmcast.ShmBroadcaster(group)

    def broadcast(self, obj: Any, _wire_bytes: int, /) -> Any:
        return obj if self._broadcaster is None else self._broadcaster.broadcast_object(obj)


def join(rank: int, ranks: int) -> None:
    """Makes this process one of `ranks` on each of two nodes."""
    torch.set_num_threads(1)
    master = f"tcp://{os.environ['MASTER_ADDR']}:{hosts.PORT}"
    dist.init_process_group("gloo", master, rank=rank, world_size=2 * ranks)
    for name in NAMES:
        _ways[name] = Within(ranks) if name == WITHIN else transports.make(name, [])


def measure(rank: int, case: harness.Case) -> dict[str, harness.Done]:
    """Sends or receives the messages of a case in every way."""
    obj = harness.payload(case.payload)
    wire_bytes = harness.pickled_bytes(obj)
    done = {name: harness.Done() for name in NAMES}
    taken = np.zeros(dist.get_world_size(), np.int64)
    numbers = range(1, 1 + case.messages // TURNS + case.warm_up)
    order = random.Random(case.payload)  # noqa: S311 (the same on every rank)
    for _ in range(TURNS):
        for name in order.sample(NAMES, len(NAMES)):
            way = _ways[name]
            harness.take_turn(way, rank, obj, wire_bytes, case, numbers, taken, done[name])
            dist.barrier()
    return done


def repeat(_rank: int, name: str, payload: str, count: int) -> None:
    """Broadcasts one object `count` times, at once."""
    obj = harness.payload(payload)
    wire_bytes = harness.pickled_bytes(obj)
    for _ in range(count):
        _ways[name].broadcast(obj, wire_bytes)


def wait(_rank: int) -> None:
    """Until all ranks are here."""
    dist.barrier()


def trace(rank: int) -> dict[str, float]:
    """Broadcasts a decode loop's messages; what the source's estimates were worth."""
    sent = 0
    with shmcast.ShmBroadcaster() as bc:
        for message in workloads.decode_steps(1000):
            if rank == 0:
                sent += harness.pickled_bytes(message)
            bc.broadcast_object(message if bc.is_src else None, 30)
        got = bc.statistics()
        dist.barrier()
    return {
        "hit_rate": got.estimate_hits / max(1, got.relayed),
        "bytes_per_message": got.relayed_bytes / max(1, got.relayed),
        "pickled_bytes_per_message": sent / 1000,
    }


def run(network: hosts.Network, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Runs `function(rank, *args)` on every rank."""
    return processes.results(network.start(function, *args))


def latency_rows(network: hosts.Network, ranks: int, payload: str, scale: float) -> list[Row]:
    """One row for each way."""
    count = max(2, int(MESSAGES[payload] * scale / TURNS)) * TURNS
    case = harness.Case(payload, GAP_MS, sleeps=False, messages=count)
    source, *readers = run(network, measure, case)
    rows = []
    for name in NAMES:
        own = readers[: ranks - 1] if name == WITHIN else readers
        times = harness.Times(
            source[name].starts, source[name].ends, [r[name].ends for r in own], count // TURNS, []
        )
        p50, p99 = np.percentile(times.latencies_us, [50, 99])
        rows.append(
            {
                "payload": payload,
                "ranks_per_node": ranks,
                "way": name,
                "messages": count,
                "p50_us": float(p50),
                "p99_us": float(p99),
                "send_p50_us": float(np.median(times.sends_us)),
            }
        )
    return rows


def count_bytes(network: hosts.Network, row: Row) -> None:
    """Adds to a row what a message costs on the second node's link."""
    obj = harness.payload(row["payload"])
    frames = shmcast.PickleCodec().encode(obj)
    one_copy = sum(memoryview(frame).nbytes for frame in frames)
    count = 20 if one_copy > 1 << 19 else COUNTED
    run(network, repeat, row["way"], row["payload"], 20)
    run(network, wait)
    before = _counters(network)
    run(network, repeat, row["way"], row["payload"], count)
    row["one_copy_bytes"] = one_copy
    row.update((name, (n - before[name]) / count) for name, n in _counters(network).items())


def _counters(network: hosts.Network) -> dict[str, int]:
    return {
        "bytes_in": network.received(1),
        "packets_in": network.received(1, "packets"),
        "bytes_out": network.sent(1),
        "packets_out": network.sent(1, "packets"),
    }


def _table(rows: list[Row]) -> Table:
    gloo = next(row["p50_us"] for row in rows if row["way"] == transports.Gloo.name)
    first = rows[0]
    what = f"{first['payload']}, 2 nodes x {first['ranks_per_node']} ranks"
    table = Table("way", title=what)
    for heading in ("p50 µs", "p99 µs", "send µs", "gloo / this", "bytes in / one copy"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["way"],
            f"{row['p50_us']:,.0f}",
            f"{row['p99_us']:,.0f}",
            f"{row['send_p50_us']:,.0f}",
            f"{gloo / row['p50_us']:.1f}",
            f"{row['bytes_in'] / row['one_copy_bytes']:.3f}",
        )
    return table


def main(
    ranks: Annotated[list[int], typer.Option(help="on each node; repeatable")] = [2, 4],  # noqa: B006
    payloads: Annotated[list[str], typer.Option(help="repeatable")] = [*MESSAGES],  # noqa: B006
    scale: Annotated[float, typer.Option(help="factor on the number of messages")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Measures and prints one table a case; writes JSON if asked to."""
    processes.ANSWER_SECONDS = 600.0
    console = Console()
    result: dict[str, Any] = {"machine": harness.describe_machine(), "rows": []}
    console.print(result["machine"])
    for count in ranks:
        network = hosts.Network(["first", "second"], [count, count])
        try:
            run(network, join, count)
            for payload in payloads:
                rows = latency_rows(network, count, payload, scale)
                for row in rows:
                    count_bytes(network, row)
                result["rows"] += rows
                console.print(_table(rows))
            if count == min(ranks):
                result["trace"] = run(network, trace)[0]
                console.print("decode loop:", result["trace"])
                result["busy_leader"] = busy_leader.compare(network, count, run)
                console.print("busy leader:", result["busy_leader"])
        finally:
            network.close()
    if output:
        harness.write(output, result, console)
