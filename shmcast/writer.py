"""`Writer`: the end of a ring that sends."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from shmcast import _core, census, liveness, segment
from shmcast.codec import Codec, Frame
from shmcast.endpoint import (
    DEFAULT_WARN_AFTER,
    ArenaHandle,
    Endpoint,
    Handle,
    Statistics,
    check_int,
    check_shape,
)
from shmcast.errors import Closed, DeviceError, EncodeError, InvalidArgument, PeerDied, ShmcastError
from shmcast.loans import Lender, Shape
from shmcast.waiting import WaitPolicy

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

DEFAULT_SLOTS = 64
DEFAULT_SLOT_BYTES = 64 * 1024

_PAGE_BYTES = 4096
_MIN_ARENA_BYTES = 256 * 1024
_MAX_ARENA_BYTES = 2**40 - _PAGE_BYTES


class Writer(Endpoint):
    """Sends objects to a fixed number of readers on this host, to each all of them and in order.

    Making one creates the shared-memory segment. Its name is gone from /dev/shm as soon as all
    readers have attached, or when the writer is closed, collected or its interpreter exits.

    Args:
        readers: how many readers will attach (1 to 4096).
        slots: slots of the ring, a power of two: as many small messages can be on their way.
        slot_bytes: payload bytes of one slot, a multiple of 128. Larger messages are streamed
            through several slots.
        arena_bytes: most bytes of shared memory for the arena, at least 256 KiB; 0: there is none.
            It takes the buffers of 256 KiB and more beside a message's first frame (the pickle), as
            long as there is room, and readers can use them where they lie:
            `Reader.recv(copy=False)`. Memory is taken when it is first needed, and kept.
        pin: register the arena with CUDA, so that copies from loans to a GPU are asynchronous
            (`non_blocking=True`). All of its memory is then taken at once.
        wait: what to do while the ring is full; `WaitPolicy.adaptive()` by default.
        codec: turns objects into frames; `PickleCodec()` by default. Readers need its like.
        on_reader_death: "raise": a reader that dies ends the waits of all others, in `PeerDied`.
            "drop": the others go on without it, and another process may take its place with
            `Reader(handle, index, rejoin=True)`.
        warn_after: seconds; when a wait lasts longer, the log tells who is slow. None: never.
        label: how errors name this endpoint.
        reader_label: how errors name the reader of an index; "reader `index`" by default.

    Raises:
        InvalidArgument: an argument out of range or of the wrong kind.
        SharedMemoryFull: no room for the segment, about `slots * slot_bytes`.
    """

    _ring: _core.RingWriter

    def __init__(
        self,
        readers: int,
        *,
        slots: int = DEFAULT_SLOTS,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        arena_bytes: int = 0,
        pin: bool = False,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        on_reader_death: Literal["raise", "drop"] = "raise",
        warn_after: float | None = DEFAULT_WARN_AFTER,
        label: str = "writer",
        reader_label: Callable[[int], str] = "reader {}".format,
    ) -> None:
        check_shape(readers, slots, slot_bytes, label)
        check_int("arena_bytes", arena_bytes, 0, _MAX_ARENA_BYTES, label)
        if 0 < arena_bytes < _MIN_ARENA_BYTES:
            raise InvalidArgument(
                f"{label}: arena_bytes={arena_bytes} is less than the smallest buffer that would "
                f"lie there, {_MIN_ARENA_BYTES}; pass 0 for no arena"
            )
        if on_reader_death not in ("raise", "drop"):
            raise InvalidArgument(
                f'{label}: on_reader_death={on_reader_death!r} is neither "raise" nor "drop"'
            )
        super().__init__(readers, wait, codec, label, warn_after)
        self._reader_label = reader_label
        drops = on_reader_death == "drop"
        self._watch = liveness.Watch(
            readers, label, reader_label, readers, drops, warn_after, self._alarm()
        )
        with contextlib.ExitStack() as undo:  # what is made before something fails
            arena, mapping = None, None
            if arena_bytes:
                nbytes = arena_bytes // _PAGE_BYTES * _PAGE_BYTES
                arena_name, arena_fd = segment.create_unreserved(nbytes)
                arena = ArenaHandle(arena_name, nbytes, arena_fd)
                undo.callback(os.close, arena.fd)
                undo.callback(segment.unlink, arena.name)
                mapping = _core.Mapping(arena.fd, nbytes, True)
                self._pin(pin, mapping, nbytes, is_writer=True)
            elif pin:
                raise InvalidArgument(f"{label}: pin=True needs an arena; pass arena_bytes=")
            geometry = _core.Geometry(readers, slots, slot_bytes, _core.EXTENTS if arena else 0)
            nonce = os.urandom(16)
            name, memory, fd = segment.create(geometry.segment_bytes)
            undo.pop_all()
        self.handle = Handle(
            name, nonce, readers, slots, slot_bytes, (os.getpid(), fd), drops, arena
        )
        self._ring = _core.RingWriter(
            memory,
            geometry,
            nonce,
            self.wait_policy._for_core(),
            self._is_crowded,
            self._watch,
            liveness.identity(),
            mapping,
        )
        self._lender: Lender | None = None  # there is one from the first loan on
        # Bound once: in a decode loop every look-up on the way is a cache miss.
        self._encode = self._codec.encode
        self._publish = self._ring.publish
        self._finalizer = weakref.finalize(
            self, _end_writer, self._ring, self._watch, self.handle, census.enter()
        )

    def send(self, obj: Any, timeout: float | None = None) -> None:
        """Sends `obj` to every reader. Returns when it is in the ring, not when it was read.

        Either all readers can receive the whole message, or (when this raises) none will.

        Args:
            obj: anything that the codec can encode.
            timeout: seconds to wait for room in the ring, None for ever.

        Raises:
            EncodeError: the codec can't encode `obj`; nothing was sent.
            Timeout: the ring stayed full: a reader is slow, stopped or never attached.
            Closed: this writer is closed, or every reader is.
            PeerDied: there is no room, and a reader has died; dropping them, the last one.
            ConcurrentUse: another thread is inside this writer.
            Forked: this process was forked from the writer's.
            MessageTooLarge: more than 1 TiB, or more than 8 388 607 frames.
        """
        self._send(obj, timeout)

    def _send(self, obj: Any, timeout: float | None) -> Sequence[Frame]:
        """`send`, which returns what the codec has made of the object."""
        if self._lender is not None:
            self._lender.forget_views()
        try:
            frames = self._encode(obj)
        except DeviceError:
            raise
        except Exception as error:
            raise EncodeError.of(obj, error, self._label) from error
        try:
            self._publish(frames, timeout)
        except (TypeError, BufferError) as error:
            raise EncodeError(
                f"{self._label}: {type(self._codec).__qualname__}.encode must return a sequence of "
                f"contiguous buffers: {error}; nothing was sent"
            ) from error
        except Exception as error:
            self._raise(error, "send", timeout)
        if self._lender is not None:
            self._lender.freeze_sent()
        return frames

    def empty(self, shape: Shape, dtype: npt.DTypeLike = float) -> npt.NDArray[Any]:
        """An uninitialised array in the arena: a loan, to be filled and sent without any copy.

        It travels so in whatever object it is sent, as do views of it that take 4 KiB or more.
        From `send` on it is frozen, that is read-only, until every reader is done with it: its
        memory is theirs, too. `thaw` asks for that; each `send` looks, too. A view that was made
        before and was not itself in the message stays writable: don't. A frozen loan can be sent
        again. It may be dropped at any time, sent or not. Another writer copies it, as it would
        any array, and does not freeze it.

        Args:
            shape: of the array; an integer or a sequence of such.
            dtype: any without Python objects.

        Returns:
            An array that owns a part of the arena, aligned to 4 KiB; or one in ordinary memory,
            if the arena has no room (counted in `statistics().arena_full`) or there are no bytes.

        Raises:
            InvalidArgument: this writer has no arena, or there is no such shape or dtype.
            Closed: this writer is closed.
            ConcurrentUse: another thread is inside this writer.
            Forked: this process was forked from the writer's.
        """
        lender = self._lending("empty")
        try:
            return lender.empty(shape, dtype)
        except Exception as error:
            self._raise(error, "empty", None)

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`empty` as a tensor on the CPU.

        torch has no read-only tensors: that a frozen one is not written to is the program's
        business. If it is, that is noticed later (where autograd counts what is written, so not in
        inference mode), in a `ShmcastWarning`.

        Args:
            shape: of the tensor; an integer or a sequence of such.
            dtype: any; torch's default dtype if None.

        Raises:
            ShmcastError: what `empty` raises.
        """
        lender = self._lending("empty_tensor")
        try:
            return lender.empty_tensor(shape, dtype)
        except Exception as error:
            self._raise(error, "empty_tensor", None)

    def thaw(self, array: npt.NDArray[Any] | torch.Tensor) -> bool:
        """Whether every reader is done with a loan. It is then as if it had not been sent.

        Never waits. Readers that have died are done. True, too, of an array in ordinary memory, as
        `empty` gives when the arena has no room: what was sent of it are copies.

        Args:
            array: an array of `empty` or `empty_tensor`, or a view of one.

        Raises:
            InvalidArgument: it is no array or tensor.
            ShmcastError: what `empty` raises.
        """
        lender = self._lending("thaw")
        try:
            return lender.thaw(array)
        except Exception as error:
            self._raise(error, "thaw", None)

    def _lending(self, action: str) -> Lender:
        if self._lender is None:
            if self.handle.arena is None:
                raise InvalidArgument(
                    f"{self._label}: {action}() needs an arena; make the writer with arena_bytes="
                )
            self._lender = Lender(self._ring, self._label, self._pinned)
        return self._lender

    def warm(self) -> None:
        """Makes the next `send` faster, by practising on a message that nobody receives.

        To be called shortly before it, when there is time: while the driver waits for its GPU, say.
        After some milliseconds of other work a small `send` costs several times as much as right
        after another, because the caches have forgotten it; so has the branch predictor. A few µs
        when warm. Readers notice nothing. Without the codec's `sample()` it does much less.

        Raises:
            Closed: this writer is closed.
            ConcurrentUse: another thread is inside this writer.
            Forked: this process was forked from the writer's.
        """
        try:
            if self._practice is not None:
                self._practice.send()
            self._ring.fetch_ahead()
        except Exception as error:
            self._raise(error, "warm", None)

    def statistics(self) -> Statistics:
        """What this writer and each of its readers have done so far. From any thread."""
        return Statistics(
            **self._ring.figures(),
            arena_reserved_bytes=self._ring.arena_reserved(),
            lag=tuple(self._ring.lags()),
            readers=tuple(Statistics(**figures) for figures in self._ring.reader_figures()),
        )

    def _ended(self, what: str) -> ShmcastError:
        dropped = [peer for peer in self._ring.peers() if peer.state == "dropped"]
        if dropped:
            name, pid = self._reader_label(dropped[0].index), dropped[0].pid
            return PeerDied(
                f"{what}: every reader has died or closed, nobody is left to receive; "
                f"{len(dropped)} died, the first of them {name} (pid {pid})",
                name,
                pid,
                "",
            )
        return Closed(f"{what}: every reader has closed, nobody is left to receive")

    def _suspects(self) -> str:
        behind = [
            f"{self._reader_label(reader)} is {lag} fragments behind"
            for reader, lag in enumerate(self._ring.lags())
            if lag
        ]
        return (
            f": the ring of {self.handle.slots} slots is full; {', '.join(behind)}; "
            f"{self._ring.attached()} of {self.handle.readers} readers have attached"
        )


def _end_writer(
    ring: _core.RingWriter,
    watch: liveness.Watch,
    handle: Handle,
    seat: census.Seat,
) -> None:
    """Closes a writer and removes its segments' names, unless in a fork of its process."""
    pid, fd = handle.holder
    if os.getpid() == pid:
        ring.close()
        segment.unlink(handle.name)
        os.close(fd)
        if handle.arena:
            segment.unlink(handle.arena.name)
            os.close(handle.arena.fd)
        watch.close()
        seat.leave()
