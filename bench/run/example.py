"""The program of the suite "job": one rank's part in a pass of examples/tp_generate.py."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench.transports.base import Seat

if TYPE_CHECKING:
    from scheduler import Request
    from tiny_gpt import TensorParallel, TinyGPT

EXAMPLES = Path(__file__).parents[2] / "examples"
MAX_TOKENS = 32


def one_pass(
    seat: Seat, name: str, broadcast: Callable[[Any], Any], ranks: int
) -> dict[str, Any] | None:
    """Run one rank's part of a pass over all prompts; return its figures on the source."""
    from bench.transports import process_group

    process_group.join(seat)
    model, tp, requests = _model(seat.rank, ranks)
    done = _example().run_pass(name, broadcast, model, tp, requests)
    if done is None:
        return None
    return {
        "outputs": done.outputs,
        "tokens_per_s": done.tokens_per_second,
        "ttft_ms": done.first_token_ms,
        "broadcast_us": done.broadcast_us,
        "broadcast_share": done.broadcast_share,
    }


@functools.cache
def _example() -> ModuleType:
    """Import the example as Python imports what a script needs: from the script's own folder."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import prompts  # noqa: F401 (what is imported now is found later)
        import rank

        return rank
    finally:
        sys.path.remove(str(EXAMPLES))


@functools.cache
def _model(rank: int, ranks: int) -> tuple[TinyGPT, TensorParallel, list[Request]]:
    import torch

    _example()
    from gpt_config import CONFIG
    from prompts import PROMPTS, read_requests
    from tiny_gpt import TensorParallel, TinyGPT

    torch.set_grad_enabled(False)
    tp = TensorParallel(rank, ranks)
    return TinyGPT(CONFIG, 0, tp), tp, read_requests(PROMPTS, MAX_TOKENS, seed=0)
