"""How large the next message will be: the same guess wherever the same sizes were seen.

The relay's source and its leaders each keep an estimate and never exchange it. So it computes with
integers only: a floating-point logarithm may differ between two hosts in its last digit.
"""

from __future__ import annotations

import bisect
from collections import deque

FIRST_BYTES = 1024
"""The guess before any size is known."""

MISS_BYTES = 512 * 1024
"""The cost of a miss, which is a second collective, in bytes that the network could have carried
meanwhile: about 400 µs at 10 Gbit/s."""

HISTORY = 512
"""Sizes that are remembered."""

_EVERY = 16  # messages between two guesses, if none misses
_GRAIN_BITS = 5  # sizes are rounded up to 1/32 of their power of two
_LEAST_GRAIN = 16


def rounded(size: int) -> int:
    """Round `size` up by at most 1/32, so that small drifts of it change no guess."""
    grain = max(_LEAST_GRAIN, 1 << max(0, size.bit_length() - 1 - _GRAIN_BITS))
    return -(-size // grain) * grain


class SizeEstimate:
    """Guesses the next message's size from those before.

    The guess is the size g among those remembered for which the next message costs least on
    average: max(g, size) bytes, and `MISS_BYTES` more if size > g. So a rare message of megabytes
    does not make all others as long. A margin is added for a larger size than was ever seen, which
    comes about once in n + 1 messages after n. It grows with the spread of the sizes; where all
    are alike, there is none.
    """

    def __init__(self) -> None:
        self.next: int
        """Bytes of the next message's first collective."""
        self.hits: int = 0
        """Messages that fitted."""
        self.misses: int = 0
        """Messages that took a second collective."""
        self.restart()

    def restart(self) -> None:
        """Forget all sizes, but not how many were guessed well."""
        self.next = FIRST_BYTES
        self._sizes: deque[int] = deque()
        self._sorted: list[int] = []
        self._until = 0

    def add(self, size: int) -> None:
        """Learn that the message that `next` was for had `size` bytes."""
        missed = size > self.next
        if missed:
            self.misses += 1
        else:
            self.hits += 1
        size = rounded(size)
        self._sizes.append(size)
        bisect.insort(self._sorted, size)
        if len(self._sizes) > HISTORY:
            del self._sorted[bisect.bisect_left(self._sorted, self._sizes.popleft())]
        self._until -= 1
        if missed or self._until <= 0 or len(self._sizes) <= _EVERY:
            self._until = _EVERY
            self.next = guess(self._sorted)


def guess(sizes: list[int]) -> int:
    """Return the best guess, in bytes, after these sizes, which are rounded and sorted."""
    best = _cheapest(sizes)
    usual = sizes[: bisect.bisect_right(sizes, best)]
    spread = usual[len(usual) * 15 // 16] - usual[len(usual) // 2]
    if not spread or len(usual) < len(sizes):
        return best
    # The tail beyond the largest, if it falls off by half every `spread` bytes: each further byte
    # is worth it as long as it saves more of a miss.
    halvings = (MISS_BYTES // (len(sizes) + 1) // spread).bit_length()
    return rounded(best + halvings * spread)


def _cheapest(sizes: list[int]) -> int:
    """Return the size g that minimises the sum of max(g, size) + (MISS_BYTES if size > g)."""
    best, least = sizes[-1], len(sizes) * sizes[-1]
    above = above_bytes = 0  # of the sizes larger than the one looked at
    i = len(sizes)
    while i:
        size = sizes[i - 1]
        cost = i * size + above_bytes + above * MISS_BYTES
        if cost < least:
            best, least = size, cost
        first = bisect.bisect_left(sizes, size, 0, i)
        above += i - first
        above_bytes += (i - first) * size
        i = first
    return best
