"""`Work`: a broadcast that has begun, as `async_op=True` returns it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmcast.errors import ShmcastError


class Work:
    """A broadcast that has begun; `wait` ends it. `ShmBroadcaster` makes it, for one thread.

    Until then, neither read nor write the source's tensors or those given as `out`, except by work
    on the device that is enqueued before or after the call, in the stream that was current there.
    """

    def __init__(self, finish: Callable[[], Any]) -> None:
        self._finish: Callable[[], Any] | None = finish
        self._result: Any = None
        self._error: ShmcastError | None = None

    @classmethod
    def done(cls, result: Any) -> Work:
        """Return a broadcast that has ended, with its object."""
        work = cls(lambda: result)
        work.wait()
        return work

    def wait(self) -> Any:
        """End the broadcast and return its object; later calls return or raise the same.

        With NCCL this returns in stream order: work that is enqueued on the current stream from now
        on sees the tensors. With gloo it returns when they have arrived. The time-out is that of
        the call that made this.

        Returns:
            The object; on the source, the one that was sent.

        Raises:
            DeviceTimeout: a rank has not taken part in time.
            DeviceError: the device group failed.
            PeerDied: a rank has died.
            NodeLost: a node can't be reached any more.
            DecodeError: the codec can't decode this message.
            InvalidArgument: `out` does not match the message.
        """
        if self._finish is not None:
            try:
                self._result = self._finish()
            except ShmcastError as error:
                self._error = error
            self._finish = None  # frees its buffers, unless Ctrl-C has ended the wait
        if self._error is not None:
            raise self._error
        return self._result
