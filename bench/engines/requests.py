"""SGLang's `broadcast_pyobj` over gloo and over shmcast: `python -m bench.engines.requests RANKS`.

It is run by the Python of the engines' environment, and prints its rows as JSON. A scheduler hands
the requests that have come to its ranks in each iteration, most often none.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

OWN, OURS = "SGLang", "shmcast"
LISTS: dict[str, list[Any]] = {
    "no request": [],
    "8 requests": [{"rid": f"request-{i}", "input_ids": [*range(200)]} for i in range(8)],
}
_MESSAGES = 500  # of one turn
_WARM_UP = 50
_TURNS = 5
_GAP_S = 0.0003  # of the source's own work before a message


def rows(ranks: int) -> list[dict[str, Any]]:
    """Return the time from the source's call to the last return, for each kind of list."""
    with tempfile.TemporaryDirectory() as folder:
        spawning = multiprocessing.get_context("spawn")
        others = [
            spawning.Process(target=_rank, args=(rank, ranks, folder)) for rank in range(ranks)
        ]
        for each in others:
            each.start()
        for each in others:
            each.join()
        found: list[dict[str, Any]] = json.loads((Path(folder) / "rows").read_text())
        return found


def _rank(rank: int, size: int, folder: str) -> None:
    import torch
    import torch.distributed as dist
    from sglang.srt.utils import broadcast_pyobj

    from shmcast.compat import sglang

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    functions = {OWN: broadcast_pyobj, OURS: sglang.broadcast_pyobj}
    found = []
    for what, data in LISTS.items():
        delays: dict[str, list[Any]] = {name: [] for name in functions}
        for turn in range(_TURNS):
            for name in [*functions] if turn % 2 else [*functions][::-1]:
                dist.barrier()
                times = np.array(_turn(functions[name], rank, data))
                gathered: list[Any] = [None] * size
                dist.all_gather_object(gathered, times)
                calls = gathered[0][:, 0]
                returns = np.max([each[:, 1] for each in gathered[1:] or gathered], axis=0)
                delays[name].append(((returns - calls) / 1e3)[_WARM_UP:])
        for name, of_turns in delays.items():
            p50, p99 = (
                float(np.median([np.percentile(turn, percent) for turn in of_turns]))
                for percent in (50, 99)
            )
            row = {"case": "requests", "ranks": size, "what": what, "transport": name}
            found.append(row | {"p50_us": p50, "p99_us": p99})
    if rank == 0:
        (Path(folder) / "rows").write_text(json.dumps(found))


def _turn(function: Any, rank: int, data: list[Any]) -> list[tuple[int, int]]:
    times = []
    for _ in range(_MESSAGES + _WARM_UP):
        if rank == 0:
            until = time.perf_counter() + _GAP_S
            while time.perf_counter() < until:
                pass
        called = time.monotonic_ns()
        function(data if rank == 0 else [], rank, None, 0)
        times.append((called, time.monotonic_ns()))
    return times


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(rows(int(sys.argv[1]))))  # noqa: T201 (its only output)
