"""The end of a call's patience, and what is left until then."""

from __future__ import annotations

import math
import time
from typing import NamedTuple


class Deadline(NamedTuple):
    """When a call gives up.

    Attributes:
        timeout: the call's, in seconds; None: it never gives up.
        at: on the clock of `time.monotonic`.
    """

    timeout: float | None
    at: float

    @classmethod
    def after(cls, timeout: float | None) -> Deadline:
        """Return the deadline of a call that begins now."""
        return cls(timeout, math.inf if timeout is None else time.monotonic() + timeout)

    def left(self) -> float | None:
        """Return the seconds that are left; None: without end."""
        return None if self.timeout is None else max(0.0, self.at - time.monotonic())
