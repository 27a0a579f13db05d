"""What ranks are told of one that has closed or died, whether or not they had spoken with it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Collection
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster
from shmcast._group.company import Company
from shmcast._nodes import control
from shmcast._nodes.leaders import Leader, Leaders
from tests.support import ranks
from tests.support.exchanges import over_store
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.processes import Crew, WorkerFailed, results
from tests.support.subprocess_programs import wait_until

HOSTS = {"one node": ONE, "two nodes": TWO, "0 alone": tuple("abbb")}
SECONDS = 30.0
on_hosts = pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)


def _calls_for(rank: int) -> dict[str, Callable[[ShmBroadcaster], object]]:
    """Return what can be called for a rank, each without a time-out."""
    return {
        "recv_object": lambda bc: bc.recv_object(rank),
        "irecv_object": lambda bc: bc.irecv_object(rank).wait(),
        "recv_tensor_dict": lambda bc: bc.recv_tensor_dict(rank),
        "irecv_tensor_dict": lambda bc: bc.irecv_tensor_dict(rank).wait(),
        "send_object": lambda bc: bc.send_object(1, rank),
        "isend_object": lambda bc: bc.isend_object(1, rank).wait(),
        "send_tensor_dict": lambda bc: bc.send_tensor_dict({}, rank),
        "isend_tensor_dict": lambda bc: bc.isend_tensor_dict({}, rank).wait(),
    }


def _told(bc: ShmBroadcaster, rank: int, expected: type[shmcast.ShmcastError]) -> None:
    """Make all calls for a rank that has gone; each names it."""
    for name, call in _calls_for(rank).items():
        with pytest.raises(expected, match=rf"rank {rank}\b") as caught:
            call(bc)
        if isinstance(caught.value, shmcast.PeerDied):
            assert caught.value.peer.startswith(f"rank {rank}"), name


def _spoken(bc: ShmBroadcaster, rank: int, other: int) -> None:
    """Let two ranks speak with each other."""
    if bc.group_rank in (rank, other):
        whom = other if bc.group_rank == rank else rank
        bc.isend_object("before", whom, SECONDS)
        assert bc.recv_object(whom, SECONDS) == "before"


def closes(rank: int, hosts: tuple[str, ...], who: int, has_spoken: bool) -> None:
    bc = opened(rank, hosts)
    for other in range(4):
        if has_spoken and other != who:
            _spoken(bc, who, other)
    dist.barrier()
    if rank == who:
        bc.close()
        dist.barrier()
        return
    dist.barrier()
    _told(bc, who, shmcast.Closed)
    rest = [r for r in range(4) if r != who]
    nxt, before = (rest[(rest.index(rank) + step) % 3] for step in (1, 2))
    bc.send_object(rank, nxt, SECONDS)  # the others go on
    assert bc.recv_object(before, SECONDS) == before
    bc.close()


@on_hosts
@pytest.mark.parametrize("who", [0, 1, 3], ids=["the source", "a second one", "the last one"])
@pytest.mark.parametrize("has_spoken", [False, True], ids=["at first", "later"])
def test_whoever_waits_for_a_rank_that_has_closed_is_told(
    world: Crew, hosts: tuple[str, ...], who: int, has_spoken: bool
) -> None:
    world.run(4, closes, hosts, who, has_spoken)


def dies(rank: int, store: str, hosts: tuple[str, ...], has_spoken: bool) -> None:
    """Rank 3, no leader of others, is killed."""
    ranks.join(rank, 4, store)
    bc = opened(rank, hosts, on_reader_death="drop")
    for other in range(3):
        if has_spoken:
            _spoken(bc, 3, other)
    dist.barrier()
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    _told(bc, 3, shmcast.PeerDied)
    nxt, before = (rank + 1) % 3, (rank + 2) % 3
    bc.send_object(rank, nxt, SECONDS)
    assert bc.recv_object(before, SECONDS) == before
    bc.close()


@on_hosts
@pytest.mark.parametrize("has_spoken", [False, True], ids=["at first", "later"])
def test_whoever_waits_for_a_rank_that_is_dropped_is_told(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], has_spoken: bool
) -> None:
    crew, store = fresh
    jobs = crew.start(4, dies, store, hosts, has_spoken)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    results(jobs[:3])


def fails(rank: int, store: str, hosts: tuple[str, ...]) -> None:
    """Rank 3 ends its `with` block by an error, and lives on."""
    with over_store(rank, hosts, store, on_reader_death="drop") as bc:
        if rank == 3:
            bc.barrier(SECONDS)
            raise ZeroDivisionError
        bc.barrier(SECONDS)
        _told(bc, 3, shmcast.PeerDied)
        if rank < 2:
            bc.send_object(rank, 1 - rank, SECONDS)
            assert bc.recv_object(1 - rank, SECONDS) == 1 - rank


@on_hosts
def test_whoever_waits_for_a_rank_that_has_failed_is_told(
    fresh: tuple[Crew, str], hosts: tuple[str, ...]
) -> None:
    crew, store = fresh
    jobs = crew.start(4, fails, store, hosts)
    with pytest.raises(WorkerFailed, match="ZeroDivisionError"):
        jobs[3].result()
    results(jobs[:3])


def hears_of_death_from_who_leaves(rank: int, store: str) -> None:
    """Rank 0 gets nothing of what the other node's leader tells it of rank 3's death."""
    ranks.join(rank, 4, store)
    hear = Leaders._on_message

    def hear_no_failure(leaders: Leaders, leader: Leader, message: dict[str, Any]) -> None:
        if "failure" not in message:
            hear(leaders, leader, message)

    with (
        mock.patch.object(Leaders, "_on_message", hear_no_failure),
        mock.patch.object(Leaders, "_on_end"),
        opened(rank, tuple("abbb")) as bc,
    ):
        dist.barrier()
        if rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(shmcast.PeerDied) as told:
            bc.barrier(SECONDS)
        assert told.value.peer == "rank 3 on node 1 (b)"
        if rank != 0:
            raise told.value  # leaves because of it


def test_who_leaves_because_of_a_death_is_not_told_as_closed(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    jobs = crew.start(4, hears_of_death_from_who_leaves, store)
    for job in jobs[1:3]:
        with pytest.raises(WorkerFailed, match="PeerDied"):
            job.result()
    assert jobs[0].result() is None


def source_dies(rank: int, store: str, hosts: tuple[str, ...]) -> None:
    ranks.join(rank, 4, store)
    bc = opened(rank, hosts, on_reader_death="drop")
    dist.barrier()
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    for other in {0, rank % 3 + 1}:
        for call in _calls_for(other).values():
            with pytest.raises(shmcast.PeerDied, match="rank 0"):
                call(bc)
    bc.close()


@on_hosts
def test_the_end_of_the_source_ends_every_wait_also_where_ranks_are_dropped(
    fresh: tuple[Crew, str], hosts: tuple[str, ...]
) -> None:
    crew, store = fresh
    jobs = crew.start(4, source_dies, store, hosts)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[0].result()
    results(jobs[1:])


def source_closes(rank: int, hosts: tuple[str, ...]) -> None:
    bc = opened(rank, hosts)
    dist.barrier()
    if rank == 0:
        bc.close()
        dist.barrier()
        return
    dist.barrier()
    with pytest.raises(shmcast.Closed, match="rank 0"):
        bc.recv_object(0)
    others = [other for other in (1, 2, 3) if other != rank]
    for other in others:
        bc.send_object(rank, other, SECONDS)
    assert [bc.recv_object(other, SECONDS) for other in others] == others
    bc.close()


@on_hosts
def test_ranks_go_on_speaking_when_the_source_has_closed(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, source_closes, hosts)


def comes_first_after_a_close(rank: int, hosts: tuple[str, ...], who: int, name: str) -> None:
    """Call a collective that no rank has called yet, without one that has closed."""
    bc = opened(rank, hosts)
    dist.barrier()
    if rank == who:
        bc.close()
    dist.barrier()
    objs = [0, 1, 2, 3] if bc.is_src else None
    if rank != who:
        with pytest.raises(shmcast.Closed, match=r"rank \d.*has closed"):
            getattr(bc, name)(*[] if name == "barrier" else [objs], SECONDS)
    bc.close()
    dist.barrier()


@on_hosts
@pytest.mark.parametrize("name", ["barrier", "all_gather_object"])
@pytest.mark.parametrize("who", [0, 1, 2], ids=["the source", "a second one", "a third one"])
def test_the_first_collective_after_a_close_says_so(
    world: Crew, hosts: tuple[str, ...], who: int, name: str
) -> None:
    world.run(4, comes_first_after_a_close, hosts, who, name)


def dies_after_the_source_has_closed(rank: int, store: str) -> None:
    with over_store(rank, ONE, store) as bc:
        bc.barrier(SECONDS)
        if rank == 0:
            return
        with pytest.raises(shmcast.Closed, match="rank 0"):
            bc.recv_object(0)
        if rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        _told(bc, 3, shmcast.PeerDied)


def test_a_death_is_told_on_its_node_also_once_the_source_has_closed(
    fresh: tuple[Crew, str],
) -> None:
    crew, store = fresh
    jobs = crew.start(4, dies_after_the_source_has_closed, store)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    results(jobs[:3])


_look = Company.look_at_others


def look_when_all_have_closed(patch: pytest.MonkeyPatch) -> None:
    """Let the source find that nobody has come yet, and not run for a while then."""

    def look(company: Company, awaited: Collection[int]) -> None:
        for rank in awaited:
            wait_until(lambda rank=rank: company.departures.of(rank) == "left")  # type: ignore[misc]
        _look(company, awaited)

    patch.setattr(Company, "look_at_others", look)


def look_before_the_welcomed_are_noted(patch: pytest.MonkeyPatch) -> None:
    """Let the source's control thread welcome a rank, and not run for a while then."""
    has_looked = threading.Event()

    class Slow(control.Listener):
        def __init__(self, secret: str, on_link: Any, on_welcome: Any) -> None:
            def late(rank: int, connection: socket.socket) -> None:
                assert has_looked.wait(SECONDS)
                on_welcome(rank, connection)

            super().__init__(secret, on_link, late)

    def look(company: Company, awaited: Collection[int]) -> None:
        has_closed = any(company.departures.of(rank) == "left" for rank in (1, 2, 3))
        try:
            _look(company, awaited)
        finally:
            if has_closed:
                has_looked.set()

    patch.setattr(control, "Listener", Slow)
    patch.setattr(Company, "look_at_others", look)


def gathered_late(rank: int, slowed: Callable[[pytest.MonkeyPatch], None]) -> list[int] | None:
    with opened(rank, tuple("abcd")) as bc, pytest.MonkeyPatch.context() as patch:
        if bc.is_src:
            slowed(patch)
        return bc.gather_object(rank, SECONDS)


@pytest.mark.parametrize("slowed", [look_when_all_have_closed, look_before_the_welcomed_are_noted])
def test_who_has_sent_all_may_close_before_the_source_has_seen_it_come(
    world: Crew, slowed: Callable[[pytest.MonkeyPatch], None]
) -> None:
    assert world.run(4, gathered_late, slowed) == [[0, 1, 2, 3], None, None, None]
