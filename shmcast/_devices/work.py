"""`Work`: a broadcast, a send or a receive that has begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmcast.errors import Interrupted, ShmcastError


class Work:
    """A call that has begun; `wait` ends it. `ShmBroadcaster` makes it, for one thread.

    - Of `broadcast_tensor_dict(async_op=True)`: until `wait` has returned, neither read nor write
      the source's tensors or those given as `out`, except by work on the device that is enqueued
      before or after the call, in the stream that was current there.
    - Of `isend_object` and `isend_tensor_dict`: what was sent may be changed at once. `wait` tells
      when it is sent, or why it never will be; that need not be asked.
    - Of `irecv_object` and `irecv_tensor_dict`: `wait` receives. What comes for this is for no
      other call, also if this is never waited for.
    """

    def __init__(self, finish: Callable[[], Any]) -> None:
        self._finish: Callable[[], Any] | None = finish
        self._result: Any = None
        self._error: ShmcastError | None = None

    def wait(self) -> Any:
        """Wait for the end, and return the result; later calls return or raise the same.

        The time-out is that of the call that made this; after it, the call is over. After
        Interrupted, or what a signal's handler raises, it is not: call `wait` again.

        With NCCL, that of a broadcast returns in stream order: work that is enqueued on the current
        stream from now on sees the tensors. With gloo it returns when they have arrived.

        Returns:
            The object that was received; on the source of a broadcast, the one that was sent. None
            for sends.

        Raises:
            Interrupted: `ShmBroadcaster.interrupt` was called (for sends and receives).
            Timeout: what was to be sent found no room in time, and is not sent; or nothing came in
                time, and what comes later is for the next call.
            Closed: the other rank has closed, or this broadcaster is closed.
            DeviceTimeout: a rank has not taken part in a broadcast of device tensors in time.
            DeviceError: the device group failed.
            PeerDied: a rank has died.
            NodeLost: a node can't be reached any more.
            DecodeError: the codec can't decode what was received.
            InvalidArgument: `out` does not match what was received.
            SegmentError: the end to receive from a rank could not be made.
        """
        if self._finish is not None:
            try:
                self._result = self._finish()
            except Interrupted:
                raise  # this wait alone is over
            except ShmcastError as error:
                self._error = error
            self._finish = None  # frees its buffers, unless a signal has ended the wait
        if self._error is not None:
            raise self._error
        return self._result


def finished(result: Any) -> Work:
    """Return a work that has nothing left to wait for."""
    return Work(lambda: result)
