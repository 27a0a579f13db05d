"""What ends a send, a receive and a close between two ranks, and what they leave for the next."""

from __future__ import annotations

import itertools
import signal
import threading
import warnings
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster
from shmcast._group import channel_ends, point_to_point
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until

HOSTS = {"one node": ONE, "two nodes": TWO}
SECONDS = 30.0
LARGE = bytes(60_000_000)  # more than a ring or the kernel takes
on_hosts = pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)


def looks(bc: ShmBroadcaster, count: int) -> None:
    """Wait until sends that wait have looked so often whether they still can."""
    company, seen = bc._company, []
    look = company.look_at_others

    def counted(awaited: Any) -> None:
        seen.append(awaited)
        look(awaited)

    with mock.patch.object(company, "look_at_others", counted):
        wait_until(lambda: len(seen) >= count)


def all_send_and_then_receive(rank: int, hosts: tuple[str, ...], nbytes: int, count: int) -> None:
    """Send to all, meet, and only then receive; at first, and once all have received."""
    with opened(rank, hosts) as bc:
        others = [other for other in range(4) if other != rank]
        for _ in range(2):
            for other, k in itertools.product(others, range(count)):
                bc.send_object((rank, k, bytes(nbytes)), other, SECONDS)
                bc.send_tensor_dict({"from": rank}, other, SECONDS)
            dist.barrier()
            for other, k in itertools.product(others, range(count)):
                assert bc.recv_object(other, SECONDS) == (other, k, bytes(nbytes))
                assert bc.recv_tensor_dict(other, SECONDS) == {"from": other}


@on_hosts
@pytest.mark.parametrize(("nbytes", "count"), [(1, 100), (5_000_000, 6)])
def test_a_send_waits_for_no_receive(
    world: Crew, hosts: tuple[str, ...], nbytes: int, count: int
) -> None:
    world.run(4, all_send_and_then_receive, hosts, nbytes, count)


def is_slow_to_receive(rank: int, hosts: tuple[str, ...]) -> None:
    with (
        opened(rank, hosts, spill_bytes=0) as bc,
        mock.patch.object(channel_ends, "_GRACE_SECONDS", 0),
    ):
        if rank < 2:
            bc.send_object("first", rank + 2, SECONDS)
            work = bc.isend_object(LARGE, rank + 2)
            looks(bc, 12)
            dist.barrier()
            work.wait()
            bc.send_object("last", rank + 2, SECONDS)
        else:
            assert bc.recv_object(rank - 2, SECONDS) == "first"
            dist.barrier()
            assert bc.recv_object(rank - 2, SECONDS) == LARGE
            assert bc.recv_object(rank - 2, SECONDS) == "last"
        dist.barrier()


@on_hosts
def test_a_send_without_a_time_out_waits_for_a_slow_receiver(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, is_slow_to_receive, hosts)


def breaks_off(rank: int) -> None:
    """Rank 0 gives up in the middle of a message to rank 2, on another node."""
    with (
        opened(rank, TWO, spill_bytes=0) as bc,
        mock.patch.object(channel_ends, "_GRACE_SECONDS", 0),
    ):
        if rank == 0:
            bc.send_object("first", 2, SECONDS)
            dist.barrier()
            with pytest.raises(shmcast.Timeout, match=r"timed out after 0.2 s: rank 2"):
                bc.send_object(LARGE, 2, 0.2)
            for _ in range(2):
                with pytest.raises(shmcast.Closed, match=r"earlier message to rank 2.*not ended"):
                    bc.send_object("next", 2, SECONDS)
            dist.barrier()
        elif rank == 2:
            assert bc.recv_object(0, SECONDS) == "first"
            dist.barrier()
            dist.barrier()
            with pytest.raises(shmcast.PeerDied, match=r"rank 0.*connection has ended"):
                bc.recv_object(0, SECONDS)
        else:
            dist.barrier()
            dist.barrier()
        dist.barrier()


def test_a_message_that_is_not_ended_ends_the_connection_on_both_sides(world: Crew) -> None:
    world.run(4, breaks_off)


def is_patient_and_impatient(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts, spill_bytes=0) as bc:
        if rank < 2:
            bc.send_object("first", rank + 2, SECONDS)
            dist.barrier()
            patient = bc.isend_object(LARGE, rank + 2)
            with pytest.raises(shmcast.Timeout, match=r"timed out after 0.02 s.*gets nothing"):
                bc.send_object(LARGE, rank + 2, 0.02)
            after = bc.isend_object("after", rank + 2, SECONDS)
            dist.barrier()
            patient.wait()
            after.wait()
        else:
            assert bc.recv_object(rank - 2, SECONDS) == "first"
            dist.barrier()
            dist.barrier()
            assert bc.recv_object(rank - 2, SECONDS) == LARGE
            assert bc.recv_object(rank - 2, SECONDS) == "after"
        dist.barrier()


@on_hosts
def test_a_time_out_holds_also_behind_a_send_without_one(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, is_patient_and_impatient, hosts)


def receives_in_two_threads(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts) as bc:
        other = rank ^ 2
        first, second = bc.irecv_object(other, SECONDS), bc.irecv_object(other, SECONDS)
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(second.wait()))
        thread.start()
        incoming = bc._point_to_point._incoming[other]  # type: ignore[union-attr]
        wait_until(lambda: incoming._receiver is not None)
        with pytest.raises(shmcast.Timeout, match=r"timed out after 0.02 s"):
            bc.recv_object(other, 0.02)  # while the thread waits
        dist.barrier()
        bc.send_object("first", other, SECONDS)
        assert first.wait() == "first"  # of the thread, which goes on waiting
        assert not got
        dist.barrier()
        bc.send_object("second", other, SECONDS)
        thread.join()
        assert got == ["second"]
        bc.send_object("third", other, SECONDS)
        assert bc.recv_object(other, SECONDS) == "third"
        dist.barrier()


@on_hosts
def test_threads_that_receive_from_one_rank_wait_for_their_own_objects_only(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, receives_in_two_threads, hosts)


class Alarmed(Exception):
    """Raised by a signal's handler."""


def is_interrupted_by_a_signal(rank: int, hosts: tuple[str, ...]) -> None:
    def handler(*_: object) -> None:
        raise Alarmed

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with opened(rank, hosts) as bc:
            other = rank ^ 2
            work = bc.irecv_object(other, SECONDS)
            for _ in range(2):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(Alarmed):
                    work.wait()
            dist.barrier()
            bc.send_object("for the work", other, SECONDS)
            bc.send_object("for the next", other, SECONDS)
            assert bc.recv_object(other, SECONDS) == "for the next"
            assert work.wait() == "for the work"
            dist.barrier()
    finally:
        signal.signal(signal.SIGALRM, before)


@on_hosts
def test_a_work_whose_wait_a_signal_has_ended_keeps_its_place(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, is_interrupted_by_a_signal, hosts)


def closes_before_it_is_heard(rank: int, hosts: tuple[str, ...]) -> None:
    bc = opened(rank, hosts)
    sent = [(k, bytes(2_000_000)) for k in range(3)]
    if rank < 2:
        for obj in sent:
            bc.send_object(obj, rank + 2, SECONDS)
        dist.barrier()
        bc.close()
    else:
        dist.barrier()
        assert [bc.recv_object(rank - 2, SECONDS) for _ in sent] == sent
        with pytest.raises(shmcast.Closed, match=rf"rank {rank - 2}.*has closed"):
            bc.recv_object(rank - 2, SECONDS)
        bc.close()
    dist.barrier()


@on_hosts
def test_what_was_sent_is_received_although_the_sender_has_closed(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, closes_before_it_is_heard, hosts)


def closes_unheard(rank: int, hosts: tuple[str, ...]) -> None:
    bc = opened(rank, hosts)
    if rank == 0:
        for obj in ("small", bytes(2_000_000)):
            bc.send_object(obj, 2, SECONDS)
        with mock.patch.object(point_to_point, "_LINGER_SECONDS", 0.2):
            with pytest.warns(shmcast.ShmcastWarning, match="rank 2.*in 0.2 s: .*are lost") as told:
                bc.close()
            assert told
        with pytest.raises(shmcast.Closed, match=r"used after close\(\)"):
            bc.send_object(1, 2)
    dist.barrier()
    bc.close()


@on_hosts
def test_a_close_says_what_is_lost_to_a_receiver_that_never_begins(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, closes_unheard, hosts)


def close_unhindered(bc: shmcast.ShmBroadcaster) -> None:
    """Close it, without a warning and long before a close gives up its waits."""
    with (
        warnings.catch_warnings(action="error"),
        mock.patch.object(point_to_point, "_LINGER_SECONDS", 10 * SECONDS),  # (none waits for it)
    ):
        bc.close()


def closes_towards_the_closed(rank: int, hosts: tuple[str, ...]) -> None:
    bc = opened(rank, hosts)
    if rank == 0:
        bc.send_object(bytes(2_000_000), 2, SECONDS)
    dist.barrier()
    if rank == 2:
        bc.close()
    dist.barrier()
    close_unhindered(bc)
    dist.barrier()


def closes_as_all_do(rank: int, hosts: tuple[str, ...], nbytes: int) -> None:
    bc = opened(rank, hosts)
    bc.send_object(bytes(nbytes), (rank + 1) % 4, SECONDS)
    dist.barrier()
    close_unhindered(bc)
    dist.barrier()


@on_hosts
@pytest.mark.parametrize("nbytes", [1, 9_000_000])
def test_a_close_waits_for_no_receiver_that_is_closing_itself(
    world: Crew, hosts: tuple[str, ...], nbytes: int
) -> None:
    world.run(4, closes_as_all_do, hosts, nbytes)


@on_hosts
def test_a_close_waits_for_no_receiver_that_has_closed(world: Crew, hosts: tuple[str, ...]) -> None:
    world.run(4, closes_towards_the_closed, hosts)
