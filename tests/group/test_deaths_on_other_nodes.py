"""A death ends the waits of ranks that wait for others, who live and may make no call."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import shmcast
from shmcast import ShmBroadcaster
from tests.support.exchanges import file_store, over_store
from tests.support.fake_nodes import ONE, TWO
from tests.support.processes import Crew, WorkerFailed, results

SECONDS = 30.0
LEADERS = (0, 2)  # of two nodes
KILLED = "killed by SIGKILL"


def calls_of(bc: ShmBroadcaster, mate: int) -> dict[str, Callable[[], Any]]:
    """Return what a rank can wait in, without a time-out; `mate` is another one of its node."""
    calls: dict[str, Callable[[], Any]] = {
        "barrier": bc.barrier,
        "all_gather_object": lambda: bc.all_gather_object(1),
        "scatter_object": lambda: bc.scatter_object([1] * 4 if bc.is_src else None),
        "gather_object": lambda: bc.gather_object(1),
        "broadcast_object": lambda: bc.broadcast_object(1),
        "recv_object": lambda: bc.recv_object(mate),
    }
    return calls


def waits_for_who_lives(
    rank: int, path: str, hosts: tuple[str, ...], victim: int, name: str, mode: str
) -> None:
    """Wait for the own node's leader: it lives, and has given up by an error, or makes no call.

    Once all who wait are told, all ranks make all calls.
    """
    store = file_store(f"{path} of the test")
    bc = over_store(rank, hosts, path, on_reader_death="raise")
    mate = rank ^ 1
    bc.send_object("at first", mate, SECONDS)
    assert bc.recv_object(mate, SECONDS) == "at first"
    bc.all_gather_object(rank, SECONDS)
    calls = calls_of(bc, mate)
    waiting = [r for r in range(4) if r not in (*LEADERS, victim)]
    if rank == victim:
        store.wait([f"{r} waits" for r in waiting])
        os.kill(os.getpid(), signal.SIGKILL)
    if rank in waiting:
        store.set(f"{rank} waits", "")
    if rank in waiting or mode == "has given up":
        _is_told(calls[name], victim)
    if rank in waiting:
        store.set(f"{rank} was told", "")
    store.wait([f"{r} was told" for r in waiting])
    for call in calls.values():
        _is_told(call, victim)
    store.set(f"{rank} is through", "")
    store.wait([f"{r} is through" for r in range(4) if r != victim])
    bc.close()


def _is_told(call: Callable[[], Any], victim: int) -> None:
    with pytest.raises(shmcast.PeerDied, match=rf"rank {victim}\b.* has died") as told:
        call()
    assert told.value.peer.startswith(f"rank {victim}")


@pytest.mark.parametrize("victim", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "mode", "hosts"),
    [
        ("barrier", "makes no call", TWO),
        ("barrier", "has given up", TWO),
        ("all_gather_object", "makes no call", TWO),
        ("all_gather_object", "has given up", TWO),
        ("scatter_object", "makes no call", TWO),
        ("broadcast_object", "makes no call", TWO),
        ("recv_object", "makes no call", TWO),
        ("recv_object", "makes no call", ONE),
    ],
)
def test_it_is_told_also_while_the_leader_does_nothing(
    fresh: tuple[Crew, str], victim: int, name: str, mode: str, hosts: tuple[str, ...]
) -> None:
    crew, path = fresh
    jobs = crew.start(4, waits_for_who_lives, path, hosts, victim, name, mode)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[victim].result()
    results([job for rank, job in enumerate(jobs) if rank != victim])


def is_not_taken_for_coming(rank: int, path: str, name: str) -> None:
    """Rank 3 closes, and rank 2 because of it. The source gives up, and calls again."""
    store = file_store(f"{path} of the test")
    bc = over_store(rank, TWO, path)
    bc.all_gather_object(rank, SECONDS)
    objs = [1] * 4 if bc.is_src else None
    args = [] if name == "barrier" else [objs]

    def is_told(who: int, timeout: float) -> None:
        with pytest.raises(shmcast.Closed, match=rf"rank {who}\b.* has closed"):
            getattr(bc, name)(*args, timeout)

    if rank == 1:
        for _ in range(2):
            with pytest.raises(shmcast.Timeout):
                getattr(bc, name)(*args, 0.1)
            store.set("has timed out", "")
            store.wait(["has given up"])
        store.set("has timed out again", "")
        store.wait(["0 closes"])
        is_told(0, SECONDS)
    else:
        store.wait(["has timed out"])
        if rank == 2:
            is_told(3, SECONDS)
        elif rank == 0:
            is_told(2, SECONDS)
            is_told(2, 0.0)
            store.set("has given up", "")
            store.wait(["has timed out again"])
    bc.close()
    store.set(f"{rank} closes", "")


@pytest.mark.parametrize("name", ["barrier", "all_gather_object"])
def test_a_rank_that_gives_up_and_calls_again_is_not_taken_for_coming(
    fresh: tuple[Crew, str], name: str
) -> None:
    crew, path = fresh
    results(crew.start(4, is_not_taken_for_coming, path, name))


def leaves_because_of(rank: int, path: str, leader: int, victim: int) -> None:
    """Leave, on a node's leader, by a death that only one of its collectives has found so far."""
    bc = over_store(rank, TWO, path)
    name = bc._company.name(victim)

    def take_part() -> None:
        with bc:
            if rank == leader:
                with bc._company.telling_causes():
                    raise shmcast.PeerDied(f"{name} has died: {KILLED}", name, 1, KILLED)
            bc.recv_object(rank ^ 1, SECONDS)

    with pytest.raises(shmcast.PeerDied, match=rf"rank {victim}\b.* has died: {KILLED}"):
        take_part()


@pytest.mark.parametrize(("leader", "victim"), [(0, 3), (2, 1)])
def test_a_leader_that_leaves_because_of_another_nodes_death_tells_it(
    fresh: tuple[Crew, str], leader: int, victim: int
) -> None:
    crew, path = fresh
    results(crew.start(4, leaves_because_of, path, leader, victim))
