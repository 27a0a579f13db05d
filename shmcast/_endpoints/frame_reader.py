"""`FrameReader`: the end of a ring that consumes frames, whatever is in them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from shmcast import _core
from shmcast._codecs.base import Received
from shmcast._endpoints import peers
from shmcast._endpoints.arguments import check_int, check_shape
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER, FrameEnd
from shmcast._endpoints.handle import ArenaHandle, Handle, geometry_of
from shmcast._endpoints.peers import Watch, identity
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy, core_policy
from shmcast._host import census, shared_memory
from shmcast._host.places import Places
from shmcast.errors import (
    AlreadyAttached,
    DecodeError,
    InvalidArgument,
    SegmentMismatch,
    ShmcastError,
)

if TYPE_CHECKING:
    from shmcast._endpoints.pinned import PinnedArena


class FrameReader(FrameEnd):
    """Takes a seat at a ring and consumes its messages of frames, all of them and in order.

    Args and what is raised: as for `Reader`, which stands on it; less the codec.

    Args:
        warmup: called about every 100 µs of spinning, to keep the code that follows `consume`
            warm; None: nothing.
    """

    _ring: _core.RingReader

    def __init__(
        self,
        handle: Handle,
        index: int,
        *,
        wait: WaitPolicy | None = None,
        rejoin: bool = False,
        pin: bool = False,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        label: str | None = None,
        peer_label: Callable[[int], str] | None = None,
        warmup: Callable[[], object] | None = None,
    ) -> None:
        label = f"reader {index}" if label is None else label
        if not isinstance(handle, Handle):
            raise InvalidArgument(f"{label}: handle={handle!r} is not a Handle; pass writer.handle")
        check_shape(handle.readers, handle.slots, handle.slot_bytes, label)
        check_int("index", index, 0, handle.readers - 1, label)
        super().__init__(handle.readers + 1, wait, label, warn_after)
        self.handle = handle
        if peer_label is None:
            peer_label = functools.partial(_default_label, handle.readers)
        self._watch = Watch(
            index, label, peer_label, handle.readers, handle.drops_dead, warn_after
        )  # fmt: skip
        geometry = geometry_of(handle)
        holder = handle.holder if rejoin else None
        with contextlib.ExitStack() as undo:  # what is made before something fails
            self._attach(geometry, index, holder, rejoin, pin, warmup, undo)
            undo.pop_all()
        self.ring_consume: Callable[[float | None, bool], list[Received]] = self._ring.consume
        """The core's own `consume`, for a hot path that gives its errors to `fail`."""
        if self._pinned is not None:
            self.ring_consume = functools.partial(_consume_pinned, self._pinned, self._ring)
        self.watch_peers()
        if self._ring.attached() == handle.readers:
            shared_memory.unlink(handle.name)  # everybody is in: nothing can leak any more
            if handle.arena is not None:
                shared_memory.unlink(handle.arena.name)

    def _attach(
        self,
        geometry: _core.Geometry,
        index: int,
        holder: tuple[int, int] | None,
        rejoin: bool,
        pin: bool,
        warmup: Callable[[], object] | None,
        undo: contextlib.ExitStack,
    ) -> None:
        """Map the segment and take the seat."""
        handle, label = self.handle, self.label
        places = Places(shared_memory.find(handle.name, geometry.segment_bytes, holder))
        undo.callback(places.close)
        memory = shared_memory.map_whole(places.fileno(), geometry.segment_bytes)
        mapping = None
        if handle.arena is not None:
            mapping = _map_arena(handle.arena, handle.holder[0] if rejoin else None)
            self._pin(pin, mapping, handle.arena.nbytes, is_writer=False)
        elif pin:
            raise InvalidArgument(
                f"{label}: pin=True, but the writer has no arena; make it with arena_bytes="
            )

        def attach(seat: int, may_hold: bool) -> _core.RingReader:
            lock = places.hold(index)
            try:
                ring = _core.RingReader(
                    memory,
                    geometry,
                    handle.nonce,
                    index,
                    core_policy(self.wait_policy),
                    self._is_crowded,
                    warmup,
                    self._watch,
                    identity(lock),
                    seat,
                    mapping,
                    may_hold,
                )
            except BaseException:
                if lock is not None:
                    lock.release()
                raise
            self._watch.begin(ring, places)
            self._open_until_closed(_end_reader, ring, self._watch, places, lock, census.enter())
            return ring

        try:
            if rejoin:
                look = functools.partial(_core.peers, memory, geometry, handle.nonce)
                self._ring = self._take_place(index, look, attach, places)
            else:
                self._ring = attach(_core.VACANT, False)
        except _core.LayoutMismatch as error:
            raise SegmentMismatch(
                f"{label}: {handle.name}: {error}; make the handle and both endpoints with one "
                "version of shmcast"
            ) from None
        except _core.SeatTaken as error:
            raise AlreadyAttached(
                f"{label}: index {index} of {handle.name} {error}; each of the "
                f"{handle.readers} readers needs an index of its own"
            ) from None
        except _core.SegmentCorrupted as error:
            self._raise(error, "set-up", None)

    def _take_place(
        self,
        index: int,
        look: Callable[[], list[_core.Peer]],
        attach: Callable[[int, bool], _core.RingReader],
        places: Places,
    ) -> _core.RingReader:
        while True:
            peer = look()[index]
            self._check_place(peer, places)
            # A process that lives may still have views of the arena, whoever reads in its place.
            may_hold = peer.state in ("failed", "dropped") and not peers.has_ended(peer, places)
            try:
                return attach(peer.seat, may_hold)
            except _core.SeatTaken:
                # Another was faster, or the writer has just dropped the dead one: look again.
                if may_hold and look()[index].seat == peer.seat:
                    raise AlreadyAttached(
                        f"{self.label}: index {index} of {self.handle.name}: process {peer.pid}, "
                        "whose reader ended without close(), still has views of the arena "
                        "(recv(copy=False)); let go of them, or end it first"
                    ) from None

    def _check_place(self, peer: _core.Peer, places: Places) -> None:
        """Raise AlreadyAttached if this reader can't take the place of `peer`."""
        where = f"{self.label}: index {peer.index} of {self.handle.name}"
        if peer.state == "left":
            raise AlreadyAttached(
                f"{where} has left in order, process {peer.pid}; only the place of a reader that "
                "died can be taken"
            )
        if peer.state in (*peers.LIVING, "failed"):
            if not self.handle.drops_dead:
                raise AlreadyAttached(
                    f"{where} was taken by process {peer.pid}, and the writer does not go on "
                    'without it: make it with on_reader_death="drop"'
                )
            if peer.state != "failed" and not peers.has_ended(peer, places):
                raise AlreadyAttached(
                    f"{where} is held by process {peer.pid}, which lives, or can't be seen from "
                    "here; end it first"
                )

    def consume(self, timeout: float | None = None, copy: bool = True) -> list[Received]:
        """Receive the frames of the next message.

        Args:
            timeout: seconds to wait for it, None for ever, 0 to look only.
            copy: False: frames in the writer's arena are views of it; see `Reader.recv`.

        Returns:
            The frames, in memory of their own or read-only views of the arena.

        Raises:
            DecodeError: there is no memory for the frames; the message is consumed.
            ShmcastError: what `Reader.recv` raises.
        """
        try:
            return self.ring_consume(timeout, copy)
        except Exception as error:
            self.fail(error, timeout)

    def fail(self, error: Exception, timeout: float | None) -> NoReturn:
        """Raise what an error of `ring_consume` means here; others pass unchanged."""
        if isinstance(error, MemoryError):
            raise self.undecodable("no memory for its frames", error) from error
        self._raise(error, "recv", timeout)

    def undecodable(self, what: str, error: Exception) -> DecodeError:
        """Make the error for a message that was consumed and can't be made an object."""
        return DecodeError(
            f"{self.label}: can't decode a message ({what}): {type(error).__name__}: {error}; it "
            "is consumed, the next recv gets the next message"
        )

    def _end_error(self, what: str) -> ShmcastError:
        writer = self._ring.peers()[-1]
        if writer.state == "failed":
            return self._watch.died(writer, peers.ENDED_WITHOUT_CLOSE)
        return super()._end_error(what)

    def statistics(self) -> Statistics:
        """Return what this reader has done so far. From any thread."""
        return Statistics(**self._ring.figures())


def _map_arena(arena: ArenaHandle, holder: int | None) -> _core.Mapping:
    fd = shared_memory.find(
        arena.name, arena.nbytes, None if holder is None else (holder, arena.fd)
    )
    try:
        return _core.Mapping(fd, arena.nbytes, False)
    finally:
        os.close(fd)


def _consume_pinned(
    pinned: PinnedArena, ring: _core.RingReader, timeout: float | None, copy: bool
) -> list[Received]:
    """Give back first what asynchronous copies to a GPU are done with."""
    pinned.release_finished()
    return ring.consume(timeout, copy)


def _default_label(readers: int, index: int) -> str:
    return f"reader {index}" if index < readers else "writer"


def _end_reader(
    ring: _core.RingReader,
    watch: Watch,
    places: Places,
    lock: _core.LifeLock | None,
    seat: census.Seat,
) -> None:
    """End a reader; without a close() before, its peers are told that it has failed."""
    ring.give_up()
    watch.close()
    if lock is not None:
        lock.release()
    places.close()
    seat.leave()
