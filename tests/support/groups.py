"""Process groups that torch's default group did not number, as elastic engines make them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore
from torch.distributed import distributed_c10d

SECONDS = timedelta(seconds=30)


def joined(rank: int, size: int, store: str, numbers: list[int] | None) -> dist.ProcessGroup:
    """Join a group of processes of which each is rank 0 of a default group of its own.

    Args:
        rank: this process's in the group.
        size: the number of ranks.
        store: a path, the same on all ranks.
        numbers: how the group's ranks are registered with torch; None: they are not.
    """
    dist.init_process_group("gloo", f"file://{store}-{rank}", rank=0, world_size=1)
    shared = PrefixStore("joint", FileStore(store, size))
    if numbers is None:
        return unregistered(rank, size, shared)
    name: Any = getattr(distributed_c10d, "GroupName", str)("joint")  # (older ones take text)
    made: dist.ProcessGroup
    made, _ = distributed_c10d._new_process_group_helper(
        size,
        rank,
        [],
        "gloo",
        shared,
        group_name=name,
        timeout=SECONDS,
    )
    distributed_c10d._world.pg_group_ranks[made] = {n: i for i, n in enumerate(numbers)}
    return made


def unregistered(rank: int, size: int, store: distributed_c10d.Store) -> dist.ProcessGroup:
    """Make a gloo group that torch has no register of, as vLLM's stateless groups are."""
    kind = dist.ProcessGroup.BackendType.GLOO
    group_class: Any = dist.ProcessGroup  # (typed as the newest torch has it)
    group: dist.ProcessGroup
    if hasattr(group_class, "_set_default_backend"):
        group = group_class(store, rank, size)
        group._set_default_backend(kind)
    else:  # before torch 2.6, options name the backend
        group = group_class(store, rank, size, group_class.Options(backend="gloo"))
    gloo = dist.ProcessGroupGloo(PrefixStore("gloo", store), rank, size, timeout=SECONDS)
    group._register_backend(torch.device("cpu"), kind, gloo)
    return group
