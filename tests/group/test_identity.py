"""Who a rank is: what its group says, whatever the default group says, if there is one at all."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

import shmcast
from shmcast import ShmBroadcaster
from tests.support.fake_nodes import opened
from tests.support.groups import joined, unregistered
from tests.support.processes import Crew


def in_a_joint_group(rank: int, store: str, numbers: list[int] | None, hosts: Any) -> list[Any]:
    group = joined(rank, 3, store, numbers)
    with opened(rank, hosts, group=group, group_src=1, timeout=40) as bc:
        got = bc.broadcast_object(f"of {rank}", 30)
        tensor = torch.full((3,), float(rank))
        arrived = bc.broadcast_object(tensor, 30)
        return [got, bc.is_src, bc.group_rank, bc.group_size, bc.src, arrived.tolist()]


@pytest.mark.parametrize("hosts", ["aaa", "aab", "abc"])
@pytest.mark.parametrize("numbers", [[0, 1, 2], [7, 5, 3], None], ids=str)
def test_processes_of_several_worlds_have_the_ranks_of_their_group(
    fresh: tuple[Crew, str], numbers: list[int] | None, hosts: str
) -> None:
    crew, store = fresh
    got = crew.run(3, in_a_joint_group, store, numbers, hosts)
    src = (numbers or [0, 1, 2])[1]
    assert got == [["of 1", r == 1, r, 3, src, [1.0, 1.0, 1.0]] for r in range(3)]


def without_a_world(rank: int, store: str) -> list[Any]:
    assert not dist.is_initialized()
    group = unregistered(rank, 2, FileStore(store, 2))
    got = []
    with ShmBroadcaster(group, device_types={"cpu"}, timeout=40) as bc:
        got.append(bc.broadcast_object(f"of {rank}", 30))
        got.append(bc.broadcast_object(torch.arange(3) + rank, 30).tolist())
    device_group = unregistered(rank, 2, FileStore(f"{store}-device", 2))
    with ShmBroadcaster(
        group, group_src=1, device_group=device_group, device_types={"cpu"}, timeout=40
    ) as bc:
        got.append(bc.broadcast_object(torch.arange(3) + rank, 30).tolist())
    return got


def test_a_group_needs_no_default_group(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    assert crew.run(2, without_a_world, store) == [["of 0", [0, 1, 2], [1, 2, 3]]] * 2


def numbered_differently(rank: int, store: str) -> str:
    group = joined(rank, 2, store, [0, 1] if rank else [1, 0])
    with pytest.raises(shmcast.InvalidArgument) as caught:
        ShmBroadcaster(group)
    return str(caught.value)


def test_ranks_whose_torch_numbers_the_group_differently_are_told(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    for error in crew.run(2, numbered_differently, store):
        assert "rank 0 of the group: (1, 0); rank 1 of the group: (0, 1)" in error


def out_of_place(rank: int) -> str:
    from shmcast._group import gathering

    with (
        mock.patch.object(gathering, "members", return_value=([0, 1, 2, 3], 0)),
        pytest.raises(shmcast.InvalidArgument) as caught,
    ):
        ShmBroadcaster()
    return str(caught.value)


def test_ranks_that_are_not_at_their_place_are_told(world: Crew) -> None:
    for error in world.run(4, out_of_place):
        assert "in this order they say [0, 0, 0, 0]" in error


def wrong_device_group(rank: int) -> str:
    part = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    with pytest.raises(shmcast.InvalidArgument) as caught:
        ShmBroadcaster(device_group=part)
    return str(caught.value)


def test_a_device_group_of_other_ranks_is_told(world: Crew) -> None:
    for rank, error in enumerate(world.run(4, wrong_device_group)):
        assert f"rank {rank % 2} of 2 in device_group" in error
        assert f"rank {rank} of 4 in group" in error


def labels(rank: int) -> list[str]:
    named = dist.new_group([1, 3], group_desc="tp")
    plain = dist.new_group([1, 3])
    found = []
    for group in (None, named, plain) if rank in (1, 3) else (None,):
        with ShmBroadcaster(group) as bc:
            found.append(bc._label)
            role = "the source" if bc.is_src else f"receives from rank {bc.src}"
            assert repr(bc) == f"<shmcast.ShmBroadcaster {bc._label}: {role}, 1 node>"
    return found


def test_a_rank_is_named_by_its_number_and_by_a_name_that_somebody_gave(world: Crew) -> None:
    assert world.run(4, labels) == [
        ["rank 0 of 4"],
        ["rank 1 of 4", "rank 1 (rank 0 of 2 in group 'tp')", "rank 1 (rank 0 of 2 in its group)"],
        ["rank 2 of 4"],
        ["rank 3 of 4", "rank 3 (rank 1 of 2 in group 'tp')", "rank 3 (rank 1 of 2 in its group)"],
    ]
