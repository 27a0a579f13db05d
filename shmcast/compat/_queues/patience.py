"""A long wait in parts, after each of which somebody is told; one thread after another."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from shmcast.errors import Timeout

_T = TypeVar("_T")


def wait_in_parts(
    turn: threading.RLock,
    call: Callable[[float | None], _T],
    timeout: float | None,
    part: float,
    tell: Callable[[], None],
    over: threading.Event | None = None,
) -> _T:
    """Return what `call` returns, which is called with parts of the time-out until that has passed.

    Args:
        turn: is held during a call, and is waited for as long as a call would be.
        call: waits for so many seconds at most, and can be called again.
        timeout: seconds, None for ever.
        part: seconds of one call.
        tell: called after each part but the last one.
        over: once this is set, there is one more call, without a wait.

    Raises:
        Timeout: the last call's; or another thread had the turn all the time.
        Exception: what else a call raises.
    """
    deadline = None if timeout is None else monotonic() + timeout
    left = part if timeout is None else min(max(0.0, timeout), part)
    is_last = False
    while True:
        try:
            try:  # (before the turn is taken: a signal's handler may raise right after that)
                if not turn.acquire(False):  # (by name, that takes twice as long)
                    left = _take(turn, left)
                if over is not None and over.is_set():
                    is_last, left = True, 0.0
                return call(left)
            finally:
                try:  # noqa: SIM105 (that takes several times as long)
                    turn.release()
                except RuntimeError:  # it was not this thread's turn
                    pass
        except Timeout:
            if is_last:
                raise
            left = part if deadline is None else min(deadline - monotonic(), part)
            if left <= 0:
                # Who looks in a loop, without waiting, must not keep the other side from its CPU.
                os.sched_yield()
                raise
            tell()


def _take(turn: threading.RLock, seconds: float) -> float:
    """Wait for another thread's call to end; return the seconds that are left."""
    deadline = monotonic() + seconds
    if not turn.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
        raise Timeout("another thread of this process was at this queue all the time")
    return max(0.0, deadline - monotonic())
