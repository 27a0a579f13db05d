"""What a node's other ranks wait for while its leader computes: a thread relays, or `recv` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import hosts
import shmcast
from shmcast._relay_leader import LeaderRelay

MESSAGES = 150
BUSY_SECONDS = 0.02
MEAN_GAP_SECONDS = 0.03

RELAYS = ("thread", "in recv")
LOADS = ("idle", "python", "torch")


def follow(rank: int, ranks: int, relay: str, load: str) -> list[int]:
    """Sends on rank 0, computes after each message on the second node's leader.

    Returns:
        When each message was sent (rank 0) or received, in ns of the host's clock.
    """
    start = LeaderRelay.start
    if relay == "in recv":
        LeaderRelay.start = _do_nothing  # type: ignore[assignment, method-assign]
    try:
        bc = shmcast.ShmBroadcaster()
    finally:
        LeaderRelay.start = start  # type: ignore[method-assign]
    times = []
    gaps = np.random.default_rng(1).uniform(0, 2 * MEAN_GAP_SECONDS, MESSAGES)
    matrix = torch.ones(400, 400)
    with bc:
        dist.barrier()
        for k in range(MESSAGES):
            if rank == 0:
                time.sleep(gaps[k])
                times.append(time.monotonic_ns())
                bc.send({"step": k, "ids": [1, 2, 3]})
                continue
            if bc._relay is not None and relay == "in recv":
                bc._relay.step()
            bc.recv(30)
            times.append(time.monotonic_ns())
            if rank == ranks:
                _compute(load, matrix)
        dist.barrier()
        if relay == "in recv" and bc._relay is not None:
            bc._relay.close()
    return times


def _do_nothing(_relay: LeaderRelay) -> None:
    """In place of the thread's start."""


def _compute(load: str, matrix: torch.Tensor) -> None:
    until = time.monotonic() + BUSY_SECONDS
    while load != "idle" and time.monotonic() < until:
        if load == "torch":
            torch.mm(matrix, matrix)
        else:
            sorted((k * 7919) % 4093 for k in range(100))


def compare(
    network: hosts.Network, ranks: int, run: Callable[..., list[Any]]
) -> list[dict[str, Any]]:
    """Latency to the leader's neighbour, by relay and load."""
    rows = []
    for load in LOADS:
        for relay in RELAYS:
            sent, *received = run(network, follow, ranks, relay, load)
            neighbour = received[ranks]
            latencies = [(b - a) / 1e3 for a, b in zip(sent, neighbour, strict=True)]
            p50, p90, p99 = map(float, np.percentile(latencies, [50, 90, 99]))
            figures = {"p50_us": p50, "p90_us": p90, "p99_us": p99}
            rows.append({"load": load, "relay": relay, **figures})
    return rows
