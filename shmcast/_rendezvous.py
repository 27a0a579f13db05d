"""How the ranks of a process group come together: it knows groups and ranks, not bytes.

Set-up is a collective. What goes wrong on one rank is carried to the others: none of them must be
left in it. Imported once torch is in use.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist

from shmcast.endpoint import Handle
from shmcast.errors import InvalidArgument, NotOneNode, SegmentError, SegmentNotFound

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from shmcast.device import Terms


class Rendezvous:
    """The ranks of a process group that set up a broadcaster, seen by one of them.

    Args:
        group: the process group; None is the default group.
        src: the source as a global rank; None to give it by `group_src`.
        group_src: the source as a rank in the group.

    Raises:
        InvalidArgument: this process is not in the group, or the source is not.
    """

    def __init__(self, group: ProcessGroup | None, src: int | None, group_src: int) -> None:
        self._group = group
        self.ranks: list[int]
        """The group's global ranks, in the order of the group."""
        self.rank: int
        """This process's rank in the group."""
        self.ranks, self.rank = members(group)
        self.group_src: int = _source(self.ranks, src, group_src)
        """The source's rank in the group."""
        self.readers: list[int] = [r for r in range(len(self.ranks)) if r != self.group_src]
        """The other ranks in the group: a reader's index is its place here."""
        self.names: list[str] = [f"rank {self.ranks[r]}" for r in [*self.readers, self.group_src]]
        """How errors name the ring's members: the readers by index, then the source."""
        self.label: str = (
            f"rank {self.ranks[self.rank]} (rank {self.rank} of {len(self.ranks)} in "
            f"{_name(group)})"
        )
        """How errors name this rank."""

    def agree(self, handle: Handle | None, terms: Terms | None, error: Exception | None) -> Handle:
        """Tells every rank the source's handle, or why there is none.

        Args:
            handle: on the source, what it has made.
            terms: what this rank has for device tensors.
            error: why this rank can't take part.

        Raises:
            InvalidArgument: the ranks don't fit together.
            SegmentError: the source could not set up.
            And `error`, if there is one and no disagreement explains it.
        """
        offers: list[_Offer] = self._all_gather(
            _Offer(self.group_src, handle, str(error) if error else "", terms)
        )
        by_rank = [*zip(self.ranks, offers, strict=True)]
        if len({offer.group_src for offer in offers}) > 1:
            said = ", ".join(f"rank {r} says {offer.group_src}" for r, offer in by_rank)
            raise InvalidArgument(
                f"{self.label}: the ranks name different sources by rank in the group: {said}; "
                "pass the same src or group_src on every rank"
            )
        if error is not None:
            raise error
        source = offers[self.group_src]
        if source.handle is None:
            raise SegmentError(
                f"{self.label}: the source, rank {self.ranks[self.group_src]}, could not set up: "
                f"{source.error}"
            )
        failed = [f"rank {r}: {offer.error}" for r, offer in by_rank if offer.error]
        if failed:
            raise InvalidArgument(f"{self.label}: could not set up: {'; '.join(failed)}")
        if len({offer.terms for offer in offers} - {None}) > 1:
            said = "; ".join(f"rank {r}: {offer.terms}" for r, offer in by_rank)
            raise InvalidArgument(
                f"{self.label}: the ranks differ in what carries device tensors: {said}; pass "
                "device_group and device_types alike on every rank"
            )
        return source.handle

    def confirm(self, error: Exception | None) -> None:
        """Raises on every rank if any rank could not attach.

        Args:
            error: why this rank could not.

        Raises:
            NotOneNode: some rank can't see the source's shared memory.
            SegmentError: another rank failed otherwise.
            And `error`, if it is not about where this rank is.
        """
        outcomes: list[_Outcome] = self._all_gather(
            _Outcome(os.uname().nodename, str(error or ""), isinstance(error, SegmentNotFound))
        )
        failed = [(r, o) for r, o in zip(self.ranks, outcomes, strict=True) if o.error]
        if not failed:
            return
        if error is not None and not isinstance(error, SegmentNotFound):
            raise error
        said = "; ".join(f"rank {r} on host {o.host}: {o.error}" for r, o in failed)
        kind = NotOneNode if any(o.not_found for _, o in failed) else SegmentError
        raise kind(
            f"{self.label}: {len(failed)} of {len(self.ranks)} ranks can't attach the shared "
            f"memory of the source, rank {self.ranks[self.group_src]} on host "
            f"{outcomes[self.group_src].host}: {said}. All ranks of a ShmBroadcaster must be on "
            "one node: make one for each node's ranks (torch.distributed.new_group), or let the "
            "containers share /dev/shm"
        ) from error

    def _all_gather(self, mine: Any) -> list[Any]:
        everybody: list[Any] = [None] * len(self.ranks)
        dist.all_gather_object(everybody, mine, group=self._group)
        return everybody


@dataclass(frozen=True)
class _Offer:
    """What each rank brings to the set-up."""

    group_src: int
    handle: Handle | None
    error: str
    terms: Terms | None


@dataclass(frozen=True)
class _Outcome:
    """How each rank's attach ended; no error: well."""

    host: str
    error: str
    not_found: bool


def members(group: ProcessGroup | None, name: str = "the group") -> tuple[list[int], int]:
    """The group's global ranks, in the order of the group, and this process's rank in it.

    Raises:
        InvalidArgument: it has none; or there are no groups yet.
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


def _source(ranks: list[int], src: int | None, group_src: int) -> int:
    """The source as a rank in the group."""
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


def _name(group: ProcessGroup | None) -> str:
    description = getattr(dist.group.WORLD if group is None else group, "group_desc", "")
    return f"group {description!r}" if description else "the group"
