"""How the ranks of a process group come together: it knows groups and ranks, not bytes.

Set-up is a collective. What goes wrong on one rank is carried to the others, so that none of them
is left waiting. Imported once torch is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from shmcast._endpoints import settings
from shmcast._endpoints.arguments import check_timeout
from shmcast._group.codec_kind import CodecKind
from shmcast._group.gathering import Gathering
from shmcast._group.group_handle import label_of
from shmcast._group.process_group import group_name, members, resolved, source_rank
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
        timeout: seconds for the whole set-up; None: for each of its steps, the process group's own
            time-out.

    Raises:
        InvalidArgument: this process is not in the group.
    """

    def __init__(
        self,
        group: ProcessGroup | None,
        src: int | None,
        group_src: int,
        timeout: float | None = None,
    ) -> None:
        self.ranks: list[int]
        """The group's global ranks, in the order of the group."""
        self.rank: int
        """This process's rank in the group."""
        self.ranks, self.rank = members(group)
        self.group: ProcessGroup = resolved(group)
        """The process group."""
        self.group_name: str = group_name(self.group)
        """What somebody has called the group; "" for nothing."""
        self.label: str = label_of(self.ranks, self.rank, self.group_name)
        """How errors name this rank."""
        self.error: Exception | None = None
        """Why this rank can't take part, which `agree` tells the others."""
        self.group_src: int = 0
        """The source's rank in the group."""
        try:
            timeout = settings.seconds(settings.SET_UP_TIMEOUT, timeout)
            check_timeout(timeout, self.label, "set-up")
            self.group_src = source_rank(self.ranks, src, group_src)
        except InvalidArgument as error:
            self.error, timeout = error, None
        self.readers: list[int] = [r for r in range(len(self.ranks)) if r != self.group_src]
        """The other ranks in the group: a reader's index is its place here."""
        self._rank_names = [f"rank {rank}" for rank in self.ranks]
        self.names: list[str] = [self._rank_names[r] for r in [*self.readers, self.group_src]]
        """How errors name the ring's members: the readers by index, then the source."""
        self.isolation: str = ""
        """Why ranks of one machine don't share memory; "": they do."""
        # (What gathers must not refer to `self`: in a circle, the process group would outlive its
        # destruction, and a thread of gloo's that outlives Python ends the process by abort().)
        self._all_gather = (
            Gathering(self.group, self.label, self._rank_names, timeout).gather
            if len(self.ranks) > 1
            else lambda mine: [mine]
        )

    def agree(
        self, terms: Terms | None, codec: CodecKind | None, error: Exception | None
    ) -> Topology:
        """Find out whether all ranks want the same, and who shares memory with whom.

        Args:
            terms: what this rank has for device tensors.
            codec: this rank's; None: it is not known.
            error: why this rank can't take part.

        Raises:
            InvalidArgument: the ranks don't fit together.
            Exception: `error`, if there is one and no disagreement explains it.
        """
        probe: topology.Probe | None = None
        error = self.error or error
        if error is None:
            try:
                probe = topology.Probe()
            except Exception as caught:
                error = caught
        try:
            offer = _Offer(
                self.rank,
                tuple(self.ranks),
                None if self.error else self.group_src,
                str(error or ""),
                terms,
                codec,
                probe.card if probe else None,
            )
            offers: list[_Offer] = self._all_gather(offer)
            self._check(offers, error)
            cards = [offer.card for offer in offers if offer.card is not None]
            views = self.share(lambda: topology.look(cards, self.rank), None)
        finally:
            if probe is not None:
                probe.close()
        self.isolation = topology.isolation(cards, views, self._rank_names)
        firsts = [view.first for view in views]
        return Topology.of(self.ranks, firsts, [card.host for card in cards], self.group_src)

    def _check(self, offers: list[_Offer], error: Exception | None) -> None:
        places = [offer.rank for offer in offers]
        if places != [*range(len(offers))]:
            raise InvalidArgument(
                f"{self.label}: the ranks' numbers in the group are not their places in its "
                f"collectives: in this order they say {places}; make the group anew, with each "
                "rank once"
            )
        if len({offer.ranks for offer in offers}) > 1:
            said = "; ".join(f"rank {offer.rank} of the group: {offer.ranks}" for offer in offers)
            raise InvalidArgument(
                f"{self.label}: the ranks number the group's members differently: {said}; register "
                "the group with torch.distributed alike on every rank, or on none"
            )
        by_rank = [*zip(self.ranks, offers, strict=True)]
        if len({offer.group_src for offer in offers} - {None}) > 1:
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
        self._check_codecs([(r, offer.codec) for r, offer in by_rank])

    def _check_codecs(self, by_rank: Sequence[tuple[int, CodecKind | None]]) -> None:
        kinds = [kind for _, kind in by_rank if kind is not None]
        if kinds and not all(kind.fits(kinds[0]) for kind in kinds):
            said = ", ".join(f"rank {r} has {kind or 'none'}" for r, kind in by_rank)
            raise InvalidArgument(
                f"{self.label}: the ranks have different codecs: {said}; pass the same kind of "
                "codec on every rank"
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


@dataclass(frozen=True)
class _Offer:
    """What each rank brings to the set-up."""

    rank: int
    """In the group, as the rank itself knows it."""
    ranks: tuple[int, ...]
    """The group's global ranks, as the rank knows them."""
    group_src: int | None
    """None: what it was given names no rank."""
    error: str
    terms: Terms | None
    codec: CodecKind | None
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
