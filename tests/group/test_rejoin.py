"""A process takes the place of a rank that has died, and is a `ShmBroadcaster` as it was."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch.distributed as dist

import shmcast
from shmcast import Reader, ShmBroadcaster, Writer
from tests.support import ranks
from tests.support.fake_nodes import opened
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until

_open: list[ShmBroadcaster] = []


def join(rank: int, store: str, hosts: str) -> shmcast.Handle | None:
    ranks.join(rank, 3, store)
    _open.append(opened(rank, (*hosts,), on_reader_death="drop", group_src=1, timeout=40))
    return _open[0].handle


def receive(_rank: int) -> Any:
    return _open[0].recv(40)


def welcome(_rank: int, index: int) -> None:
    """Send when the one that takes the place has come."""
    ring: Any = cast("Any", _open[0]._end)._ring
    ring = getattr(ring, "_ring", ring)  # (of the relay's writer)
    wait_until(lambda: ring.peers()[index].state == "rejoining")
    _open[0].send("welcome", 40)
    assert _open[0].dropped == {}
    _open[0].close()


def take_the_place(handle: Any, rank: int) -> list[Any]:
    with ShmBroadcaster.rejoin(handle, rank) as bc:
        with pytest.raises(shmcast.WrongRole, match=r"rank 2 .*for the source, rank 1"):
            bc.send("mine")
        facts = [bc.group_rank, bc.group_size, bc.group_src, bc.src, bc.is_src, repr(bc)]
        got = bc.broadcast_object(timeout=40)
        assert bc.handle == handle
        with pytest.raises(shmcast.Closed, match="rank 2 of 3: recv: the writer has closed"):
            bc.recv(40)
        return [facts, got, bc.statistics().messages]


@pytest.mark.parametrize("hosts", ["aaa", "baa"])
def test_a_rank_that_has_died_is_replaced(fresh: tuple[Crew, str], hosts: str) -> None:
    crew, store = fresh
    handles = [job.result() for job in crew.start(3, join, store, hosts)]
    victim = crew.workers[2].start(receive, 2)
    other = crew.workers[0].start(receive, 0)
    victim.kill()
    replacement = crew.workers[3].start(take_the_place, handles[1], 2)
    source = crew.workers[1].start(welcome, 1, 1 if hosts == "aaa" else 0)
    nodes = "1 node" if hosts == "aaa" else "2 nodes"
    role = f"<shmcast.ShmBroadcaster rank 2 of 3: receives from rank 1, {nodes}>"
    assert replacement.result() == [[2, 3, 1, 1, False, role], "welcome", 1]
    source.result()
    assert other.result() == "welcome"


def refused(rank: int) -> list[str]:
    errors = []
    with ShmBroadcaster(on_reader_death="drop") as bc:
        for place in (0, 9, 2):
            with pytest.raises(shmcast.ShmcastError) as caught:
                ShmBroadcaster.rejoin(bc.handle, place)  # type: ignore[arg-type]
            errors.append(f"{type(caught.value).__name__}: {caught.value}")
        dist.barrier()
    return errors


def test_a_place_that_can_t_be_taken_is_told(world: Crew) -> None:
    for errors in world.run(4, refused):
        assert "rank=0 is not one of the ranks [1, 2, 3] that receive on node 0" in errors[0]
        assert "rank=9 is not one of" in errors[1]
        assert errors[2].startswith("AlreadyAttached")
    with Writer(1) as writer:
        with pytest.raises(shmcast.InvalidArgument, match="is none of a broadcaster's"):
            ShmBroadcaster.rejoin(writer.handle, 0)
        Reader(writer.handle, 0).close()
