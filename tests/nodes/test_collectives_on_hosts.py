"""Collectives and messages between ranks over real networks: hosts as network namespaces."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

import shmcast
from shmcast import ShmBroadcaster
from shmcast._nodes import control
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import Stream
from tests.support.hosts import PORT, Network, hurry, join
from tests.support.permissions import needs_torch
from tests.support.processes import results
from tests.support.subprocess_programs import wait_until

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


_kept: list[Any] = []  # in a rank's process: what it has open between two steps of a test


def fill(rank: int, silent_seconds: float) -> None:
    """Let rank 0 send to rank 1, which takes nothing, for longer than a silent end gets."""
    hurry()
    address = ("", PORT) if rank == 0 else (os.environ["MASTER_ADDR"], PORT)
    if rank:
        wait_until(lambda: not _connect(address))
        return
    with socket.create_server(address) as server:
        connection, _ = server.accept()
    control.KEEPALIVE.apply(connection)
    stream = Stream(connection, "rank 0", "rank 1", lambda: None, cause_seconds=0.0)
    _kept.append(stream)
    with pytest.raises(shmcast.Timeout):
        stream.send([bytes(60_000_000)], Deadline.after(silent_seconds), "send")
    assert stream.is_partial


def _connect(address: tuple[str, int]) -> int:
    connection = socket.socket()
    _kept.append(connection)
    return connection.connect_ex(address)


def go_on_sending(_rank: int) -> str:
    with pytest.raises(shmcast.PeerDied) as error:
        _kept.pop().send([b"next"], Deadline.after(SECONDS), "send")
    return f"{type(error.value.__cause__).__name__}: {error.value}"


@needs_torch
@pytest.mark.parametrize("network", [(["here", "there"], (1, 1))], indirect=True)
def test_no_room_is_no_silence_but_a_cut_link_is(network: Network) -> None:
    results(network.start(fill, 5.0))
    network.cut(1)
    (told,) = results([network.workers[0].start(go_on_sending, 0)])
    assert told.startswith("TimeoutError: rank 0: rank 1 has died: [Errno 110]")
