"""The code of an object's classes runs when the object's device tensors have arrived."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import shmcast
from shmcast import ShmBroadcaster
from tests.support.device_objects import CPU, LARGE, SECONDS
from tests.support.objects import Batch, Frozen, Pair
from tests.support.processes import Crew


class Summed:
    """Its constructor looks at its tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.total = float(tensor.sum())

    def __reduce__(self) -> tuple[Any, ...]:
        return Summed, (self.tensor,)


class Restored:
    """Looks at its tensor when its state is set."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getstate__(self) -> dict[str, Any]:
        return {"tensor": self.tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.tensor = state["tensor"]
        self.total = float(self.tensor.sum())


class Hashed:
    """Looks at its tensor when it is hashed."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __hash__(self) -> int:
        return int(self.tensor.sum())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and torch.equal(self.tensor, other.tensor)


def message(count: int) -> dict[str, Any]:
    ones = torch.ones(count)
    return {
        "summed": Summed(ones),
        "restored": Restored(torch.ones(count)),
        "hashed": {Hashed(torch.ones(count)): 1},
        "distribution": torch.distributions.Categorical(probs=torch.ones(count) / count),
        "plain": torch.full((count,), 3.0),
    }


def check(got: dict[str, Any], count: int) -> None:
    assert got["summed"].total == float(got["summed"].tensor.sum()) == count
    assert got["restored"].total == float(got["restored"].tensor.sum()) == count
    assert got["hashed"][Hashed(torch.ones(count))] == 1
    assert torch.equal(got["plain"], torch.full((count,), 3.0))


def constructors(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU) as bc:
        for count in (1000, *LARGE) * 3:
            sent = message(count)
            got = bc.broadcast_object(sent if bc.is_src else None, SECONDS)
            if not bc.is_src:
                check(got, count)
            work = bc.broadcast_tensor_dict(
                sent if bc.is_src else None, timeout=SECONDS, async_op=True
            )
            got = work.wait()
            if not bc.is_src:
                check(got, count)


def test_constructors_see_the_tensors_that_have_arrived(world: Crew) -> None:
    world.run(4, constructors)


def constructors_with_out(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU) as bc:
        for count in (1000, *LARGE):
            kept = {"a": torch.zeros(count), "s": None, "p": Pair(torch.zeros(count), 0)}
            sent = {
                "a": torch.ones(count),
                "s": Hidden(count),
                "p": Pair(torch.full((count,), 2.0), Batch(Frozen(5))),
            }
            got = bc.broadcast_tensor_dict(
                sent if bc.is_src else None, out=None if bc.is_src else kept, timeout=SECONDS
            )
            assert got["s"].total == count
            assert type(got["p"]) is Pair
            assert got["p"].right == Batch(Frozen(5))
            if not bc.is_src:
                assert got["a"] is kept["a"]
                assert got["p"].left is kept["p"].left  # type: ignore[union-attr]
            assert torch.equal(got["a"], torch.ones(count))
            assert torch.equal(got["p"].left, torch.full((count,), 2.0))


class Hidden:
    """Has no tensor, and code that runs when it is made."""

    def __init__(self, count: int) -> None:
        self.total = count

    def __reduce__(self) -> tuple[Any, ...]:
        return Hidden, (self.total,)


def test_out_is_received_into_when_classes_run_code_too(world: Crew) -> None:
    world.run(4, constructors_with_out)


def overlapping(rank: int, device_types: set[str] | None) -> list[str]:
    errors = []
    shared = torch.zeros(8)
    outs: list[dict[str, Any]] = [
        {"a": shared, "b": shared},
        {"a": shared, "b": shared[:]},
        {"a": shared.view(2, 4)[:, 0], "b": shared.view(2, 4)[1]},
        {"a": shared.view(2, 4).T, "b": [shared[7:]]},
    ]
    with ShmBroadcaster(device_types=device_types) as bc:
        for out in outs:
            sent: dict[str, Any] = {k: shaped(v, i + 1) for i, (k, v) in enumerate(out.items())}
            if bc.is_src:
                bc.broadcast_tensor_dict(sent, timeout=SECONDS)
                continue
            with pytest.raises(shmcast.InvalidArgument, match="share memory in out") as caught:
                bc.broadcast_tensor_dict(out=out, timeout=SECONDS)
            errors.append(str(caught.value))
            assert not shared.any()
        same = torch.ones(8)
        fine = {"a": shared, "b": shared, "c": torch.zeros(2, 4)[:, ::2], "d": torch.zeros(0)}
        columns = torch.zeros(4, 2)
        fine |= {"e": columns[:, 0], "f": columns[:, 1]}
        sent = {"a": same, "b": same, "c": torch.ones(2, 2), "d": torch.ones(0)}
        sent |= {"e": torch.ones(4), "f": torch.full((4,), 2.0)}
        got = bc.broadcast_tensor_dict(
            sent if bc.is_src else None, out=None if bc.is_src else fine, timeout=SECONDS
        )
        assert torch.equal(got["a"], same)
        assert (got["e"].tolist(), got["f"].tolist()) == ([1.0] * 4, [2.0] * 4)
    return errors


def shaped(out: Any, fill: float) -> Any:
    if isinstance(out, list):
        return [shaped(each, fill) for each in out]
    return torch.full(out.shape, float(fill))


@pytest.mark.parametrize("device_types", [CPU, None], ids=["device", "host"])
def test_tensors_of_out_that_share_memory_are_told(
    world: Crew, device_types: set[str] | None
) -> None:
    for errors in world.run(4, overlapping, device_types)[1:]:
        assert 'd["a"] and d["b"] share memory' in errors[0]
        assert 'd["a"] and d["b"][0] share memory' in errors[3]


def inference(rank: int, device_types: set[str] | None) -> None:
    with torch.inference_mode():
        out = {"a": torch.zeros(5), "b": torch.zeros(LARGE)}
    out["c"] = torch.zeros(5)
    with ShmBroadcaster(device_types=device_types) as bc:
        sent = {"a": torch.ones(5), "b": torch.ones(LARGE), "c": torch.full((5,), 2.0)}
        got = bc.broadcast_tensor_dict(
            sent if bc.is_src else None, out=None if bc.is_src else out, timeout=SECONDS
        )
        assert all(torch.equal(got[key], sent[key]) for key in sent)
        assert bc.is_src or got["b"] is out["b"]


@pytest.mark.parametrize("device_types", [CPU, None], ids=["device", "host"])
def test_tensors_of_inference_mode_are_received_into(
    world: Crew, device_types: set[str] | None
) -> None:
    world.run(4, inference, device_types)


def memoryless(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU) as bc:
        if bc.is_src:
            freed = torch.zeros(5000)
            freed.untyped_storage().resize_(0)
            with pytest.raises(shmcast.EncodeError, match="its memory was freed"):
                bc.broadcast_object([torch.ones(3), freed])
        mask = torch.ones(1, 1, 2048).expand(64, 2048, 2048)
        windows = torch.arange(500.0).unfold(0, 100, 1)
        sent = [mask, windows, torch._efficientzerotensor((5,))]
        got = bc.broadcast_object(sent if bc.is_src else None, SECONDS)
        assert [each.stride() for each in got[:2]] == [mask.stride(), windows.stride()]
        assert torch.equal(got[0][5, 7], mask[0, 0])
        assert torch.equal(got[1], windows)
        assert bc.is_src or got[0].untyped_storage().nbytes() < 100_000
        assert torch.equal(got[2], torch.zeros(5))


def test_device_tensors_without_memory_are_told_and_shared_elements_sent_once(
    world: Crew,
) -> None:
    world.run(4, memoryless)
