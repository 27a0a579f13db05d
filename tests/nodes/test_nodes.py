"""The relay between real networks: hosts as network namespaces, each with its own /dev/shm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster
from tests.support.device_objects import CPU, MAKERS
from tests.support.hosts import PORT, Network, join
from tests.support.objects import OBJECTS, describe, fingerprint
from tests.support.processes import results
from tests.support.subprocess_programs import ROOT, TORCH_SECONDS, imports_torch

SECONDS = 30
EXAMPLE = ROOT / "examples" / "tp_generate.py"

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")


def on_hosts(names: str, *counts: int) -> pytest.MarkDecorator:
    """Parametrize with the hosts' names and how many ranks each has."""
    what = (names.split(), counts)
    return pytest.mark.parametrize("network", [what], indirect=True, ids=[names.replace(" ", "-")])


def everything(rank: int, size: int) -> tuple[Any, Any, list[tuple[int, ...]], list[str]]:
    join(rank, size)
    objects = [*OBJECTS, *range(200), b"z" * 3_000_000, "end"]
    # (Made here: torch rounds bfloat16 otherwise where it has other numbers of threads.)
    expected = [*map(fingerprint, objects), *(describe(make()) for make in MAKERS.values())]
    got: list[Any] = []
    with ShmBroadcaster(src=1) as bc, ShmBroadcaster(src=size - 1, device_types=CPU) as other:
        for obj in objects:
            got.append(fingerprint(bc.broadcast_object(obj if bc.is_src else None, SECONDS)))
        for make in MAKERS.values():
            obj = make() if other.is_src else None
            got.append(describe(other.broadcast_object(obj, SECONDS)))
        topology = bc.topology
        dist.barrier()
    return (
        got,
        expected,
        [node.ranks for node in topology.nodes],
        [node.host for node in topology.nodes],
    )


@on_hosts("twin twin third fourth", 2, 1, 1, 2)
def test_hosts_of_one_name_are_nodes_of_their_own_and_all_get_everything(network: Network) -> None:
    for got, expected, ranks, names in results(network.start(everything, 6)):
        assert got == expected
        assert ranks == [(0, 1), (2,), (3,), (4, 5)]
        assert names == ["twin", "twin", "third", "fourth"]


def until_it_ends(rank: int, size: int) -> tuple[str, str, int]:
    """Broadcast until there is an error; return it, and how many messages there were."""
    join(rank, size)
    count = 0
    with ShmBroadcaster() as bc:
        try:
            while True:
                got = bc.broadcast_object(count if bc.is_src else None, SECONDS)
                assert got == count
                count += 1
        except shmcast.ShmcastError as error:
            return type(error).__name__, str(error), count


@on_hosts("here there", 2, 2)
def test_a_cut_link_ends_in_an_error_on_both_sides(network: Network) -> None:
    jobs = network.start(until_it_ends, 4)
    network.wait_for_traffic(1, 500_000)  # (set-up takes some 100_000)
    network.cut(1)
    for rank, (kind, error, count) in enumerate(results(jobs)):
        assert kind == "NodeLost"
        assert error.startswith(f"rank {rank} of 4: ")
        assert ("node 1 (there)" if rank < 2 else "node 0 (here)") in error
        assert ("rank 2" if rank < 2 else "rank 0") in error.partition(": ")[2]
        assert "can't be reached" in error
        assert count > 0


@on_hosts("here there", 1, 2)
def test_a_host_that_dies_is_named(network: Network) -> None:
    jobs = network.start(until_it_ends, 3)
    network.wait_for_traffic(1, 500_000)  # (set-up takes some 100_000)
    for worker in network.workers[1:]:
        os.kill(worker.pid, signal.SIGKILL)
    kind, error, _ = jobs[0].result()
    assert kind == "PeerDied"
    assert f"rank 1 on node 1 (there) (pid {network.workers[1].pid})" in error or (
        f"rank 2 on node 1 (there) (pid {network.workers[2].pid})" in error
    )


def counted(rank: int, size: int, count: int) -> list[int]:
    join(rank, size)
    with ShmBroadcaster() as bc:
        got = [bc.broadcast_object(k if bc.is_src else None, SECONDS) for k in range(count)]
        dist.barrier()
    return got


@on_hosts("here there", 1, 1)
def test_a_slow_and_lossy_network_loses_nothing(network: Network) -> None:
    network.delay(1, 3, 2.0)
    assert results(network.start(counted, 2, 100)) == [[*range(100)]] * 2


@imports_torch
@on_hosts("here there", 0, 0)
def test_the_example_runs_on_two_nodes_by_torchrun(network: Network) -> None:
    launch = [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        f"--master-addr={network.hosts[0].address}", f"--master-port={PORT}",
    ]  # fmt: skip
    processes = [
        network.popen(
            i, sys.executable, *launch, f"--node-rank={i}", str(EXAMPLE),
            "--max-tokens=8", "--repeats=1",
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        out, err = processes[0].communicate(timeout=TORCH_SECONDS / 2)
        assert processes[0].returncode == 0, err
        assert "tokens equal the unsharded model's" in out
        assert "shmcast" in out
        _, err = processes[1].communicate(timeout=TORCH_SECONDS / 2)
        assert processes[1].returncode == 0, err
    finally:
        for process in processes:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End a process and what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate()
