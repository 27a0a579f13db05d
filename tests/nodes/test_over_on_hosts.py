"""Broadcasters without a process group over real networks: hosts as network namespaces."""

from __future__ import annotations

import os

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

import shmcast
from shmcast import ShmBroadcaster
from tests.support.exchanges import StoreExchange
from tests.support.hosts import PORT, Network, hurry
from tests.support.processes import results

SECONDS = 30.0

_stores: list[TCPStore] = []  # kept: rank 0 serves it, and may be through before the others


def opened(rank: int, size: int, src: int) -> ShmBroadcaster:
    hurry()
    store = TCPStore(os.environ["MASTER_ADDR"], PORT, size, is_master=rank == 0)
    _stores.append(store)
    return ShmBroadcaster.over(rank, size, StoreExchange(store, rank, size), src)


def everything(rank: int, size: int) -> tuple[list[int], int, bool]:
    with opened(rank, size, 1) as bc:
        for k in range(100):
            obj = (k, b"x" * 10_000) if bc.is_src else None
            assert bc.broadcast_object(obj, SECONDS)[0] == k
        bc.isend_object(b"y" * 1_000_000, (rank + 2) % size, SECONDS)
        assert len(bc.recv_object((rank + 2) % size, SECONDS)) == 1_000_000
        got = bc.all_gather_object(rank, SECONDS)
        bc.barrier(SECONDS)
        return got, len(bc.topology.nodes), dist.is_initialized()


def test_everything_arrives_between_hosts_without_a_process_group(network: Network) -> None:
    assert results(network.start(everything, 4)) == [([0, 1, 2, 3], 2, False)] * 4


def until_it_ends(rank: int, size: int) -> tuple[str, str]:
    bc = opened(rank, size, 0)
    count = 0
    try:
        while True:
            bc.broadcast_object(count, SECONDS)
            bc.gather_object((rank, b"x" * 1000), SECONDS)
            count += 1
    except shmcast.ShmcastError as error:
        return type(error).__name__, str(error)
    finally:
        bc.close()


def test_a_leader_that_is_killed_is_named_on_every_host(network: Network) -> None:
    jobs = network.start(until_it_ends, 4)
    network.wait_for_traffic(1, 500_000)  # (set-up takes some 100_000)
    jobs[2].kill()
    for rank in (0, 1, 3):
        kind, error = jobs[rank].result()
        assert kind == "PeerDied", error
        assert "rank 2" in error
