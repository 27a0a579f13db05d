"""`GroupHandle`: how a process finds a group's segment, and whose place it can take there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from shmcast._endpoints.handle import Handle, check_layout
from shmcast._nodes.topology import Node, Topology
from shmcast.errors import InvalidArgument

_NOWHERE = Topology(())


@dataclass(frozen=True, slots=True)
class GroupHandle(Handle):
    """A `Handle` of a broadcaster's, which knows the group, too. Small and picklable."""

    topology: Topology = _NOWHERE
    """Which ranks share a node."""
    ranks: tuple[int, ...] = ()
    """The group's global ranks, in the order of the group."""
    src: int = 0
    """The source's global rank."""
    node: int = 0
    """The node whose segment it is, by index."""
    group_name: str = ""
    """What somebody has called the group."""

    @classmethod
    def of(
        cls, handle: Handle, topology: Topology, ranks: list[int], src: int, rank: int, name: str
    ) -> GroupHandle:
        """Return a handle with what a rank of the group knows."""
        known = {field.name: getattr(handle, field.name) for field in dataclasses.fields(handle)}
        node = topology.node_of(rank).index
        return cls(**known, topology=topology, ranks=(*ranks,), src=src, node=node, group_name=name)

    @property
    def here(self) -> Node:
        """The node whose segment it is."""
        return self.topology.nodes[self.node]

    @property
    def reader_ranks(self) -> list[int]:
        """The global ranks of that node's readers, by index."""
        return [rank for rank in self.here.ranks if rank != self.src]

    def name_of(self, rank: int) -> str:
        """Return how errors name another rank."""
        return self.topology.name(rank) if len(self.topology.nodes) > 1 else f"rank {rank}"

    def peer_names(self) -> list[str]:
        """Return how errors name the ring's members: the readers by index, then the writer."""
        return [self.name_of(rank) for rank in [*self.reader_ranks, self.here.leader]]


def title_of(ranks: Sequence[int], group_name: str) -> str:
    """Return what a group's segments are called: its name and its global ranks."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    said = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{group_name}, ranks {said}" if group_name else f"ranks {said}"


def label_of(ranks: list[int] | tuple[int, ...], rank: int, group_name: str) -> str:
    """Return how errors name a rank of a group, by its global rank first.

    Args:
        ranks: the group's global ranks.
        rank: in the group.
        group_name: what somebody has called the group; "" for nothing.
    """
    where = f" in group {group_name!r}" if group_name else ""
    if ranks[rank] == rank:
        return f"rank {rank} of {len(ranks)}{where}"
    return f"rank {ranks[rank]} (rank {rank} of {len(ranks)}{where or ' in its group'})"


def checked_place(handle: Handle, rank: int) -> GroupHandle:
    """Return the handle, by which a process can take the place of a rank.

    Raises:
        InvalidArgument: it can't.
        SegmentMismatch: the handle is of another version of shmcast.
    """
    if not isinstance(handle, GroupHandle):
        raise InvalidArgument(
            f"handle={handle!r} is none of a broadcaster's; pass ShmBroadcaster.handle, or use "
            "Reader(handle, index, rejoin=True)"
        )
    check_layout(handle, f"rank {rank}")
    if rank not in handle.reader_ranks:
        raise InvalidArgument(
            f"rank={rank!r} is not one of the ranks {handle.reader_ranks} that receive on "
            f"{handle.here}; the handle must be of a rank on the same node, and the source's place "
            "can't be taken"
        )
    return handle
