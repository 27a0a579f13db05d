"""`FrameWriter`: the end of a ring that publishes frames, whatever is in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from shmcast import _core
from shmcast._codecs.base import Frame
from shmcast._endpoints.arguments import check_int, check_shape
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER, FrameEnd
from shmcast._endpoints.handle import ArenaHandle, Handle
from shmcast._endpoints.loans import Lender, Shape
from shmcast._endpoints.peers import Watch, identity
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy, core_policy
from shmcast._host import census, shared_memory
from shmcast._host.places import Places
from shmcast.errors import Closed, InvalidArgument, PeerDied, ShmcastError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

DEFAULT_SLOTS = 64
DEFAULT_SLOT_BYTES = 64 * 1024

_PAGE_BYTES = 4096
_MIN_ARENA_BYTES = 256 * 1024
_MAX_ARENA_BYTES = 2**40 - _PAGE_BYTES


class FrameWriter(FrameEnd):
    """Makes a segment and publishes messages of frames in it, to each reader all and in order.

    Args and what is raised: as for `Writer`, which stands on it; less the codec.
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
        on_reader_death: Literal["raise", "drop"] = "raise",
        warn_after: float | None = DEFAULT_WARN_AFTER,
        on_death: Callable[[PeerDied], object] | None = None,
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
        if on_death is not None and not (callable(on_death) and on_reader_death == "drop"):
            raise InvalidArgument(
                f"{label}: on_death={on_death!r} must be callable, and is for a writer that goes "
                'on: pass on_reader_death="drop"; otherwise send() raises PeerDied'
            )
        super().__init__(readers + 1, wait, label, warn_after)
        self._reader_label = reader_label
        drops = on_reader_death == "drop"
        self._watch = Watch(readers, label, reader_label, readers, drops, warn_after, on_death)
        with contextlib.ExitStack() as undo:  # what is made before something fails
            arena, mapping = None, None
            if arena_bytes:
                nbytes = arena_bytes // _PAGE_BYTES * _PAGE_BYTES
                arena_name, arena_fd = shared_memory.create_unreserved(nbytes)
                arena = ArenaHandle(arena_name, nbytes, arena_fd)
                undo.callback(os.close, arena.fd)
                undo.callback(shared_memory.unlink, arena.name)
                mapping = _core.Mapping(arena.fd, nbytes, True)
                self._pin(pin, mapping, nbytes, is_writer=True)
            elif pin:
                raise InvalidArgument(f"{label}: pin=True needs an arena; pass arena_bytes=")
            geometry = _core.Geometry(readers, slots, slot_bytes, _core.EXTENTS if arena else 0)
            nonce = os.urandom(16)
            name, memory, fd = shared_memory.create(geometry.segment_bytes)
            undo.pop_all()
        self.handle = Handle(
            name, nonce, readers, slots, slot_bytes, (os.getpid(), fd), drops, arena
        )
        places = Places(fd)
        lock = places.hold(readers)
        self._ring = _core.RingWriter(
            memory,
            geometry,
            nonce,
            core_policy(self.wait_policy),
            self._is_crowded,
            self._watch,
            identity(lock),
            mapping,
        )
        self._lender: Lender | None = None  # there is one from the first loan on
        # Bound once: in a decode loop every look-up on the way is a cache miss.
        self._ring_publish = self._ring.publish
        self._watch.begin(self._ring, places)
        self._open_until_closed(
            _end_writer, self._ring, self._watch, self.handle, places, lock, census.enter()
        )

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
            self._ring_publish(frames, timeout)
        except Exception as error:
            self._raise(error, "send", timeout)
        if self._lender is not None:
            self._lender.freeze_sent()

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
        try:
            return lender.thaw(array)
        except Exception as error:
            self._raise(error, "thaw", None)

    def _lending(self, action: str) -> Lender:
        if self._lender is None:
            if self.handle.arena is None:
                raise InvalidArgument(
                    f"{self.label}: {action}() needs an arena; make the writer with arena_bytes="
                )
            self._lender = Lender(self._ring, self.label, self._pinned)
        return self._lender

    def warm(self, warmup: Callable[[], None] | None = None) -> None:
        """Bring what the next `publish` touches into this core's cache.

        Args:
            warmup: practises what comes before `publish`; None: nothing.
        """
        try:
            if warmup is not None:
                warmup()
            self._ring.fetch_ahead()
        except Exception as error:
            self._raise(error, "warm", None)

    def statistics(self) -> Statistics:
        """Return what this writer and each of its readers have done so far. From any thread."""
        return Statistics(
            **self._ring.figures(),
            arena_reserved_bytes=self._ring.arena_reserved(),
            lag=tuple(self._ring.lags()),
            readers=tuple(Statistics(**figures) for figures in self._ring.reader_figures()),
        )

    def dropped(self) -> dict[int, PeerDied]:
        """Return how the readers have died that are dropped and not replaced, by index."""
        states = [peer.state for peer in self._ring.peers()]
        deaths = {**self._watch.dropped}
        return {index: error for index, error in deaths.items() if states[index] == "dropped"}

    def present_readers(self) -> list[int]:
        """Return the indices of the readers that have neither closed nor been dropped."""
        return [p.index for p in self._ring.peers()[:-1] if p.state not in ("left", "dropped")]

    def _at_exit(self) -> None:
        super()._at_exit()
        if os.getpid() == self.handle.holder[0]:
            _remove_names(self.handle)

    def _end_error(self, what: str) -> ShmcastError:
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

    def _blocked_on(self) -> str:
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
    watch: Watch,
    handle: Handle,
    places: Places,
    lock: _core.LifeLock | None,
    seat: census.Seat,
) -> None:
    """End a writer and remove its segments' names, unless in a fork of its process.

    Without a close() before, its peers are told that it has failed.
    """
    if os.getpid() == handle.holder[0]:
        ring.give_up()
        watch.close()
        if lock is not None:
            lock.release()
        _remove_names(handle)
        places.close()
        if handle.arena:
            os.close(handle.arena.fd)
        seat.leave()


def _remove_names(handle: Handle) -> None:
    shared_memory.unlink(handle.name)
    if handle.arena:
        shared_memory.unlink(handle.arena.name)
