"""`FrameReader`: the end of a ring that consumes frames, whatever is in them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import EllipsisType
from typing import TYPE_CHECKING, NoReturn, Protocol, overload

from shmcast import _core
from shmcast._codecs.base import Received
from shmcast._endpoints import members
from shmcast._endpoints.arguments import check_int, check_shape
from shmcast._endpoints.awaited_end import AwaitedEnd
from shmcast._endpoints.copying import Copy, copied_kind, copy_of
from shmcast._endpoints.description import encodable
from shmcast._endpoints.ending import setting_up
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER
from shmcast._endpoints.handle import ArenaHandle, Handle, check_layout, geometry_of
from shmcast._endpoints.peers import ENDED_WITHOUT_CLOSE, Watch
from shmcast._endpoints.waiting import WaitPolicy, core_policy
from shmcast._host import shared_memory
from shmcast._host.places import Places
from shmcast._host.signals import pass_on
from shmcast.errors import (
    AlreadyAttached,
    DecodeError,
    InvalidArgument,
    PeerDied,
    SegmentMismatch,
    ShmcastError,
)

if TYPE_CHECKING:
    from shmcast._endpoints.pinned import PinnedArena
    from shmcast._endpoints.statistics import Statistics


class FrameReader(AwaitedEnd):
    """Takes a seat at a ring and consumes its messages of frames, all of them and in order.

    It takes the arguments of `Reader`, which stands on it, but for the codec, and raises the same.

    Args:
        warmup: called about every 100 µs of spinning, to keep the code that follows `consume`
            warm; None: nothing.
    """

    _ring: _core.RingReader
    _handle_type: type[Handle] = Handle
    receives = True

    def __init__(
        self,
        handle: Handle,
        index: int,
        *,
        wait: WaitPolicy | None = None,
        rejoin: bool = False,
        pin: bool = False,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        switch_interval: float | None = None,
        label: str | None = None,
        peer_label: Callable[[int], str] | None = None,
        warmup: Callable[[], object] | None = None,
    ) -> None:
        label = f"reader {index}" if label is None else label
        kind = self._handle_type
        # (A broadcaster's handle is one, too. A hub's has a tail behind the ring.)
        if not isinstance(handle, kind) or type(handle).tail_bytes is not kind.tail_bytes:
            raise InvalidArgument(
                f"{label}: handle={handle!r} is not a {kind.__name__}; pass "
                f"{self.writer_noun}.handle"
            )
        check_layout(handle, label)
        check_shape(handle.readers, handle.slots, handle.slot_bytes, label)
        index = check_int("index", index, 0, handle.readers - 1, label)
        super().__init__(wait, label, warn_after, switch_interval)
        self.handle = handle
        if peer_label is None:
            peer_label = functools.partial(_default_label, handle.readers)
        with setting_up(label, self._ending):
            names = self._named_by("peer_label", peer_label)
            self._watch = Watch(
                index, label, names, handle.readers, handle.drops_dead, self.warn_after,
                slots=handle.slots,
            )  # fmt: skip
            self._set_up(handle, index, rejoin, pin, warmup)
        self.messages: Messages = self._ring
        """The core's `consume`, for a hot path that gives its errors to `fail`: with a time-out and
        `copy` in brackets. After a call Python would look for signals, and the error of a handler
        would take the place of what was returned; after a subscription it does not."""
        if self._pinned is not None:
            self.messages = _PinnedMessages(self._pinned, self._ring)
        self.keep: Callable[[list[Received]], None] = self._ring.keep
        """Take back frames of `messages`, which gives them again."""

    def _set_up(
        self,
        handle: Handle,
        index: int,
        rejoin: bool,
        pin: bool,
        warmup: Callable[[], object] | None,
    ) -> None:
        """Find the segments and take the seat; whatever there is to end is in `_ending` at once."""
        self._ending.add(self._watch.close)
        geometry = geometry_of(handle)
        fd = shared_memory.find(handle.name, geometry.file_bytes, handle.holder, rejoin=rejoin)
        places = Places(fd)
        self._ending.add(places.close)
        memory = shared_memory.map_whole(fd, geometry.segment_bytes).mapping
        self._unpopulated = memory
        mapping, spill = None, None
        if handle.spill_bytes:
            spill = shared_memory.map_spill(fd, geometry.spill_offset, handle.spill_bytes)
        if handle.arena is not None:
            mapping = _map_arena(handle.arena, handle.holder[0], rejoin)
            self._pin(pin, mapping, handle.arena.nbytes, is_writer=False)
        elif pin:
            raise InvalidArgument(
                f"{self.label}: pin=True, but the {self.writer_noun} has no arena; make it with "
                "arena_bytes="
            )
        warm = self._warm_by(warmup)

        def attach(seat: int, may_hold: bool) -> _core.RingReader:
            with places.holding(index) as lock:
                ring = _core.RingReader(
                    memory,
                    geometry,
                    handle.nonce,
                    index,
                    core_policy(self.wait_policy),
                    self._cpu_quota,
                    warm,
                    self._watch,
                    members.identity(lock),
                    seat,
                    mapping,
                    may_hold,
                    spill,
                    encodable(self.label),
                )
                ring.hold(lock)
                return ring

        try:
            if rejoin:
                look = functools.partial(_core.peers, memory, geometry, handle.nonce)
                self._ring = self._take_place(index, look, attach, places)
            else:
                self._ring = attach(_core.VACANT, False)
        except _core.LayoutMismatch as error:
            raise SegmentMismatch(
                f"{self.label}: {handle.name}: {error}; make the handle and both endpoints with "
                "one version of shmcast"
            ) from None
        except _core.SeatTaken as error:
            raise AlreadyAttached(
                f"{self.label}: index {index} of {handle.name} {error}; each of the "
                f"{handle.readers} {self.reader_noun}s needs an index of its own"
            ) from None
        except _core.SegmentCorrupted as error:
            self._raise(error, "set-up", None)
        self._begin(memory, places)
        self._end_when_collected()
        self.watch_peers()
        if self._ring.attached() == handle.readers:
            shared_memory.unlink(handle.name)  # everybody is in: nothing can leak any more
            if handle.arena is not None:
                shared_memory.unlink(handle.arena.name)

    def _begin(self, _memory: _core.Mapping, places: Places) -> None:
        """Begin to watch, and make what else stands on this seat."""
        self._watch.begin(self._ring, places)

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
            may_hold = peer.state in ("failed", "dropped") and not members.has_ended(peer, places)
            try:
                return attach(peer.seat, may_hold)
            except _core.SeatTaken:
                # Another was faster, or the writer has just dropped the dead one: look again.
                if may_hold and look()[index].seat == peer.seat:
                    raise AlreadyAttached(
                        f"{self.label}: index {index} of {self.handle.name}: process {peer.pid}, "
                        f"whose {self.reader_noun} ended without close(), still has views of the "
                        "arena (recv(copy=False)); let go of them, or end it first"
                    ) from None

    def _check_place(self, peer: _core.Peer, places: Places) -> None:
        """Raise AlreadyAttached if this reader can't take the place of `peer`."""
        where = f"{self.label}: index {peer.index} of {self.handle.name}"
        if peer.state == "left":
            raise AlreadyAttached(
                f"{where} has left in order, process {peer.pid}; only the place of a "
                f"{self.reader_noun} that died can be taken"
            )
        if peer.state in (*members.LIVING, "failed"):
            if peer.state != "failed" and not members.has_ended(peer, places):
                raise AlreadyAttached(
                    f"{where} is held by process {peer.pid}, which lives, or can't be seen from "
                    "here; end it first"
                )
            if not self.handle.drops_dead:
                raise AlreadyAttached(
                    f"{where} was taken by process {peer.pid}, and the {self.writer_noun} does not "
                    f'go on without it: make it with on_{self.reader_noun}_death="drop"'
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
            return self.messages[timeout, copy]
        except Exception as error:
            self.fail(error, timeout)

    def consume_in_part(self, timeout: float | None, copy: object) -> list[Received]:
        """Do what `consume` does where `copy` is no bool, for which `messages` has no room.

        Raises:
            InvalidArgument: `copy` is nothing that there is.
            ShmcastError: what `Reader.recv` raises.
        """
        kind = copied_kind(copy, f"{self.label}: recv")
        frames = self.consume(timeout, False)
        try:
            copy_of(kind, frames)
        except BaseException:
            self.keep(frames)
            raise
        return frames

    def not_decoded(self, error: BaseException) -> NoReturn:
        """Raise what it means that the frames which were kept last were not made an object.

        If it is an error of the codec, the message is consumed. If a signal's handler has raised
        it, the next `consume` returns the frames again.
        """
        try:
            pass_on(error)
            count = len(self._ring.discard())
            if not isinstance(error, Exception):
                raise error
            raise self.undecodable(f"{count} frame(s)", error) from error
        finally:
            del error  # in a cycle, it would hold what its traceback knows until it is collected

    def fail(self, error: Exception, timeout: float | None) -> NoReturn:
        """Raise what an error of `messages` means here; others pass unchanged."""
        try:
            self._note_time_out(error)
            if isinstance(error, MemoryError):
                raise self.undecodable("no memory for its frames", error) from error
            self._raise(error, "recv", timeout)
        finally:
            del error  # in a cycle, it would hold what its traceback knows until it is collected

    def _awaited(self) -> tuple[_core.Awaitable, Callable[[], int]]:
        return self._ring, _one

    def undecodable(self, what: str, error: Exception) -> DecodeError:
        """Make the error for a message that was consumed and can't be made an object."""
        return DecodeError(
            f"{self.label}: can't decode a message ({what}): {type(error).__name__}: {error}; it "
            "is consumed, the next recv gets the next message"
        )

    def _end_error(self, what: str) -> ShmcastError:
        try:
            self.check_peers()  # it may have ended because another has died
        except PeerDied as error:
            return error
        writer = self._ring.peers()[-1]
        if writer.state == "failed":
            return self._watch.died(writer, ENDED_WITHOUT_CLOSE)
        return super()._end_error(what)

    def statistics(self) -> Statistics:
        """Return what this reader has done so far. From any thread."""
        from shmcast._endpoints.statistics import Statistics  # (not to be imported at once)

        return Statistics(**self._ring.figures())


def _map_arena(arena: ArenaHandle, holder: int, rejoin: bool) -> _core.Mapping:
    fd = shared_memory.find(arena.name, arena.nbytes, (holder, arena.fd), rejoin)
    try:
        return shared_memory.map_arena(fd, arena.nbytes, writable=False)
    finally:
        os.close(fd)


class Messages(Protocol):
    """The messages of a ring, each to be had once.

    With a time-out and `copy` in brackets: see `FrameReader.consume`; anything else than a bool is
    a TypeError. With `copy` alone this is a
    look, which may return Ellipsis: see `_core.Awaitable`.
    """

    @overload
    def __getitem__(self, timeout_and_copy: tuple[float | None, Copy], /) -> list[Received]: ...
    @overload
    def __getitem__(self, look_copy: bool, /) -> list[Received] | EllipsisType: ...


class _PinnedMessages:
    """Gives back first what asynchronous copies to a GPU are done with."""

    def __init__(self, pinned: PinnedArena, ring: _core.RingReader) -> None:
        self._pinned = pinned
        self._ring = ring

    @overload
    def __getitem__(self, timeout_and_copy: tuple[float | None, Copy], /) -> list[Received]: ...
    @overload
    def __getitem__(self, look_copy: bool, /) -> list[Received] | EllipsisType: ...
    def __getitem__(
        self, call: tuple[float | None, Copy] | bool, /
    ) -> list[Received] | EllipsisType:
        self._pinned.release_finished()
        return self._ring[call]


def _one() -> int:
    return 1


def _default_label(readers: int, index: int) -> str:
    return f"reader {index}" if index < readers else "writer"
