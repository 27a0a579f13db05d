"""Tensors in device memory, over a process group: gloo's, with the CPU declared to be a device."""

from __future__ import annotations

import gc
import os
import re
import signal
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ranks
import shmcast
from objects import DTYPES, LAYOUTS, Batch, Frozen, Pair, describe, tensor
from processes import Crew
from shmcast import PickleCodec, ShmBroadcaster, Writer
from shmcast._codecs.base import Received
from shmcast._devices import lane as device
from shmcast._devices.codec import Carrier
from shmcast._devices.collectives import DeviceBroadcast
from shmcast._devices.manifest import PACK_BYTES, TensorSpec, grouped
from shmcast._endpoints.frame_reader import FrameReader

CPU = {"cpu"}
LARGE = (PACK_BYTES // 4 + 1,)
SECONDS = 30.0

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def consume(bc: ShmBroadcaster) -> list[Received]:
    """Receive the frames of a message, and not its device tensors."""
    return cast("FrameReader", bc._end).consume(SECONDS)


def every_kind() -> Any:
    return {(str(d), layout): tensor(d, layout=layout) for d in DTYPES for layout in LAYOUTS}


def every_container() -> Any:
    tagged = tensor()
    tagged.tag = {"of": tensor(shape=(3,))}  # type: ignore[attr-defined]
    return {
        "step": 7,
        "nested": [{"deep": (tensor(), [tensor(torch.bool)])}, b"x" * 100_000],
        "pair": Pair(tensor(torch.int64), "right"),
        "batch": Batch(tensor(), {"more": Frozen(tensor(shape=LARGE))}),
        "parameter": torch.nn.Parameter(tensor()),
        "frozen": torch.nn.Parameter(tensor(torch.uint8), requires_grad=False),
        "leaf": tensor().requires_grad_(),
        "computed": tensor().requires_grad_() * 2,
        "conj": tensor(torch.complex64).conj(),
        "neg": tensor(torch.complex64).conj().imag,
        "tagged": tagged,
        "large": [tensor(shape=LARGE), tensor(shape=(3, *LARGE), layout="transposed")],
        5: tensor(shape=(0, 3)),
        None: torch.Size([1, 2]),
    }


MAKERS: dict[str, Callable[[], Any]] = {
    "every dtype and layout": every_kind,
    "every container": every_container,
    "a bare tensor": tensor,
    "an empty one only": lambda: tensor(shape=(0,)),
    "a single small one": lambda: [tensor(shape=(1,))],
    "no tensor": lambda: {"a": [1, 2, 3]},
    "many large": lambda: [tensor(shape=LARGE) + i for i in range(9)],
}


def broadcast_everything(rank: int, src: int) -> list[Any]:
    """Twice each, and then what each rank has."""
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
    deadline=None,
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


def into_given_tensors(rank: int, device_types: set[str] | None) -> None:
    def make(fill: int) -> dict[str, Any]:
        weights = torch.full(LARGE, fill)
        return {
            "step": fill,
            "names": ["a"] * fill,
            "small": [torch.full((3, 4), float(fill)), (torch.full((2,), fill),)],
            "large": {"same": weights, "again": weights},
            "channels last": torch.full((2, 3, 4, 5), fill).to(memory_format=torch.channels_last),
            "pair": Pair(torch.full(LARGE, fill, dtype=torch.bfloat16), fill),
            "batch": Batch(torch.full((1,), fill), Frozen(torch.full(LARGE, fill))),
            "empty": torch.empty(0, 4),
            "wanted": torch.full((5,), float(fill), requires_grad=True),
            "parameter": torch.nn.Parameter(torch.full(LARGE, float(fill))),
        }

    out: dict[str, Any] = make(0)
    out["channels last"] = out["channels last"].contiguous()  # other strides: copied
    out["names"] = []
    tensors = [*out["small"], *out["large"].values(), *out["pair"], out["batch"].extra.weights]
    addresses = [t.data_ptr() for t in tensors if isinstance(t, torch.Tensor)]
    with ShmBroadcaster(device_types=device_types) as bc:
        for fill in (1, 2, 3):
            got = bc.broadcast_tensor_dict(
                make(fill) if bc.is_src else None,
                out=None if bc.is_src else out,
                timeout=SECONDS,
                async_op=fill == 2,
            )
            got = got.wait() if fill == 2 else got
            assert describe(got) == describe(make(fill))
            if bc.is_src:
                continue
            assert got["small"][0] is out["small"][0]
            assert got["small"][1][0] is out["small"][1][0]
            assert got["large"]["same"] is out["large"]["same"]
            assert got["pair"].left is out["pair"].left
            assert got["batch"].extra.weights is out["batch"].extra.weights
            assert got["parameter"] is out["parameter"]
            assert got["channels last"].is_contiguous()
            assert [t.data_ptr() for t in tensors if isinstance(t, torch.Tensor)] == addresses


@pytest.mark.parametrize("device_types", [CPU, None], ids=["device", "host"])
def test_out_is_received_into_and_keeps_its_addresses(
    world: Crew, device_types: set[str] | None
) -> None:
    world.run(4, into_given_tensors, device_types)


class Opaque:
    def __init__(self) -> None:
        self.inner = tensor()


MISMATCHES: dict[str, tuple[Any, Any, str]] = {
    "shape": (
        {"a": [tensor(shape=(2, 3))]},
        {"a": [tensor(shape=(3, 2))]},
        r'd\["a"\]\[0\] has shape \(3, 2\) in out, and \(2, 3\) in the message',
    ),
    "dtype": (
        {"a": Pair(0, (tensor(torch.int8),))},
        {"a": Pair(0, (tensor(torch.uint8),))},
        r'd\["a"\]\.right\[0\] has dtype torch.uint8 in out, and torch.int8 in the message',
    ),
    "device": (
        {1: tensor()},
        {1: tensor().to("meta")},
        r"d\[1\] has device meta in out, and cpu in the message",
    ),
    "missing": (
        {"a": {"b": Batch(tensor())}},
        {"a": {"b": Batch(5)}},
        r'd\["a"\]\["b"\]\.ids is a tensor in the message only; in out .* is a int',
    ),
    "absent": (
        {"a": [1, {"x": (tensor(),)}]},
        {"a": [1]},
        r'd\["a"\]\[1\]\["x"\]\[0\] is a tensor in the message only.* d\["a"\]\[1\] is not there',
    ),
    "too many": (
        {"a": tensor(), "b": None},
        {"a": tensor(), "b": [tensor()]},
        r'd\["b"\]\[0\] is a tensor in out only; in the message d\["b"\] is a NoneType',
    ),
    "expanded": (
        {"a": (0, tensor(shape=(4,)))},
        {"a": (0, tensor(shape=(1,)).expand(4))},
        r'd\["a"\]\[1\] is an expanded tensor in out',
    ),
    "container": (
        {"a": [tensor()]},
        {"a": (tensor(),)},
        r'd\["a"\]\[0\] is a tensor in the message only; in out d\["a"\] is a tuple',
    ),
}


def mismatched(rank: int, case: str, device_types: set[str] | None) -> str:
    message, out, _ = MISMATCHES[case]
    before = describe(out) if case != "device" else None
    with ShmBroadcaster(device_types=device_types) as bc:
        error = ""
        if rank == 1:
            with pytest.raises(shmcast.InvalidArgument) as caught:
                bc.broadcast_tensor_dict(out=out, timeout=SECONDS)
            error = str(caught.value)
            assert case == "device" or describe(out) == before
        else:
            got = bc.broadcast_tensor_dict(message if bc.is_src else None, timeout=SECONDS)
            assert describe(got) == describe(message)
        got = bc.broadcast_tensor_dict(message if bc.is_src else None, timeout=SECONDS)
        assert describe(got) == describe(message)
    return error


@pytest.mark.parametrize("device_types", [CPU, None], ids=["device", "host"])
@pytest.mark.parametrize("case", MISMATCHES)
def test_a_mismatch_with_out_names_the_path_and_disturbs_nobody(
    world: Crew, case: str, device_types: set[str] | None
) -> None:
    errors = world.run(4, mismatched, case, device_types)
    assert re.search(MISMATCHES[case][2], errors[1]), errors[1]
    assert "rank 1" in errors[1]


def opaque_out(rank: int) -> str:
    with ShmBroadcaster(device_types=CPU) as bc:
        if bc.is_src:
            bc.send({"a": tensor(), "o": Opaque()}, SECONDS)
            return ""
        with pytest.raises(shmcast.InvalidArgument) as caught:
            bc.broadcast_tensor_dict(out={"a": tensor(), "o": Opaque()}, timeout=SECONDS)
        return str(caught.value)


def test_a_device_tensor_where_out_is_not_looked_into_is_told(world: Crew) -> None:
    for error in world.run(4, opaque_out)[1:]:
        assert "device tensor 1, float32 of shape (2, 4, 3, 5), is inside of an object" in error


class Tagged(torch.Tensor):
    pass


def unsendable(rank: int) -> list[str]:
    errors = []
    with ShmBroadcaster(device_types=CPU) as bc:
        bad: list[Any] = [
            tensor().as_subclass(Tagged),
            [torch.eye(3).to_sparse()],
            {"q": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)},
            torch.empty(3, device="meta"),
        ]
        if bc.is_src:
            for obj in bad:
                with pytest.raises(shmcast.EncodeError, match="nothing was sent") as caught:
                    bc.broadcast_object([tensor(), obj])
                errors.append(str(caught.value))
            with pytest.raises(shmcast.InvalidArgument, match="is for a dict, not for a list"):
                bc.broadcast_tensor_dict([tensor()])  # type: ignore[arg-type]
        got = bc.broadcast_object([tensor()] if bc.is_src else None, SECONDS)
        assert describe(got) == describe([tensor()])
        assert bc.statistics().messages == 1
    return errors


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_carried_is_told_before_anything_is_sent(world: Crew) -> None:
    subclass, sparse, quantized, meta = world.run(4, unsendable)[0]
    assert "test_device.Tagged on cpu: subclasses of torch.Tensor can't be broadcast" in subclass
    assert "a torch.sparse_coo tensor on cpu: only dense ones" in sparse
    assert "a quantized tensor on cpu" in quantized
    assert "a meta tensor has no elements to send" in meta


def carriers(rank: int) -> list[str]:
    errors = []
    with ShmBroadcaster(device_group=dist.new_group()) as bc:
        assert bc._lane is not None
        assert bc._lane.carrier_of("cpu") is Carrier.HOST
        assert bc._lane.carrier_of("cuda") is Carrier.GROUP  # it was chosen for it
        with pytest.raises(TypeError) as caught:
            bc._lane.carrier_of("xpu")
        errors.append(str(caught.value))
    with ShmBroadcaster(device_types=CPU) as bc:
        assert bc._lane is not None
        assert bc._lane.carrier_of("cpu") is Carrier.GROUP
        with pytest.raises(TypeError) as caught:
            bc._lane.carrier_of("cuda")
        errors.append(str(caught.value))
    with ShmBroadcaster() as bc:
        assert bc._lane is not None
        with pytest.warns(shmcast.ShmcastWarning, match="no backend of its own for cuda"):
            assert bc._lane.carrier_of("cuda") is Carrier.STAGING
        assert bc._lane.carrier_of("cuda") is Carrier.STAGING
    return errors


def test_the_carrier_is_chosen_by_the_groups_backends(world: Crew) -> None:
    for errors in world.run(4, carriers):
        assert "a tensor on xpu, for which device_group has no backend" in errors[0]
        assert "a tensor on cuda, which is none of device_types=['cpu']" in errors[1]


def staged(rank: int) -> int:
    sent = every_container()
    with (
        mock.patch.object(device, "_backends", return_value={}),
        ShmBroadcaster(device_types=CPU) as bc,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for _ in range(3):
            got = bc.broadcast_object(sent if bc.is_src else None, SECONDS)
            assert describe(got) == describe(sent)
        assert bc.statistics().tensor_sets == 0
    told = [w for w in caught if issubclass(w.category, shmcast.ShmcastWarning)]
    assert all(w.filename == __file__ for w in told)
    return len(told)


def test_without_a_backend_tensors_are_staged_with_one_warning(world: Crew) -> None:
    assert world.run(4, staged) == [1, 0, 0, 0]


class FailsOnRank2:
    def __reduce__(self) -> Any:
        return fail_on_rank_2, ()


def fail_on_rank_2() -> str:
    if dist.get_rank() == 2:
        raise ValueError("not here")
    return "fine"


def undecodable(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU) as bc:
        for k in range(5):
            sent = {"k": k, "t": tensor(), "large": tensor(shape=LARGE), "f": FailsOnRank2()}
            if rank == 2:
                with pytest.raises(shmcast.DecodeError, match="ValueError: not here") as caught:
                    bc.broadcast_tensor_dict(out=sent if k % 2 else None, timeout=SECONDS)
                assert isinstance(caught.value.__cause__, ValueError)
            else:
                got = bc.broadcast_tensor_dict(sent if bc.is_src else None, timeout=SECONDS)
                assert describe(got["large"]) == describe(sent["large"])
            assert bc.broadcast_object(k, SECONDS) == k


def test_a_rank_that_cannot_decode_takes_part_and_the_others_do_not_notice(world: Crew) -> None:
    world.run(4, undecodable)


def one_does_not_take_part(rank: int, members: list[int], missing: int) -> str:
    # Groups of their own, which end their collectives before long: one is left in the middle.
    group, device_group = dist.new_group(members), dist.new_group(members, timedelta(seconds=5))
    error = ""
    if rank in members:
        with ShmBroadcaster(group, device_group=device_group, device_types=CPU) as bc:
            sent = {"t": [tensor(torch.int16), tensor(shape=LARGE)]}
            try:
                if rank == missing:
                    consume(bc)  # the message, and then it goes astray
                else:
                    bc.broadcast_tensor_dict(sent if bc.is_src else None, timeout=1)
            except shmcast.DeviceError as caught:
                error = f"{type(caught).__name__} {caught}"
            dist.barrier(group)
            if bc.is_src and error:
                with pytest.raises(shmcast.DeviceError, match=r"no more device tensors.*rank"):
                    bc.broadcast_tensor_dict(sent)
            assert bc.broadcast_object({"still": "works"}, SECONDS) == {"still": "works"}
    dist.barrier()
    return error


def test_a_rank_that_does_not_take_part_is_named_with_the_tensor(world: Crew) -> None:
    error = world.run(4, one_does_not_take_part, [0, 1], 1)[0]
    assert error.startswith("DeviceTimeout rank 0 (rank 0 of 2")
    assert (
        "device tensor 0 of 2, int16 of shape (2, 4, 3, 5), was not delivered within 1 s" in error
    )
    assert "rank 1 did not take part" in error


def test_among_four_ranks_whoever_is_held_up_names_the_one(world: Crew) -> None:
    errors = [e for e in world.run(4, one_does_not_take_part, [0, 1, 2, 3], 2) if e]
    assert errors
    assert all("rank 2 did not take part" in error for error in errors)


def the_source_does_not_take_part(rank: int) -> str:
    device_group = dist.new_group([0, 1], timedelta(seconds=5))
    pair = dist.new_group([0, 1])
    error = ""
    if rank < 2:
        with ShmBroadcaster(pair, device_group=device_group, device_types=CPU) as bc:
            if bc.is_src:
                with (
                    mock.patch.object(
                        DeviceBroadcast, "__init__", side_effect=RuntimeError("no memory")
                    ),
                    pytest.raises(shmcast.DeviceError, match="no memory; the other ranks will"),
                ):
                    bc.send({"t": tensor()})
            else:
                with pytest.raises(shmcast.DeviceTimeout) as caught:
                    bc.recv(1)
                error = str(caught.value)
            dist.barrier(pair)
    dist.barrier()
    return error


def test_a_source_that_raises_between_message_and_tensors_is_named(world: Crew) -> None:
    error = world.run(4, the_source_does_not_take_part)[1]
    assert "rank 0 did not take part" in error
    assert "float32 of shape (2, 4, 3, 5)" in error


def out_of_step(rank: int) -> None:
    device_group = dist.new_group([0, 1], timedelta(seconds=5))
    pair = dist.new_group([0, 1])
    if rank < 2:
        with ShmBroadcaster(pair, device_group=device_group, device_types=CPU) as bc:
            if bc.is_src:
                for _ in range(2):
                    bc.broadcast_tensor_dict({"t": tensor()}, async_op=True, timeout=SECONDS)
            else:
                consume(bc)
                with pytest.raises(shmcast.DeviceError, match=r"missed one: .* comes number 2"):
                    bc.recv(SECONDS)
            dist.barrier(pair)
    dist.barrier()


def test_a_rank_that_missed_tensors_never_takes_others_for_them(world: Crew) -> None:
    world.run(4, out_of_step)


def killed_between(rank: int, store: str) -> str:
    ranks.join(rank, 2, store)
    with ShmBroadcaster(device_types=CPU) as bc:
        if rank == 1:
            consume(bc)
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(shmcast.PeerDied) as caught:
            bc.broadcast_tensor_dict({"t": tensor()}, timeout=SECONDS)
        return str(caught.value)


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    crew = Crew(2)
    try:
        source, _ = crew.start(2, killed_between, str(tmp_path / "store"))
        assert "rank 1 (pid" in source.result()
    finally:
        crew.end()


def wait_until_alarm(work: shmcast.Work) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    work.wait()


def interrupted(rank: int) -> None:
    pair, device_group = dist.new_group([0, 1]), dist.new_group([0, 1])
    if rank < 2:
        with ShmBroadcaster(pair, device_group=device_group, device_types=CPU) as bc:
            sent = {"t": tensor()}
            if bc.is_src:
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                work = bc.broadcast_tensor_dict(sent, async_op=True, timeout=SECONDS)
                with pytest.raises(KeyboardInterrupt):
                    wait_until_alarm(work)
                dist.barrier(pair)
                assert work.wait() is sent
            else:
                message = consume(bc)
                dist.barrier(pair)
                assert bc._lane is not None
                assert describe(bc._lane.receive(message, None, SECONDS).wait()) == describe(sent)
    dist.barrier()


def test_ctrl_c_ends_the_wait_and_the_work_can_be_waited_for_again(world: Crew) -> None:
    world.run(4, interrupted)


def bad_set_ups(rank: int) -> list[str]:
    half, reverse = dist.new_group([0, 1]), dist.new_group()
    cases: list[dict[str, Any]] = [
        {"device_group": half},
        {"device_group": reverse, "device_types": {"cpu", "xpu"}},
        {"device_types": "cpu"},
        {"device_types": CPU if rank else None},
        {"device_types": CPU, "codec": UserCodec()},
    ]
    errors = []
    for case in cases:
        with pytest.raises(shmcast.InvalidArgument) as caught:
            ShmBroadcaster(**case)
        errors.append(str(caught.value))
    with pytest.raises(shmcast.ShmcastError) as told:
        ShmBroadcaster(device_types="cpu" if rank == 3 else CPU)
    return [*errors, str(told.value)]


class UserCodec(PickleCodec):
    pass


def test_what_does_not_fit_together_is_told_on_every_rank(world: Crew) -> None:
    for errors in world.run(4, bad_set_ups):
        other_ranks, backend, text, differ, codec, one = errors
        assert "[0, 1]" in other_ranks or "not a member" in other_ranks
        assert "no backend for device_types ['xpu']" in backend
        assert "device_types='cpu' is no set of names" in text
        assert "rank 0: Terms(device_types=None" in differ
        assert "rank 1: Terms(device_types=('cpu',)" in differ
        assert "does not know device tensors" in codec
        assert "device_types='cpu' is no set of names" in one


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
            assert frames == PickleCodec().encode(obj)


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


def test_a_writer_without_ranks_pickles_tensors_as_ever() -> None:
    with Writer(1) as writer:
        writer.send([tensor(), tensor().as_subclass(Tagged)])
        assert writer.statistics().tensor_sets == 0
