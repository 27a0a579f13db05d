"""Event loops: how one of asyncio or of trio waits until a descriptor is readable.

They know tasks and descriptors. They do not know what a task looks for when it is woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import trio

    from shmcast import _core


_MANY = 64
"""Of tasks that wait: so many are looked through for those that were cancelled."""


class Loop(Protocol):
    """Whoever waits in one event loop for a byte in the pipe of an endpoint.

    A byte, or the time to look anyway, wakes all who wait, each of whom looks for itself: one that
    was cancelled meanwhile takes nothing from anybody.
    """

    @property
    def key(self) -> object:
        """What the loop is known by."""

    @property
    def is_in_use(self) -> bool:
        """Whether a task waits, and the loop is not closed."""

    async def enter(self) -> None:
        """Be cancelled here, where that is the custom although there is no need to wait."""

    def wait(self) -> Awaitable[None]:
        """Wait until it is worth a look."""

    async def wait_until(self, ends: float) -> None:
        """Wait as long as that, at most until `ends`, by `time.monotonic`."""

    def leave(self, then: Callable[[], object]) -> None:
        """Wake all, look at the descriptor no more, and call `then`. From any thread, once."""


def running(core: _core.Awaitable, fd: int, interval: Callable[[], float]) -> Loop:
    """Return the loop that runs in this thread, looking at `fd` from now on.

    Args:
        core: the end whose pipe it is.
        fd: what becomes readable.
        interval: returns after how many seconds to look anyway.

    Raises:
        RuntimeError: none runs, or none that is known here.
    """
    key = running_key()
    if isinstance(key, asyncio.AbstractEventLoop):
        return _AsyncioLoop(key, core, fd, interval)
    return _TrioLoop(key, core, fd, interval)


def running_key() -> Any:
    """Return what the running loop is known by: asyncio's loop, or trio's token.

    Raises:
        RuntimeError: none runs, or none that is known here.
    """
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_task():
            return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


class _AsyncioLoop:
    """The descriptor stays registered, so that a wait is a future and nothing else."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        core: _core.Awaitable,
        fd: int,
        interval: Callable[[], float],
    ) -> None:
        self.key: asyncio.AbstractEventLoop = loop
        self._core = core
        self._fd = fd
        self._interval = interval
        self._waiting: list[asyncio.Future[None]] = []  # some perhaps cancelled
        self._timer: asyncio.TimerHandle | None = None
        self._has_left = False
        loop.add_reader(fd, self._readable)

    @property
    def is_in_use(self) -> bool:
        return not self.key.is_closed() and not all(future.done() for future in self._waiting)

    async def enter(self) -> None:
        pass

    def wait(self) -> asyncio.Future[None]:
        # (No coroutine, whose every line would be cold when a message comes.)
        future = self.key.create_future()
        if self._timer is None and not self._has_left:
            self._timer = self.key.call_later(self._interval(), self._look_anyway)
        if len(self._waiting) >= _MANY:
            self._waiting = [each for each in self._waiting if not each.done()]
        self._waiting.append(future)
        return future

    async def wait_until(self, ends: float) -> None:
        future = self.wait()
        timer = self.key.call_later(ends - time.monotonic(), _wake, future)
        try:
            await future
        finally:
            timer.cancel()

    def leave(self, then: Callable[[], object]) -> None:
        try:
            runs_here = asyncio.get_running_loop() is self.key
        except RuntimeError:
            runs_here = False
        if runs_here or not self.key.is_running():  # (a loop that does not run is nobody's)
            self._leave(then)
            return
        try:
            self.key.call_soon_threadsafe(self._leave, then)
        except RuntimeError:  # it was closed meanwhile
            then()

    def _leave(self, then: Callable[[], object]) -> None:
        self._has_left = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.key.is_closed():
            self.key.remove_reader(self._fd)
            self._wake_all()
        then()

    def _readable(self) -> None:
        if not self._has_left:  # (or the byte is for the loop that came after)
            self._core.drain()
            self._wake_all()

    def _look_anyway(self) -> None:
        self._timer = None
        if all(future.done() for future in self._waiting):
            self._core.disarm()
        self._wake_all()

    def _wake_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            _wake(future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _TrioLoop:
    """One task at a time can wait for a descriptor in trio: the others wait for that one."""

    def __init__(
        self,
        token: trio.lowlevel.TrioToken,
        core: _core.Awaitable,
        fd: int,
        interval: Callable[[], float],
    ) -> None:
        import trio

        self._trio = trio
        self.key = token
        self._core = core
        self._fd = fd
        self._interval = interval
        self._is_led = False
        self._waiting: set[trio.Event] = set()

    @property
    def is_in_use(self) -> bool:
        return self._is_led or bool(self._waiting)

    async def enter(self) -> None:
        await self._trio.lowlevel.checkpoint()

    async def wait_until(self, ends: float) -> None:
        with self._trio.move_on_after(max(0.0, ends - time.monotonic())):
            await self.wait()

    async def wait(self) -> None:
        if self._is_led:
            event = self._trio.Event()
            self._waiting.add(event)
            try:
                await event.wait()
            finally:
                self._waiting.discard(event)
            return
        self._is_led = True
        try:
            with (
                self._trio.move_on_after(self._interval()),
                contextlib.suppress(self._trio.ClosedResourceError),  # by leave()
            ):
                await self._trio.lowlevel.wait_readable(self._fd)
                self._core.drain()
        finally:
            self._is_led = False
            if not self._waiting:
                self._core.disarm()
            self._wake_all()

    def leave(self, then: Callable[[], object]) -> None:
        def leave() -> None:
            self._trio.lowlevel.notify_closing(self._fd)
            self._wake_all()
            then()

        try:
            self.key.run_sync_soon(leave)
        except self._trio.RunFinishedError:
            then()

    def _wake_all(self) -> None:
        for event in self._waiting:
            event.set()
