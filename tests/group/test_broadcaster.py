"""`ShmBroadcaster` over real torch.distributed ranks: the world fixture's four, and torchrun's."""

from __future__ import annotations

import os
import signal
import sys
from types import CodeType
from typing import Any

import pytest
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster, WaitPolicy
from tests.support import ranks
from tests.support.objects import OBJECTS, fingerprint
from tests.support.permissions import needs_mounts
from tests.support.processes import Crew
from tests.support.shared_memory import make_private, segments_of


def broadcast_objects(rank: int, src: int | None, group_src: int, policy: WaitPolicy) -> list[str]:
    with ShmBroadcaster(src=src, group_src=group_src, wait=policy) as bc:
        assert bc.is_src == (rank == bc.src)
        got = [bc.broadcast_object(obj if bc.is_src else None, 30) for obj in OBJECTS]
        messages = bc.statistics().messages
        assert not bc.closed
    assert bc.closed
    assert messages == len(OBJECTS)
    return [fingerprint(obj) for obj in got]


@pytest.mark.parametrize("policy", [WaitPolicy.adaptive(), WaitPolicy.semaphore()], ids=str)
@pytest.mark.parametrize(("src", "group_src"), [(None, 0), (None, 3), (2, 0), (1, 1)])
def test_every_rank_gets_the_sources_objects(
    world: Crew, src: int | None, group_src: int, policy: WaitPolicy
) -> None:
    expected = [fingerprint(obj) for obj in OBJECTS]
    assert world.run(4, broadcast_objects, src, group_src, policy) == [expected] * 4


def send_and_recv(rank: int) -> list[Any]:
    with ShmBroadcaster() as bc:
        bc.warm()  # on any rank, whenever there is time
        if bc.is_src:
            for k in range(5):
                bc.warm()
                bc.send(k, 30)
            with pytest.raises(shmcast.WrongRole, match=r"rank 0 .*recv\(\) is for the other"):
                bc.recv()
            return list(range(5))
        with pytest.raises(shmcast.WrongRole, match=rf"rank {rank} .*for the source, rank 0"):
            bc.send("mine")
        return [bc.recv(30) for _ in range(5)]


def test_send_and_recv_are_for_their_ranks_only(world: Crew) -> None:
    assert world.run(4, send_and_recv) == [list(range(5))] * 4


def practises(rank: int) -> bool:
    """Return whether this rank practises `broadcast_object` itself while it has time."""
    codes: set[CodeType] = set()
    with ShmBroadcaster(wait=WaitPolicy.spin()) as bc:
        bc.broadcast_object(1, 30)
        dist.barrier()
        before = sys.gettrace()
        sys.settrace(lambda frame, *_: codes.add(frame.f_code))
        try:
            if bc.is_src:
                bc.warm()
            else:
                with pytest.raises(shmcast.Timeout):
                    bc.recv(0.02)
        finally:
            sys.settrace(before)
        dist.barrier()
        assert bc.broadcast_object(rank, 30) == bc.src
    return ShmBroadcaster.broadcast_object.__code__ in codes


def test_every_rank_practises_what_it_will_call(world: Crew) -> None:
    assert world.run(4, practises) == [True] * 4


def parallel_groups(rank: int) -> list[str]:
    """Broadcast in tensor- and data-parallel pairs and the world at once, as engines do."""
    tp = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    dp = [dist.new_group([0, 2]), dist.new_group([1, 3])][rank % 2]
    got: list[str] = []
    with (
        ShmBroadcaster(tp) as tp_bc,
        ShmBroadcaster(dp, group_src=1) as dp_bc,
        ShmBroadcaster(src=3) as world_bc,
    ):
        for k in range(200):
            for name, bc in (("tp", tp_bc), ("world", world_bc), ("dp", dp_bc)):
                message = f"{name} {k} from {rank}" if bc.is_src else None
                received = bc.broadcast_object(message, 30)
                assert received == f"{name} {k} from {bc.src}"
                got.append(received)
    return got


def test_several_broadcasters_at_once_do_not_disturb_each_other(world: Crew) -> None:
    got = world.run(4, parallel_groups)
    assert [len(messages) for messages in got] == [600] * 4
    assert got[0] != got[2]


def alone(rank: int) -> tuple[Any, int]:
    groups = [dist.new_group([r]) for r in range(4)]
    marker = object()
    with ShmBroadcaster(groups[rank]) as bc:
        assert segments_of(os.getpid()) == set()
        assert bc.broadcast_object(marker) is marker
        bc.send(lambda: "need not even be picklable")
        bc.warm()
        assert bc.thaw(bc.empty(3))
        with pytest.raises(shmcast.InvalidArgument, match="a list is no array or tensor"):
            bc.thaw([1, 2])  # type: ignore[arg-type]
        messages = bc.statistics().messages
    with pytest.raises(shmcast.Closed, match="after close"):
        bc.broadcast_object(1)
    with pytest.raises(shmcast.Closed, match="after close"):
        bc.warm()
    return (bc.is_src, bc.src, bc.group_size), messages


def test_a_group_of_one_costs_nothing(world: Crew) -> None:
    assert world.run(4, alone) == [((True, rank, 1), 2) for rank in range(4)]


def wrong_arguments(rank: int) -> list[str]:
    pair = dist.new_group([1, 2])
    errors = []
    cases: list[dict[str, Any]] = [
        {"group_src": 4},
        {"group_src": -1},
        {"group_src": "0"},
        {"src": 7},
        {"src": 2, "group_src": 1},
        *([{"group": pair, "src": 0}] if rank in (1, 2) else []),
        *([{"group": pair}] if rank in (0, 3) else []),
    ]
    for arguments in cases:
        with pytest.raises(shmcast.InvalidArgument) as caught:
            ShmBroadcaster(**arguments)
        errors.append(str(caught.value))
    return errors


def test_wrong_sources_and_groups_are_named(world: Crew) -> None:
    for rank, errors in enumerate(world.run(4, wrong_arguments)):
        assert "group_src=4 is not a rank of the group: it has ranks 0 to 3" in errors[0]
        assert "group_src=-1" in errors[1]
        assert "group_src='0'" in errors[2]
        assert "src=7 is not one of the group's global ranks [0, 1, 2, 3]" in errors[3]
        assert "src=2 is rank 2 of the group but group_src=1" in errors[4]
        if rank in (1, 2):
            assert "src=0 is not one of the group's global ranks [1, 2]" in errors[5]
        else:
            assert f"rank {rank} is not a member of the group" in errors[5]


def different_sources(rank: int) -> str:
    with pytest.raises(shmcast.InvalidArgument) as caught:
        ShmBroadcaster(group_src=rank % 2)
    return str(caught.value)


def test_ranks_that_name_different_sources_are_all_told(world: Crew) -> None:
    for error in world.run(4, different_sources):
        assert "rank 0 says 0, rank 1 says 1, rank 2 says 0, rank 3 says 1" in error


def source_fails(rank: int) -> tuple[str, str]:
    with pytest.raises(shmcast.ShmcastError) as caught:
        ShmBroadcaster(slots=48)
    return type(caught.value).__name__, str(caught.value)


def test_a_source_that_cannot_set_up_is_told_on_every_rank(world: Crew) -> None:
    (kind, error), *others = world.run(4, source_fails)
    assert kind == "InvalidArgument"
    assert "slots=48 is not a power of two" in error
    for kind, error in others:
        assert kind == "SegmentError"
        assert "the source, rank 0, could not set up" in error
        assert "slots=48" in error


def one_reader_fails(rank: int) -> tuple[str, str]:
    with pytest.raises(shmcast.ShmcastError) as caught:
        ShmBroadcaster(codec=5 if rank == 2 else None)  # type: ignore[arg-type]
    return type(caught.value).__name__, str(caught.value)


def test_a_rank_that_cannot_set_up_is_named_on_every_rank(world: Crew) -> None:
    for rank, (kind, error) in enumerate(world.run(4, one_reader_fails)):
        assert kind == ("InvalidArgument" if rank == 2 else "SegmentError")
        assert "codec=5 has no method encode()" in error
        assert "rank 2" in error


def closed_by_the_source(rank: int) -> list[str]:
    bc = ShmBroadcaster()
    if bc.is_src:
        bc.send("last", 30)
        bc.close()
        with pytest.raises(shmcast.Closed, match=r"rank 0 .*send after close"):
            bc.send("too late")
        return ["last"]
    got = bc.recv(30)
    with pytest.raises(shmcast.Closed, match=rf"rank {rank} .*the writer has closed"):
        bc.recv(30)
    bc.close()
    return [got]


def test_close_on_the_source_ends_the_others_after_they_drained(world: Crew) -> None:
    assert world.run(4, closed_by_the_source) == [["last"]] * 4


def slow_rank_is_named(rank: int) -> str:
    with ShmBroadcaster(slots=2) as bc:
        error = ""
        if bc.is_src:
            bc.send(0, 30)
            bc.send(1, 30)
            while not error.count("rank 2 is"):
                with pytest.raises(shmcast.Timeout) as caught:
                    bc.send(2, timeout=0)
                error = str(caught.value)
        elif rank != 2:
            assert [bc.recv(30), bc.recv(30)] == [0, 1]
        dist.barrier()
        return error


def test_the_rank_that_holds_the_source_up_is_named(world: Crew) -> None:
    error = world.run(4, slow_rank_is_named)[0]
    assert "rank 0 of 4" in error
    assert "rank 2 is 2 fragments behind" in error


_left_open: list[ShmBroadcaster] = []


def one_is_killed(rank: int, store: str, victim: int) -> str:
    ranks.join(rank, 3, store)
    bc = ShmBroadcaster(slots=2, group_src=1)
    _left_open.append(bc)  # who closed it first would be what the other survivor is told of
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            bc.broadcast_object("again" if bc.is_src else None, 30)
    except shmcast.PeerDied as error:
        return str(error)


@pytest.mark.parametrize("victim", [1, 2], ids=["source", "reader"])
def test_a_rank_that_is_killed_is_named_on_the_others(fresh: tuple[Crew, str], victim: int) -> None:
    crew, store = fresh
    jobs = crew.start(3, one_is_killed, store, victim)
    pid = jobs[victim].worker.pid
    for rank in {0, 1, 2} - {victim}:
        error = jobs[rank].result()
        assert error.startswith(f"rank {rank} of 3: ")
        assert f": rank {victim} (pid {pid}) has died" in error


def on_two_nodes(rank: int, store: str) -> tuple[str, list[tuple[int, ...]]]:
    if rank == 2:
        make_private()
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=3)
    with ShmBroadcaster() as bc:
        got = bc.broadcast_object("over the network" if bc.is_src else None, 30)
        nodes = [node.ranks for node in bc.topology.nodes]
    dist.destroy_process_group()
    return got, nodes


@needs_mounts
def test_a_container_with_its_own_shm_is_a_node_of_its_own(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    results = crew.run(3, on_two_nodes, store)
    assert results == [("over the network", [(0, 1), (2,)])] * 3


def test_without_a_process_group_it_says_what_to_do() -> None:
    with pytest.raises(shmcast.InvalidArgument, match="init_process_group first"):
        ShmBroadcaster()
