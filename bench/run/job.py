"""The suite "job": a whole program by each transport, the example that generates text."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import terminal
from bench.run import intervals
from bench.run.crew import Crew, CrewFailed
from bench.transports import registry
from bench.transports.base import Skipped

Row = dict[str, Any]

SUITE = "job"
WHAT = "examples/tp_generate.py by each transport: tokens per second, time to the first token"
RANKS = (2, 4)
TRANSPORTS = (
    "shmcast",
    "shmcast spin",
    "shmcast semaphore",
    "kickmsg polling",
    "kickmsg blocking",
    "MPI bcast",
    "iceoryx2 polling",
    "vLLM",
    "vLLM spinloop",
    "SGLang",
    "SGLang broadcast_pyobj",
    "pipe",
    "queue",
    "pyzmq ipc",
    "gloo",
)


def run(
    console: Console,
    names: list[str],
    turns: int,
    write: Callable[[list[Row], dict[str, str]], None],
) -> tuple[list[Row], dict[str, str]]:
    """Run the job by each transport, in turns, `turns` passes each.

    Args:
        console: where to print.
        names: of the transports.
        turns: passes of each.
        write: called with the rows so far, and with what is skipped, after each number of ranks.

    Returns:
        The rows, and why a transport has none.
    """
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for ranks in RANKS:
        with contextlib.ExitStack() as stack:
            crews: dict[str, Crew] = {}
            passes: dict[str, list[Row]] = {}
            for name in names:
                try:
                    _open(crews, name, ranks, stack)
                    passes[name] = []
                except (Skipped, CrewFailed) as failed:
                    skipped[name] = str(failed)
            order = random.Random(ranks)  # noqa: S311 (the same in each run, no more)
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task(f"{ranks} ranks", total=(1 + turns) * len(passes))
                for number in range(1 + turns):
                    for name in order.sample([*passes], len(passes)):
                        crew = crews[registry.peer(name).crew]
                        done = crew.ask("generate", name, ranks)[0]
                        if number:  # the first one warms up
                            passes[name].append(done)
                        progress.advance(task)
            _check({name: done for name, (done, *_) in passes.items()})
            found = [_row(ranks, name, done) for name, done in passes.items()]
        console.print(table(ranks, found))
        rows += found
        if found:
            write(rows, skipped)
    return rows, skipped


def _open(crews: dict[str, Crew], name: str, ranks: int, stack: contextlib.ExitStack) -> None:
    peer = registry.peer(name)
    if peer.crew not in crews:
        crews[peer.crew] = Crew(peer.launcher, ranks, peer.environment)
        stack.callback(crews[peer.crew].close)
    crews[peer.crew].ask("load", peer.modules)
    crews[peer.crew].ask("open", peer)
    crews[peer.crew].ask("expect", name, "16 KB")  # no step of the job is larger


def _check(passes: dict[str, Row]) -> None:
    """Raise ValueError unless all transports made the same tokens."""
    (first, wanted), *others = passes.items()
    for name, done in others:
        if done["outputs"] != wanted["outputs"]:
            raise ValueError(f"the tokens made with {name} differ from those made with {first}")


def _row(ranks: int, name: str, passes: list[Row]) -> Row:
    tokens_per_s = [np.array([done["tokens_per_s"]]) for done in passes]
    low, high = intervals.interval(tokens_per_s, intervals.percentile(50))
    ttft_ms = [ms for done in passes for ms in done["ttft_ms"]]
    broadcast_us = [us for done in passes for us in done["broadcast_us"]]
    return {
        "ranks": ranks,
        "transport": name,
        "passes": len(passes),
        "tokens_per_s": float(np.median(tokens_per_s)),
        "tokens_per_s_low": low,
        "tokens_per_s_high": high,
        "ttft_p50_ms": float(np.median(ttft_ms)),
        "ttft_p99_ms": float(np.percentile(ttft_ms, 99)),
        "broadcast_p50_us": float(np.median(broadcast_us)),
        "broadcast_p99_us": float(np.percentile(broadcast_us, 99)),
        "broadcast_share": float(np.median([done["broadcast_share"] for done in passes])),
    }


def table(ranks: int, rows: list[Row]) -> Table:
    """Return the rows of one number of ranks, for a terminal."""
    made = terminal.table(
        "transport",
        "tokens/s",
        "first\ntoken p50",
        "broadcast\np50",
        "broadcast\np99",
        "share of\nthe time",
        title=f"{ranks} ranks",
    )
    for row in rows:
        made.add_row(
            row["transport"],
            f"{row['tokens_per_s']:.0f}",
            f"{row['ttft_p50_ms']:,.0f} ms",
            f"{row['broadcast_p50_us']:,.0f} µs",
            f"{row['broadcast_p99_us']:,.0f} µs",
            f"{row['broadcast_share']:.1%}",
        )
    return made
