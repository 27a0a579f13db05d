"""What is measured: which messages, how often, to how many."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shmcast._host.cpus import CpuQuota

_REQUESTS = 64
_MOST_READERS = 4
_GAPS_NS = (0, 1_000_000)


def _small() -> dict[str, Any]:
    """Return an object whose pickle has about 50 bytes."""
    return {"step": 1234, "ids": [1, 2, 3], "done": False}


def _step() -> dict[str, Any]:
    """Return what an engine tells its workers of a decode step, as plain objects."""
    ids = [f"chatcmpl-{7919 * (i + 1) % 104729:012x}" for i in range(_REQUESTS)]
    return {
        "new_requests": [],
        "cached_requests": {
            "ids": ids,
            "new_block_ids": [[[4096 + i]] if i % 16 == 0 else None for i in range(_REQUESTS)],
            "computed_tokens": [512 + 31 * i for i in range(_REQUESTS)],
            "output_tokens": [17 + i for i in range(_REQUESTS)],
        },
        "scheduled_tokens": dict.fromkeys(ids, 1),
        "total_scheduled_tokens": _REQUESTS,
        "common_prefix_blocks": [0],
        "finished": {ids[-1]},
    }


MESSAGES: dict[str, Callable[[], Any]] = {"small dict": _small, "decode step": _step}
"""What is sent, by name; made anew in each process."""


@dataclass(frozen=True)
class Case:
    """One message, sent again and again to a number of readers.

    Attributes:
        message: of `MESSAGES`.
        gap_ns: before each one; 0: back to back.
        readers: how many.
    """

    message: str
    gap_ns: int
    readers: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of the message's pickle."""
        return len(pickle.dumps(MESSAGES[self.message](), pickle.HIGHEST_PROTOCOL))


def cpus() -> int:
    """Return how many CPUs this process may use, at least 1."""
    return max(1, int(min(len(os.sched_getaffinity(0)), CpuQuota().read())))


def reader_counts() -> Sequence[int]:
    """Return to how many readers to send: one, and as many as have a CPU, but for a few."""
    return sorted({1, max(1, min(_MOST_READERS, cpus() - 1))})


def cases(readers: int) -> Sequence[Case]:
    """Return the cases of a number of readers."""
    return [Case(message, gap, readers) for gap in _GAPS_NS for message in MESSAGES]


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the value that this part of the sorted ones does not exceed; nan: there are none."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan
