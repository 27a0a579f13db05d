"""One object = one message: what `Writer` and `Reader` share, and the `Handle` between them.

Usable without torch.distributed: any way that brings a small picklable handle from the writer's
process to its readers will do.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from shmcast import _core
from shmcast._codecs.base import Codec
from shmcast._codecs.pickle_codec import PickleCodec
from shmcast._endpoints import peers as liveness
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.loans import address_of
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._endpoints.warmup import Practice
from shmcast._host.cpus import CpuBudget, is_crowded
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

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._endpoints.pinned import PinnedArena

DEFAULT_WARN_AFTER = 60.0


_Self = TypeVar("_Self", bound="Endpoint")


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
            from shmcast._endpoints.pinned import PinnedArena

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
            self._watch.meet(self._ring.peers())
        except _core.SegmentCorrupted as error:
            self._raise(error, "set-up", None)

    def _look_for_deaths(self) -> None:
        """Raises PeerDied if somebody has died whom nobody drops."""
        if not self.handle.drops_dead:
            self._watch.find_dead()
            try:
                self._watch.judge(self._ring.peers())
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
