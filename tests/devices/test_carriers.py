"""Which tensors go over the device group, which through host memory, and which not at all."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster, Writer
from shmcast._devices import lane as device
from shmcast._devices.codec import Carrier
from tests.support.device_objects import CPU, SECONDS, every_container
from tests.support.differential import python_calls
from tests.support.objects import describe, tensor
from tests.support.processes import Crew

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


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
                bc.broadcast_tensor_dict([tensor()])  # type: ignore[call-overload]
        got = bc.broadcast_object([tensor()] if bc.is_src else None, SECONDS)
        assert describe(got) == describe([tensor()])
        assert bc.statistics().messages == 1
    return errors


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_carried_is_told_before_anything_is_sent(world: Crew) -> None:
    subclass, sparse, quantized, meta = world.run(4, unsendable)[0]
    assert "test_carriers.Tagged on cpu: subclasses of torch.Tensor can't be broadcast" in subclass
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


def test_a_writer_without_ranks_pickles_tensors_as_ever() -> None:
    with Writer(1) as writer:
        writer.send([tensor(), tensor().as_subclass(Tagged)])
        assert writer.statistics().tensor_sets == 0


def in_the_core(_rank: int) -> list[set[str]]:
    ran = []
    for types in (None, CPU):
        with ShmBroadcaster(device_types=types) as bc:
            obj = {"a": tensor(), "b": [1]}
            assert bc._lane is not None
            encode = bc._lane.codec.encode
            encode(obj)
            ran.append(python_calls(lambda: encode(obj)))  # noqa: B023
    return ran


def test_tensors_that_stay_in_the_message_are_encoded_by_the_core(world: Crew) -> None:
    for in_message, over_the_group in world.run(4, in_the_core):
        assert in_message == set()
        assert over_the_group
