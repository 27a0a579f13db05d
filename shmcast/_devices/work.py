"""`Work`: a broadcast that is on its way, as `async_op=True` returns it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmcast.errors import ShmcastError


class Work:
    """A broadcast on its way; `wait` ends it. Made by `ShmBroadcaster`, used by one thread.

    Until then neither the source's tensors nor those given as `out` may be written to or read, but
    for work on the device that comes before or after in the stream that was current at the call.
    """

    def __init__(self, finish: Callable[[], Any]) -> None:
        self._finish: Callable[[], Any] | None = finish
        self._result: Any = None
        self._error: ShmcastError | None = None

    @classmethod
    def done(cls, result: Any) -> Work:
        """A broadcast that is over."""
        work = cls(lambda: result)
        work.wait()
        return work

    def wait(self) -> Any:
        """Ends the broadcast and returns its object; the same object, or error, in later calls.

        With NCCL it returns in stream order: what is enqueued on the current stream from now on
        sees the tensors. With gloo it returns when they are there. The time-out is the one of the
        call that made this.

        Returns:
            The object; on the source the one that was sent.

        Raises:
            DeviceTimeout: a rank has not taken part in time.
            DeviceError: the device group failed.
            DecodeError: the codec can't decode this message.
            InvalidArgument: `out` does not match the message.
        """
        if self._finish is not None:
            try:
                self._result = self._finish()
            except ShmcastError as error:
                self._error = error
            self._finish = None  # and the buffers that it holds; after Ctrl-C they are kept
        if self._error is not None:
            raise self._error
        return self._result
