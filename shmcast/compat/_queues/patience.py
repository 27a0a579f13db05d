"""A long wait in parts, after each of which somebody is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from shmcast.errors import Timeout

_T = TypeVar("_T")


def wait_in_parts(
    call: Callable[[float | None], _T],
    timeout: float | None,
    part: float,
    tell: Callable[[], None],
) -> _T:
    """Return what `call` returns, which is called with parts of the time-out until that has passed.

    Args:
        call: waits for so many seconds at most, and can be called again.
        timeout: seconds, None for ever.
        part: seconds of one call.
        tell: called after each part but the last one.

    Raises:
        Timeout: the last call's.
        Exception: what else a call raises.
    """
    if timeout is None:
        while True:
            try:
                return call(part)
            except Timeout:
                tell()
    deadline = monotonic() + timeout
    left = max(0.0, timeout)
    while True:
        try:
            return call(min(left, part))
        except Timeout:
            left = deadline - monotonic()
            if left <= 0:
                # Who looks in a loop, without waiting, must not keep the other side from its CPU.
                os.sched_yield()
                raise
            tell()
