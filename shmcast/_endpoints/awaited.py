"""`AwaitedReceiver`: receives objects in the tasks of an event loop, too."""

from __future__ import annotations

from typing import Any, TypeVar

from shmcast._endpoints.copying import Copy, copied_kind, copy_of
from shmcast._endpoints.long_waits import AS_MADE, WarnAfter
from shmcast._endpoints.objects import ObjectReceiver
from shmcast.errors import Closed

_Self = TypeVar("_Self", bound="AwaitedReceiver")


class AwaitedReceiver(ObjectReceiver):
    """Receives objects from a `FrameReader`, in calls that wait or in tasks that await."""

    async def recv_async(
        self,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> Any:
        """Receive the next object, in a task of asyncio's or of trio's.

        A message is taken in a step of the task itself, after which this returns: to cancel it, by
        `asyncio.wait_for` for instance, loses nothing. Several tasks may wait, in whatever order
        they are served; they are tasks of one loop at a time. If messages are there this returns
        them without giving way to other tasks (in trio it does).

        Args:
            timeout: as for `recv`.
            copy: as for `recv`.
            warn_after: as for `recv`.

        Raises:
            ConcurrentUse: tasks of another loop wait, or another thread is inside this reader.
            RuntimeError: no event loop runs that is known here; for others there is `fileno`.
            ShmcastError: what else `recv` raises. One `interrupt` ends one wait.
        """
        source = self._source
        kind = None if isinstance(copy, bool) else copied_kind(copy, f"{source.label}: recv_async")
        try:
            looking = await source.awaiting.begin("recv_async", timeout, warn_after)
            while (frames := self._messages[copy is True]) is ...:
                await looking.again()
        except Exception as error:
            source.fail(error, timeout)
        try:
            if looking.is_long:
                looking.end()
            if kind is not None:
                copy_of(kind, frames)
            return self._object_of(frames)
        except BaseException as error:
            self._keep(frames)  # first of all, as in `recv`
            source.not_decoded(error)

    def __aiter__(self: _Self) -> _Self:
        """Receive all objects with `async for`, which ends when the writer or this is closed."""
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.recv_async()
        except Closed:
            raise StopAsyncIteration from None

    def fileno(self) -> int:
        """Return a descriptor for any event loop: readable when a message may be there.

        Then, and once before, call `recv(timeout=0)` until it raises `Timeout`; from there on it
        becomes readable again. It is this reader's: read nothing from it, and let the loop go of
        it before `close`. The first call makes it.

        Raises:
            Closed: this reader is closed.
            HostError: there are no descriptors left.
            ConcurrentUse: another thread is inside this reader.
            Forked: this process was forked from the reader's.
        """
        return self._source.fileno()
