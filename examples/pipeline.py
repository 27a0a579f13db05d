"""A pipeline of two stages, each a rank: hidden states go forth, tokens come back.

    torchrun --nproc-per-node 2 examples/pipeline.py

The first stage begins the next micro-batch while the second one computes: it does not wait until
its states are received. Device tensors go by way of host memory; between GPUs, send them with NCCL
and the rest of the step with this.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from shmcast import ShmBroadcaster, Work

MICRO_BATCHES = 8
IN_FLIGHT = 2
"""Micro-batches that the first stage has begun and has no tokens of."""
HIDDEN = 256
FIRST, LAST = 0, 1


def embed(batch: int) -> torch.Tensor:
    """Pretend to run the first half of a model."""
    return torch.full((4, HIDDEN), float(batch))


def sample(hidden: torch.Tensor) -> list[int]:
    """Pretend to run the second half."""
    return [int(row.mean().item()) + i for i, row in enumerate(hidden)]


def run_first(bc: ShmBroadcaster) -> dict[str, Any]:
    """Send the hidden states of every micro-batch; receive the tokens of each."""
    tokens: list[list[int]] = []
    coming: list[Work] = []
    for batch in range(MICRO_BATCHES):
        if len(coming) == IN_FLIGHT:
            tokens.append(coming.pop(0).wait())
        states = {"hidden": embed(batch), "batch": batch}
        bc.isend_tensor_dict(states, LAST, timeout=60)
        coming.append(bc.irecv_object(LAST, timeout=60))
    tokens += [work.wait() for work in coming]
    return {"stage": "first", "tokens": tokens}


def run_last(bc: ShmBroadcaster) -> dict[str, Any]:
    """Receive hidden states, and send their tokens back."""
    into = {"hidden": torch.empty(4, HIDDEN)}  # the same memory each time, as CUDA graphs need it
    batches = []
    for _ in range(MICRO_BATCHES):
        states = bc.recv_tensor_dict(FIRST, timeout=60, out=into)
        batches.append(states["batch"])
        bc.isend_object(sample(into["hidden"]), FIRST, timeout=60)
    return {"stage": "last", "batches": batches}


def main() -> None:
    """Run a stage, and let the first one tell what both have done."""
    dist.init_process_group("gloo")
    with ShmBroadcaster() as bc:
        done = bc.gather_object(run_first(bc) if bc.is_src else run_last(bc), timeout=60)
        bc.barrier(timeout=60)
        for stage in done or []:
            Console().print(str(stage), markup=False, soft_wrap=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
