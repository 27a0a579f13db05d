"""The C++ core (the repository's folder `core/`): the ring, its waiting, its arena, its codec.

Knows: slots, sequence numbers, waiting; memory that the caller maps.
Does not know: what is in a frame, what to do about a peer, where the memory came from.

One thread at a time may use an endpoint. Every wait releases the GIL, ends at its time-out, and
lets signal handlers run. `shmcast` turns the exceptions below into its own.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType, FrameType, ModuleType
from typing import Any, NoReturn, Protocol, overload

from typing_extensions import Buffer

class TimedOut(Exception):
    """A wait has lasted longer than its time-out."""

class EndpointClosed(Exception):
    """The endpoint was closed, or all peers have gone and nothing is left to receive."""

class Interrupted(Exception):
    """A call was ended by interrupt(); it has published or taken nothing."""

class ConcurrentUse(Exception):
    """Another thread is using the endpoint."""

class Forked(Exception):
    """The endpoint was made before a fork that led to this process."""

class BadTimeout(Exception):
    """A time-out is negative or not a number."""

class NothingToAnswer(Exception):
    """Every message that the member has received has its reply."""

class SeatTaken(Exception):
    """The seat is not, or no longer, as the caller has seen it."""

class LayoutMismatch(Exception):
    """A field of the segment's header differs from what the caller expects."""

class SegmentCorrupted(Exception):
    """The segment holds something that no endpoint writes."""

class MessageTooLarge(Exception):
    """A message has more frames or bytes than its descriptor can express."""

class MemoryChanged(Exception):
    """A frame's memory was freed or replaced while it was being sent."""

class ObjectCoder:
    """Encodes objects, and decodes them, as pickle would.

    Args:
        functions: the module `shmcast._codecs.object_classes`.
        own_reducer: returns how to reduce the instances of a class; None: in pickle's own way.
        find: returns what a module has by a name, or raises.
        frame_bytes: buffers of this size or more become frames of their own.
        encode_otherwise: encodes what this does not.
        encode_again: the same, for an object of which some parts were reduced: it is also given
            tuples of the part, its reduction, and its items and pairs as they were drawn, or None.
        decode_otherwise: decodes what this has not encoded.
        refusals: the errors of a reduction after which `encode_otherwise` is asked all the same.
    """

    def __init__(
        self,
        functions: ModuleType,
        own_reducer: Callable[[type], Callable[[Any], Any] | None],
        find: Callable[[str, str], Any],
        frame_bytes: int,
        encode_otherwise: Callable[[Any], list[Any]],
        encode_again: Callable[[Any, list[tuple[Any, Any, Any, Any]]], list[Any]],
        decode_otherwise: Callable[[list[Any]], Any],
        refusals: tuple[type[Exception], ...],
    ) -> None: ...
    def encode(self, obj: Any, /) -> list[Any]:
        """Return the frames of `obj`: the message, then its large buffers.

        Raises:
            Exception: what pickle or a reducer raises; of any class.
        """
    def decode(self, frames: list[Any], /) -> Any:
        """Return the object that `encode` took.

        Raises:
            ValueError: the message is malformed.
            Exception: what rebuilding its objects raises; of any class.
        """
    def practise_encode(self, otherwise: Any, /) -> list[Any]:
        """Encode the object that was sent last once more, which runs no code but the core's.

        If that can't be, or nothing was sent since this was first called: another.
        """
    def practice_frames(self) -> list[Any] | None:
        """Return the message that was decoded last, with empty frames in the place of all others.

        None: decoding it takes long, or runs code that is not the core's.
        """
    def practise_decode(self, frames: list[Any], /) -> None:
        """Decode such frames once more."""

ENCODING: FrameType
DECODING: FrameType
"""The second entry in the traceback of an error that was caught in a call of a codec."""

class ObjectOutbox:
    """Puts objects into an outbox of frames, in one step.

    Args:
        encode: makes frames of an object.
        outbox: takes them under a time-out: a RingWriter, or what stands in for one.
        coder: `encode` is its method: with a RingWriter there need be no frames. Otherwise None.
        is_practice: only practise, see ObjectCoder.
    """

    def __init__(
        self,
        encode: Callable[[Any], Any],
        outbox: Any,
        coder: ObjectCoder | None,
        is_practice: bool = False,
    ) -> None: ...
    def __setitem__(self, timeout: float | None, obj: Any, /) -> None:
        """Encode an object and put its frames into the outbox; see RingWriter.

        Raises: what `encode` raises, through ENCODING, and what the outbox raises.
        """

class Decoded:
    """A message whose frames have gone, and whose object nobody has got: it has no frames.

    An ObjectInbox gives it to `keep` where a signal's handler raises between the two.
    """

    @property
    def object(self) -> Any: ...
    def __iter__(self) -> Iterator[bytearray | memoryview]: ...

class ObjectInbox:
    """Takes objects out of a source of frames, in one step.

    Args:
        messages: gives frames for a time-out and `copy`: a RingReader, or what stands in for one.
        keep: takes them back, or what was made of them.
        decode: makes an object of them.
        coder: `decode` is its method: with a RingReader there need be no frames. Otherwise None.
        is_practice: only practise, see ObjectCoder; what is returned is None.
    """

    def __init__(
        self,
        messages: Any,
        keep: Callable[[Any], None],
        decode: Callable[[list[Any]], Any],
        coder: ObjectCoder | None,
        is_practice: bool = False,
    ) -> None: ...
    def __getitem__(self, timeout_and_copy: tuple[float | None, bool | str], /) -> Any:
        """Return the next object, after which Python handles no signals; see RingReader.

        Raises: what `messages` raises; and what `decode` raises, through DECODING: the frames are
            kept then, and also if a signal's handler raises after they were decoded.
        """

class Geometry:
    """The shape of a ring; both sides must give the same.

    Args:
        readers: number of seats for readers.
        slots: number of slots, a power of two.
        slot_capacity: payload bytes of one slot.
        extents: EXTENTS if there is an arena, else 0.
        spill_bytes: of the spill, behind the ring in the same file; 0: there is none.
        tail: bytes of the segment behind the slots, which are a Hub's; 0: it is none of a hub.
    """

    def __init__(
        self,
        readers: int,
        slots: int,
        slot_capacity: int,
        extents: int,
        spill_bytes: int = 0,
        tail: int = 0,
    ) -> None: ...
    @property
    def segment_bytes(self) -> int:
        """Bytes of memory that the ring needs."""
    @property
    def spill_offset(self) -> int:
        """Where the spill begins in the file, in bytes."""
    @property
    def file_bytes(self) -> int:
        """The size of the file."""

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

def read_file(path: str) -> bytes | OSError:
    """Return what a file of the kernel holds, or why it can't be read.

    For waits, where a signal's handler may raise any exception at any time: none can leave the file
    open, and none is taken for the file's, as who would catch OSError would do.
    """

def piece_collector(
    pieces: list[bytes], buffers: list[Any]
) -> Callable[[bytes | bytearray | pickle.PickleBuffer], None]:
    """Return the `write` of a pickler's file, which adds copies to `pieces`.

    Payloads of 64 KiB and more go to `buffers`; the pickle calls for them, as for any buffer.
    """

def pickle_plain(obj: Any, /) -> bytes | None:
    """Return the pickle of a small plain object, or None: leave it to pickle."""

def unpickle_plain(frame: Any, otherwise: Callable[[Any], Any], /) -> Any:
    """Return the object of a frame that `pickle_plain` wrote; else what `otherwise` returns."""

class View:
    """Writable memory of another object (buffer protocol)."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class StorageView:
    """Part of a torch storage (buffer protocol).

    `publish` raises MemoryChanged if the storage is resized before its memory is copied.

    Args:
        storage: a `torch.UntypedStorage` in host memory, which this keeps alive.
        offset: where the part begins, in bytes.
        nbytes: its size.

    Raises:
        BufferError: the storage is too small.
    """

    def __init__(self, storage: object, offset: int, nbytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def is_intact(self) -> bool:
        """Whether the storage still has the memory that it had."""

def view(address: int, nbytes: int, owner: object) -> View:
    """Return `nbytes` bytes at `address` as a view, which keeps their `owner` alive."""

def copy_storage(storage: object, offset: int, nbytes: int) -> bytearray:
    """Return a copy of a part of a torch storage; see `StorageView`."""

EXTENTS: int
"""The number of buffers that an arena can hold at once."""

class Claim:
    """Keeps memory of an arena from being reused for as long as it exists."""

class Mapping:
    """A shared-memory file mapped into this process (buffer protocol).

    Args:
        fd: stays the caller's; a duplicate is never one of 0 to 2, and not closed in a fork.
        nbytes: how much of it to map.
        writable: it may be written to, in place.
        dump: have the memory in core dumps, and private copies of it.
        keep_fd: keep a duplicate of `fd`, without which no memory can be reserved.
        room: returns how many bytes of memory may be taken now; None: no limit.
        offset: where in the file the mapping begins, in bytes.

    Raises: OSError.
    """

    def __init__(
        self,
        fd: int,
        nbytes: int,
        writable: bool,
        dump: bool = False,
        keep_fd: bool = True,
        room: Callable[[], int | None] | None = None,
        offset: int = 0,
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def populate(self) -> None:
        """Take all page faults of a writable one at once; every page is reserved."""
    @property
    def address(self) -> int: ...
    @property
    def keeper(self) -> Callable[[Claim, int, int], None] | None:
        """Called as (claim, address, nbytes) when the last Python object over memory is gone."""
    @keeper.setter
    def keeper(self, keeper: Callable[[Claim, int, int], None] | None) -> None: ...
    def reserve(self, nbytes: int) -> bool:
        """Reserve memory for the first `nbytes` bytes.

        Return False if there is not enough, in shared memory or by `room`.
        """

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

        Beyond some thousands of these at once, all of it is copied.

        Raises: MemoryError.
        """
    def __buffer__(self, flags: int, /) -> memoryview: ...

class PartialLease:
    """A Lease for a decoder that is to copy one kind of objects (buffer protocol, read-only).

    Args:
        lease: what the others are views of.
        copied: the kind, as the decoder calls it.
    """

    def __init__(self, lease: Lease, copied: str) -> None: ...
    @property
    def lease(self) -> Lease: ...
    @property
    def copied(self) -> str: ...
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
    def remember(self, array: object, /) -> None:
        """Add one of these to `views`; drop those that are gone now and then."""
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
    """Return whether any member of the segment lives; None where that can't be known."""

def watch_generation() -> int:
    """Return a number that changes when all watches were lost, because of closed descriptors."""

def is_readable(fd: int) -> bool:
    """Return whether `fd` can be read from now. Of a pidfd: whether the process has ended."""

VACANT: int
"""A seat that nobody has taken yet."""

NONCE_OFFSET: int
"""Where a segment's nonce lies in it, in bytes."""

LAYOUT_VERSION: int
"""Processes whose versions differ can't talk to each other."""

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
    @property
    def takeovers(self) -> int:
        """How often the seat was taken over from a dead reader."""
    @property
    def predecessor_pid(self) -> int:
        """Pid of the reader from whom it was taken last."""
    @property
    def predecessor_state(self) -> str:
        """The state of the seat then."""

def peers(memory: Buffer, geometry: Geometry, nonce: bytes) -> list[Peer]:
    """Return the members of a segment: the readers by index, then the writer.

    Raises: LayoutMismatch.
    """

def observe(fd: int) -> dict[str, Any]:
    """Look at the segment that is open as `fd`, for reading at least, and take no part in it.

    Returns:
        label: str, what its writer calls it.
        made: float, when it was made, in seconds since the epoch.
        nodes: int, over how many its group is spread.
        is_between_two: bool, whether it is one rank's messages to another.
        slots, slot_bytes, arena_bytes, spill_bytes: int.
        is_hub: bool.
        sent: float, when the last message was sent, by the writer's CLOCK_MONOTONIC; 0: unknown.
        replied: float, when the last reply was, likewise.
        waits_until: int | None, the fragments that all readers must have consumed before the writer
            goes on, which waits for that; None: it does not wait.
        peers: list[Peer], as peers() returns it.
        names: list[str], how errors name each of them; "" for who has not come.
        figures: list[dict], the figures() of each of them.
        sleeps: list[bool], of each of them: whether it sleeps until it is woken, as far as that can
            be seen, which is of readers in an event loop, and of hubs.
        replies: list[tuple[int, int, float, bool]], of a hub: for each member the replies that it
            has sent, the fragments of them that the hub has not taken out of the ring, the seconds
            it has waited for room for them or in barriers, and whether there is no room for more.
        barriers: list[int | None], of a hub: how many barriers each member has come to, and behind
            them the hub; None: nobody waits for it any more.

    Raises:
        LayoutMismatch: there is nothing to see; the text says why: it is being made, damaged, or of
            another version.
        OSError: it can't be read.
    """

def latency_bounds() -> list[float]:
    """Return where the buckets of latencies end, in seconds, but for the last one's."""

LATENCY_SAMPLING: int
"""One message in so many is counted in a reader's latencies."""

LABEL_BYTES: int
"""The most bytes of a segment's label, in UTF-8."""

class Watch(Protocol):
    """The object that an endpoint tells about its peers while it waits.

    What a method raises ends the wait.
    """

    @property
    def patience(self) -> float:
        """Seconds of waiting before the first report_slow(). Read once; see set_patience()."""
    @property
    def must_look(self) -> bool:
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

    An adaptive endpoint does not spin while the ring's members outnumber the CPUs that they may run
    on. It looks about once a second; `cpu_quota` returns how many CPUs a quota leaves (inf: there
    is none), is called every ten seconds or so, and should not raise. What may be called from any
    thread also works after close().
    """

    def peers(self) -> list[Peer]:
        """Return all members: the readers by index, then the writer. From any thread."""
    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until all readers have attached, at most `timeout` seconds.

        Raises: TimedOut, Interrupted, EndpointClosed, SegmentCorrupted, ConcurrentUse, Forked.
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
    def tell_death(self, place: int) -> int:
        """Tell of a death, before this member may end of it; return who was the first to die.

        That is whose death was told before any other's in this segment, by whichever member. (It is
        in shared memory, where anything may stand.) From any thread.
        """
    def told_death(self) -> int:
        """Return who was the first to die, as tell_death() was told; a place of nobody: no one.

        From any thread.
        """
    def alarm(self) -> None:
        """Report that a peer has died: this wait, or the next, asks the watch. From any thread."""
    def interrupt(self) -> None:
        """End the call that may wait in another thread, or else the next, with Interrupted.

        From any thread, and from a signal's handler. A call that is just done uses it up.
        """
    def close(self) -> None:
        """Tell the peers, and end waits in other threads. Idempotent. From any thread."""
    def give_up(self) -> None:
        """Do what close() does, but tell the peers that it has failed. Idempotent."""
    def detach(self) -> None:
        """Tell nobody anything when this is destroyed without close()."""
    def hold(self, lock: LifeLock | None) -> None:
        """Keep the lock of this endpoint's place until its peers are told of its end."""
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
    def set_policy(self, wait: WaitPolicy) -> None:
        """Wait by another policy from now on.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def set_patience(self, seconds: float | None) -> None:
        """Tell the watch of waits that last so long from now on; None: of none.

        Raises: BadTimeout.
        """

class RingWriter(Endpoint):
    """Formats zeroed `memory` as a ring, and writes to it."""

    def __init__(
        self,
        memory: Buffer,
        geometry: Geometry,
        nonce: bytes,
        wait: WaitPolicy,
        cpu_quota: Callable[[], float],
        watch: Watch | None,
        who: Identity,
        arena: Mapping | None,
        spill: Mapping | None = None,
        label: str = "",
        nodes: int = 1,
        name: str = "",
    ) -> None: ...
    def publish(self, frames: Sequence[Buffer], timeout: float | None = None) -> None:
        """Publish one message of contiguous buffers: to all readers or, if it raises, to none.

        Signals are handled until the last fragment is published, and not after.

        Raises: TimedOut (the ring stayed full for `timeout` seconds), Interrupted, EndpointClosed
            (also: every reader has left), MessageTooLarge, SegmentCorrupted, ConcurrentUse, Forked.
        """
    def __setitem__(self, timeout: float | None, frames: Sequence[Buffer], /) -> None:
        """publish(), after which Python handles no signals: they come once the caller has it.

        (After a call it does.)
        """
    def is_sent(self) -> bool:
        """Return whether the last publish() has published its message.

        For one that ended in a signal handler's exception: what the core itself raises says that
        it has not.
        """
    def forget_sent(self) -> None:
        """Have is_sent() return False: the next message did not come as far as publish()."""
    def loan(self, nbytes: int) -> Loan | None:
        """Return memory of the arena, or None if there is no room.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def is_done(self, extent: int, look: bool) -> bool:
        """Return whether every reader is done with what was sent of this extent.

        With `look`, find out now and then whether a reader's process has exited. From any thread.

        Raises: IndexError, Forked.
        """
    def sent(self) -> list[int]:
        """Return the extents that the last published message refers to."""
    def memory_figures(self) -> dict[str, int]:
        """Return the memory of arena and spill, by the fields of `Statistics`. From any thread."""
    def warm(self, warmup: Callable[[], object] | None) -> None:
        """Call `warmup`, then prefetch what the next publish() will touch into this CPU's cache.

        No other thread can use the endpoint meanwhile, nor can `warmup`.

        Raises: EndpointClosed, ConcurrentUse, Forked, and what `warmup` raises.
        """
    def lags(self) -> list[int]:
        """Return the fragments published and not yet consumed, by reader. From any thread."""
    def reader_figures(self) -> list[dict[str, Any]]:
        """Return the readers' figures(), by index. From any thread."""

class Awaitable(Endpoint):
    """An endpoint that event loops can await: by looks, between which they wait for a pipe.

    A look is a receiving call in brackets without a time-out. It never waits, and
    returns Ellipsis where another call would wait. The pipe then becomes readable as soon as the
    next look may find something; any look, in whatever task, asks for that anew.
    """

    def listen(self, pid_namespace: int) -> int:
        """Return the readable end of the pipe, which the first call makes.

        Raises: OSError, EndpointClosed, ConcurrentUse, Forked.
        """
    def drain(self) -> None:
        """Take all bytes out of the pipe. To be called before the look, not after."""
    def rearm(self) -> None:
        """Drain the pipe, and ask for a byte as a look does; at once, if there may be something.

        Raises: EndpointClosed, ConcurrentUse, Forked.
        """
    def disarm(self) -> None:
        """No byte is wanted any more."""
    def close_pipe(self) -> None:
        """Close the pipe, once the endpoint is closed and no loop has it. From any thread."""
    def is_armed(self) -> bool:
        """Return whether a byte is wanted. From any thread."""
    def opened(self) -> int:
        """Return how many others have opened the pipe; some may count twice."""
    def refused(self) -> int:
        """Return how many others could not open it: they can't wake the loop."""
    def expect_stand_in(self) -> None:
        """Announce a thread that will call stand_in()."""
    def stand_in(self) -> None:
        """Write to the pipe in the place of others that can't, until the endpoint is closed."""

class RingReader(Awaitable):
    """Takes seat `index` of the ring in `memory`, and reads from it.

    Args:
        warmup: called about every 100 µs of spinning, to keep warm what follows a message.
        found: the seat as it was seen: VACANT, or of a reader that has died or failed.
        may_hold: the process of that reader lives; while it has views, the seat is not taken.
        spill: None: this process has not mapped it, and nothing is spilled from now on.

    Raises: LayoutMismatch, SeatTaken, IndexError.
    """

    def __init__(
        self,
        memory: Buffer,
        geometry: Geometry,
        nonce: bytes,
        index: int,
        wait: WaitPolicy,
        cpu_quota: Callable[[], float],
        warmup: Callable[[], object] | None,
        watch: Watch | None,
        who: Identity,
        found: int,
        arena: Mapping | None,
        may_hold: bool = False,
        spill: Mapping | None = None,
        name: str = "",
    ) -> None: ...
    def consume(
        self, timeout: float | None = None, copy: bool = True
    ) -> list[bytearray | memoryview]:
        """Return the frames of the next message, in memory of their own.

        Without `copy`, frames in the arena are views of it: each a memoryview of a Lease.

        A call that ends in TimedOut or a signal handler's exception keeps what it has received; the
        next call resumes it.

        Raises: TimedOut, Interrupted, EndpointClosed (the writer has closed and all is consumed),
            SegmentCorrupted, MemoryError, ConcurrentUse, Forked.
        """
    @overload
    def __getitem__(
        self, timeout_and_copy: tuple[float | None, bool | str], /
    ) -> list[bytearray | memoryview]:
        """consume(), after which Python handles no signals: they come once the caller has it.

        (After a call it does, and the error of a handler takes the place of what was returned.)

        Raises: TypeError (`copy` is a str), and what consume() raises.
        """
    @overload
    def __getitem__(self, look_copy: bool, /) -> list[bytearray | memoryview] | EllipsisType: ...
    def keep(self, frames: list[bytearray | memoryview] | Decoded) -> None:
        """Take back the frames of a message: the next consume() returns them again."""
    def discard(self) -> list[bytearray | memoryview]:
        """Forget the frames that were taken back last, and return them."""

def tail_bytes(members: int, replies: Geometry) -> int:
    """Return the tail of a hub's segment, in bytes, given the shape of a member's ring."""

class HubWriter(RingWriter):
    """The writer of a hub's messages: the ring's Geometry has the tail.

    While it waits for room, it takes out of the members' rings what they have replied: the Hub
    keeps that for who asks for it.
    """

class ReplyWriter(RingWriter):
    """Writes a member's replies, beside the RingReader of its messages, to its ring in the tail.

    What others have written there, who had the member's place before and have died, stays. The
    peers are those of the messages.

    Args:
        memory: the hub's whole segment.
        reader: the member's, of the messages. Alarms raised here are raised there, too.
        replies: the shape of a member's ring.
        nonce: of the segment.

    Raises: LayoutMismatch.
    """

    def __init__(
        self,
        memory: Buffer,
        reader: RingReader,
        replies: Geometry,
        nonce: bytes,
        wait: WaitPolicy,
        cpu_quota: Callable[[], float],
        watch: Watch | None,
    ) -> None: ...
    def interrupt(self) -> None:
        """End the calls that may wait in other threads, of this and of the reader.

        If there are none, the reader's next one.
        """
    def publish(self, frames: Sequence[Buffer], timeout: float | None = None) -> None:
        """Publish a reply, as RingWriter does a message: one to each message received, at most.

        Raises: NothingToAnswer, and what RingWriter's raises.
        """
    def barrier(self, timeout: float | None = None) -> None:
        """Wait until all other members and the hub have come to the barrier, too.

        Not for a member that has taken a dead one's place. Whatever ends this call, the next one is
        in the same barrier.

        Raises: TimedOut, Interrupted, EndpointClosed (also: somebody has closed and not come),
            SegmentCorrupted, ConcurrentUse, Forked.
        """
    def barriers_passed(self) -> int:
        """Return how many barriers this member has passed, whatever was raised of it."""
    def absent(self) -> list[int]:
        """Return who has not come to the barrier: members, and the hub as their number."""

class Hub(Awaitable):
    """Formats the members' rings of replies in the tail, and reads from all of them.

    One thread may use this while another one uses the writer.

    Args:
        memory: the whole segment.
        writer: of its messages. Alarms raised here are raised there, too.
        replies: the shape of a member's ring.
        nonce: of the segment.
        warmup: called about every 100 µs of spinning, to keep warm what follows a reply.

    Raises: LayoutMismatch.
    """

    def __init__(
        self,
        memory: Buffer,
        writer: HubWriter,
        replies: Geometry,
        nonce: bytes,
        wait: WaitPolicy,
        cpu_quota: Callable[[], float],
        warmup: Callable[[], object] | None,
        watch: Watch | None,
        who: Identity,
    ) -> None: ...
    @overload
    def __getitem__(
        self, timeout_and_copy_and_whom: tuple[float | None, bool | str, int], /
    ) -> list[bytearray | memoryview] | None: ...
    @overload
    def __getitem__(
        self, timeout_and_copy_and_whom: tuple[float | None, bool | str, None], /
    ) -> tuple[int, list[bytearray | memoryview] | None]: ...
    @overload
    def __getitem__(
        self, look_copy_and_whom: tuple[bool, int], /
    ) -> list[bytearray | memoryview] | EllipsisType | None: ...
    @overload
    def __getitem__(
        self, look_copy_and_whom: tuple[bool, None], /
    ) -> tuple[int, list[bytearray | memoryview] | None] | EllipsisType: ...
    @overload
    def __getitem__(
        self, look_copy_and_whom: tuple[bool, EllipsisType], /
    ) -> list[list[bytearray | memoryview] | None] | EllipsisType: ...
    @overload
    def __getitem__(
        self, timeout_and_copy_and_whom: tuple[float | None, bool | str, EllipsisType], /
    ) -> list[list[bytearray | memoryview] | None]:
        """Return the next reply of a member; of any, with its index before it; one of each.

        A reply is a list of frames. None in its place says that the member has died and is dropped,
        and that all it had replied was received. Of one member or of all this is said each time, of
        any it is said once.

        A call that ends in an error keeps what it has received; the next call resumes it. After it
        Python handles no signals, as after RingReader's.

        Raises: IndexError, TypeError (there is no such member), TimedOut, Interrupted,
            EndpointClosed (also: a member whose reply is awaited has closed), SegmentCorrupted,
            MemoryError, ConcurrentUse, Forked.
        """
    def interrupt(self) -> None:
        """End the calls that may wait in other threads, of this and of the writer.

        If there are none, the next one of this.
        """
    def barrier(self, timeout: float | None = None) -> None:
        """Wait until all members have come to the barrier, too, that are not dropped.

        See ReplyWriter.
        """
    def barriers_passed(self) -> int:
        """Return how many barriers this hub has passed, whatever was raised of it."""
    def absent(self) -> list[int]:
        """Return the members that have not come to the barrier."""
    def keep(self, whom: int | EllipsisType | None, received: Any) -> None:
        """Take back what was received of `whom`: it is the next of these members. From any thread.

        In one step, before which no signal is handled.
        """
    def discard(self, index: int) -> list[bytearray | memoryview] | None:
        """Forget the reply of a member that was taken back last, and return it."""
    def awaited(self) -> list[int]:
        """Return the members that the last call that waited has waited for."""
    def asked(self) -> int | EllipsisType | None:
        """Return whose reply that call was to return: a member's; any, None; or of each, ...."""
    def lags(self) -> list[int]:
        """Return the fragments replied and not taken out of the ring, by member.

        From any thread.
        """
    def member_figures(self) -> list[dict[str, Any]]:
        """Return the figures() of what was received of each member. From any thread."""

class ReplyInbox:
    """Takes objects out of the replies of members, in one step.

    Args:
        replies: a Hub, or what stands in for one.
        keep: takes back what was received of a member, or what was made of it.
        death_of: returns the error that says how a member has died.
        not_decoded: raises what it means that the reply of a member, which was kept, has become no
            object: given the member's index and the error.
        decode: see ObjectInbox; so for the others.
    """

    def __init__(
        self,
        replies: Any,
        keep: Callable[[int, Any], None],
        death_of: Callable[[int], Exception],
        not_decoded: Callable[[int, BaseException], NoReturn],
        decode: Callable[[list[Any]], Any],
        coder: ObjectCoder | None,
        is_practice: bool = False,
    ) -> None: ...
    def __getitem__(
        self, timeout_and_copy_and_whom: tuple[float | None, bool | str, int | EllipsisType | None]
    ) -> Any:
        """Return a member's next object; that of any, with its index before it; or one of each.

        Of a member that has died there is the error of `death_of` in its place, or, of one member,
        raised. After it Python handles no signals.

        Raises: what `replies` raises; and, through DECODING, what `not_decoded` and `death_of` do
            and a death. If it raises after replies were taken they are kept.
        """
