"""What a process group is to a broadcaster: its ranks, this process's rank, the source, its name.

Imported once torch is in use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import torch.distributed as dist

from shmcast.errors import InvalidArgument

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def members(group: ProcessGroup | None, name: str = "the group") -> tuple[list[int], int]:
    """Return a group's global ranks, in the order of the group, and this process's rank in it.

    Args:
        group: None is the default group.
        name: how errors name it.

    Raises:
        InvalidArgument: this process is not in the group, or there are no groups yet.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InvalidArgument(
            f"process {os.getpid()}: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first, or use shmcast.Writer and shmcast.Reader"
        )
    me = dist.get_rank()
    # What new_group() returns to a rank that is not in it is not a group at all.
    outside = group is cast("object", dist.GroupMember.NON_GROUP_MEMBER)
    group = dist.group.WORLD if group is None else group  # torch 2.4 takes no None here
    ranks = [] if outside else dist.get_process_group_ranks(group)
    if me not in ranks:
        raise InvalidArgument(
            f"rank {me} is not a member of {name} (ranks {ranks or 'unknown here'}); make the "
            "broadcaster only on the group's ranks"
        )
    return ranks, ranks.index(me)


def source_rank(ranks: list[int], src: int | None, group_src: int) -> int:
    """Return the source as a rank in the group.

    Args:
        ranks: the group's global ranks.
        src: the source as a global rank; None: `group_src` says it.
        group_src: the source as a rank in the group.

    Raises:
        InvalidArgument: there is no such rank, or the two name different ones.
    """
    if src is not None:
        if src not in ranks:
            raise InvalidArgument(f"src={src!r} is not one of the group's global ranks {ranks}")
        if group_src not in (0, ranks.index(src)):
            raise InvalidArgument(
                f"src={src} is rank {ranks.index(src)} of the group but group_src={group_src}; "
                "give one of them"
            )
        return ranks.index(src)
    if not isinstance(group_src, int) or not 0 <= group_src < len(ranks):
        raise InvalidArgument(
            f"group_src={group_src!r} is not a rank of the group: it has ranks 0 to "
            f"{len(ranks) - 1} (global ranks {ranks}); a global rank is given as src"
        )
    return group_src


def group_label(group: ProcessGroup | None) -> str:
    """Return how errors name a group."""
    description = getattr(dist.group.WORLD if group is None else group, "group_desc", "")
    return f"group {description!r}" if description else "the group"
