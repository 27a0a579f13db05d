"""What the ranks of the `world` fixture run."""

from __future__ import annotations

import torch.distributed as dist


def join(rank: int, size: int, store: str) -> None:
    """Makes this process a rank of a gloo world."""
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)
