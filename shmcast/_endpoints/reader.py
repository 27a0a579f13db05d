"""`Reader`: an end of a ring that receives."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from typing import Any

from shmcast import _core
from shmcast._codecs.base import Codec
from shmcast._endpoints import peers as liveness
from shmcast._endpoints.arguments import check_int, check_shape
from shmcast._endpoints.base import DEFAULT_WARN_AFTER, Endpoint
from shmcast._endpoints.handle import ArenaHandle, Handle
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._host import census
from shmcast._host import shared_memory as segment
from shmcast.errors import AlreadyAttached, DecodeError, InvalidArgument, SegmentMismatch


class Reader(Endpoint):
    """Receives the objects of one writer on this host, all of them and in order.

    Args:
        handle: the writer's `handle`.
        index: this reader's number, from 0 to `handle.readers` - 1; each is taken once.
        wait: what to do while there is no message; `WaitPolicy.adaptive()` by default.
        codec: turns frames into objects; `PickleCodec()` by default.
        rejoin: take the place of a reader that has died, if the writer drops such; the first
            message received is the first that is sent from now on. A vacant place is taken, too.
        pin: register the writer's arena with CUDA, so that copies from views to a GPU are
            asynchronous (`non_blocking=True`). Memory is not used again while such a copy, on the
            stream that is current when the view goes, is in flight; for others see
            `record_stream`. Tensors that are views are then read-only, too: writing to one is a
            segmentation fault.
        warn_after: see `Writer`.
        label: how errors name this endpoint; "reader `index`" by default.
        peer_label: how errors name the members; "reader `i`" and "writer" by default.

    Raises:
        InvalidArgument: the index is out of range, or another argument of the wrong kind.
        AlreadyAttached: the index is taken, or was.
        SegmentNotFound: there is no such segment on this host, or not any more.
        SegmentMismatch: the segment found is not the one that the handle speaks of.
    """

    _ring: _core.RingReader

    def __init__(
        self,
        handle: Handle,
        index: int,
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        rejoin: bool = False,
        pin: bool = False,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        label: str | None = None,
        peer_label: Callable[[int], str] | None = None,
    ) -> None:
        label = f"reader {index}" if label is None else label
        if not isinstance(handle, Handle):
            raise InvalidArgument(f"{label}: handle={handle!r} is not a Handle; pass writer.handle")
        check_shape(handle.readers, handle.slots, handle.slot_bytes, label)
        check_int("index", index, 0, handle.readers - 1, label)
        super().__init__(handle.readers, wait, codec, label, warn_after)
        self.handle = handle
        if peer_label is None:
            peer_label = functools.partial(_default_label, handle.readers)
        self._watch = liveness.Watch(
            index, label, peer_label, handle.readers, handle.drops_dead, warn_after, self._alarm()
        )
        geometry = handle._geometry()
        holder = handle.holder if rejoin else None
        memory = segment.attach(handle.name, geometry.segment_bytes, holder)
        mapping = None
        if handle.arena is not None:
            mapping = _map_arena(handle.arena, handle.holder[0] if rejoin else None)
            self._pin(pin, mapping, handle.arena.nbytes, is_writer=False)
        elif pin:
            raise InvalidArgument(
                f"{label}: pin=True, but the writer has no arena; make it with arena_bytes="
            )
        attach = functools.partial(
            _core.RingReader,
            memory,
            geometry,
            handle.nonce,
            index,
            self.wait_policy._for_core(),
            self._is_crowded,
            self._practice.receive if self._practice else None,
            self._watch,
            liveness.identity(),
        )
        try:
            if rejoin:
                look = functools.partial(_core.peers, memory, geometry, handle.nonce)
                self._ring = self._take_place(index, look, lambda found: attach(found, mapping))
            else:
                self._ring = attach(_core.VACANT, mapping)
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
        self._consume = self._ring.consume  # bound once, as in Writer
        self._decode = self._codec.decode
        # Closed in time also when the interpreter exits: the writer then waits for us no longer.
        self._finalizer = weakref.finalize(
            self, _end_reader, self._ring, self._watch, census.enter()
        )
        self._meet()
        if self._ring.attached() == handle.readers:
            segment.unlink(handle.name)  # everybody is in: nothing can leak any more
            if handle.arena is not None:
                segment.unlink(handle.arena.name)

    def _take_place(
        self,
        index: int,
        look: Callable[[], list[_core.Peer]],
        attach: Callable[[int], _core.RingReader],
    ) -> _core.RingReader:
        while True:
            found = self._seat_to_take(look()[index])
            try:
                return attach(found)
            except _core.SeatTaken:
                # Another was faster, or the writer has just dropped the dead one: look again.
                continue

    def _seat_to_take(self, peer: _core.Peer) -> int:
        """The seat of `peer`, whose place this reader takes, as it was found.

        Raises:
            AlreadyAttached: it can't be taken.
        """
        where = f"{self._label}: index {peer.index} of {self.handle.name}"
        if peer.state == "left":
            raise AlreadyAttached(
                f"{where} has left in order, process {peer.pid}; only the place of a reader that "
                "died can be taken"
            )
        if peer.state in liveness.LIVING:
            if not self.handle.drops_dead:
                raise AlreadyAttached(
                    f"{where} was taken by process {peer.pid}, and the writer does not go on "
                    'without it: make it with on_reader_death="drop"'
                )
            if not liveness.has_ended(peer):
                raise AlreadyAttached(
                    f"{where} is held by process {peer.pid}, which lives, or can't be seen from "
                    "here; end it first"
                )
        return peer.seat

    def recv(self, timeout: float | None = None, copy: bool = True) -> Any:
        """The next object.

        Args:
            timeout: seconds to wait for it, None for ever, 0 to look only.
            copy: False: numpy arrays and CPU tensors that lie in the writer's arena are views of
                it, not copies. Their memory is used again when the last view of it is gone, in
                every reader; until then it is not there for later messages. They outlive `close`.
                Such arrays are read-only. Such tensors may be written to: a page that is written
                to becomes this process's own, and nobody else sees the change.

        Raises:
            Timeout: no whole message came in time; nothing is lost, call again.
            Closed: this reader is closed, or the writer is and all was received.
            PeerDied: the writer has died and all that it had sent was received; or another reader
                has, and the writer does not drop it.
            DecodeError: the codec can't decode this message; the next call gets the next one.
            ConcurrentUse: another thread is inside this reader.
            Forked: this process was forked from the reader's.
        """
        if self._pinned is not None:
            self._pinned.release_finished()
        try:
            frames = self._consume(timeout, copy)
        except MemoryError as error:
            raise self._undecodable("no memory for its frames", error) from error
        except Exception as error:
            self._raise(error, "recv", timeout)
        try:
            return self._decode(frames)
        except Exception as error:
            raise self._undecodable(f"{len(frames)} frame(s)", error) from error

    def _undecodable(self, what: str, error: Exception) -> DecodeError:
        return DecodeError(
            f"{self._label}: can't decode a message ({what}): {type(error).__name__}: {error}; it "
            "is consumed, the next recv gets the next message"
        )

    def statistics(self) -> Statistics:
        """What this reader has done so far. From any thread."""
        return Statistics(**self._ring.figures())


def _map_arena(arena: ArenaHandle, holder: int | None) -> _core.Mapping:
    fd = segment.find(arena.name, arena.nbytes, None if holder is None else (holder, arena.fd))
    try:
        return _core.Mapping(fd, arena.nbytes, False)
    finally:
        os.close(fd)


def _default_label(readers: int, index: int) -> str:
    return f"reader {index}" if index < readers else "writer"


def _end_reader(ring: _core.RingReader, watch: liveness.Watch, seat: census.Seat) -> None:
    ring.close()
    watch.close()
    seat.leave()
