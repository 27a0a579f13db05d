"""What a process group is to a broadcaster: its ranks, this process's rank, its name.

Imported once torch is in use.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _world

from shmcast.errors import InvalidArgument

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

_NO_NAMES = ("", "undefined", "default_pg")  # descriptions that torch gives itself


def members(group: ProcessGroup | None, name: str = "the group") -> tuple[list[int], int]:
    """Return a group's global ranks, in the order of the group, and this process's rank in it.

    The rank and the size are the group's own. What the default group calls this process says
    nothing: groups can be made of processes that it did not number, or that have none.

    Args:
        group: None is the default group.
        name: how errors name it.

    Raises:
        InvalidArgument: this process is not in the group, or there are no groups yet.
    """
    if group is cast("object", dist.GroupMember.NON_GROUP_MEMBER):
        # What new_group() returns to a rank that is not in it is not a group at all.
        raise InvalidArgument(
            f"rank {dist.get_rank()} is not a member of {name}; make the broadcaster only on the "
            "group's ranks"
        )
    group = resolved(group)
    if not isinstance(group, dist.ProcessGroup):
        raise InvalidArgument(
            f"process {os.getpid()}: {name} is {group!r}, which is no "
            "torch.distributed.ProcessGroup"
        )
    return global_ranks(group), group.rank()


def resolved(group: ProcessGroup | None) -> ProcessGroup:
    """Return the group itself; None is the default group.

    Raises:
        InvalidArgument: there is none yet.
    """
    if group is not None:
        return group
    if not dist.is_available() or not dist.is_initialized() or dist.group.WORLD is None:
        raise InvalidArgument(
            f"process {os.getpid()}: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first, or use shmcast.Writer and shmcast.Reader"
        )
    return dist.group.WORLD


def global_ranks(group: ProcessGroup) -> list[int]:
    """Return how torch numbers a group's members; a group that it has no numbers for, from 0."""
    try:
        ranks = dist.get_process_group_ranks(group)
    except (KeyError, RuntimeError, ValueError):  # made by hand, and not registered
        ranks = []
    size = group.size()
    return ranks if len(ranks) == size else [*range(size)]


def store_of(group: ProcessGroup) -> Store | None:
    """Return the store by which a group's members found one another; None: it is not known."""
    with contextlib.suppress(KeyError, RuntimeError, AttributeError):
        return cast("Store | None", _world.pg_map[group][1])
    with contextlib.suppress(RuntimeError, AttributeError):  # (torch 2.4 lacks it)
        return group.get_group_store()
    return None


def device_of(group: ProcessGroup) -> torch.device:
    """Return a device whose tensors a group can gather; of several, the CPU."""
    types = {device.type for device in group._device_types}  # noqa: SLF001 (torch has no other way)
    if "cpu" in types or not types:
        return torch.device("cpu")
    kind = sorted(types)[0]
    return torch.device(kind, torch.get_device_module(kind).current_device())


def group_name(group: ProcessGroup) -> str:
    """Return what somebody has called a group; "" for nothing."""
    description = getattr(group, "group_desc", "")
    return "" if description in _NO_NAMES else str(description)
