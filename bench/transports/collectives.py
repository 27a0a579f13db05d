"""torch.distributed: gloo's and NCCL's collectives."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from bench.transports.base import Peer, Seat, Skipped, Transport, require_array

if TYPE_CHECKING:
    import torch.distributed as dist


class ObjectList(Transport):
    """`broadcast_object_list`: two collectives, one for the size."""

    group: dist.ProcessGroup | None = None

    def __init__(self, seat: Seat) -> None:
        import torch.distributed as dist

        from bench.transports import process_group

        process_group.join(seat)
        self._broadcast = dist.broadcast_object_list

    def broadcast(self, obj: Any, /) -> Any:
        objects = [obj]
        self._broadcast(objects, src=0, group=self.group)
        return objects[0]


class NcclObjectList(ObjectList):
    """`broadcast_object_list` over NCCL: the bytes visit the GPUs."""

    def __init__(self, seat: Seat) -> None:
        import torch
        import torch.distributed as dist

        super().__init__(seat)
        if torch.cuda.device_count() < seat.size:
            raise Skipped(
                f"NCCL needs a GPU for each of {seat.size} ranks, there are "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(seat.rank)
        self.group = dist.new_group(backend="nccl")


class KnownSize(Transport):
    """One gloo collective over bytes whose number every rank knows beforehand."""

    def __init__(self, seat: Seat) -> None:
        import torch
        import torch.distributed as dist

        from bench.transports import process_group

        process_group.join(seat)
        self._is_source = seat.is_source
        self._broadcast = dist.broadcast
        self._frombuffer = torch.frombuffer
        self._uint8 = torch.uint8
        self._nbytes = 0

    def expect(self, obj: Any) -> None:
        self._nbytes = len(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            data = bytearray(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))
            self._broadcast(self._frombuffer(data, dtype=self._uint8), src=0)
            return obj
        data = bytearray(self._nbytes)
        self._broadcast(self._frombuffer(data, dtype=self._uint8), src=0)
        return pickle.loads(data)  # noqa: S301 (our own bytes)


class KnownShape(Transport):
    """One gloo collective from an array's memory to a tensor that each reader has already."""

    def __init__(self, seat: Seat) -> None:
        import torch
        import torch.distributed as dist

        from bench.transports import process_group

        process_group.join(seat)
        self._is_source = seat.is_source
        self._broadcast = dist.broadcast
        self._room = torch.empty(0)

    def expect(self, obj: Any) -> None:
        import numpy as np
        import torch

        require_array(obj)
        self._room = torch.from_numpy(obj if self._is_source else np.empty_like(obj))

    def broadcast(self, _obj: Any, /) -> Any:
        self._broadcast(self._room, src=0)
        return self._room


PEERS = (
    Peer(
        "gloo",
        ObjectList,
        "torch",
        "torch.distributed.broadcast_object_list over a gloo group of this host",
        ("torch",),
    ),
    Peer(
        "gloo, known size",
        KnownSize,
        "torch",
        "one dist.broadcast of the pickle, whose size every rank knows beforehand",
        ("torch",),
        one_object=True,
    ),
    Peer(
        "gloo, known shape",
        KnownShape,
        "torch",
        "one dist.broadcast of the array, into memory that the readers have already",
        ("torch",),
        one_object=True,
    ),
    Peer(
        "NCCL",
        NcclObjectList,
        "nccl",
        "torch.distributed.broadcast_object_list over an NCCL group, a GPU for each rank",
        ("torch",),
    ),
    Peer(
        "gloo between hosts",
        ObjectList,
        "hosts",
        "broadcast_object_list over a gloo group of the ranks of two hosts",
        ("torch",),
        "hosts",
    ),
    Peer(
        "gloo between hosts, known size",
        KnownSize,
        "hosts",
        "one dist.broadcast of the pickle over that group",
        ("torch",),
        "hosts",
        one_object=True,
    ),
)
