"""What `Writer` and `Reader` share: an end of frames, and its life cycle."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from shmcast._endpoints.frame_end import FrameEnd, is_orderly
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._host.words import counted

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

_Self = TypeVar("_Self", bound="Endpoint")


class Endpoint:
    """A writer or reader of objects over one end of a ring.

    Args:
        frames: the end; it is closed with this endpoint.
    """

    def __init__(self, frames: FrameEnd) -> None:
        frames.populate()
        self._end = frames
        self.handle: Handle = frames.handle

    @property
    def wait_policy(self) -> WaitPolicy:
        """What this endpoint does while it waits, the operator's choice before the program's."""
        return self._end.wait_policy

    def change_wait_policy(self, wait: WaitPolicy) -> None:
        """Wait by another policy from now on: an engine that goes to sleep need not spin.

        To be called between calls, not during one of another thread. The operator's choice stays.

        Args:
            wait: the policy; what was learned of the pace of messages is kept.

        Raises:
            InvalidArgument: `wait` is no policy.
            Closed: this endpoint is closed.
            ConcurrentUse: another thread is inside this endpoint.
            Forked: this process was forked from the endpoint's.
        """
        self._end.change_wait_policy(wait)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until every reader has attached. Sending and receiving need not wait for it.

        Args:
            timeout: seconds, None for ever.

        Raises:
            Timeout: some reader is still missing.
            Interrupted: `interrupt` was called.
            Closed: this endpoint is closed, or the writer has closed.
            InvalidArgument: `timeout` is negative or no number; so for every call that has one.
        """
        self._end.wait_ready(timeout)

    def record_stream(self, view: npt.NDArray[Any] | torch.Tensor, stream: torch.Stream) -> None:
        """Tell of work on a stream that reads pinned memory, as `torch.Tensor.record_stream` does.

        Needed where it is another stream than the one that is current when the view or loan goes.
        To be called after the work is enqueued and before that. Without `pin` it does nothing.

        Args:
            view: an array or tensor of `Reader.recv(copy=False)` or `Writer.empty`.
            stream: the `torch.cuda.Stream` that the work is on.
        """
        self._end.record_stream(view, stream)

    def interrupt(self) -> None:
        """End the call that waits here in another thread, or that a signal's handler interrupts.

        It raises `Interrupted`, has taken or sent nothing, and this endpoint goes on being usable.
        An interrupt ends one call: the one that is inside, which may just be done and return as
        usual, or else the next one. To be called from any thread, and from a signal's handler.
        """
        self._end.interrupt()

    def warning_after(self, seconds: float | None) -> AbstractContextManager[None]:
        """Return a context in which the log tells who is slow in waits that last so long.

        In place of `warn_after`, with which the endpoint was made: for a wait of which it is known
        that it may last, say.

        Args:
            seconds: None: never.

        Raises:
            InvalidArgument: `seconds` is no number of seconds.
        """
        return self._end.warning_after(seconds)

    @property
    def closed(self) -> bool:
        """Whether `close` was called on this endpoint."""
        return self._end.closed

    def close(self) -> None:
        """End this endpoint; idempotent. A call that waits in another thread raises `Closed`.

        Of a writer's messages, readers receive those that were sent, and then `Closed`; those who
        have yet to attach find nothing any more, see `linger` of `Writer`. This alone is leaving in
        order, as is a `with` block that ends without an exception. After every other end (an
        exception out of the block, the end of the process or another program in it, garbage
        collection) the peers are told as of a death, and the place can be taken again.
        """
        self._end.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Close this endpoint; after an exception, tell the peers that it has failed."""
        if is_orderly(error, self._end.receives):
            self.close()
        else:
            self._end.give_up()

    def __repr__(self) -> str:
        if not hasattr(self, "handle"):  # its constructor has failed; or it is for practice
            return object.__repr__(self)
        kind = type(self)
        readers = counted(self._end.reader_count, self._end.reader_noun)
        return (
            f"<{kind.__module__}.{kind.__qualname__} {self._end.label!r}: {readers}, segment "
            f"{self.handle.name}{', closed' if self.closed else ''}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self._end.label}: an endpoint can't be pickled; send its `handle` instead and make "
            f"a {self._end.attaching} where it arrives"
        )
