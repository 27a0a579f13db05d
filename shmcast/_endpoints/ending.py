"""How an endpoint ends: in order, and each step in any case."""

from __future__ import annotations

import os
from collections.abc import Callable

from shmcast._host.signals import is_interruption


class Ending:
    """The steps that end an endpoint. In a fork of its process, none of them is taken.

    A step is done once, and the others are done whatever it raises. One that a signal's handler
    interrupts is taken again: steps are idempotent. If even that is interrupted, the next call goes
    on.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._owner_pid = os.getpid()

    def add(self, *steps: Callable[[], object]) -> None:
        """Take these steps, too, after those that were added before."""
        self._steps += steps

    def begin_with(self, step: Callable[[], object]) -> None:
        """Take this step, too, before all others."""
        self._steps.insert(0, step)

    def __call__(self) -> None:
        """Take all steps that were not taken yet; then raise what the first bad one raised."""
        first: BaseException | None = None
        while self._steps and os.getpid() == self._owner_pid:
            step = self._steps[0]
            try:
                step()
            except BaseException as error:
                first = first or error
                if is_interruption(error):
                    continue
            if self._steps and self._steps[0] is step:  # no other thread, or handler, was here
                del self._steps[0]
        if first is not None:
            raise first
