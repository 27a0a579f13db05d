"""`ShmBroadcaster.interrupt` ends this rank's call, on one node and on several."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster, Work
from shmcast._endpoints.frame_end import FrameEnd
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until

HOSTS = {"one node": ONE, "two nodes": TWO, "a node each": ("a", "b", "c", "d")}
SECONDS = 30.0


def interrupted_and_then_all(rank: int, hosts: tuple[str, ...]) -> list[int]:
    with opened(rank, hosts, slots=2) as bc:
        if not bc.is_src:
            bc.interrupt()
            with pytest.raises(shmcast.Interrupted, match=r"recv was ended by interrupt\(\)"):
                bc.recv(SECONDS)
            bc.broadcast_object(timeout=SECONDS)  # the source's first, sent before its interrupt
            return [bc.recv(SECONDS) for _ in range(10)]
        bc.send("first", SECONDS)
        bc.interrupt()
        with pytest.raises(shmcast.Interrupted, match=r"send was ended by interrupt\(\)"):
            bc.send("never", SECONDS)
        for k in range(10):
            bc.send(k, SECONDS)
        return list(range(10))


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_an_interrupt_ends_one_call_and_loses_nothing(world: Crew, hosts: tuple[str, ...]) -> None:
    assert world.run(4, interrupted_and_then_all, hosts) == [list(range(10))] * 4


def two_receive_and_are_interrupted(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts) as bc:
        if rank in (1, 2):
            bc.send_object("first", 0, SECONDS)
            dist.barrier()
            bc.send_object("second", 0, SECONDS)
        elif rank == 0:
            for src in (1, 2):
                bc.recv_object(src, SECONDS)
            ended: list[int] = []

            def receive(src: int) -> None:
                with pytest.raises(shmcast.Interrupted, match="recv_object was ended by interrupt"):
                    bc.recv_object(src, SECONDS)
                ended.append(src)

            threads = [threading.Thread(target=receive, args=(src,)) for src in (1, 2)]
            for thread in threads:
                thread.start()
            incoming = bc._point_to_point._incoming.values()  # type: ignore[union-attr]
            wait_until(lambda: all(channel._receiver is not None for channel in incoming))
            bc.interrupt()
            for thread in threads:
                thread.join(SECONDS / 2)
            assert sorted(ended) == [1, 2]
            dist.barrier()
            # It ends no later call.
            assert [bc.recv_object(src, SECONDS) for src in (1, 2)] == ["second"] * 2
        else:
            dist.barrier()
        bc.barrier(SECONDS)


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_an_interrupt_ends_all_receives_that_wait(world: Crew, hosts: tuple[str, ...]) -> None:
    world.run(4, two_receive_and_are_interrupted, hosts)


def interrupted_soon(bc: ShmBroadcaster, work: Work, is_waiting: Callable[[], bool]) -> None:
    """Interrupt a work's wait."""

    def interrupt() -> None:
        wait_until(is_waiting)
        bc.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(shmcast.Interrupted, match=r"i(send|recv)_object was ended by interrupt"):
        work.wait()
    thread.join()


def send_is_interrupted(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts, spill_bytes=0) as bc:
        if rank == 0:
            bc.send_object("first", 2, SECONDS)
            works = [bc.isend_object(bytes(60_000_000), 2, SECONDS) for _ in range(2)]
            outgoing = bc._point_to_point._outgoing[2]  # type: ignore[union-attr]
            for work in [*works, *works]:
                interrupted_soon(bc, work, lambda: outgoing._waiting > 0)
            dist.barrier()
            assert [work.wait() for work in [*works, *works]] == [None] * 4
        else:
            if rank == 2:
                assert bc.recv_object(0, SECONDS) == "first"
            dist.barrier()
            if rank == 2:
                assert [len(bc.recv_object(0, SECONDS)) for _ in range(2)] == [60_000_000] * 2
        bc.barrier(SECONDS)


@pytest.mark.parametrize("hosts", [ONE, TWO], ids=["one node", "two nodes"])
def test_the_work_of_a_send_whose_wait_was_interrupted_tells_when_it_is_sent(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, send_is_interrupted, hosts)


def receive_is_interrupted(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts) as bc:
        if rank == 2:
            works = [bc.irecv_object(0, SECONDS) for _ in range(2)]
            incoming = bc._point_to_point._incoming[0]  # type: ignore[union-attr]
            interrupted_soon(bc, works[0], lambda: incoming._receiver is not None)
            dist.barrier()
            bc.barrier(SECONDS)
            assert bc.recv_object(0, SECONDS) == "third"
            assert [work.wait() for work in works[::-1]] == ["second", "first"]
            work = bc.irecv_object(0, SECONDS)
            interrupted_soon(bc, work, lambda: incoming._receiver is not None)
            dist.barrier()
            assert [work.wait() for _ in range(2)] == ["last"] * 2
        else:
            dist.barrier()
            if rank == 0:
                for obj in ("first", "second", "third"):
                    bc.send_object(obj, 2, SECONDS)
            bc.barrier(SECONDS)
            dist.barrier()
            if rank == 0:
                bc.send_object("last", 2, SECONDS)
        bc.barrier(SECONDS)


@pytest.mark.parametrize("hosts", [ONE, TWO], ids=["one node", "two nodes"])
def test_the_work_of_a_receive_whose_wait_was_interrupted_keeps_its_place(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, receive_is_interrupted, hosts)


def two_threads_wait_for_works(rank: int) -> None:
    with opened(rank, ONE) as bc:
        if rank == 0:
            bc.send_object("first", 1, SECONDS)
            dist.barrier()
            for obj in ("second", "third"):
                bc.send_object(obj, 1, SECONDS)
        elif rank == 1:
            assert bc.recv_object(0, SECONDS) == "first"
            works = [bc.irecv_object(0, SECONDS) for _ in range(2)]
            incoming = bc._point_to_point._incoming[0]  # type: ignore[union-attr]
            ended = []

            def wait() -> None:
                with pytest.raises(shmcast.Interrupted):
                    works[1].wait()
                ended.append(1)

            thread = threading.Thread(target=wait)
            thread.start()
            wait_until(lambda: incoming._receiver is not None)
            interrupted_soon(bc, works[0], lambda: incoming._waiting > 0)
            thread.join()
            assert ended
            dist.barrier()
            assert [work.wait() for work in works] == ["second", "third"]
        else:
            dist.barrier()
        bc.barrier(SECONDS)


def test_works_that_wait_in_two_threads_keep_their_places(world: Crew) -> None:
    world.run(4, two_threads_wait_for_works)


def works_time_out(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts, spill_bytes=0) as bc:
        if rank == 0:
            bc.send_object("first", 2, SECONDS)
            dist.barrier()
            patient = bc.isend_object(bytes(60_000_000), 2, SECONDS)
            work = bc.isend_object("never", 2, 0.02)
            for _ in range(2):
                with pytest.raises(shmcast.Timeout, match=r"isend_object timed out.*gets nothing"):
                    work.wait()
            dist.barrier()
            patient.wait()
            bc.send_object("last", 2, SECONDS)
        elif rank == 2:
            assert bc.recv_object(0, SECONDS) == "first"
            dist.barrier()
            work = bc.irecv_object(1, 0.02)
            for _ in range(2):
                with pytest.raises(shmcast.Timeout, match=r"irecv_object timed out after 0.02 s"):
                    work.wait()
            dist.barrier()
            assert len(bc.recv_object(0, SECONDS)) == 60_000_000
            assert bc.recv_object(0, SECONDS) == "last"
            assert bc.recv_object(1, SECONDS) == "for the next"
        else:
            dist.barrier()
            dist.barrier()
            if rank == 1:
                bc.send_object("for the next", 2, SECONDS)
        bc.barrier(SECONDS)


@pytest.mark.parametrize("hosts", [ONE, TWO], ids=["one node", "two nodes"])
def test_a_work_that_has_timed_out_is_over(world: Crew, hosts: tuple[str, ...]) -> None:
    world.run(4, works_time_out, hosts)


def barrier_is_interrupted(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts) as bc:
        for _ in range(2):  # the first makes what it needs
            if rank == 1:
                called = bc._gathers()

                def interrupt(called: Any = called) -> None:
                    wait_until(lambda: called._is_called or called._is_in_hub)
                    bc.interrupt()

                thread = threading.Thread(target=interrupt)
                thread.start()
                with pytest.raises(shmcast.Interrupted, match=r": barrier was ended by interrupt"):
                    bc.barrier(SECONDS)
                thread.join()
            dist.barrier()
            bc.barrier(SECONDS)


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_an_interrupt_names_the_barrier_that_it_has_ended(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, barrier_is_interrupted, hosts)


def told_although_each_wait_is_interrupted(rank: int) -> None:
    bc = opened(rank, ONE)
    if rank == 1:
        bc.close()
    dist.barrier()
    if rank != 1:
        ended = mock.patch.object(FrameEnd, "wait_ready", side_effect=shmcast.Interrupted)
        with ended, pytest.raises(shmcast.Closed, match="rank 1 has closed, and will not come"):
            bc.barrier(SECONDS)
    dist.barrier()
    bc.close()


def test_a_first_collective_tells_who_has_closed_however_soon_its_waits_are_ended(
    world: Crew,
) -> None:
    world.run(4, told_although_each_wait_is_interrupted)
