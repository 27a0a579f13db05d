"""The ring: slots, sequence numbers and waiting, in C++ over memory that the caller maps.

Neither knows what is in a frame, who the peer is, or where the memory came from. An endpoint is
used by one thread at a time; every wait releases the GIL, ends at its time-out, and lets signal
handlers run.
"""

from collections.abc import Callable, Sequence
from typing import Any

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
    """A slot holds what no writer writes."""

class MessageTooLarge(Exception):
    """More frames or bytes than a message's descriptor can say."""

class Geometry:
    """The shape of a ring; both sides must name the same."""

    def __init__(self, readers: int, slots: int, slot_capacity: int) -> None:
        """`slots` is a power of two, `slot_capacity` the payload bytes of one."""

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

class Endpoint:
    """What the two ends of a ring share.

    The callable `is_crowded` gets the number of readers that have attached. It is called about once
    a second, by an adaptive endpoint while it waits, which does not spin as long as the answer is
    true.
    """

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until all readers have attached.

        Raises: TimedOut, EndpointClosed, ConcurrentUse, Forked.
        """
    def attached(self) -> int:
        """Readers that have attached so far; from any thread, also after close()."""
    def figures(self) -> dict[str, Any]:
        """The fields of `Statistics` that every member has; any thread, also after close()."""
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
    ) -> None: ...
    def publish(self, frames: Sequence[Buffer], timeout: float | None = None) -> None:
        """Publishes one message of contiguous buffers: to all readers or, if it raises, to none.

        Raises: TimedOut (the ring stayed full), EndpointClosed (or every reader has left),
            MessageTooLarge, ConcurrentUse, Forked.
        """
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
        rehearsal: Callable[[], object] | None = None,
    ) -> None:
        """`rehearsal` is called about every 100 µs of spinning, to keep what follows warm."""
    def consume(self, timeout: float | None = None) -> list[bytearray]:
        """The frames of the next message, in memory of their own.

        A call that ends in TimedOut or a signal's exception keeps what it has: the next goes on.

        Raises: TimedOut, EndpointClosed (the writer closed and all was consumed),
            SegmentCorrupted, MemoryError, ConcurrentUse, Forked.
        """
