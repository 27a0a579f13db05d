"""Alarms whose handler raises at any moment, once in each call that is guarded by them."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Alarmed(BaseException):
    """What the handler raises, like KeyboardInterrupt no Exception."""


class AlarmedError(TimeoutError):
    """What another handler raises, as programs do that want a time-out."""


class Alarms:
    """Raises in calls of this thread, the main one.

    Args:
        raises: what, in turns; it is made anew each time.
        seed: of the moments.
    """

    def __init__(self, *raises: type[BaseException], seed: int = 1) -> None:
        self._raises = itertools.cycle(raises)
        self._random = random.Random(seed)  # noqa: S311
        self._is_armed = False
        self.count = 0
        """How often it has raised."""

    def during(self, call: Callable[[], T], within: float) -> T:
        """Call, and raise at a random moment of the first `within` seconds, or not at all."""
        self._is_armed = True
        signal.setitimer(signal.ITIMER_REAL, self._random.uniform(2e-6, within))
        try:
            return call()
        finally:
            self._is_armed = False

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_armed:
            self._is_armed = False
            self.count += 1
            raise next(self._raises)

    @contextmanager
    def in_place(self) -> Iterator[Alarms]:
        """Have the handler in place."""
        before = signal.signal(signal.SIGALRM, self._raise)
        timer = signal.setitimer(signal.ITIMER_REAL, 0)  # (a test's own time-out)
        try:
            yield self
        finally:
            self._is_armed = False
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, before)
