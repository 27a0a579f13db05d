"""How the ranks of a process group come together: it knows groups and ranks, not bytes.

Set-up is a collective. What goes wrong on one rank is carried to the others, so that none of them
is left waiting. Imported once torch is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from shmcast._group.process_group import group_label, members, source_rank
from shmcast._nodes import topology
from shmcast._nodes.topology import Topology
from shmcast.errors import InvalidArgument, SegmentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from shmcast._devices.lane import Terms

_T = TypeVar("_T")


class Rendezvous:
    """The ranks of a process group that set up a broadcaster, as one of them sees it.

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
        self.group_src: int = source_rank(self.ranks, src, group_src)
        """The source's rank in the group."""
        self.readers: list[int] = [r for r in range(len(self.ranks)) if r != self.group_src]
        """The other ranks in the group: a reader's index is its place here."""
        self.names: list[str] = [f"rank {self.ranks[r]}" for r in [*self.readers, self.group_src]]
        """How errors name the ring's members: the readers by index, then the source."""
        self.label: str = (
            f"rank {self.ranks[self.rank]} (rank {self.rank} of {len(self.ranks)} in "
            f"{group_label(group)})"
        )
        """How errors name this rank."""

    def agree(self, terms: Terms | None, error: Exception | None) -> Topology:
        """Find out whether all ranks want the same, and who shares memory with whom.

        Args:
            terms: what this rank has for device tensors.
            error: why this rank can't take part.

        Raises:
            InvalidArgument: the ranks don't fit together.
            Exception: `error`, if there is one and no disagreement explains it.
        """
        probe: topology.Probe | None = None
        if error is None:
            try:
                probe = topology.Probe()
            except Exception as caught:
                error = caught
        try:
            offer = _Offer(self.group_src, str(error or ""), terms, probe.card if probe else None)
            offers: list[_Offer] = self._all_gather(offer)
            self._check(offers, error)
            cards = [offer.card for offer in offers if offer.card is not None]
            firsts: list[int] = self._all_gather(topology.first_reached(cards, self.rank))
        finally:
            if probe is not None:
                probe.close()
        return Topology.of(self.ranks, firsts, [card.host for card in cards], self.group_src)

    def _check(self, offers: list[_Offer], error: Exception | None) -> None:
        by_rank = [*zip(self.ranks, offers, strict=True)]
        if len({offer.group_src for offer in offers}) > 1:
            said = ", ".join(f"rank {r} says {offer.group_src}" for r, offer in by_rank)
            raise InvalidArgument(
                f"{self.label}: the ranks name different sources by rank in the group: {said}; "
                "pass the same src or group_src on every rank"
            )
        if error is not None:
            raise error
        failed = [f"rank {r}: {offer.error}" for r, offer in by_rank if offer.error]
        if failed:
            raise InvalidArgument(f"{self.label}: could not set up: {'; '.join(failed)}")
        if len({offer.terms for offer in offers} - {None}) > 1:
            said = "; ".join(f"rank {r}: {offer.terms}" for r, offer in by_rank)
            raise InvalidArgument(
                f"{self.label}: the ranks differ in what carries device tensors: {said}; pass "
                "device_group and device_types alike on every rank"
            )

    def share(self, make: Callable[[], _T], error: Exception | None) -> list[_T]:
        """Make this rank's part of the set-up and gather everybody's, by rank in the group.

        Args:
            make: makes it.
            error: why this rank can't; `make` is then not called.

        Raises:
            SegmentError: another rank could not make its part.
            Exception: `error`, or what `make` has raised here.
        """
        mine: _T | None = None
        if error is None:
            try:
                mine = make()
            except Exception as caught:
                error = caught
        parts: list[_Part] = self._all_gather(_Part(mine, str(error) if error else ""))
        if error is not None:
            raise error
        failed = [(r, p.error) for r, p in enumerate(parts) if p.error]
        if failed:
            said = "; ".join(
                f"{'the source, ' if r == self.group_src else ''}rank {self.ranks[r]}, could not "
                f"set up: {why}"
                for r, why in failed
            )
            raise SegmentError(f"{self.label}: {said}")
        return [part.thing for part in parts]

    def confirm(self, step: Callable[[], object]) -> None:
        """Take a step of the set-up; raise on every rank if it failed on any.

        Args:
            step: this rank's part of it.

        Raises:
            SegmentError: it failed on another rank.
            Exception: what `step` has raised here.
        """
        error: Exception | None = None
        try:
            step()
        except Exception as caught:
            error = caught
        outcomes: list[_Outcome] = self._all_gather(
            _Outcome(topology.host_name(), str(error or ""))
        )
        failed = [(r, o) for r, o in zip(self.ranks, outcomes, strict=True) if o.error]
        if not failed:
            return
        if error is not None:
            raise error
        said = "; ".join(f"rank {r} on host {o.host}: {o.error}" for r, o in failed)
        raise SegmentError(
            f"{self.label}: {len(failed)} of {len(self.ranks)} ranks could not take part: {said}"
        )

    def _all_gather(self, mine: Any) -> list[Any]:
        everybody: list[Any] = [None] * len(self.ranks)
        dist.all_gather_object(everybody, mine, group=self._group)
        return everybody


@dataclass(frozen=True)
class _Offer:
    """What each rank brings to the set-up."""

    group_src: int
    error: str
    terms: Terms | None
    card: topology.Card | None
    """Lets other ranks test whether they share memory with this one; None: there is an error."""


@dataclass(frozen=True)
class _Part:
    """What a rank has made for all others, or why it could not."""

    thing: Any
    error: str


@dataclass(frozen=True)
class _Outcome:
    """How a step of the set-up ended on a rank."""

    host: str
    error: str
