"""What `FrameWriter` and `FrameReader` share: life cycle, peers, errors that say who and what."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

from shmcast import _core
from shmcast._endpoints.arguments import check_callable, check_seconds, check_switch_interval
from shmcast._endpoints.dependencies import needing_torch
from shmcast._endpoints.ending import Ending
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.loans import address_of
from shmcast._endpoints.long_waits import warning_after
from shmcast._endpoints.peers import Watch
from shmcast._endpoints.waiting import WaitPolicy, checked_policy, chosen_policy, core_policy
from shmcast._host.cpus import CpuQuota
from shmcast._host.switch_interval import shorten_switch_interval
from shmcast.errors import (
    Closed,
    ConcurrentUse,
    Forked,
    Interrupted,
    InvalidArgument,
    MessageTooLarge,
    NodeLost,
    PeerDied,
    SegmentCorrupted,
    ShmcastError,
    Timeout,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._endpoints.pinned import PinnedArena

DEFAULT_WARN_AFTER = 60.0
"""Seconds of a wait until the log says who is slow."""

_AFTER_ALL_OTHERS = -1000  # of multiprocessing's finalizers; its queues' are at -10

_open: weakref.WeakSet[FrameEnd] = weakref.WeakSet()


def is_orderly(error: BaseException | None, receives: bool) -> bool:
    """Return whether a `with` block that ends with this exception has ended in order.

    Args:
        error: None: there is none.
        receives: the end in the block is a reader. If the end of another is what ends the block,
            its peers are told of that one, and not of a second death.
    """
    if isinstance(error, PeerDied | NodeLost):
        return receives
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    return error is None or isinstance(error, GeneratorExit)


def _program_exits() -> bool:
    """Return whether nothing of the program runs any more but daemon threads and exit handlers."""
    # (An exit handler of ours would be called after those that the program has registered since.)
    return not threading.main_thread().is_alive() and all(
        thread.daemon for thread in threading.enumerate() if thread.is_alive()
    )


CORE_ERRORS = (
    _core.TimedOut,
    _core.EndpointClosed,
    _core.Interrupted,
    _core.ConcurrentUse,
    _core.Forked,
    _core.MessageTooLarge,
    _core.BadTimeout,
    _core.SegmentCorrupted,
)
"""What the core raises in a call, before anything is sent and nothing taken."""


class FrameEnd:
    """One end of a ring, which carries frames: life cycle, peers, translated errors.

    Args:
        wait: what to do while waiting; None is `WaitPolicy.adaptive()`.
        label: how errors name this end.
        warn_after: seconds of a wait until the log says who is slow; None: never.
        switch_interval: see `Writer`.

    Raises:
        InvalidArgument: `wait` is no policy, or one of the others no number of seconds.
    """

    _ring: _core.RingWriter | _core.RingReader
    _watch: Watch
    _finalizer: weakref.finalize[..., FrameEnd]

    receives = False
    """Whether this is a reader's end."""
    reader_noun = "reader"
    """What errors call who reads; its class has this name, too."""
    writer_noun = "writer"
    """What they call the writer."""
    handle: Handle
    """Where readers find the writer's segment."""

    def __init__(
        self,
        wait: WaitPolicy | None,
        label: str,
        warn_after: float | None,
        switch_interval: float | None = None,
    ) -> None:
        if not isinstance(label, str) or "\0" in label:
            raise InvalidArgument(f"label={label!r} must be a string without a NUL")
        self.warn_after: float | None = check_seconds("warn_after", warn_after, label)
        """Seconds of a wait until the log says who is slow; None: never."""
        self.wait_policy: WaitPolicy = chosen_policy(wait, label)
        """What this end does while it waits, the operator's choice before the program's."""
        interval = check_switch_interval(switch_interval, label)
        if interval is not None:
            shorten_switch_interval(interval)
        self.label: str = label
        """How errors name this end."""
        self._closed = False
        self._ending = Ending()
        self._pinned: PinnedArena | None = None
        self._unpopulated: _core.Mapping | None = None
        self._cpu_quota = CpuQuota().read  # (not bound to self: the core would keep it alive)

    def populate(self) -> None:
        """Take the ring's page faults at once: one for each slot would hit the first messages."""
        mapping, self._unpopulated = self._unpopulated, None
        if mapping is not None:
            mapping.populate()

    def _pin(self, pin: bool, mapping: _core.Mapping, nbytes: int, is_writer: bool) -> None:
        if pin:
            with needing_torch(f"{self.label}: pin=True"):
                from shmcast._endpoints.pinned import PinnedArena

            self._pinned = PinnedArena(mapping, nbytes, is_writer, self.label)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until every reader has attached; see `Writer.wait_ready`."""
        try:
            self._ring.wait_ready(timeout)
        except _core.TimedOut:
            raise Timeout(
                f"{self.label}: after {timeout} s {self._ring.attached()} of "
                f"{self.handle.readers} {self.reader_noun}s have attached; each needs a "
                f"{self.attaching} of its own, in a process of this host"
            ) from None
        except Exception as error:
            self._raise(error, "wait_ready", timeout)
        self.watch_peers()

    @property
    def attaching(self) -> str:
        """How a process attaches."""
        return f"{self.reader_noun.capitalize()}(handle, index)"

    def change_wait_policy(self, wait: WaitPolicy) -> None:
        """Wait by another policy from now on; see `Writer.change_wait_policy`."""
        policy = chosen_policy(checked_policy(wait, self.label), self.label)
        for endpoint in self._waiting():
            try:
                endpoint.set_policy(core_policy(policy))
            except Exception as error:
                self._raise(error, "change_wait_policy", None)
        self.wait_policy = policy

    def _waiting(self) -> list[_core.Endpoint]:
        """Return all of the core's endpoints that wait here."""
        return [self._ring]

    def warning_after(self, seconds: float | None) -> AbstractContextManager[None]:
        """Let the log say who is slow in waits that last so long, in the calls in the block.

        Args:
            seconds: None: never.

        Raises:
            InvalidArgument: `seconds` is no number of seconds.
        """
        return self.warning_of_messages_after(seconds)

    def warning_of_messages_after(self, seconds: float | None) -> AbstractContextManager[None]:
        """Do so for waits of the ring of messages only."""
        return warning_after(self._ring, self._watch.long_waits, seconds, self.label)

    def _named_by(self, argument: str, names: Callable[[int], str]) -> Callable[[int], str]:
        """Keep a callable of the user's, and return what calls it.

        The core and the finalizer have the watch, and the watch this: none of them must keep alive
        what a bound method or a closure reaches, which may be the owner of this very end.

        Args:
            argument: what the user calls it.
            names: how errors name the member of an index.

        Raises:
            InvalidArgument: it can't be called.
        """
        check_callable(argument, names, self.label)
        self._names = names
        me = weakref.ref(self)

        def name(index: int) -> str:
            end = me()
            return f"member {index}" if end is None else end._names(index)  # noqa: SLF001

        return name

    def _warm_by(self, warmup: Callable[[], object] | None) -> Callable[[], None] | None:
        """Keep what warms up, and return what calls it: as for `_named_by`, it has the codec."""
        if warmup is None:
            return None
        self._warmup = warmup
        me = weakref.ref(self)

        def warm_up() -> None:
            end = me()
            if end is not None:
                end._warmup()  # noqa: SLF001

        return warm_up

    def watch_peers(self) -> None:
        """Watch all who have attached; warn of those that can't be watched."""
        try:
            self._watch.observe(self._ring.peers())
        except _core.SegmentCorrupted as error:
            self._raise(error, "set-up", None)

    def ends_also_by(self, check: Callable[[], object]) -> None:
        """Let what `check` raises end the waits here, too: it is called once a second of each."""
        self._watch.check_elsewhere = check

    def tell_death(self, index: int) -> None:
        """Tell the others of a peer's death, which this end may not see yet, before it may close.

        Args:
            index: the reader's; their number for the writer.
        """
        self._ring.tell_death(index)

    def check_peers(self) -> None:
        """Look whether a peer has died that nobody drops.

        Raises:
            PeerDied: one has.
            SegmentCorrupted: the segment names no process.
        """
        if self.receives or not self.handle.drops_dead:
            self._watch.find_dead()
            try:
                self._watch.attribute_deaths(self._ring.peers())
            except _core.SegmentCorrupted as error:
                self._raise(error, "a look at the peers", None)

    def departed(self) -> dict[int, str]:
        """Return who is no more there; see `Watch.departed`."""
        try:
            return self._watch.departed(self._ring.peers)
        except _core.SegmentCorrupted as error:
            self._raise(error, "a look at the peers", None)

    def death_of_reader(self, index: int) -> PeerDied:
        """Return how a reader has died whom `departed` calls dropped."""
        return self._watch.death_of(self._ring.peers()[index])

    def begin_tensor_set(self) -> None:
        """Tell all members that this one begins to broadcast a message's device tensors."""
        try:
            self._ring.begin_tensor_set()
        except Exception as error:
            self._raise(error, "device tensors", None)

    def tensor_sets(self) -> list[int]:
        """Return how many such each member has begun: readers by index, then the writer."""
        return self._ring.tensor_sets()

    def record_stream(self, view: npt.NDArray[Any] | torch.Tensor, stream: torch.Stream) -> None:
        """Note work on a stream that reads pinned memory; see `Writer.record_stream`."""
        if self._pinned is not None:
            self._pinned.record_stream(address_of(view), stream)

    def interrupt(self) -> None:
        """End the call that waits in another thread; see `Writer.interrupt`."""
        self._ring.interrupt()

    @property
    def reader_count(self) -> int:
        """How many readers there are, on whatever host."""
        return self.handle.readers

    @property
    def closed(self) -> bool:
        """Whether `close` was called on this end."""
        return self._closed

    def _end_when_collected(self) -> None:
        """Take the steps of the ending also when this end is collected: without `close`, a failure.

        Not when the interpreter exits: that is no end in order, and the end of the process tells.
        Then `_at_exit` is called. A thread that waits goes on to do so: as for any other wait of a
        daemon thread, the end of the program is no news to it.
        """
        self._ending.begin_with(self._ring.give_up)
        self._finalizer = weakref.finalize(self, self._ending)
        self._finalizer.atexit = False
        _open.add(self)
        _run_at_exit_of_multiprocessing()

    def _at_exit(self) -> None:
        """Leave nothing behind: the process is about to end."""
        self._ring.detach()
        self._finalizer.detach()

    def _is_told_of_the_exit(self) -> bool:
        """Return whether this thread's call ends because the program exits, not by `close`."""
        is_main = threading.current_thread() is threading.main_thread()
        return not self._closed and not is_main and _program_exits()

    def close(self) -> None:
        """End this end; idempotent. A call that waits in another thread raises `Closed`."""
        self._closed = True
        self._ring.close()
        self._ending()

    def give_up(self) -> None:
        """End this end otherwise than in order: its peers are told as of a death; idempotent."""
        self._closed = True
        self._ending()  # as if it were collected

    def _raise(self, error: Exception, action: str, timeout: float | None) -> NoReturn:
        """Say what an error of the core means here, and what to do. Others pass unchanged."""
        known = self._meaning(error, action, timeout)
        try:
            if known is None:
                raise error
            raise known from None
        finally:
            # In a cycle, they would hold what their tracebacks know until it is collected.
            del error, known

    def _meaning(
        self, error: Exception, action: str, timeout: float | None
    ) -> ShmcastError | SystemExit | None:
        """Return the error that says what one of the core means here; None: it is another."""
        who = self.label
        match error:
            case _core.EndpointClosed() if self._is_told_of_the_exit():
                return SystemExit()  # ends a thread without a word
            case _core.TimedOut():
                why = self._blocked_on(action)
                return Timeout(f"{who}: {action} timed out after {timeout} s{why}")
            case _core.EndpointClosed() if self._closed:
                return Closed(f"{who}: {action} after close(); make a new endpoint")
            case _core.EndpointClosed():
                try:
                    return self._end_error(f"{who}: {action}")
                except _core.SegmentCorrupted as corrupted:
                    return self._meaning(corrupted, action, timeout)
            case _core.Interrupted():
                return Interrupted(f"{who}: {action} was ended by interrupt(); call again")
            case _core.ConcurrentUse():
                return ConcurrentUse(
                    f"{who}: {action} while another thread is inside this endpoint; give each "
                    "thread an endpoint of its own, or guard this one with a lock"
                )
            case _core.Forked():
                return Forked(
                    f"{who}: {action} in a process forked from the one that made this endpoint; "
                    f"start processes with spawn and make a {self.attaching} in each"
                )
            case _core.MessageTooLarge():
                return MessageTooLarge(f"{who}: {error}; send it in parts")
            case _core.BadTimeout():
                return InvalidArgument(
                    f"{who}: {action}: timeout={timeout!r} must be None or a number of seconds >= 0"
                )
            case _core.SegmentCorrupted():
                return SegmentCorrupted(f"{who}: segment {self.handle.name}: {error}")
            case _:
                return None

    def _end_error(self, what: str) -> ShmcastError:
        """Make the error for a wait whose other side is gone."""
        return Closed(
            f"{what}: the {self.writer_noun} has closed and all its messages were received"
        )

    def _blocked_on(self, _action: str) -> str:
        """Say, behind the text that a call has timed out, on whom its wait depends."""
        return ""


_registered_in: set[int] = set()  # pids


def _run_at_exit_of_multiprocessing() -> None:
    """Call `_leave_nothing` also where atexit does not: in forked processes of multiprocessing."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or os.getpid() in _registered_in:
        return
    from multiprocessing.util import Finalize  # (Which this process has imported already.)

    Finalize(None, _leave_nothing, exitpriority=_AFTER_ALL_OTHERS)
    _registered_in.add(os.getpid())


@atexit.register
def _leave_nothing() -> None:
    for end in [*_open]:
        if not end.closed:
            end._at_exit()  # noqa: SLF001 (of this module)
