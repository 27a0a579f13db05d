"""One object = one message: `Writer`, `Reader` and the `Handle` that brings them together.

Usable without torch.distributed: any way that brings a small picklable handle from the writer's
process to its readers will do.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from shmcast import _core, census, segment
from shmcast.codec import Codec, PickleCodec
from shmcast.errors import (
    AlreadyAttached,
    Closed,
    ConcurrentUse,
    DecodeError,
    EncodeError,
    Forked,
    InvalidArgument,
    MessageTooLarge,
    SegmentCorrupted,
    SegmentMismatch,
    ShmcastError,
    Timeout,
)
from shmcast.practice import Practice
from shmcast.waiting import CpuBudget, WaitPolicy, is_crowded

DEFAULT_SLOTS = 64
DEFAULT_SLOT_BYTES = 64 * 1024

_MAX_READERS = 4096

_Self = TypeVar("_Self", bound="_Endpoint")


@dataclass(frozen=True, slots=True)
class Handle:
    """What a reader needs to find the writer's segment. Small and picklable."""

    name: str
    """Name of the POSIX shared-memory segment."""
    nonce: bytes
    """16 random bytes that the segment must hold, so that no other is taken for it."""
    readers: int
    """Number of readers; each attaches once, with an index below this."""
    slots: int
    slot_bytes: int

    def _geometry(self) -> _core.Geometry:
        return _core.Geometry(self.readers, self.slots, self.slot_bytes)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an endpoint has done since it was made (a group of one rank counts messages only)."""

    messages: int = 0
    """Messages sent, or received whole."""
    payload_bytes: int = 0
    """Bytes of their frames."""
    fragments: int = 0
    """Slots filled or emptied for them."""
    abandoned: int = 0
    """Messages given up half-way, after a time-out or signal in the writer."""
    spins: int = 0
    """Waits that ended while spinning."""
    parks: int = 0
    """Times that the endpoint went to sleep: until woken, or until shortly before a message."""
    wakeups: int = 0
    """Sleeps that ended because what it waited for was there."""
    wakes: int = 0
    """System calls made to wake others."""
    preemptions: int = 0
    """Spins given up because the core was taken away (adaptive only)."""
    spun_seconds: float = 0.0
    """Time spent spinning."""
    parked_seconds: float = 0.0
    """Time spent asleep."""
    gap_seconds: float = 0.0
    """The median of the last gaps between messages, 0 until some are known. Bursts count as one."""
    lag: tuple[int, ...] = ()
    """Writer only: fragments that each reader has not consumed yet, by reader index."""
    readers: tuple[Statistics, ...] = ()
    """Writer only: what each reader has done, by reader index."""


class _Endpoint:
    """What a writer and a reader share: life cycle, context manager, errors that say who."""

    _ring: _core.RingWriter | _core.RingReader
    _finalizer: Callable[[], object]

    handle: Handle
    """Where readers find the writer's segment."""

    def __init__(
        self, readers: int, wait: WaitPolicy | None, codec: Codec | None, label: str
    ) -> None:
        wait = WaitPolicy.adaptive() if wait is None else wait
        override = WaitPolicy.from_environment()
        codec = PickleCodec() if codec is None else codec
        if not isinstance(wait, WaitPolicy):
            raise InvalidArgument(
                f"{label}: wait={wait!r} is not a WaitPolicy; use WaitPolicy.adaptive(), .spin() "
                "or .semaphore()"
            )
        for method in ("encode", "decode"):
            if not callable(getattr(codec, method, None)):
                raise InvalidArgument(f"{label}: codec={codec!r} has no method {method}()")
        self.wait_policy: WaitPolicy = override or wait
        """What this endpoint does while it waits, the operator's choice before the program's."""
        self._codec: Codec = codec
        self._label = label
        self._closed = False
        # (Not bound to self: the core would keep it alive, and it the core.)
        self._is_crowded = functools.partial(is_crowded, CpuBudget(), readers + 1)
        self._practice = Practice.with_sample_of(codec, label)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until every reader has attached. Sending and receiving need not wait for it.

        Args:
            timeout: seconds, None for ever.

        Raises:
            Timeout: some reader is still missing.
            Closed: this endpoint is closed, or the writer has closed.
            InvalidArgument: `timeout` is negative or no number; so for every call that has one.
        """
        try:
            self._ring.wait_ready(timeout)
        except _core.TimedOut:
            raise Timeout(
                f"{self._label}: after {timeout} s {self._ring.attached()} of "
                f"{self.handle.readers} readers have attached; each needs a "
                "Reader(handle, index) of its own, in a process of this host"
            ) from None
        except Exception as error:
            self._raise(error, "wait_ready", timeout)

    @property
    def closed(self) -> bool:
        """Whether `close` was called on this endpoint."""
        return self._closed

    def close(self) -> None:
        """Ends this endpoint; idempotent. A call that waits in another thread raises `Closed`.

        Of a writer's messages, readers receive those that were sent, and then `Closed`.
        """
        self._closed = True
        self._finalizer()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self._label}: an endpoint can't be pickled; send its `handle` instead and make a "
            "Reader(handle, index) where it arrives"
        )

    def _raise(self, error: Exception, action: str, timeout: float | None) -> NoReturn:
        """Says what an error of the core means here, and what to do. Others pass unchanged."""
        who = self._label
        known: ShmcastError
        match error:
            case _core.TimedOut():
                known = Timeout(f"{who}: {action} timed out after {timeout} s{self._suspects()}")
            case _core.EndpointClosed() if self._closed:
                known = Closed(f"{who}: {action} after close(); make a new endpoint")
            case _core.EndpointClosed():
                known = Closed(f"{who}: {action}: {self._peer_closed}")
            case _core.ConcurrentUse():
                known = ConcurrentUse(
                    f"{who}: {action} while another thread is inside this endpoint; give each "
                    "thread an endpoint of its own, or guard this one with a lock"
                )
            case _core.Forked():
                known = Forked(
                    f"{who}: {action} in a process forked from the one that made this endpoint; "
                    "start processes with spawn and make a Reader(handle, index) in each"
                )
            case _core.MessageTooLarge():
                known = MessageTooLarge(f"{who}: {error}; send it in parts")
            case _core.BadTimeout():
                known = InvalidArgument(
                    f"{who}: {action}: timeout={timeout!r} must be None or a number of seconds >= 0"
                )
            case _core.SegmentCorrupted():
                known = SegmentCorrupted(f"{who}: segment {self.handle.name}: {error}")
            case _:
                raise error
        raise known from None

    _peer_closed: str

    def _suspects(self) -> str:
        return ""


class Writer(_Endpoint):
    """Sends objects to a fixed number of readers on this host, to each all of them and in order.

    Making one creates the shared-memory segment. Its name is gone from /dev/shm as soon as all
    readers have attached, or when the writer is closed, collected or its interpreter exits.

    Args:
        readers: how many readers will attach (1 to 4096).
        slots: slots of the ring, a power of two: as many small messages can be on their way.
        slot_bytes: payload bytes of one slot, a multiple of 128. Larger messages are streamed
            through several slots.
        wait: what to do while the ring is full; `WaitPolicy.adaptive()` by default.
        codec: turns objects into frames; `PickleCodec()` by default. Readers need its like.
        label: how errors name this endpoint.
        reader_label: how errors name the reader of an index; "reader `index`" by default.

    Raises:
        InvalidArgument: an argument out of range or of the wrong kind.
        SharedMemoryFull: no room for the segment, about `slots * slot_bytes`.
    """

    _ring: _core.RingWriter
    _peer_closed = "every reader has closed, nobody is left to receive"

    def __init__(
        self,
        readers: int,
        *,
        slots: int = DEFAULT_SLOTS,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        label: str = "writer",
        reader_label: Callable[[int], str] = "reader {}".format,
    ) -> None:
        _check_int("readers", readers, 1, _MAX_READERS, label)
        _check_int("slots", slots, 2, 2**20, label)
        _check_int("slot_bytes", slot_bytes, 128, 2**30, label)
        if slots & (slots - 1):
            raise InvalidArgument(f"{label}: slots={slots} is not a power of two")
        if slot_bytes % 128:
            raise InvalidArgument(f"{label}: slot_bytes={slot_bytes} is not a multiple of 128")
        super().__init__(readers, wait, codec, label)
        self._reader_label = reader_label
        geometry = _core.Geometry(readers, slots, slot_bytes)
        nonce = os.urandom(16)
        name, memory = segment.create(geometry.segment_bytes)
        self.handle = Handle(name, nonce, readers, slots, slot_bytes)
        self._ring = _core.RingWriter(
            memory, geometry, nonce, self.wait_policy._for_core(), self._is_crowded
        )
        # Bound once: in a decode loop every look-up on the way is a cache miss.
        self._encode = self._codec.encode
        self._publish = self._ring.publish
        self._finalizer = weakref.finalize(
            self, _end_writer, self._ring, name, os.getpid(), census.enter()
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
            ConcurrentUse: another thread is inside this writer.
            Forked: this process was forked from the writer's.
            MessageTooLarge: more than 1 TiB, or more than 8 388 607 frames.
        """
        try:
            frames = self._encode(obj)
        except Exception as error:
            raise EncodeError(
                f"{self._label}: can't encode a {type(obj).__qualname__}: "
                f"{type(error).__name__}: {error}; nothing was sent"
            ) from error
        try:
            self._publish(frames, timeout)
        except (TypeError, BufferError) as error:
            raise EncodeError(
                f"{self._label}: {type(self._codec).__qualname__}.encode must return a sequence of "
                f"contiguous buffers: {error}; nothing was sent"
            ) from error
        except Exception as error:
            self._raise(error, "send", timeout)

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
            lag=tuple(self._ring.lags()),
            readers=tuple(Statistics(**figures) for figures in self._ring.reader_figures()),
        )

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


class Reader(_Endpoint):
    """Receives the objects of one writer on this host, all of them and in order.

    Args:
        handle: the writer's `handle`.
        index: this reader's number, from 0 to `handle.readers` - 1; each is taken once.
        wait: what to do while there is no message; `WaitPolicy.adaptive()` by default.
        codec: turns frames into objects; `PickleCodec()` by default.
        label: how errors name this endpoint; "reader `index`" by default.

    Raises:
        InvalidArgument: the index is out of range, or another argument of the wrong kind.
        AlreadyAttached: the index is taken, or was.
        SegmentNotFound: there is no such segment on this host, or not any more.
        SegmentMismatch: the segment found is not the one that the handle speaks of.
    """

    _ring: _core.RingReader
    _peer_closed = "the writer has closed and all its messages were received"

    def __init__(
        self,
        handle: Handle,
        index: int,
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        label: str | None = None,
    ) -> None:
        label = f"reader {index}" if label is None else label
        if not isinstance(handle, Handle):
            raise InvalidArgument(f"{label}: handle={handle!r} is not a Handle; pass writer.handle")
        _check_int("index", index, 0, handle.readers - 1, label)
        super().__init__(handle.readers, wait, codec, label)
        self.handle = handle
        geometry = handle._geometry()
        memory = segment.attach(handle.name, geometry.segment_bytes)
        try:
            self._ring = _core.RingReader(
                memory,
                geometry,
                handle.nonce,
                index,
                self.wait_policy._for_core(),
                self._is_crowded,
                self._practice.receive if self._practice else None,
            )
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
        self._consume = self._ring.consume  # bound once, as in Writer
        self._decode = self._codec.decode
        # Closed in time also when the interpreter exits: the writer then waits for us no longer.
        self._finalizer = weakref.finalize(self, _end_reader, self._ring, census.enter())
        if self._ring.attached() == handle.readers:
            segment.unlink(handle.name)  # everybody is in: nothing can leak any more

    def recv(self, timeout: float | None = None) -> Any:
        """The next object.

        Args:
            timeout: seconds to wait for it, None for ever, 0 to look only.

        Raises:
            Timeout: no whole message came in time; nothing is lost, call again.
            Closed: this reader is closed, or the writer is and all was received.
            DecodeError: the codec can't decode this message; the next call gets the next one.
            ConcurrentUse: another thread is inside this reader.
            Forked: this process was forked from the reader's.
        """
        try:
            frames = self._consume(timeout)
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


def _check_int(name: str, value: int, low: int, high: int, label: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgument(f"{label}: {name}={value!r} must be an integer from {low} to {high}")


def _end_writer(ring: _core.RingWriter, name: str, pid: int, seat: census.Seat) -> None:
    """Closes a writer and removes its segment's name, unless in a fork of its process."""
    if os.getpid() == pid:
        ring.close()
        segment.unlink(name)
        seat.leave()


def _end_reader(ring: _core.RingReader, seat: census.Seat) -> None:
    ring.close()
    seat.leave()
