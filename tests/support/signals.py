"""Signals that come close together."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import operator
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import pytest

_raise_in_c = ctypes.CDLL(None)["raise"]  # leaves the signal pending, which Python's own handles

not_on_310 = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="that looks for signals wherever it goes: docs/limits.md"
)


class Handled(BaseException):
    """What a signal's handler raises."""


@contextlib.contextmanager
def another_pending() -> Iterator[Callable[..., Any]]:
    """Yield what acts, when it is called, like a handler that raises with a second signal pending.

    Whatever Python does next that looks for signals raises Handled: it enters a function, say, but
    it does not call one of C's.
    """

    def fail(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise Handled

    def first(_signal: int, _frame: FrameType | None) -> None:
        # In one call of C: the error comes before anybody looks for signals.
        deque(map(_raise_in_c, map(operator.floordiv, [signal.SIGUSR2, 1], [1, 0])), 0)

    gc.disable()  # what it finalizes would look for signals, too, and swallow the error
    handlers = {signal.SIGUSR1: first, signal.SIGUSR2: fail}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield lambda *_: signal.raise_signal(signal.SIGUSR1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        gc.enable()
