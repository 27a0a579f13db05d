"""`ShmBroadcaster.interrupt` ends this rank's call, on one node and on several."""

from __future__ import annotations

import threading
from unittest import mock

import pytest
import torch.distributed as dist

import shmcast
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
                with pytest.raises(shmcast.Interrupted):
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
