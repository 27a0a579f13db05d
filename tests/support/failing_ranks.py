"""Ranks of the example that fail; a module of its own, so that their processes start quickly."""

from __future__ import annotations

import threading
from typing import Any


def raises_on_rank_1(rank: int, _ranks: int, _sender: Any, *_job: Any) -> None:
    """Raise on rank 1, while rank 0 waits for ever."""
    if rank == 1:
        raise RuntimeError("rank 1 is broken")
    threading.Event().wait()


def rank_0_ends(rank: int, _ranks: int, _sender: Any, *_job: Any) -> None:
    """End rank 0 without a word, while the others wait for ever."""
    if rank:
        threading.Event().wait()
