"""Collectives and messages between ranks over real networks: hosts as network namespaces."""

from __future__ import annotations

from typing import Any

import shmcast
from shmcast import ShmBroadcaster
from tests.support.hosts import Network, join
from tests.support.permissions import needs_torch
from tests.support.processes import results

SECONDS = 30.0


def everything(rank: int, size: int) -> list[Any]:
    join(rank, size)
    with ShmBroadcaster(src=1) as bc:
        for k in range(20):
            bc.barrier(SECONDS)
            gathered = bc.gather_object((rank, k, b"x" * 100_000), SECONDS)
            assert gathered is None or [obj[:2] for obj in gathered] == [
                (r, k) for r in range(size)
            ]
            shares = [*range(size)] if bc.is_src else None
            assert bc.scatter_object(shares, SECONDS) == rank
        bc.isend_object(b"y" * 3_000_000, (rank + 2) % size, SECONDS)
        assert len(bc.recv_object((rank + 2) % size, SECONDS)) == 3_000_000
        return bc.all_gather_object(rank, SECONDS)


def test_everything_arrives_between_hosts(network: Network) -> None:
    assert results(network.start(everything, 4)) == [[0, 1, 2, 3]] * 4


def until_it_ends(rank: int, size: int) -> tuple[str, str, int]:
    """Gather until there is an error; return it, and how many times there was none."""
    join(rank, size)
    count = 0
    with ShmBroadcaster() as bc:
        try:
            while True:
                bc.all_gather_object((rank, count, b"x" * 1000), SECONDS)
                count += 1
        except shmcast.ShmcastError as error:
            return type(error).__name__, str(error), count


@needs_torch
def test_a_cut_link_ends_in_an_error_on_both_sides(network: Network) -> None:
    jobs = network.start(until_it_ends, 4)
    network.wait_for_traffic(1, 500_000)  # (set-up takes some 100_000)
    network.cut(1)
    for rank, (kind, error, count) in enumerate(results(jobs)):
        assert kind == "NodeLost", (rank, kind, error)
        assert error.startswith(f"rank {rank} of 4: ")
        assert ("node 1 (there)" if rank < 2 else "node 0 (here)") in error
        assert count > 0
