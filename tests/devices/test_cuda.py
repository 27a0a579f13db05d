"""Tensors on a GPU: what one of them can show. All skipped without one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

import shmcast
from shmcast import Reader, ShmBroadcaster, Writer
from shmcast._devices.codec import to_host, with_tensors
from shmcast._devices.lane import DeviceLane
from shmcast._devices.manifest import PACK_BYTES
from tests.support import ranks
from tests.support.objects import DTYPES, LAYOUTS, describe, digest, tensor
from tests.support.processes import Crew

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
SECONDS = 30.0


def everything() -> Any:
    kinds = [tensor(d, layout=layout, device="cuda") for d in DTYPES for layout in LAYOUTS]
    return {"kinds": kinds, "large": torch.ones(PACK_BYTES, device="cuda"), "host": tensor()}


class Alone:
    """The progress of a group of one rank."""

    def __init__(self) -> None:
        self.sets: list[int | None] = [0]

    def announce_start(self) -> None:
        assert self.sets[0] is not None
        self.sets[0] += 1

    def started(self) -> list[int | None]:
        return self.sets

    def check_alive(self) -> None:
        pass


def over_nccl(_index: int, store: str) -> None:
    dist.init_process_group("cpu:gloo,cuda:nccl", f"file://{store}", rank=0, world_size=1)
    world = dist.group.WORLD
    assert world is not None
    lane = DeviceLane(world, False, None, "rank 0")
    lane.connect(0, [0], Alone())
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for timeout in (None, SECONDS):
        sent = everything()
        _, departure = with_tensors(lane.codec.encode(sent), lane)
        assert departure is not None
        assert lane.send(departure, sent, timeout).wait() is sent
        assert describe(sent) == describe(everything())
        with torch.cuda.stream(side):  # in stream order: filled before, changed after
            busy = torch.randn(2000, 2000, device="cuda")
            for _ in range(10):
                busy = busy @ busy / 2000
            late = [torch.full((PACK_BYTES,), 7, device="cuda")]
            _, departure = with_tensors(lane.codec.encode(late), lane)
            assert departure is not None
            lane.send(departure, late, timeout).wait()
            late[0].add_(1)
        side.synchronize()
        assert bool((late[0] == 8).all())
    dist.destroy_process_group()


def test_a_group_of_one_over_nccl(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    crew.run(1, over_nccl, store)


def two_on_one_device(rank: int, store: str, is_staged: bool) -> Any:
    ranks.join(rank, 2, store)
    device_group = None if is_staged else dist.new_group()
    with (
        ShmBroadcaster(device_group=device_group) as bc,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        sent = everything() if bc.is_src else None
        got = [bc.broadcast_object(sent, SECONDS) for _ in range(3)][-1]
        large, small = torch.zeros(PACK_BYTES, device="cuda"), torch.zeros(3, device="cuda")
        out = {"a": large, "b": [small]}
        filled = {"a": large + 1, "b": [small + 2]}
        into = bc.broadcast_tensor_dict(
            filled if bc.is_src else None, out=None if bc.is_src else out, timeout=SECONDS
        )
        assert bc.is_src or into["a"] is out["a"]
        assert describe(into) == describe(filled)
    assert sum(w.category is shmcast.ShmcastWarning for w in told) == (is_staged and rank == 0)
    dist.destroy_process_group()
    return describe(got)


@pytest.mark.parametrize("is_staged", [True, False], ids=["staged", "gloo"])
def test_two_processes_on_one_device(fresh: tuple[Crew, str], is_staged: bool) -> None:
    crew, store = fresh
    got = crew.run(2, two_on_one_device, store, is_staged)
    assert got[0] == got[1] == describe(everything())


def test_staging_copies_through_pinned_memory() -> None:
    source = tensor(device="cuda")
    host = to_host(source)
    assert host.is_pinned()
    assert digest(host) == digest(source)


def test_copies_from_a_pinned_view_are_asynchronous_and_keep_its_memory() -> None:
    elements, arena = 4 << 20, 20 << 20  # of 4 bytes: room for one
    first = torch.arange(elements, dtype=torch.int32)
    with (
        Writer(1, arena_bytes=arena, pin=True) as writer,
        Reader(writer.handle, 0, pin=True) as reader,
    ):
        writer.send([first])
        (view,) = reader.recv(SECONDS, copy=False)
        assert view.is_pinned()
        busy = torch.randn(4000, 4000, device="cuda")
        for _ in range(50):
            busy = busy @ busy / 4000
        there = view.to("cuda", non_blocking=True)
        del view  # the copy waits for the matrices
        writer.send([first + 1])
        (second,) = reader.recv(SECONDS, copy=False)
        full = writer.statistics().arena_full
        torch.cuda.synchronize()
        assert torch.equal(there.cpu(), first)
        assert torch.equal(second, first + 1)
        assert full == 1  # streamed, because the first was still in flight
        del second
        writer.send(None)
        reader.recv(SECONDS)
        writer.send([first + 2])
        assert torch.equal(reader.recv(SECONDS, copy=False)[0], first + 2)
        assert writer.statistics().arena_full == 1


def test_copies_from_a_pinned_loan_are_asynchronous_and_keep_its_memory() -> None:
    elements = 4 << 20
    with Writer(1, arena_bytes=20 << 20, pin=True) as writer:
        loan = writer.empty_tensor(elements, torch.int32)
        assert loan.is_pinned()
        loan.copy_(torch.arange(elements, dtype=torch.int32))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            busy = torch.randn(4000, 4000, device="cuda")
            for _ in range(50):
                busy = busy @ busy / 4000
            there = loan.to("cuda", non_blocking=True)
        writer.record_stream(loan, stream)
        del loan
        writer.empty(4 * elements, "u1").fill(0)  # not in that memory
        stream.synchronize()
        assert torch.equal(there.cpu(), torch.arange(elements, dtype=torch.int32))
