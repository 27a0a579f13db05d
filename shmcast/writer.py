"""`Writer`: the end of a ring that sends."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

from shmcast import _core, census, liveness, segment
from shmcast.codec import Codec, Frame
from shmcast.endpoint import DEFAULT_WARN_AFTER, Endpoint, Handle, Statistics, check_shape
from shmcast.errors import Closed, DeviceError, EncodeError, InvalidArgument, PeerDied, ShmcastError
from shmcast.waiting import WaitPolicy

DEFAULT_SLOTS = 64
DEFAULT_SLOT_BYTES = 64 * 1024


class Writer(Endpoint):
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
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        on_reader_death: Literal["raise", "drop"] = "raise",
        warn_after: float | None = DEFAULT_WARN_AFTER,
        label: str = "writer",
        reader_label: Callable[[int], str] = "reader {}".format,
    ) -> None:
        check_shape(readers, slots, slot_bytes, label)
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
        geometry = _core.Geometry(readers, slots, slot_bytes)
        nonce = os.urandom(16)
        name, memory, fd = segment.create(geometry.segment_bytes)
        self.handle = Handle(name, nonce, readers, slots, slot_bytes, (os.getpid(), fd), drops)
        self._ring = _core.RingWriter(
            memory,
            geometry,
            nonce,
            self.wait_policy._for_core(),
            self._is_crowded,
            self._watch,
            liveness.identity(),
        )
        # Bound once: in a decode loop every look-up on the way is a cache miss.
        self._encode = self._codec.encode
        self._publish = self._ring.publish
        self._finalizer = weakref.finalize(
            self, _end_writer, self._ring, self._watch, name, self.handle.holder, census.enter()
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
        try:
            frames = self._encode(obj)
        except DeviceError:
            raise
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
        return frames

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
    name: str,
    holder: tuple[int, int],
    seat: census.Seat,
) -> None:
    """Closes a writer and removes its segment's name, unless in a fork of its process."""
    pid, fd = holder
    if os.getpid() == pid:
        ring.close()
        segment.unlink(name)
        os.close(fd)
        watch.close()
        seat.leave()
