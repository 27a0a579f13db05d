"""One object = one message: what `Writer` and `Reader` share, and the `Handle` between them.

Usable without torch.distributed: any way that brings a small picklable handle from the writer's
process to its readers will do.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from shmcast import _core, liveness
from shmcast.codec import Codec, PickleCodec
from shmcast.errors import (
    Closed,
    ConcurrentUse,
    Forked,
    InvalidArgument,
    MessageTooLarge,
    SegmentCorrupted,
    ShmcastError,
    Timeout,
)
from shmcast.loans import address_of
from shmcast.practice import Practice
from shmcast.waiting import CpuBudget, WaitPolicy, is_crowded

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._pinning import PinnedArena

DEFAULT_WARN_AFTER = 60.0

_MAX_READERS = 4096

_Self = TypeVar("_Self", bound="Endpoint")


@dataclass(frozen=True, slots=True)
class ArenaHandle:
    """Where a writer's arena is."""

    name: str
    """Name of its POSIX shared-memory segment."""
    nbytes: int
    """Its size, of which not all need have memory yet."""
    fd: int
    """The writer's descriptor of it."""


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
    holder: tuple[int, int]
    """The writer's pid, and its descriptor of the segment: the way in when the name is gone."""
    drops_dead: bool
    """The writer goes on without readers that have died."""
    arena: ArenaHandle | None = None
    """Where large buffers lie; None: the writer has no arena."""

    def _geometry(self) -> _core.Geometry:
        extents = _core.EXTENTS if self.arena else 0
        return _core.Geometry(self.readers, self.slots, self.slot_bytes, extents)


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
    tensor_sets: int = 0
    """Messages with device tensors whose broadcasts were begun (`ShmBroadcaster` only)."""
    arena_frames: int = 0
    """Buffers sent or received in the arena."""
    arena_full: int = 0
    """Writer only: buffers and loans that found no room there; streamed, or in ordinary memory."""
    arena_reserved_bytes: int = 0
    """Writer only: bytes of the arena that have memory."""
    lag: tuple[int, ...] = ()
    """Writer only: fragments that each reader has not consumed yet, by reader index."""
    readers: tuple[Statistics, ...] = ()
    """Writer only: what each reader has done, by reader index."""
    relayed: int = 0
    """Source and leaders of several nodes: messages sent to other nodes, or received for one."""
    relayed_bytes: int = 0
    """Bytes of those collectives, padding included; on the source to one node, not to all."""
    estimate_hits: int = 0
    """Such messages that took one collective, because the estimate of their size was enough."""
    estimate_misses: int = 0
    """Such messages that took two."""


class Endpoint:
    """What a writer and a reader share: life cycle, context manager, errors that say who."""

    _ring: _core.RingWriter | _core.RingReader
    _watch: liveness.Watch
    _finalizer: Callable[[], object]

    handle: Handle
    """Where readers find the writer's segment."""

    def __init__(
        self,
        readers: int,
        wait: WaitPolicy | None,
        codec: Codec | None,
        label: str,
        warn_after: float | None,
    ) -> None:
        if warn_after is not None and not warn_after >= 0:
            raise InvalidArgument(
                f"{label}: warn_after={warn_after!r} is no number of seconds >= 0"
            )
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
        self._pinned: PinnedArena | None = None
        # (Not bound to self: the core would keep it alive, and it the core.)
        self._is_crowded = functools.partial(is_crowded, CpuBudget(), readers + 1)
        self._practice = Practice.with_sample_of(codec, label)

    def _pin(self, pin: bool, mapping: _core.Mapping, nbytes: int, is_writer: bool) -> None:
        if pin:
            from shmcast._pinning import PinnedArena

            self._pinned = PinnedArena(mapping, nbytes, is_writer, self._label)

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
        self._meet()

    def _alarm(self) -> Callable[[], None]:
        """For the watch, which must not keep this endpoint alive."""
        me = weakref.ref(self)

        def alarm() -> None:
            endpoint = me()
            if endpoint is not None:
                endpoint._ring.alarm()

        return alarm

    def _meet(self) -> None:
        """Watches all who have attached, and says who can't be watched."""
        try:
            self._watch.observe(self._ring.peers())
        except _core.SegmentCorrupted as error:
            self._raise(error, "set-up", None)

    def _look_for_deaths(self) -> None:
        """Raises PeerDied if somebody has died whom nobody drops."""
        if not self.handle.drops_dead:
            self._watch.find_dead()
            try:
                self._watch.attribute_deaths(self._ring.peers())
            except _core.SegmentCorrupted as error:
                self._raise(error, "a look at the peers", None)

    def _begin_tensor_set(self) -> None:
        """Tells all members that this one begins to broadcast a message's device tensors."""
        try:
            self._ring.begin_tensor_set()
        except Exception as error:
            self._raise(error, "device tensors", None)

    def _tensor_sets(self) -> list[int]:
        """How many such messages each member has begun: readers by index, then the writer."""
        return self._ring.tensor_sets()

    def record_stream(self, view: npt.NDArray[Any] | torch.Tensor, stream: torch.Stream) -> None:
        """Tells of work on a stream that reads pinned memory, as `torch.Tensor.record_stream` does.

        Needed where it is another stream than the one that is current when the view or loan goes.
        To be called after the work is enqueued and before that. Without `pin` it does nothing.

        Args:
            view: an array or tensor of `Reader.recv(copy=False)` or `Writer.empty`.
            stream: the `torch.cuda.Stream` that the work is on.
        """
        if self._pinned is not None:
            self._pinned.record_stream(address_of(view), stream)

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
                try:
                    known = self._ended(f"{who}: {action}")
                except _core.SegmentCorrupted as corrupted:
                    self._raise(corrupted, action, timeout)
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

    def _ended(self, what: str) -> ShmcastError:
        """Nobody is left on the other side."""
        return Closed(f"{what}: the writer has closed and all its messages were received")

    def _suspects(self) -> str:
        return ""


def check_shape(readers: int, slots: int, slot_bytes: int, label: str) -> None:
    """Raises InvalidArgument unless it is a ring's shape: the core relies on it."""
    check_int("readers", readers, 1, _MAX_READERS, label)
    check_int("slots", slots, 2, 2**20, label)
    check_int("slot_bytes", slot_bytes, 128, 2**30, label)
    if slots & (slots - 1):
        raise InvalidArgument(f"{label}: slots={slots} is not a power of two")
    if slot_bytes % 128:
        raise InvalidArgument(f"{label}: slot_bytes={slot_bytes} is not a multiple of 128")


def check_int(name: str, value: int, low: int, high: int, label: str) -> None:
    """Raises InvalidArgument unless `value` is an integer in range."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgument(f"{label}: {name}={value!r} must be an integer from {low} to {high}")
