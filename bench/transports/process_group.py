"""The torch.distributed group of a crew."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from bench.transports.base import Seat


def join(seat: Seat) -> None:
    """Make this process a rank of the default group, over gloo, if it is not one yet."""
    if dist.is_initialized():
        return
    torch.set_num_threads(1)
    on_several_hosts = "MASTER_ADDR" in os.environ
    method = "env://" if on_several_hosts else f"file://{seat.folder / 'store'}"
    dist.init_process_group("gloo", method, rank=seat.rank, world_size=seat.size)
