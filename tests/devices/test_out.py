"""`out=`: tensors are received into what the reader gives, at the same addresses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import shmcast
from shmcast import ShmBroadcaster
from tests.support.device_objects import CPU, LARGE, SECONDS
from tests.support.objects import Batch, Frozen, Pair, describe, tensor
from tests.support.processes import Crew

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


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
