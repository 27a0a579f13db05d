"""A collective under way, as the steps that are left of it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shmcast._codecs.base import Frame
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import Turn


class Step(NamedTuple):
    """A part of a collective that may wait. If it raises, it has done nothing, or goes on later.

    But for a signal's handler, which may raise when all was done: then `is_over` tells, after which
    the step is not taken again. A step without it may be.
    """

    take: Callable[[Deadline], object]
    waits_for: Callable[[], str]
    is_in_hub: bool
    is_over: Callable[[], bool] = lambda: False


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
        self.received: Sequence[Frame] | None = None
        """In the hub, of the leader: kept, so that the step may be taken again."""
        self.replies: Sequence[Sequence[Frame] | None] | None = None
        """The same, of each other rank of the node."""
        self.is_sending = False
        """Whether what this rank sends in the hub was begun: one message in a call, at most."""
        self.barriers_passed: int | None = None
        """Of this rank, before the barrier that it is in."""
        self.turns: defaultdict[int, Turn] = defaultdict(Turn)
        """Its messages between nodes, by the rank with which they are exchanged."""
