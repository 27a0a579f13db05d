"""Messages between two ranks: in order, without waiting, and when it goes wrong."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster
from tests.support import ranks
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.objects import OBJECTS, Undecodable, Unsendable, fingerprint
from tests.support.processes import Crew, WorkerFailed, results
from tests.support.subprocess_programs import wait_until

HOSTS = {"one node": ONE, "two nodes": TWO, "one each": tuple("abcd")}
SECONDS = 30.0
LARGE = 3_000_000
on_hosts = pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)


def around(rank: int, hosts: tuple[str, ...]) -> list[list[str]]:
    """Send everything to all others, then receive from all."""
    objects = [*OBJECTS, b"z" * LARGE]
    got = []
    with opened(rank, hosts) as bc:
        others = [other for other in range(4) if other != rank]
        works = [
            bc.isend_object((rank, other, obj), other, SECONDS)
            for obj in objects
            for other in others
        ]
        for other in others:
            received = [bc.recv_object(other, SECONDS) for _ in objects]
            assert [fingerprint((other, rank, obj)) for obj in objects] == [
                *map(fingerprint, received)
            ]
            got.append([fingerprint(obj) for _, _, obj in received])
        assert [work.wait() for work in works] == [None] * len(works)
        bc.barrier(SECONDS)
    return got


@on_hosts
def test_everything_arrives_in_order_from_each_to_each(world: Crew, hosts: tuple[str, ...]) -> None:
    expected = [fingerprint(obj) for obj in [*OBJECTS, b"z" * LARGE]]
    assert world.run(4, around, hosts) == [[expected] * 3] * 4


def sends_before_anybody_receives(rank: int, hosts: tuple[str, ...]) -> Any:
    """Send more than there is room for, to ranks that have not begun and do the same."""
    with opened(rank, hosts, spill_bytes=0) as bc:
        obj = [bytes([rank]) * LARGE]
        works = [bc.isend_object((k, obj), rank ^ 2, SECONDS) for k in range(40)]
        obj.append(b"changed once it has returned")
        dist.barrier()
        got = [bc.recv_object(rank ^ 2, SECONDS) for _ in range(40)]
        for work in works:
            work.wait()
        assert got == [(k, [bytes([rank ^ 2]) * LARGE]) for k in range(40)]
        bc.barrier(SECONDS)
        return threading.active_count()


@on_hosts
def test_isend_does_not_wait_for_room_and_has_read_the_object(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, sends_before_anybody_receives, hosts)


def tensor_dicts(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts) as bc:
        nxt, before = (rank + 1) % 4, (rank - 1) % 4
        hidden = torch.full((300, 200), float(rank))
        sent = {"hidden": hidden, "positions": torch.arange(7), "step": rank, "nested": [hidden]}
        work = bc.isend_tensor_dict(sent, nxt, SECONDS)
        hidden.fill_(-1)
        bc.isend_tensor_dict({"hidden": torch.full((300, 200), 10.0 + rank)}, nxt, SECONDS)
        got = bc.irecv_tensor_dict(before, SECONDS).wait()
        assert torch.equal(got["hidden"], torch.full((300, 200), float(before)))
        assert torch.equal(got["positions"], torch.arange(7))
        assert got["step"] == before
        out = {"hidden": torch.zeros(300, 200)}
        address = out["hidden"].data_ptr()
        got = bc.recv_tensor_dict(before, SECONDS, out=out)
        assert got["hidden"].data_ptr() == address
        assert torch.equal(out["hidden"], torch.full((300, 200), 10.0 + before))
        work.wait()
        for call in (bc.send_tensor_dict, bc.isend_tensor_dict):
            with pytest.raises(
                shmcast.InvalidArgument, match=r"is for a dict, not for a list; use"
            ):
                call([1], nxt)  # type: ignore[arg-type]
        bc.send_tensor_dict({"hidden": torch.zeros(3)}, nxt, SECONDS)
        with pytest.raises(shmcast.InvalidArgument, match="hidden"):
            bc.recv_tensor_dict(before, SECONDS, out=out)
        assert torch.equal(out["hidden"], torch.full((300, 200), 10.0 + before))
        bc.barrier(SECONDS)


@on_hosts
def test_tensor_dicts_arrive_also_into_tensors(world: Crew, hosts: tuple[str, ...]) -> None:
    world.run(4, tensor_dicts, hosts)


def receives_in_another_order(rank: int, hosts: tuple[str, ...]) -> list[int]:
    with opened(rank, hosts) as bc:
        other = rank ^ 1
        works = [bc.irecv_object(other, SECONDS) for _ in range(5)]
        for k in range(5):
            bc.isend_object(10 * rank + k, other, SECONDS)
        got = [works[k].wait() for k in (3, 0, 4, 1, 2)]
        assert works[3].wait() == got[0]  # again the same
        bc.barrier(SECONDS)
        return got


@on_hosts
def test_the_first_irecv_is_for_the_first_object_however_they_are_waited_for(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    got = world.run(4, receives_in_another_order, hosts)
    assert got == [[10 * (r ^ 1) + k for k in (3, 0, 4, 1, 2)] for r in range(4)]


def calls_that_can_not_work(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts) as bc:
        other = rank ^ 1
        for bad in (rank, -1, 4, None, "0", True, np.True_, float(other)):
            for send in (bc.isend_object, bc.send_object):
                with pytest.raises(shmcast.InvalidArgument, match=r"send_object\(dst=.*others are"):
                    send(1, bad)  # type: ignore[arg-type]
            for receive in (bc.irecv_object, bc.recv_object, bc.recv_tensor_dict):
                with pytest.raises(shmcast.InvalidArgument, match=r"recv_.*\(src=.*others are"):
                    receive(bad)  # type: ignore[arg-type]
        with pytest.raises(shmcast.InvalidArgument, match="timeout=-1 must be"):
            bc.isend_object(1, other, -1)
        with pytest.raises(shmcast.InvalidArgument, match="timeout='soon' must be"):
            bc.recv_object(other, "soon")  # type: ignore[arg-type]
        with pytest.raises(shmcast.EncodeError, match=r"it can't be sent; nothing was sent"):
            bc.isend_object(Unsendable(), other)
        with pytest.raises(shmcast.EncodeError):
            bc.send_object([Unsendable()], other)
        for text in ("first", Undecodable(), "last"):
            bc.isend_object(text, other, SECONDS)
        assert bc.recv_object(other, SECONDS) == "first"
        with pytest.raises(shmcast.DecodeError, match=rf"an object of rank {other}.*is consumed"):
            bc.recv_object(other, SECONDS)
        assert bc.recv_object(other, SECONDS) == "last"
        bc.barrier(SECONDS)
    for call in (lambda: bc.isend_object(1, other), lambda: bc.recv_object(other)):
        with pytest.raises(shmcast.Closed, match=r"used after close\(\)"):
            call()


@on_hosts
def test_a_call_that_can_not_work_says_why_and_harms_nobody(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, calls_that_can_not_work, hosts)


def timed_out(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts, spill_bytes=0) as bc:
        other = rank ^ 2
        for before in ("the first", "another"):
            work = bc.irecv_object(other, 0.02)
            with pytest.raises(
                shmcast.Timeout, match=r"irecv_object timed out after 0.02 s: .*rank"
            ):
                work.wait()
            dist.barrier()
            bc.isend_object(before, other, SECONDS)
            assert bc.recv_object(other, SECONDS) == before  # what timed out has lost nothing
            dist.barrier()
        if hosts == ONE:  # (a network takes what nobody receives)
            works = [bc.isend_object(b"x" * LARGE, other, 0.02) for _ in range(2)]
            for work in works:
                with pytest.raises(
                    shmcast.Timeout, match=rf"isend_object timed out after 0.02 s: rank {other}"
                ):
                    work.wait()
            dist.barrier()
            bc.isend_object("goes on", other, SECONDS)
            assert bc.recv_object(other, SECONDS) == "goes on"
        bc.barrier(SECONDS)


@on_hosts
def test_a_time_out_loses_nothing_that_was_sent(world: Crew, hosts: tuple[str, ...]) -> None:
    world.run(4, timed_out, hosts)


def interrupted(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts, spill_bytes=0) as bc:
        other = rank ^ 2
        for warm in (False, True):
            told: list[str] = []

            def receive(told: list[str] = told) -> None:
                with pytest.raises(shmcast.Interrupted, match=r"interrupt\(\)"):
                    bc.recv_object(other, SECONDS)
                told.append("yes")

            thread = threading.Thread(target=receive)
            thread.start()
            wait_until(
                lambda: bc._point_to_point is not None and bool(bc._point_to_point._incoming)
            )
            while not told:
                bc.interrupt()
                thread.join(0.05)
            dist.barrier()
            bc.isend_object(warm, other, SECONDS)
            while True:
                try:
                    assert bc.recv_object(other, SECONDS) == warm
                    break
                except shmcast.Interrupted:  # one more than needed was on its way
                    pass
            dist.barrier()
        bc.barrier(SECONDS)


@on_hosts
def test_an_interrupt_ends_a_receive_and_loses_nothing(world: Crew, hosts: tuple[str, ...]) -> None:
    world.run(4, interrupted, hosts)


def until_it_is_told(rank: int, store: str, hosts: tuple[str, ...], warm: bool) -> str:
    ranks.join(rank, 4, store)
    bc = opened(rank, hosts)
    if warm:
        bc.isend_object(rank, 3 - rank, SECONDS)
        assert bc.recv_object(3 - rank, SECONDS) == 3 - rank
    dist.barrier()
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with bc:
            bc.recv_object(3 if rank == 0 else 0, SECONDS)
    except shmcast.PeerDied as error:
        return f"{error.peer}: {error}"
    return "nothing"


@on_hosts
@pytest.mark.parametrize("warm", [False, True], ids=["at first", "later"])
def test_a_dead_rank_ends_a_receive_by_name(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], warm: bool
) -> None:
    crew, store = fresh
    jobs = crew.start(4, until_it_is_told, store, hosts, warm)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    told = results(jobs[:3])
    assert told[0].startswith("rank 3"), told
    assert "has died" in told[0]
    assert all("has died" in text or "has closed" in text for text in told), told


def sends_to_the_dead(rank: int, store: str, hosts: tuple[str, ...]) -> str:
    ranks.join(rank, 4, store)
    bc = opened(rank, hosts, spill_bytes=0)
    bc.barrier(SECONDS)
    if rank == 3:
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    try:
        with bc:
            while True:
                bc.send_object(b"x" * LARGE, 3, SECONDS)
    except shmcast.PeerDied as error:
        return f"{error.peer}"


@on_hosts
def test_a_dead_receiver_ends_a_send_by_name(
    fresh: tuple[Crew, str], hosts: tuple[str, ...]
) -> None:
    crew, store = fresh
    jobs = crew.start(4, sends_to_the_dead, store, hosts)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    assert all(told.startswith("rank 3") for told in results(jobs[:3]))


def closed_by_the_sender(rank: int, hosts: tuple[str, ...]) -> list[Any]:
    got: list[Any] = []
    bc = opened(rank, hosts)
    other = rank ^ 2
    if rank < 2:
        for k in range(3):
            bc.send_object(k, other, SECONDS)
        dist.barrier()
        bc.close()
        dist.barrier()
        return got
    got.append(bc.recv_object(other, SECONDS))
    dist.barrier()
    dist.barrier()
    try:
        while True:
            got.append(bc.recv_object(other, SECONDS))
    except shmcast.Closed as error:
        got.append("closed" in str(error))
    bc.close()
    return got


@on_hosts
def test_what_was_sent_before_a_close_is_received_and_then_closed(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    assert world.run(4, closed_by_the_sender, hosts)[2:] == [[0, 1, 2, True]] * 2


def rejoins(rank: int, store: str) -> str:
    ranks.join(rank, 4, store)
    bc = ShmBroadcaster(on_reader_death="drop")
    handles: list[Any] = [None] * 4
    dist.all_gather_object(handles, bc.handle)
    if rank == 3:
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    with bc:
        if rank == 0:
            wait_until(lambda: _sees_the_death(bc))
            bc.send("dropped", SECONDS)
        wait_until(lambda: rank == 0 or bc.recv(SECONDS) == "dropped")
        if rank == 0:
            return str(bc.recv_object(1, SECONDS))  # (not closed before the place was taken)
        if rank == 2:
            return ""
        with ShmBroadcaster.rejoin(handles[0], 3) as again:
            calls = (again.barrier, lambda: again.isend_object(1, 0), lambda: again.recv_object(0))
            for call in calls:
                with pytest.raises(shmcast.InvalidArgument, match="rejoined") as caught:
                    call()
        bc.send_object("done", 0, SECONDS)
        return str(caught.value)


def _sees_the_death(bc: ShmBroadcaster) -> bool:
    bc.send("not yet", SECONDS)
    return 3 in bc.dropped


def test_a_rank_that_rejoined_is_told_that_it_can_not(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    jobs = crew.start(4, rejoins, store)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    assert "init_process_group" in results(jobs[:3])[1]
