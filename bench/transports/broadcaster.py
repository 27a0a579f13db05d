"""`shmcast.ShmBroadcaster`: its wait policies, with and without an arena, warmed, with msgspec."""

from __future__ import annotations

import functools
from typing import Any

import shmcast
from bench.transports.base import Peer, Seat, Skipped, Transport
from bench.workloads.catalogue import Workload

ARENA_BYTES = 1 << 30


class Broadcaster(Transport):
    """A `ShmBroadcaster` over all ranks.

    Args:
        seat: this process's.
        warm: whether the source calls `warm()` while it has time.
        copy: whether readers own what they get; otherwise arrays are views of the arena.
        **options: the arguments of the `ShmBroadcaster`.
    """

    def __init__(
        self, seat: Seat, *, warm: bool = False, copy: bool = True, **options: Any
    ) -> None:
        from bench.transports import process_group

        process_group.join(seat)
        self._warms = warm and seat.is_source
        self._copy = copy
        self._options = {"src": seat.source, **options}
        self._make()

    def broadcast(self, obj: Any, /) -> Any:
        return self._broadcaster.broadcast_object(obj, copy=self._copy)

    def close(self) -> None:
        self._broadcaster.close()

    def _make(self, **options: Any) -> None:
        self._broadcaster = shmcast.ShmBroadcaster(**self._options, **options)
        self.prepare = self._broadcaster.warm if self._warms else None


class Typed(Broadcaster):
    """A `ShmBroadcaster` with a `MsgspecCodec`, made anew for the type of each workload."""

    def translate(self, workload: Workload, messages: list[Any]) -> list[Any]:
        if workload.typed is None:
            raise Skipped("this workload has no type for msgspec")
        type_, convert = workload.typed()
        self.close()
        self._make(codec=shmcast.MsgspecCodec(type_))
        return [convert(message) for message in messages]


class PickledStructs(Broadcaster):
    """Pickle the objects that `Typed` sends, to show the effect of the codec alone."""

    def translate(self, workload: Workload, messages: list[Any]) -> list[Any]:
        if workload.typed is None:
            raise Skipped("this workload has no type for msgspec")
        _, convert = workload.typed()
        self.close()
        self._make(codec=shmcast.PickleCodec())
        return [convert(message) for message in messages]


class BetweenHosts(Broadcaster):
    """A `ShmBroadcaster` over two hosts, made anew for each case: its estimates remember sizes."""

    def translate(self, _workload: Workload, messages: list[Any]) -> list[Any]:
        self.close()
        self._make()
        return messages

    def figures(self) -> dict[str, float]:
        """Return how often the estimate of the next size was right, and the bytes of a message."""
        got = self._broadcaster.statistics()
        relayed = max(1, got.relayed)
        return {
            "estimate_hit_rate": got.estimate_hits / relayed,
            "relayed_bytes": got.relayed_bytes / relayed,
        }


class WithinHost(Transport):
    """A `ShmBroadcaster` over the ranks of the source's host; the others have nothing to do."""

    def __init__(self, seat: Seat) -> None:
        import torch.distributed as dist

        from bench.transports import process_group

        process_group.join(seat)
        near = seat.size - seat.size // 2
        group = dist.new_group([*range(near)])
        self.takes_part = seat.rank < near
        if self.takes_part:
            self._broadcaster = shmcast.ShmBroadcaster(group)

    def broadcast(self, obj: Any, /) -> Any:
        return self._broadcaster.broadcast_object(obj)

    def close(self) -> None:
        if self.takes_part:
            self._broadcaster.close()


def _peer(name: str, settings: str, **options: Any) -> Peer:
    return Peer(name, functools.partial(Broadcaster, **options), "shmcast", settings, ("torch",))


_ADAPTIVE = shmcast.WaitPolicy.adaptive()
_SPIN = shmcast.WaitPolicy.spin()

PEERS = (
    _peer("shmcast", "ShmBroadcaster as it comes: adaptive waiting, ObjectCodec", wait=_ADAPTIVE),
    _peer("shmcast pickle", "adaptive, PickleCodec", wait=_ADAPTIVE, codec=shmcast.PickleCodec()),
    _peer("shmcast spin", "WaitPolicy.spin()", wait=_SPIN),
    _peer("shmcast semaphore", "WaitPolicy.semaphore()", wait=shmcast.WaitPolicy.semaphore()),
    _peer(
        "shmcast, warmed",
        "adaptive; the source calls warm() every 100 µs in the last millisecond of a gap",
        wait=_ADAPTIVE,
        warm=True,
    ),
    _peer("shmcast spin, warmed", "the same with WaitPolicy.spin()", wait=_SPIN, warm=True),
    _peer(
        "shmcast arena",
        "adaptive, arena_bytes=1 GiB, recv(copy=True)",
        wait=_ADAPTIVE,
        arena_bytes=ARENA_BYTES,
    ),
    _peer(
        "shmcast arena, view",
        "adaptive, arena_bytes=1 GiB, recv(copy=False)",
        wait=_ADAPTIVE,
        arena_bytes=ARENA_BYTES,
        copy=False,
    ),
    Peer(
        "shmcast msgspec",
        Typed,
        "shmcast",
        "adaptive, MsgspecCodec of the workload's type; sends Structs instead of dataclasses",
        ("torch", "msgspec"),
    ),
    Peer(
        "shmcast, Structs pickled",
        PickledStructs,
        "shmcast",
        "adaptive, PickleCodec; sends the same Structs",
        ("torch", "msgspec"),
    ),
    Peer(
        "shmcast between hosts",
        BetweenHosts,
        "hosts",
        "ShmBroadcaster as it comes, over the ranks of two hosts",
        ("torch",),
        "hosts",
    ),
    Peer(
        "shmcast within the source's host",
        WithinHost,
        "hosts",
        "ShmBroadcaster over the ranks of one of the hosts",
        ("torch",),
        "hosts",
    ),
)
