"""Dicts of tensors: `broadcast_tensor_dict`, and what engines do.

The tensors are on the device of `workloads.DEVICE_VARIABLE`: on the CPU, which is then declared to
be the device and gloo to be its group; or on one GPU a rank, over NCCL.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import shmcast
from bench.transports.base import Peer, Seat, Transport

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


def _device_group(seat: Seat) -> dist.ProcessGroup | None:
    import torch
    import torch.distributed as dist

    from bench.transports import process_group

    process_group.join(seat)
    if _device() == "cpu":
        return None
    torch.cuda.set_device(seat.rank)
    group: dist.ProcessGroup = dist.new_group(backend="nccl")
    return group


def _device() -> str:
    return os.environ.get("SHMCAST_BENCH_DEVICE", "cpu")


def _synchronize() -> None:
    if _device() == "cuda":
        import torch

        torch.cuda.synchronize()


class Plain(Transport):
    """What engines do: broadcast_object_list of the metadata, then a broadcast for each tensor."""

    def __init__(self, seat: Seat) -> None:
        self._group = _device_group(seat)
        self._is_source = seat.is_source

    def broadcast(self, obj: Any, /) -> Any:
        import torch
        import torch.distributed as dist

        if self._is_source:
            tensors: list[torch.Tensor] = []
            box = [_replaced(obj, torch.Tensor, functools.partial(_take_out, tensors))]
            dist.broadcast_object_list(box, src=0)
            for tensor in tensors:
                dist.broadcast(tensor, src=0, group=self._group)
        else:
            box = [None]
            dist.broadcast_object_list(box, src=0)
            obj = _replaced(box[0], _Stub, self._receive)
        _synchronize()
        return obj

    def _receive(self, stub: _Stub) -> torch.Tensor:
        import torch
        import torch.distributed as dist

        tensor = torch.empty(stub.shape, dtype=stub.dtype, device=stub.device)
        dist.broadcast(tensor, src=0, group=self._group)
        return tensor


class _Stub:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device.type


def _take_out(tensors: list[torch.Tensor], tensor: torch.Tensor) -> _Stub:
    tensors.append(tensor)
    return _Stub(tensor)


def _replaced(obj: Any, kind: type, replace: Callable[[Any], Any]) -> Any:
    """`obj` with `replace(x)` for each x of a kind in its dicts, lists and tuples."""
    if isinstance(obj, kind):
        return replace(obj)
    if isinstance(obj, dict):
        return {key: _replaced(value, kind, replace) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return type(obj)(_replaced(value, kind, replace) for value in obj)
    return obj


class Dicts(Transport):
    """A `ShmBroadcaster`'s `broadcast_tensor_dict`, or its `broadcast_object`.

    Args:
        seat: this process's.
        lane: whether the tensors take the device group; otherwise they are buffers of the message.
        is_object: whether they are sent like any other object.
    """

    def __init__(self, seat: Seat, lane: bool = False, is_object: bool = False) -> None:
        group = _device_group(seat)
        if lane:
            self._broadcaster = shmcast.ShmBroadcaster(device_group=group, device_types={_device()})
        else:
            self._broadcaster = shmcast.ShmBroadcaster()
        broadcaster = self._broadcaster
        self._call = (
            broadcaster.broadcast_object if is_object else broadcaster.broadcast_tensor_dict
        )

    def broadcast(self, obj: Any, /) -> Any:
        got = self._call(obj)
        _synchronize()
        return got

    def close(self) -> None:
        self._broadcaster.close()


PEERS = (
    Peer(
        "tensors over the device group",
        functools.partial(Dicts, lane=True),
        "shmcast",
        "ShmBroadcaster.broadcast_tensor_dict, tensors over the device group",
        ("torch",),
    ),
    Peer(
        "tensors in the message",
        Dicts,
        "shmcast",
        "the same, tensors as buffers of the message",
        ("torch",),
    ),
    Peer(
        "tensors by broadcast_object",
        functools.partial(Dicts, is_object=True),
        "shmcast",
        "ShmBroadcaster.broadcast_object of the dict",
        ("torch",),
    ),
    Peer(
        "tensors one by one",
        Plain,
        "torch",
        "what engines do: broadcast_object_list of the metadata, dist.broadcast of each tensor",
        ("torch",),
    ),
)
