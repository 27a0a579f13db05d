"""`FrameWriter`: the end of a ring that publishes frames, whatever is in them."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from shmcast import _core
from shmcast._codecs.base import Frame
from shmcast._endpoints.arguments import PAGE_BYTES, check_memory, check_shape
from shmcast._endpoints.description import Description
from shmcast._endpoints.ending import setting_up
from shmcast._endpoints.frame_end import CORE_ERRORS, DEFAULT_WARN_AFTER, FrameEnd
from shmcast._endpoints.handle import ArenaHandle, Handle, geometry_of
from shmcast._endpoints.loans import Lender, Shape
from shmcast._endpoints.members import identity
from shmcast._endpoints.peers import Watch
from shmcast._endpoints.waiting import WaitPolicy, core_policy
from shmcast._host import shared_memory
from shmcast._host.places import Places
from shmcast._host.signals import add_note, is_interruption
from shmcast._host.words import counted
from shmcast.errors import Closed, InvalidArgument, PeerDied, ShmcastError, ShmcastWarning

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._endpoints.statistics import Statistics

DEFAULT_SLOTS = 256
DEFAULT_SLOT_BYTES = 16 * 1024
DEFAULT_SPILL_BYTES = 1 << 30


class FrameWriter(FrameEnd):
    """Makes a segment and publishes messages of frames in it, to each reader all and in order.

    It takes the arguments of `Writer`, which stands on it, but for the codec, and raises the same.
    """

    _ring: _core.RingWriter
    _ring_type = _core.RingWriter

    def __init__(
        self,
        readers: int,
        *,
        slots: int = DEFAULT_SLOTS,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        arena_bytes: int = 0,
        spill_bytes: int = DEFAULT_SPILL_BYTES,
        pin: bool = False,
        wait: WaitPolicy | None = None,
        on_reader_death: Literal["raise", "drop"] = "raise",
        warn_after: float | None = DEFAULT_WARN_AFTER,
        on_death: Callable[[PeerDied], object] | None = None,
        linger: float = 0.0,
        switch_interval: float | None = None,
        label: str = "writer",
        reader_label: Callable[[int], str] = "reader {}".format,
        description: Description | None = None,
    ) -> None:
        if not (isinstance(linger, int | float) and 0 <= linger < math.inf):
            raise InvalidArgument(
                f"{label}: linger={linger!r} is no number of seconds >= 0, which must end"
            )
        readers, slots, slot_bytes = check_shape(readers, slots, slot_bytes, label)
        arena_bytes, spill_bytes = check_memory(arena_bytes, spill_bytes, label)
        if on_reader_death not in ("raise", "drop"):
            raise InvalidArgument(
                f'{label}: on_reader_death={on_reader_death!r} is neither "raise" nor "drop"'
            )
        if on_death is not None and not (callable(on_death) and on_reader_death == "drop"):
            raise InvalidArgument(
                f"{label}: on_death={on_death!r} must be callable, and is for a "
                f'{self.writer_noun} that goes on: pass on_{self.reader_noun}_death="drop"; '
                "otherwise send() raises PeerDied"
            )
        super().__init__(wait, label, warn_after, switch_interval)
        self._reader_label = reader_label
        self._linger = linger
        self._description = description or Description(label)
        self._files: list[shared_memory.SegmentFile] = []
        drops = on_reader_death == "drop"
        with setting_up(label, self._ending):
            names = self._named_by(f"{self.reader_noun}_label", reader_label)
            self._watch = Watch(
                readers, label, names, readers, drops, self.warn_after,
                on_death=None if on_death is None else self._told_by(on_death),
            )  # fmt: skip
            self._set_up(readers, slots, slot_bytes, arena_bytes, spill_bytes, pin, drops)
        self._lender: Lender | None = None  # there is one from the first loan on
        self.outbox: Outbox = self._ring
        """What `publish` does, for a hot path that gives its errors to `not_published`: frames are
        put under a time-out. After a call Python would look for signals, and the error of a handler
        would say that nothing was sent; after an assignment it does not."""
        self._freezing = _Freezing(self._ring) if arena_bytes else None
        if self._freezing is not None:
            self.outbox = self._freezing

    def _set_up(
        self,
        readers: int,
        slots: int,
        slot_bytes: int,
        arena_bytes: int,
        spill_bytes: int,
        pin: bool,
        drops: bool,
    ) -> None:
        """Make the segments and the ring; whatever there is to end is in `_ending` at once."""
        self._ending.add(self._watch.close)
        arena, mapping = None, None
        if arena_bytes:
            nbytes = arena_bytes // PAGE_BYTES * PAGE_BYTES
            name, fd, lock = shared_memory.create_unreserved(nbytes)
            arena_file = shared_memory.SegmentFile(name, fd)
            self._ending.add(arena_file.unlink, arena_file.close)
            if lock is not None:
                self._ending.add(lock.release)
            self._files.append(arena_file)
            arena = ArenaHandle(arena_file.name, nbytes, arena_file.fd)
            mapping = shared_memory.map_arena(arena.fd, nbytes, writable=True)
            self._pin(pin, mapping, nbytes, is_writer=True)
        elif pin:
            raise InvalidArgument(f"{self.label}: pin=True needs an arena; pass arena_bytes=")
        spill_bytes = spill_bytes // PAGE_BYTES * PAGE_BYTES
        bare = Handle("", b"", readers, slots, slot_bytes, (0, 0), drops, arena, spill_bytes)
        geometry, spill = geometry_of(self._handle(bare)), None
        nonce = os.urandom(16)
        name, memory, fd = shared_memory.create(geometry.segment_bytes)
        self._unpopulated = memory.mapping
        file = shared_memory.SegmentFile(name, fd)
        self._ending.add(file.unlink, file.close)
        self._files.append(file)
        if spill_bytes:
            spill = shared_memory.add_spill(fd, geometry.spill_offset, spill_bytes)
            if spill is None:
                spill_bytes = 0
        self.handle: Handle = self._handle(
            dataclasses.replace(
                bare, name=name, nonce=nonce, holder=(os.getpid(), fd), spill_bytes=spill_bytes
            )
        )
        places = Places(fd)
        with places.holding(readers) as lock:
            self._ring = self._ring_type(
                memory.mapping,
                geometry_of(self.handle),
                nonce,
                core_policy(self.wait_policy),
                self._cpu_quota,
                self._watch,
                identity(lock),
                mapping,
                spill,
                *self._description.arguments(self.label),
            )
            self._ring.hold(lock)
        self._begin(memory.mapping, places)
        self._end_when_collected()

    def _handle(self, ring: Handle) -> Handle:
        """Return the handle that leads to a ring, and to what else stands on it."""
        return ring

    def _begin(self, _memory: _core.Mapping, places: Places) -> None:
        """Begin to watch, and make what else stands on this segment."""
        self._watch.begin(self._ring, places)

    def _told_by(self, on_death: Callable[[PeerDied], object]) -> Callable[[PeerDied], None]:
        """Keep what is told of deaths, and return what calls it; see `_named_by`."""
        self._on_death = on_death
        me = weakref.ref(self)

        def tell(error: PeerDied) -> None:
            end = me()
            if end is not None:
                end._on_death(error)  # noqa: SLF001

        return tell

    def publish(self, frames: Sequence[Frame], timeout: float | None = None) -> None:
        """Publish one message: to all readers or, if this raises, to none.

        Args:
            frames: contiguous buffers, any number; their memory is read before this returns.
            timeout: seconds to wait for room in the ring, None for ever.

        Raises:
            TypeError, BufferError: `frames` is no sequence of contiguous buffers.
            ShmcastError: what `Writer.send` raises.
        """
        try:
            self.outbox[timeout] = frames
        except BaseException as error:
            self.not_published(error, timeout)

    @property
    def was_sent(self) -> bool:
        """Whether the last `publish` published its message; see `Writer.was_sent`."""
        return self._ring.is_sent()

    def not_published(self, error: BaseException, timeout: float | None, /) -> NoReturn:
        """Raise what an error of `outbox` means here; others pass unchanged."""
        try:
            if isinstance(error, CORE_ERRORS):
                self._raise(error, "send", timeout)
            is_sent = self._ring.is_sent()
            if self._freezing is not None:
                is_sent = self._freezing.has_sent_more()
                if not is_sent:
                    self._ring.forget_sent()
                elif self._lender is not None:
                    self._lender.freeze_sent()  # to the end: what is sent must not be written to
            if is_interruption(error):
                how = "had sent its message" if is_sent else "has sent nothing"
                add_note(error, f"{self.label}: the send that this interrupted {how}")
            raise error
        finally:
            del error  # in a cycle, it would hold what was to be sent until it is collected

    def not_encoded(self) -> None:
        """Note that the object which was to be sent has not become frames: `was_sent` is False."""
        self._ring.forget_sent()

    def forget_views(self) -> None:
        """Forget the views of loans that were seen in an object which will not be published."""
        if self._lender is not None:
            self._lender.forget_views()

    def empty(self, shape: Shape, dtype: npt.DTypeLike = float) -> npt.NDArray[Any]:
        """Lend an array in the arena; see `Writer.empty`."""
        lender = self._lending("empty")
        try:
            return lender.empty(shape, dtype)
        except Exception as error:
            self._raise(error, "empty", None)

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Lend a tensor in the arena; see `Writer.empty_tensor`."""
        lender = self._lending("empty_tensor")
        try:
            return lender.empty_tensor(shape, dtype)
        except Exception as error:
            self._raise(error, "empty_tensor", None)

    def thaw(self, array: npt.NDArray[Any] | torch.Tensor) -> bool:
        """Return whether every reader is done with a loan; see `Writer.thaw`."""
        lender = self._lending("thaw")
        if self._closed:
            raise Closed(f"{self.label}: thaw after close(); make a new endpoint")
        try:
            return lender.thaw(array)
        except Exception as error:
            self._raise(error, "thaw", None)

    def _lending(self, action: str) -> Lender:
        if self._lender is None:
            if self._freezing is None:
                raise InvalidArgument(
                    f"{self.label}: {action}() needs an arena; make the {self.writer_noun} with "
                    "arena_bytes="
                )
            self._lender = Lender(self._ring, self.label, self._pinned)
            self._freezing.lender = self._lender
        return self._lender

    def warm(self, warmup: Callable[[], None] | None = None) -> None:
        """Bring what the next `publish` touches into this core's cache.

        Args:
            warmup: warms up what comes before `publish`; None: nothing.
        """
        try:
            self._ring.warm(warmup)
        except Exception as error:
            self._raise(error, "warm", None)

    def statistics(self) -> Statistics:
        """Return what this writer and each of its readers have done so far. From any thread."""
        from shmcast._endpoints.statistics import Statistics  # (not to be imported at once)

        figures: dict[str, Any] = {**self._ring.figures(), **self._ring.memory_figures()}
        return Statistics(
            **figures,
            lag=tuple(self._ring.lags()),
            readers=tuple(Statistics(**figures) for figures in self._ring.reader_figures()),
        )

    def dropped(self) -> dict[int, PeerDied]:
        """Return how the readers have died that are dropped and not replaced, by index."""
        states = [peer.state for peer in self._ring.peers()]
        deaths = {**self._watch.dropped}
        return {index: error for index, error in deaths.items() if states[index] == "dropped"}

    def close(self) -> None:
        """End this end; first wait for readers to attach, if there is something for them."""
        if self._linger and not self._closed:
            self._wait_for_late_readers()
        super().close()

    def _wait_for_late_readers(self) -> None:
        """Wait until all have attached who would otherwise miss what was sent, or `linger` ends."""
        sent = self._ring.figures()["messages"]
        if not sent or self._ring.attached() == self.handle.readers:
            return
        try:
            self._ring.wait_ready(self._linger)
        except _core.TimedOut:
            warnings.warn(
                f"{self.label}: closed although {self._ring.attached()} of {self.handle.readers} "
                f"{self.reader_noun}s have attached in {self._linger} s: {sent} messages are lost "
                "to the others",
                ShmcastWarning,
                stacklevel=4,
            )
        except (_core.EndpointClosed, _core.ConcurrentUse, _core.Forked, ShmcastError):
            pass  # there is nobody left to wait for, or it is not for this thread to wait

    def reader_pids(self) -> list[int]:
        """Return the pids of those who have attached, also if they have ended. From any thread."""
        return [peer.pid for peer in self._ring.peers()[:-1] if peer.pid]

    def present_readers(self) -> list[int]:
        """Return the indices of the readers that have neither closed nor been dropped."""
        return [p.index for p in self._ring.peers()[:-1] if p.state not in ("left", "dropped")]

    def _at_exit(self) -> None:
        super()._at_exit()
        for file in self._files:
            file.unlink()

    def _end_error(self, what: str) -> ShmcastError:
        dropped = [peer for peer in self._ring.peers() if peer.state == "dropped"]
        if dropped:
            name, pid = self._reader_label(dropped[0].index), dropped[0].pid
            return PeerDied(
                f"{what}: every {self.reader_noun} has died or closed, nobody is left to receive; "
                f"{len(dropped)} died, the first of them {name} (pid {pid})",
                name,
                pid,
                "",
            )
        return Closed(f"{what}: every {self.reader_noun} has closed, nobody is left to receive")

    def _blocked_on(self, _action: str) -> str:
        behind = [
            f"{self._reader_label(reader)} is {counted(lag, 'fragment')} behind"
            for reader, lag in enumerate(self._ring.lags())
            if lag
        ]
        return (
            f": the ring of {self.handle.slots} slots is full; {', '.join(behind)}; "
            f"{self._ring.attached()} of {self.handle.readers} {self.reader_noun}s have attached"
            f"{self._watch.long_waits.advice and f'; {self._watch.long_waits.advice}'}"
        )

    def advise(self, advice: str) -> None:
        """Say this, too, wherever it is told that there is no room."""
        self._watch.long_waits.advice = advice


class Outbox(Protocol):
    """Where frames are put to be published, under a time-out in seconds."""

    def __setitem__(self, timeout: float | None, frames: Sequence[Frame], /) -> None:
        """Publish one message; see `FrameWriter.publish`."""


class _Freezing:
    """Freezes the loans that were sent."""

    def __init__(self, ring: _core.RingWriter) -> None:
        self._ring = ring
        self._sent = 0  # messages, and frozen
        self.lender: Lender | None = None

    def has_sent_more(self) -> bool:
        """Return whether a message was sent that this has not done with: it was interrupted then.

        (To ask the ring about the last one would not do: a signal may also come before this one.)
        """
        known, self._sent = self._sent, self._ring.figures()["messages"]
        return known != self._sent

    def __setitem__(self, timeout: float | None, frames: Sequence[Frame], /) -> None:
        self._ring[timeout] = frames
        if self.lender is not None:
            self.lender.freeze_sent()
        self._sent += 1  # last: what was interrupted is frozen by `not_published`
