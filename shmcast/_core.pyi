"""The ring: slots, sequence numbers and waiting, in C++ over memory that the caller maps.

Neither knows what is in a frame, who the peer is, or where the memory came from. An endpoint is
used by one thread at a time; every wait releases the GIL, ends at its time-out, and lets signal
handlers run.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from typing_extensions import Buffer

class TimedOut(Exception):
    """A wait lasted longer than its timeout."""

class EndpointClosed(Exception):
    """close() was called on this endpoint, or the peers have gone and nothing is left."""

class ConcurrentUse(Exception):
    """Another thread is inside this endpoint."""

class Forked(Exception):
    """The endpoint was made before this process was forked."""

class BadTimeout(Exception):
    """A timeout is negative or no number."""

class SeatTaken(Exception):
    """A reader of this index has attached before."""

class LayoutMismatch(Exception):
    """A field of the segment's header is not what the caller expects."""

class SegmentCorrupted(Exception):
    """The segment holds what no endpoint writes."""

class MessageTooLarge(Exception):
    """More frames or bytes than a message's descriptor can say."""

def pickle_plain(obj: object) -> bytes | None:
    """The pickle of a small message of plain objects: at most 1 KiB and 32 containers.

    Plain are exactly dict, list, tuple, str, bytes, int (of 64 bits), float, bool and None; no
    container is in two places. None: `obj` is another one.
    """

def unpickle_plain(frame: bytearray | memoryview, otherwise: Callable[[Any], Any]) -> Any:
    """The object of such a pickle, or what `otherwise(frame)` returns of any other."""

class Geometry:
    """The shape of a ring; both sides must name the same."""

    def __init__(self, readers: int, slots: int, slot_capacity: int, extents: int) -> None:
        """`slots` is a power of two, `slot_capacity` the payload bytes of one.

        `extents`: EXTENTS if there is an arena, else 0.
        """

    @property
    def segment_bytes(self) -> int:
        """Bytes of memory that the ring needs."""

class WaitPolicy:
    """How an endpoint waits."""

    @staticmethod
    def spin() -> WaitPolicy:
        """Never sleeps."""
    @staticmethod
    def park() -> WaitPolicy:
        """Sleeps until woken."""
    @staticmethod
    def adaptive(max_spin_ns: int) -> WaitPolicy:
        """Learns when to spin, for at most so long in one wait."""

def idle_hint() -> str:
    """How this CPU idles in a spin loop: umwait, mwaitx, pause, wfet, wfe or isb."""

class View:
    """Memory of another object, as bytes that can be written to (buffer protocol)."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

def view(address: int, nbytes: int, owner: object) -> View:
    """Memory that lives as long as `owner`, which it keeps."""

def copy(address: int, nbytes: int) -> bytearray:
    """A copy of memory."""

EXTENTS: int
"""Of an arena: so many buffers may be in it at once."""

class Claim:
    """Keeps memory of an arena from being used again for as long as it exists."""

class Mapping:
    """A shared-memory file in this process's memory. The descriptor stays the caller's.

    Raises: OSError.
    """

    def __init__(self, fd: int, nbytes: int, writable: bool) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def keeper(self) -> Callable[[Claim, int, int], None] | None:
        """Called when the last Python object over some memory is gone: a claim, address, bytes."""
    @keeper.setter
    def keeper(self, keeper: Callable[[Claim, int, int], None] | None) -> None: ...
    def reserve(self, nbytes: int) -> bool:
        """Gives the first `nbytes` bytes memory. False: there is none to be had."""

class Lease:
    """A received buffer in the arena, read-only (buffer protocol), there while this object is."""

    @property
    def is_pinned(self) -> bool:
        """Whether the mapping has a keeper."""
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def copy_on_write(self) -> CopyOnWrite:
        """The same bytes for who may write to them, seen by nobody else. Raises: OSError."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

class CopyOnWrite:
    """See Lease."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Loan:
    """Memory of a writer's arena, to be filled (buffer protocol), there while this object is."""

    @property
    def extent(self) -> int:
        """Its number, unique among the loans of its writer."""
    @property
    def views(self) -> list[Any]:
        """Weak references to arrays over this memory that were found in an object to send."""
    @staticmethod
    def covers(address: int) -> bool:
        """Whether this address is in a loan of this process, of whatever writer."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

VACANT: int
"""A seat in which nobody was yet."""

class Identity:
    """Which process a member is, for its peers: this one."""

    def __init__(self, start_time: int, pid_namespace: int) -> None: ...

class Peer:
    """A member at one moment."""

    @property
    def index(self) -> int:
        """A reader's; for the writer the number of readers."""
    @property
    def seat(self) -> int:
        """Pid and state in one, to be given to RingReader."""
    @property
    def state(self) -> str:
        """vacant, attached, left, dropped, claimed or rejoining.

        Raises: SegmentCorrupted (it is none of these).
        """
    @property
    def pid(self) -> int: ...
    @property
    def start_time(self) -> int:
        """0: not told yet. While `state` is claimed it may be that of the process before."""
    @property
    def pid_namespace(self) -> int: ...
    @property
    def behind(self) -> int:
        """Fragments published and not yet consumed."""

def peers(memory: Buffer, geometry: Geometry, nonce: bytes) -> list[Peer]:
    """The members of a segment: readers by index, then the writer.

    Raises: LayoutMismatch.
    """

class Watch(Protocol):
    """Who is told of an endpoint's peers while it waits. What it raises ends the wait."""

    patience: float
    """Seconds of a wait before tell_slow(). Looked at once."""

    def meet(self, peers: Sequence[Peer]) -> bool:
        """Somebody has come, or a second is over. True if a peer has died: as after alarm()."""
    def find_dead(self) -> None:
        """A peer has died, and what it did before is done."""
    def judge(self, peers: Sequence[Peer]) -> Sequence[int]:
        """After find_dead(), with the peers as they are now. Returns the readers to drop."""
    def ended(self, peers: Sequence[Peer]) -> Sequence[int]:
        """The readers whose processes have ended, by index."""
    def tell_slow(self, seconds: float, is_first: bool, peers: Sequence[Peer]) -> float:
        """A wait lasts long; `is_first`: this is told for the first time of it.

        Returns after how many seconds of it to call again.
        """
    def went_on(self, seconds: float) -> None:
        """A wait of which that was told has ended well."""

class Endpoint:
    """What the two ends of a ring share.

    The callable `is_crowded` gets the number of readers that have attached. It is called about once
    a second, by an adaptive endpoint while it waits, which does not spin as long as the answer is
    true.
    """

    def peers(self) -> list[Peer]:
        """All members: readers by index, then the writer; from any thread, also after close()."""

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until all readers have attached.

        Raises: TimedOut, EndpointClosed, SegmentCorrupted, ConcurrentUse, Forked.
        """
    def attached(self) -> int:
        """Readers that have attached so far; from any thread, also after close()."""
    def figures(self) -> dict[str, Any]:
        """The fields of `Statistics` that every member has; any thread, also after close()."""
    def begin_tensor_set(self) -> None:
        """Tells all members that this one begins to broadcast its next set of device tensors.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def tensor_sets(self) -> list[int]:
        """Sets that each member has begun: readers by index, then the writer; any thread."""
    def alarm(self) -> None:
        """A peer has died: the wait, or the next one, asks the watch. From any thread."""
    def close(self) -> None:
        """Tells the peers and ends waits in other threads; idempotent, from any thread."""

class RingWriter(Endpoint):
    """Formats zeroed `memory` as a ring and writes to it."""

    def __init__(
        self,
        memory: Buffer,
        geometry: Geometry,
        nonce: bytes,
        wait: WaitPolicy,
        is_crowded: Callable[[int], bool],
        watch: Watch | None,
        who: Identity,
        arena: Mapping | None,
    ) -> None: ...
    def publish(self, frames: Sequence[Buffer], timeout: float | None = None) -> None:
        """Publishes one message of contiguous buffers: to all readers or, if it raises, to none.

        Raises: TimedOut (the ring stayed full), EndpointClosed (or every reader has left),
            MessageTooLarge, SegmentCorrupted, ConcurrentUse, Forked.
        """
    def loan(self, nbytes: int) -> Loan | None:
        """Memory of the arena. None: there is no room.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def is_done(self, extent: int, look: bool) -> bool:
        """Whether every reader is through with what was sent of this extent.

        `look`: finds out, now and then, whether a reader has died.

        Raises: IndexError, EndpointClosed, ConcurrentUse, Forked.
        """
    def sent(self) -> list[int]:
        """The extents that the last message published speaks of."""
    def arena_reserved(self) -> int:
        """Bytes of the arena that have memory."""
    def fetch_ahead(self) -> None:
        """Brings what the next publish() will touch into this core's cache.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def lags(self) -> list[int]:
        """Fragments published and not yet consumed, by reader; from any thread."""
    def reader_figures(self) -> list[dict[str, Any]]:
        """The readers' figures(), by index; from any thread."""

class RingReader(Endpoint):
    """Takes seat `index` of the ring in `memory` and reads from it.

    Raises: LayoutMismatch, SeatTaken, IndexError.
    """

    def __init__(
        self,
        memory: Buffer,
        geometry: Geometry,
        nonce: bytes,
        index: int,
        wait: WaitPolicy,
        is_crowded: Callable[[int], bool],
        warmup: Callable[[], object] | None,
        watch: Watch | None,
        who: Identity,
        found: int,
        arena: Mapping | None,
    ) -> None:
        """`warmup` is called about every 100 µs of spinning, to keep what follows warm.

        `found` is the seat as it was seen: VACANT, or of a reader that has died.
        """
    def consume(
        self, timeout: float | None = None, copy: bool = True
    ) -> list[bytearray | memoryview]:
        """The frames of the next message, in memory of their own.

        Without `copy` those that lie in the arena are views of it, each a memoryview of a Lease.

        A call that ends in TimedOut or a signal's exception keeps what it has: the next goes on.

        Raises: TimedOut, EndpointClosed (the writer closed and all was consumed),
            SegmentCorrupted, MemoryError, ConcurrentUse, Forked.
        """
