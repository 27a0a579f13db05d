"""Counts of latencies by size, as readers keep them in a segment: from counts to seconds."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import accumulate

from shmcast import _core


@functools.cache
def bounds() -> tuple[float, ...]:
    """Return where each bucket of latencies ends, in seconds; the last has no end."""
    return tuple(_core.latency_bounds())


def merged(many: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the counts of several readers as those of one; () for none."""
    return tuple(map(sum, zip(*filter(None, many), strict=True)))


def since(before: Sequence[int], now: Sequence[int]) -> tuple[int, ...]:
    """Return what was counted between two looks; all, if the first had no counts."""
    if len(before) != len(now):
        return tuple(now)
    return tuple(max(0, b - a) for a, b in zip(before, now, strict=True))


def quantile(counts: Sequence[int], q: float) -> float:
    """Return the latency in seconds that a part `q` of all did not exceed; 0 while there are none.

    It lies somewhere in a bucket whose end is at most an eighth above its beginning.
    """
    total = sum(counts)
    if not total:
        return 0.0
    rank = q * total
    ends = bounds()
    for bucket, (count, so_far) in enumerate(zip(counts, accumulate(counts), strict=True)):
        if so_far >= rank and count:
            begin = ends[bucket - 1] if bucket else 0.0
            end = ends[bucket] if bucket < len(ends) else begin
            return end - (end - begin) * (so_far - rank) / count
    return ends[-1]
