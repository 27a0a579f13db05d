"""What a rank is told that comes to its first collective when its leader has ended already."""

from __future__ import annotations

import os
import signal

import pytest
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster
from shmcast._group.company import Company
from tests.support.exchanges import file_store, over_store
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.processes import Crew, WorkerFailed, results

SECONDS = 30.0


def comes_after_its_leader(
    rank: int, hosts: tuple[str, ...], closed: int, leader: int, name: str
) -> None:
    """Call a collective when the leader was told of a close by its own one, and has closed."""
    bc = opened(rank, hosts)
    dist.barrier()
    if rank == closed:
        bc.close()
    dist.barrier()

    def told(who: str) -> None:
        with pytest.raises(shmcast.Closed, match=rf"rank {who}\b.* has closed, and will not come"):
            getattr(bc, name)(*[] if name == "barrier" else [[0, 1, 2, 3]], SECONDS)

    if rank == leader:
        told(str(closed))
        bc.close()
    dist.barrier()
    if rank not in (closed, leader):
        told(str(closed) if hosts[rank] == hosts[leader] else r"\d")
    bc.close()
    dist.barrier()


@pytest.mark.parametrize("name", ["barrier", "all_gather_object", "scatter_object"])
@pytest.mark.parametrize(
    ("hosts", "closed", "leader"),
    [(ONE, 1, 0), (tuple("abbb"), 2, 1)],
    ids=["the source", "another one"],
)
def test_it_is_told_who_has_closed_first(
    world: Crew, hosts: tuple[str, ...], closed: int, leader: int, name: str
) -> None:
    world.run(4, comes_after_its_leader, hosts, closed, leader, name)


def comes_after_a_death(rank: int, path: str, on_death: str) -> None:
    """Call a barrier when rank 1 is dead, and the leader has closed."""
    store = file_store(f"{path} of the test")
    bc = over_store(rank, ONE, path, on_reader_death=on_death)
    if rank == 0:
        with pytest.raises(shmcast.Timeout, match="rank"):
            bc.barrier(0)
        store.set("hub is made", "")
        if on_death == "raise":
            with pytest.raises(shmcast.PeerDied, match="rank 1"):
                bc.barrier(SECONDS)
        bc.close()
        store.set("closed", "")
        return
    store.wait(["hub is made"])
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    store.wait(["closed"])
    if on_death == "raise":
        with pytest.raises(shmcast.PeerDied, match="rank 1"):
            bc.barrier(SECONDS)
    else:
        with pytest.raises(shmcast.Closed, match="rank 0 has closed"):
            bc.barrier(SECONDS)
    store.set(f"{rank} was told", "")
    store.wait(["2 was told", "3 was told"])
    bc.close()


@pytest.mark.parametrize("on_death", ["raise", "drop"])
def test_it_is_told_of_a_death_unless_that_is_dropped(
    fresh: tuple[Crew, str], on_death: str
) -> None:
    crew, path = fresh
    jobs = crew.start(4, comes_after_a_death, path, on_death)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[1].result()
    results([jobs[0], *jobs[2:]])


def is_told_late(rank: int, path: str) -> None:
    """Rank 2 is killed. The source answers that with close(), and rank 1 makes its calls later."""
    store = file_store(f"{path} of the test")
    bc = over_store(rank, ONE[:3], path)
    bc.barrier(SECONDS)
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        with pytest.raises(shmcast.PeerDied, match="rank 2"):
            bc.barrier(SECONDS)
        bc.close()
        store.set("closed", "")
        return
    store.wait(["closed"])
    for call in (
        lambda: bc.barrier(SECONDS),
        lambda: bc.all_gather_object(1, SECONDS),
        lambda: bc.gather_object(1, SECONDS),
        lambda: bc.scatter_object(None, SECONDS),
        lambda: bc.recv(SECONDS),
        lambda: bc.recv_object(0, SECONDS),
        lambda: bc.recv_object(2, SECONDS),
        lambda: bc.send_object(1, 0, SECONDS),
        lambda: bc.send_object(1, 2, SECONDS),
    ):
        with pytest.raises(shmcast.PeerDied, match=r"rank 2 \(pid \d+\) has died") as told:
            call()
        assert told.value.peer == "rank 2"
    bc.close()


def test_a_source_that_closes_because_of_a_death_hides_it_from_nobody(
    fresh: tuple[Crew, str],
) -> None:
    crew, path = fresh
    jobs = crew.start(3, is_told_late, path)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[2].result()
    results(jobs[:2])


def calls_after_the_source_has_ended(rank: int, path: str) -> None:
    """Make first calls when the source has closed, and its store has ended with its process."""
    store = file_store(f"{path} of the test")
    bc = over_store(rank, ONE[:3], path)
    if rank == 0:
        bc.close()
        os._exit(0)
    store.wait(["the source has ended"])
    for call in (
        lambda: bc.recv_object(0, SECONDS),
        lambda: bc.send_object(1, 0, SECONDS),
        lambda: bc.barrier(SECONDS),
        lambda: bc.all_gather_object(1, SECONDS),
    ):
        with pytest.raises(shmcast.Closed, match="rank 0 has closed, and will not come"):
            call()
    for call in (lambda: bc.recv_object(3 - rank), lambda: bc.send_object(1, 3 - rank)):
        with pytest.raises(shmcast.SegmentError, match="the store can't be reached") as told:
            call()
        assert "GLOO" not in str(told.value)  # no network is between them
    store.set(f"{rank} is through", "")
    store.wait(["1 is through", "2 is through"])
    bc.close()


def test_a_source_that_has_ended_is_told_of_rather_than_its_store(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    jobs = crew.start(3, calls_after_the_source_has_ended, path)
    with pytest.raises(WorkerFailed, match="exit code 0"):
        jobs[0].result()
    file_store(f"{path} of the test").set("the source has ended", "")
    results(jobs[1:])


def _end(bc: ShmBroadcaster, in_order: bool) -> None:
    """Do the rest of what `close` does, or the end of a `with` block by an exception."""
    if not in_order:
        bc._end.give_up()
    bc.close()


def is_told_of_one_who_fails_slowly(rank: int, path: str, hosts: tuple[str, ...]) -> None:
    """Rank 2 fails, and has ended its part of collectives only when the source is told of that."""
    store = file_store(f"{path} of the test")
    bc = over_store(rank, hosts, path)
    bc.barrier(SECONDS)
    if rank == 2:
        bc._close_talks(False)
        store.wait(["0 closes"])
        _end(bc, False)
        store.set("has failed", "")
    elif rank == 0:
        with pytest.raises(shmcast.PeerDied, match="rank 2"):
            bc.barrier(SECONDS)
        bc.close()
        store.set("0 closes", "")
    elif rank == 1:
        store.wait(["has failed"])
        for call in (bc.recv, bc.barrier, lambda timeout: bc.recv_object(0, timeout)):
            with pytest.raises(shmcast.PeerDied, match=r"rank 2.* ended without close"):
                call(SECONDS)
    store.set(f"{rank} is through", "")
    store.wait([f"{r} is through" for r in range(4)])
    bc.close()


@pytest.mark.parametrize("hosts", [ONE, tuple("aaab")], ids=["one node", "two nodes"])
def test_a_source_that_closes_because_of_a_failure_hides_it_from_nobody(
    fresh: tuple[Crew, str], hosts: tuple[str, ...]
) -> None:
    crew, path = fresh
    results(crew.start(4, is_told_of_one_who_fails_slowly, path, hosts))


def comes_while_its_leader_ends(
    rank: int, path: str, hosts: tuple[str, ...], leader: int, in_order: bool
) -> None:
    """Call a barrier when the leader has ended the node's hub, and not yet the ring."""
    store = file_store(f"{path} of the test")
    bc = over_store(rank, hosts, path, on_reader_death="drop")
    last = max(r for r in range(4) if hosts[r] == hosts[leader])
    if rank == leader:
        with pytest.raises(shmcast.Timeout, match="rank"):
            bc.barrier(0)
        bc._close_talks(in_order)
        store.set("hub has ended", "")
        store.wait(["looks for the cause"])
        _end(bc, in_order)
    elif rank == last:
        check = Company.check

        def checked(company: Company, awaited: list[int]) -> None:
            check(company, awaited)  # (which finds nothing the first time)
            store.set("looks for the cause", "")

        store.wait(["hub has ended"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Company, "check", checked)
            expected = shmcast.Closed if in_order else shmcast.PeerDied
            with pytest.raises(expected, match=f"rank {leader}"):
                bc.barrier(SECONDS)
        store.set("over", "")
    store.wait(["over"])
    bc.close()


@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "by an exception"])
@pytest.mark.parametrize(("hosts", "leader"), [(ONE, 0), (TWO, 2)], ids=["one node", "two nodes"])
def test_it_is_told_how_its_leader_has_ended(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], leader: int, in_order: bool
) -> None:
    crew, path = fresh
    results(crew.start(4, comes_while_its_leader_ends, path, hosts, leader, in_order))
