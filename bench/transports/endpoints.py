"""`shmcast.Writer` and `Reader`: streamed, in the arena, as views, as loans; and one memcpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import shmcast
from bench.transports.base import Peer, Seat, Transport, require_array

MIB = 1 << 20
LARGEST = 256 * MIB


class Endpoints(Transport):
    """A `Writer` on the source, `Reader`s elsewhere.

    Args:
        seat: this process's.
        arena_bytes: of the writer; 0: arrays are streamed through the ring.
        copy: whether readers own what they get; otherwise arrays are views of the arena.
    """

    def __init__(self, seat: Seat, arena_bytes: int = 0, copy: bool = True) -> None:
        self._copy = copy
        self._end: shmcast.Writer | shmcast.Reader
        if seat.is_source:
            self._end = shmcast.Writer(seat.size - 1, arena_bytes=arena_bytes)
            seat.share(self._end.handle)
        else:
            self._end = shmcast.Reader(seat.share(), seat.rank - 1)

    def broadcast(self, obj: Any, /) -> Any:
        if isinstance(self._end, shmcast.Writer):
            return self._end.send(obj)
        return self._end.recv(copy=self._copy)

    def close(self) -> None:
        self._end.close()


class Loan(Endpoints):
    """A message which is an array or tensor in the writer's arena.

    Args:
        seat: this process's.
        tensor: whether it is a tensor.
        refill: whether it is filled at the end of each gap, and not only once.
        warm: whether the source calls `warm()` between the fill and the send.
    """

    def __init__(
        self, seat: Seat, tensor: bool = False, refill: bool = False, warm: bool = False
    ) -> None:
        # A writer of its own, because readers learn its pace.
        super().__init__(seat, LARGEST + MIB, copy=False)
        self._tensor = tensor
        self._warm = warm
        self._loan: Any = None
        if isinstance(self._end, shmcast.Writer):
            self._writer = self._end
            self.settle = self._settle
            self.fill = self._refill if refill else None

    def expect(self, obj: Any) -> None:
        require_array(obj)
        if isinstance(self._end, shmcast.Reader):
            return
        self._loan = None  # frees its memory
        if self._tensor:
            import torch

            self._loan = self._writer.empty_tensor(obj.shape, torch.float32)
            self._loan.copy_(torch.from_numpy(obj))
        else:
            self._loan = self._writer.empty(obj.shape, obj.dtype)
            np.copyto(self._loan, obj)

    def broadcast(self, _obj: Any, /) -> Any:
        return super().broadcast(self._loan)

    def _settle(self, _obj: Any) -> None:
        while not self._writer.thaw(self._loan):
            pass

    def _refill(self, _obj: Any) -> None:
        self._loan.fill(1.0)
        if self._warm:
            self._writer.warm()


class Memcpy(Transport):
    """Copy on the source, to memory that it has already. Readers get nothing."""

    def __init__(self, seat: Seat) -> None:
        self._is_source = seat.is_source
        self.takes_part = seat.is_source
        self._target = np.empty(0, np.uint8)

    def expect(self, obj: Any) -> None:
        require_array(obj)
        if self._is_source:
            self._target = np.zeros_like(obj)

    def broadcast(self, obj: Any, /) -> Any:
        np.copyto(self._target, obj)


def _peer(name: str, make: Any, settings: str, **options: Any) -> Peer:
    return Peer(name, functools.partial(make, **options), "shmcast", settings)


_ARENA = 2 * LARGEST + MIB

PEERS = (
    Peer("memcpy", Memcpy, "memcpy", "one np.copyto on the source, no readers: the floor"),
    _peer("streamed", Endpoints, "shmcast Writer and Reader without an arena"),
    _peer("arena, copied", Endpoints, "with an arena, recv(copy=True)", arena_bytes=_ARENA),
    _peer("arena, view", Endpoints, "recv(copy=False)", arena_bytes=_ARENA, copy=False),
    _peer("loan, filled before", Loan, "Writer.empty(), filled once, sent when thaw() allows it"),
    _peer("loan, filled before, tensor", Loan, "the same with empty_tensor()", tensor=True),
    _peer("loan, just filled", Loan, "filled anew at the end of each gap", refill=True),
    _peer(
        "loan, just filled, warmed", Loan, "the same, and warm() before it", refill=True, warm=True
    ),
)
