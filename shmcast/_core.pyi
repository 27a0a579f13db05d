"""The C++ core (the repository's folder `core/`): the ring, its waiting, its arena, plain pickles.

Knows: slots, sequence numbers, waiting; memory that the caller maps.
Does not know: what is in a frame, what to do about a peer, where the memory came from.

One thread at a time may use an endpoint. Every wait releases the GIL, ends at its time-out, and
lets signal handlers run. `shmcast` turns the exceptions below into its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from typing_extensions import Buffer

class TimedOut(Exception):
    """A wait has lasted longer than its time-out."""

class EndpointClosed(Exception):
    """The endpoint was closed, or all peers have gone and nothing is left to receive."""

class ConcurrentUse(Exception):
    """Another thread is using the endpoint."""

class Forked(Exception):
    """The endpoint was made before a fork that led to this process."""

class BadTimeout(Exception):
    """A time-out is negative or not a number."""

class SeatTaken(Exception):
    """The seat is not, or no longer, as the caller has seen it."""

class LayoutMismatch(Exception):
    """A field of the segment's header differs from what the caller expects."""

class SegmentCorrupted(Exception):
    """The segment holds something that no endpoint writes."""

class MessageTooLarge(Exception):
    """A message has more frames or bytes than its descriptor can express."""

def pickle_plain(obj: object) -> bytes | None:
    """Return the pickle of a small plain object, or None if `obj` is not one.

    Plain objects are exactly dict, list, tuple, str, bytes, int (of 64 bits), float, bool and None.
    Small means at most 1 KiB and 32 containers, none of which is in two places.
    """

def unpickle_plain(frame: bytearray | memoryview, otherwise: Callable[[Any], Any]) -> Any:
    """Return the object of such a pickle; of any other, return `otherwise(frame)`."""

class Geometry:
    """The shape of a ring; both sides must give the same.

    Args:
        readers: number of seats for readers.
        slots: number of slots, a power of two.
        slot_capacity: payload bytes of one slot.
        extents: EXTENTS if there is an arena, else 0.
    """

    def __init__(self, readers: int, slots: int, slot_capacity: int, extents: int) -> None: ...
    @property
    def segment_bytes(self) -> int:
        """Bytes of memory that the ring needs."""

class WaitPolicy:
    """How an endpoint waits."""

    @staticmethod
    def spin() -> WaitPolicy:
        """Spin and never sleep."""
    @staticmethod
    def park() -> WaitPolicy:
        """Sleep until woken."""
    @staticmethod
    def adaptive(max_spin_ns: int) -> WaitPolicy:
        """Learn when to spin, at most `max_spin_ns` nanoseconds in one wait; sleep otherwise."""

def idle_hint() -> str:
    """Return how this CPU idles in a spin loop: umwait, mwaitx, pause, wfet, wfe or isb."""

class View:
    """Writable memory of another object (buffer protocol)."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

def view(address: int, nbytes: int, owner: object) -> View:
    """Return `nbytes` bytes at `address` as a view, which keeps their `owner` alive."""

def copy(address: int, nbytes: int) -> bytearray:
    """Return a copy of `nbytes` bytes at `address`."""

EXTENTS: int
"""The number of buffers that an arena can hold at once."""

class Claim:
    """Keeps memory of an arena from being reused for as long as it exists."""

class Mapping:
    """A shared-memory file mapped into this process. The descriptor stays the caller's.

    Raises: OSError.
    """

    def __init__(self, fd: int, nbytes: int, writable: bool) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def keeper(self) -> Callable[[Claim, int, int], None] | None:
        """Called as (claim, address, nbytes) when the last Python object over memory is gone."""
    @keeper.setter
    def keeper(self, keeper: Callable[[Claim, int, int], None] | None) -> None: ...
    def reserve(self, nbytes: int) -> bool:
        """Reserve memory for the first `nbytes` bytes. Return False if there is not enough."""

class Lease:
    """A received buffer in the arena, read-only (buffer protocol), valid while this exists."""

    @property
    def is_pinned(self) -> bool:
        """Whether the mapping has a keeper."""
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def copy_on_write(self) -> CopyOnWrite:
        """Return a private, writable copy, which takes memory only where it is written to.

        Raises: OSError.
        """
    def __buffer__(self, flags: int, /) -> memoryview: ...

class CopyOnWrite:
    """A private copy of a Lease's memory, writable (buffer protocol)."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Loan:
    """Memory of a writer's arena to be filled (buffer protocol), valid while this exists."""

    @property
    def extent(self) -> int:
        """Its number, unique among the loans of its writer."""
    @property
    def views(self) -> list[Any]:
        """Weak references to arrays over this memory that were found in a sent object."""
    @staticmethod
    def covers(address: int) -> bool:
        """Return whether the address is in a loan of this process, from any writer."""
    def __buffer__(self, flags: int, /) -> memoryview: ...

class LifeLock:
    """A lock on one byte of a file, until release() or the end of this program (exit or exec).

    No fork inherits it, and no descriptor stays open.

    Raises: OSError (another open file has it; there are no such locks).
    """

    def __init__(self, fd: int, place: int) -> None: ...
    def release(self) -> None:
        """Give it up; idempotent."""

def is_locked(fd: int, place: int) -> bool | None:
    """Return whether anybody holds such a lock; None where that can't be known."""

def has_members(fd: int) -> bool | None:
    """Return whether anybody lives who takes part in the segment; None where that can't be known."""

def watch_generation() -> int:
    """Return a number that changes when all watches were lost, because of closed descriptors."""

def is_readable(fd: int) -> bool:
    """Return whether `fd` can be read from now. Of a pidfd: whether the process has ended."""

VACANT: int
"""A seat that nobody has taken yet."""

class Identity:
    """This process, as its peers know it."""

    def __init__(self, start_time: int, pid_namespace: int, holds_lock: bool = False) -> None: ...

class Peer:
    """A member as it was when peers() looked."""

    @property
    def index(self) -> int:
        """The reader's index; the writer's is the number of readers."""
    @property
    def seat(self) -> int:
        """Pid and state in one word, as RingReader takes it."""
    @property
    def state(self) -> str:
        """One of vacant, attached, left, dropped, claimed, rejoining and failed.

        Raises: SegmentCorrupted (it is none of these).
        """
    @property
    def pid(self) -> int: ...
    @property
    def start_time(self) -> int:
        """0: not written yet. While `state` is claimed, it may be the previous process's."""
    @property
    def pid_namespace(self) -> int: ...
    @property
    def holds_lock(self) -> bool:
        """It holds the LifeLock of its index, as long as it takes part."""
    @property
    def behind(self) -> int:
        """Fragments published and not yet consumed."""

def peers(memory: Buffer, geometry: Geometry, nonce: bytes) -> list[Peer]:
    """Return the members of a segment: the readers by index, then the writer.

    Raises: LayoutMismatch.
    """

class Watch(Protocol):
    """The object that an endpoint tells about its peers while it waits.

    What a method raises ends the wait.
    """

    patience: float
    """Seconds of waiting before the first report_slow(). Read once."""
    must_look: bool
    """Call observe() once a second also while messages flow. Read after each call."""

    def observe(self, peers: Sequence[Peer]) -> bool:
        """Observe the peers, on each arrival and once a second. Return True if one has died.

        A wait calls it once a second. A call that need not wait does so if somebody has come or
        gone, or if `must_look`.

        The endpoint then acts as after alarm().
        """
    def find_dead(self) -> None:
        """Find out which peers have died; all that they sent has been received."""
    def attribute_deaths(self, peers: Sequence[Peer]) -> Sequence[int]:
        """Return the indices of the dead readers to drop, or raise, given the peers as they are.

        Called after find_dead().
        """
    def tell_deaths(self) -> None:
        """Tell the program of these readers, now that they are dropped."""
    def exited(self, peers: Sequence[Peer]) -> Sequence[int]:
        """Return the indices of the readers whose processes have exited."""
    def report_slow(self, seconds: float, is_first: bool, peers: Sequence[Peer]) -> float:
        """Report a wait that has lasted `seconds` so far; `is_first`: for the first time.

        Return after how many seconds of the wait to report again.
        """
    def resumed(self, seconds: float) -> None:
        """Report that a wait which was reported as slow has ended well, after `seconds`."""

class Endpoint:
    """What the two ends of a ring share.

    An adaptive endpoint that waits calls `is_crowded` about once a second, with the number of
    readers attached so far, and does not spin while the answer is true. What may be called from any
    thread also works after close().
    """

    def peers(self) -> list[Peer]:
        """Return all members: the readers by index, then the writer. From any thread."""
    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until all readers have attached, at most `timeout` seconds.

        Raises: TimedOut, EndpointClosed, SegmentCorrupted, ConcurrentUse, Forked.
        """
    def attached(self) -> int:
        """Return how many readers have attached so far. From any thread."""
    def figures(self) -> dict[str, Any]:
        """Return the fields of `Statistics` that every member has. From any thread."""
    def begin_tensor_set(self) -> None:
        """Tell all members that this one begins to broadcast its next set of device tensors.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def tensor_sets(self) -> list[int]:
        """Return the sets that each member has begun, in the order of peers(). From any thread."""
    def alarm(self) -> None:
        """Report that a peer has died: this wait, or the next, asks the watch. From any thread."""
    def close(self) -> None:
        """Tell the peers, and end waits in other threads. Idempotent. From any thread."""
    def give_up(self) -> None:
        """Do what close() does, but tell the peers that it has failed. Idempotent."""
    def detach(self) -> None:
        """Tell nobody anything when this is destroyed without close()."""
    def watch_process(self, pidfd: int) -> int:
        """Raise the alarm, once, when a process ends; close `pidfd` after unwatch().

        Raises: OSError (there can be no thread, or no pidfds).
        """
    def watch_lock(self, fd: int, place: int) -> int:
        """Raise the alarm, once, within a second after a LifeLock was dropped.

        Raises: OSError (there can be no thread).
        """
    @staticmethod
    def unwatch(watch: int) -> None:
        """Undo watch_process() or watch_lock()."""
    def set_alarm_fd(self, fd: int) -> None:
        """Write to this eventfd, too, at each alarm; -1: to none, from now on."""

class RingWriter(Endpoint):
    """Formats zeroed `memory` as a ring, and writes to it."""

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
        """Publish one message of contiguous buffers: to all readers or, if it raises, to none.

        Raises: TimedOut (the ring stayed full for `timeout` seconds), EndpointClosed (also: every
            reader has left), MessageTooLarge, SegmentCorrupted, ConcurrentUse, Forked.
        """
    def loan(self, nbytes: int) -> Loan | None:
        """Return memory of the arena, or None if there is no room.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def is_done(self, extent: int, look: bool) -> bool:
        """Return whether every reader is done with what was sent of this extent.

        With `look`, find out now and then whether a reader's process has exited.

        Raises: IndexError, EndpointClosed, ConcurrentUse, Forked.
        """
    def sent(self) -> list[int]:
        """Return the extents that the last published message refers to."""
    def arena_reserved(self) -> int:
        """Return how many bytes of the arena have memory."""
    def fetch_ahead(self) -> None:
        """Prefetch what the next publish() will touch into this CPU's cache.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def lags(self) -> list[int]:
        """Return the fragments published and not yet consumed, by reader. From any thread."""
    def reader_figures(self) -> list[dict[str, Any]]:
        """Return the readers' figures(), by index. From any thread."""

class RingReader(Endpoint):
    """Takes seat `index` of the ring in `memory`, and reads from it.

    Args:
        warmup: called about every 100 µs of spinning, to keep warm what follows a message.
        found: the seat as it was seen: VACANT, or of a reader that has died or failed.
        may_hold: the process of that reader lives; while it has views, the seat is not taken.

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
        may_hold: bool = False,
    ) -> None: ...
    def consume(
        self, timeout: float | None = None, copy: bool = True
    ) -> list[bytearray | memoryview]:
        """Return the frames of the next message, in memory of their own.

        Without `copy`, frames in the arena are views of it: each a memoryview of a Lease.

        A call that ends in TimedOut or a signal handler's exception keeps what it has received; the
        next call resumes it.

        Raises: TimedOut, EndpointClosed (the writer has closed and all is consumed),
            SegmentCorrupted, MemoryError, ConcurrentUse, Forked.
        """
