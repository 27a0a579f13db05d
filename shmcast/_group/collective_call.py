"""A collective under way, as the steps that are left of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from shmcast._nodes.deadline import Deadline


class Step(NamedTuple):
    """A part of a collective that may wait. If it raises, it has done nothing, or goes on later."""

    take: Callable[[Deadline], object]
    waits_for: Callable[[], str]
    is_in_hub: bool


class Call:
    """A collective under way: it outlives a call that times out.

    Args:
        name: of the collective.
        result: makes what the call returns, when all steps are taken.
    """

    def __init__(self, name: str, result: Callable[[], Any]) -> None:
        self.name = name
        self.steps: deque[Step] = deque()
        self.result = result
