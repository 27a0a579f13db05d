"""Tensors in device memory, over a process group: gloo's, with the CPU declared to be a device."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmcast import ObjectCodec, ShmBroadcaster
from shmcast._devices.manifest import PACK_BYTES, TensorSpec, grouped
from tests.support.device_objects import CPU, LARGE, MAKERS, SECONDS
from tests.support.objects import DTYPES, LAYOUTS, Batch, Pair, describe, tensor
from tests.support.processes import Crew

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def broadcast_everything(rank: int, src: int) -> list[Any]:
    """Broadcast everything twice; return what each rank has got."""
    described = []
    with ShmBroadcaster(device_types=CPU, group_src=src) as bc:
        for make in [*MAKERS.values()] * 2:
            got = bc.broadcast_object(make() if bc.is_src else None, SECONDS)
            described.append(describe(got))
        begun = bc.statistics().tensor_sets
    assert begun == 2 * (len(MAKERS) - 1)
    return described


@pytest.mark.parametrize("src", [0, 2])
def test_every_rank_gets_tensors_as_they_were_at_any_depth(world: Crew, src: int) -> None:
    expected = [describe(make()) for make in [*MAKERS.values()] * 2]
    for got in world.run(4, broadcast_everything, src):
        assert got == expected


def strides_and_identity(rank: int) -> Any:
    shared, parameter = tensor(), torch.nn.Parameter(tensor())
    sent = {
        "channels last": tensor(layout="channels last"),
        "transposed": tensor(layout="transposed"),
        "strided": tensor(shape=(4, 6), layout="strided"),
        "shared": [shared, {"again": shared}, (parameter, parameter)],
        "large": tensor(shape=(3, *LARGE), layout="transposed"),
    }
    sent["itself"] = sent
    with ShmBroadcaster(device_types=CPU) as bc:
        got = bc.broadcast_tensor_dict(sent if bc.is_src else None, timeout=SECONDS)
    assert (got is sent) == bc.is_src
    assert got["itself"] is got
    one, other, (first, second) = got["shared"]
    assert one is other["again"]
    assert first is second
    assert type(first) is torch.nn.Parameter
    version = one._version
    got["channels last"].add_(1)  # its neighbours in the packed buffer don't notice
    assert describe(one) == describe(tensor())
    assert one._version == version
    return [got[name].stride() for name in ("channels last", "transposed", "strided", "large")]


def test_dense_strides_are_kept_and_shared_tensors_stay_one(world: Crew) -> None:
    strides = [tensor(layout=name).stride() for name in ("channels last", "transposed")]
    large = tensor(shape=(3, *LARGE), layout="transposed").stride()
    contiguous = tensor(shape=(4, 6), layout="strided").contiguous().stride()
    source, *others = world.run(4, strides_and_identity)
    assert source[:2] == strides
    assert others == [[*strides, contiguous, large]] * 3


# A tensor as (dtype, shape, layout), inside of any containers.
plans = st.recursive(
    st.integers() | st.text(max_size=5) | st.tuples(
        st.sampled_from([str(d) for d in DTYPES]),
        st.lists(st.integers(0, 5), min_size=1, max_size=4),
        st.sampled_from([*LAYOUTS]),
    ).map(lambda plan: ("tensor", *plan)),
    lambda inner: st.lists(inner, max_size=6)
    | st.dictionaries(st.text(max_size=3), inner, max_size=6)
    | st.builds(Pair, inner, inner) | st.builds(Batch, inner, inner),
    max_leaves=20,
)  # fmt: skip


def build(plan: Any, layouts: bool = True) -> Any:
    match plan:
        case ("tensor", dtype, shape, layout):
            by_name = {str(d): d for d in DTYPES}
            made = tensor(by_name[dtype], tuple(shape), "contiguous" if 0 in shape else layout)
            return made if layouts else made.clone()
        case Pair(left, right):
            return Pair(build(left, layouts), build(right, layouts))
        case Batch(ids, extra):
            return Batch(build(ids, layouts), build(extra, layouts))
        case list():
            return [build(part, layouts) for part in plan]
        case dict():
            return {key: build(part, layouts) for key, part in plan.items()}
    return plan


def broadcast_plans(rank: int, plans: list[Any], with_out: bool) -> list[Any]:
    described = []
    with ShmBroadcaster(device_types=CPU) as bc:
        for plan in plans:
            out = None
            if with_out and not bc.is_src:
                out = {"d": build(plan, layouts=False)}
            obj = {"d": build(plan)} if bc.is_src else None
            got = bc.broadcast_tensor_dict(obj, out=out, timeout=SECONDS)
            described.append(describe(got))
    return described


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plans=st.lists(plans, min_size=1, max_size=5), with_out=st.booleans())
def test_any_nesting_arrives_equal(world: Crew, plans: list[Any], with_out: bool) -> None:
    expected = [describe({"d": build(plan)}) for plan in plans]
    for got in world.run(4, broadcast_plans, plans, with_out):
        assert got == expected


def spec(nbytes: int, kind: str = "cuda", index: int = 0) -> TensorSpec:
    return TensorSpec(kind, index, torch.uint8, (nbytes,), None, nbytes, False, False)


def test_small_tensors_go_in_one_broadcast_and_large_ones_in_their_own() -> None:
    sizes = [PACK_BYTES, 1, 0, PACK_BYTES - 1, PACK_BYTES + 1, 7]
    assert grouped([spec(n) for n in sizes]) == [[1, 3, 5], [0], [4]]
    assert grouped([spec(0)]) == []
    assert grouped([spec(1), spec(1, "xpu"), spec(2)]) == [[0, 2], [1]]
    with pytest.raises(ValueError, match="its tensors are on cuda:1 and cuda:0"):
        grouped([spec(1, index=1), spec(1)])


def count_broadcasts(rank: int, sizes: list[int]) -> tuple[int, Any]:
    calls = []
    broadcast = dist.ProcessGroup.broadcast

    def counted(*args: Any) -> Any:
        calls.append(args)
        return broadcast(*args)

    sent = {"d": [tensor(torch.uint8, (n,)) for n in sizes]}
    with (
        mock.patch.object(dist.ProcessGroup, "broadcast", counted),
        ShmBroadcaster(device_types=CPU) as bc,
    ):
        calls.clear()
        got = bc.broadcast_tensor_dict(sent if bc.is_src else None, timeout=SECONDS)
    return len(calls), describe(got)


@pytest.mark.parametrize(
    ("sizes", "broadcasts"),
    [
        ([1] * 64, 1),
        ([0] * 5, 0),
        ([PACK_BYTES - 1], 1),
        ([PACK_BYTES - 1, 255, 256, 257, 0, 511], 1),
        ([PACK_BYTES, 3, PACK_BYTES - 1, PACK_BYTES + 1], 3),
    ],
)
def test_packing_at_its_borders(world: Crew, sizes: list[int], broadcasts: int) -> None:
    expected = describe({"d": [tensor(torch.uint8, (n,)) for n in sizes]})
    assert world.run(4, count_broadcasts, sizes) == [(broadcasts, expected)] * 4


class Coalescing:
    """Stands for a group of NCCL: takes coalesced calls, carries them by gloo, keeps a record."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._legs: list[Any] = []
        self.calls: list[str] = []

    def _start_coalescing(self, device: torch.device) -> None:
        self.calls.append(f"start {device}")

    def broadcast(self, pieces: list[torch.Tensor], options: Any) -> Any:
        self.calls.append(f"broadcast {pieces[0].nbytes}")
        work = self._group.broadcast(pieces, options)
        self._legs.append(work)
        return work

    def _end_coalescing(self, _device: torch.device) -> Any:
        self.calls.append("end")
        legs, self._legs = self._legs, []
        return mock.Mock(wait=lambda: [leg.wait() for leg in legs])


def in_one_launch(rank: int) -> list[str]:
    sent = {
        "small": [tensor(), tensor(torch.bool)],
        "large": [tensor(shape=LARGE)] * 2,
        "another": tensor(torch.uint8, (PACK_BYTES,)),
    }
    with ShmBroadcaster(device_types=CPU) as bc:
        assert bc._lane is not None
        group = Coalescing(dist.group.WORLD)
        assert bc._lane._route is not None
        bc._lane._route = replace(bc._lane._route, group=cast(Any, group), backends={"cpu": "nccl"})
        for timeout in (None, SECONDS):
            got = bc.broadcast_tensor_dict(sent if bc.is_src else None, timeout)
            assert describe(got) == describe(sent)
            small = bc.broadcast_tensor_dict({"one": tensor()} if bc.is_src else None, timeout)
            assert describe(small) == describe({"one": tensor()})
    return group.calls


def test_with_nccl_large_tensors_share_one_launch(world: Crew) -> None:
    packed = f"broadcast {256 * 2 + 256}"
    large = [f"broadcast {LARGE[0] * 4}", f"broadcast {PACK_BYTES}"]
    once = ["start cpu", packed, *large, "end", f"broadcast {tensor().nbytes}"]
    assert world.run(4, in_one_launch) == [once * 2] * 4


def in_order(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU, slots=4) as bc:
        for k in range(100):
            sent = [k, torch.full((k % 7 * 1000,), k)] if k % 3 else k
            if bc.is_src:
                bc.send(sent, SECONDS)
            else:
                assert describe(bc.recv(SECONDS)) == describe(sent)


def test_messages_with_and_without_device_tensors_keep_their_order(world: Crew) -> None:
    world.run(4, in_order)


def asynchronous(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU) as bc:
        sent = [{"k": k, "t": torch.full((10 ** (k % 6),), k)} for k in range(12)]
        sent.append({"none": None})
        works = [
            bc.broadcast_tensor_dict(d if bc.is_src else None, timeout=SECONDS, async_op=True)
            for d in sent
        ]
        for work, d in zip(works, sent, strict=True):
            got = work.wait()
            assert describe(got) == describe(d)
            assert work.wait() is got
            assert (got is d) == bc.is_src


def test_async_broadcasts_overlap_and_are_waited_for(world: Crew) -> None:
    world.run(4, asynchronous)


def alone(rank: int) -> None:
    groups = [dist.new_group([r]) for r in range(4)]
    with ShmBroadcaster(groups[rank], device_types=CPU) as bc:
        sent = {"t": tensor()}
        assert bc.broadcast_object(sent) is sent
        assert bc.broadcast_tensor_dict(sent) is sent
        assert bc.broadcast_tensor_dict(sent, async_op=True).wait() is sent


def test_in_a_group_of_one_nothing_is_copied(world: Crew) -> None:
    world.run(4, alone)


def same_frames(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU) as bc:
        assert bc._lane is not None
        for obj in ({"a": 1}, [b"x" * 200_000, "y"], list(range(50_000))):
            frames = bc._lane.codec.encode(obj)
            assert type(frames) is list
            # (Whether others have the frames, too, is told in a message.)
            copies = [bytearray(frame) for frame in frames]
            del frames
            assert copies == [bytearray(frame) for frame in ObjectCodec().encode(obj)]


def test_messages_without_device_tensors_are_the_same_bytes(world: Crew) -> None:
    world.run(4, same_frames)


def nothing_kept(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU) as bc:
        sent = [torch.zeros(LARGE), tensor()] if bc.is_src else None
        got = bc.broadcast_object(sent, SECONDS)
        gone = [weakref.ref(t) for t in got]
        gc.disable()
        try:
            del sent, got
            assert [ref() for ref in gone] == [None, None]
        finally:
            gc.enable()


def test_no_tensor_is_kept_after_its_broadcast(world: Crew) -> None:
    world.run(4, nothing_kept)


def collected(rank: int) -> None:
    bc = ShmBroadcaster(device_types=CPU)
    bc.broadcast_object([tensor()] if bc.is_src else None, SECONDS)
    endpoint = weakref.ref(bc._end)
    gc.collect()
    gc.disable()
    try:
        del bc
        assert endpoint() is None
    finally:
        gc.enable()


def test_a_broadcaster_that_is_dropped_is_gone_at_once(world: Crew) -> None:
    world.run(4, collected)
