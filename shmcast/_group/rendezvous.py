"""How the ranks of a broadcaster come together: it knows ranks, not bytes.

Set-up is a collective. What goes wrong on one rank is carried to the others, so that none of them
is left waiting.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from shmcast import _core
from shmcast._endpoints import settings
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.handle import Handle, geometry_of
from shmcast._group.codec_kind import CodecKind
from shmcast._group.group_handle import label_of
from shmcast._group.notice_board import NoticeBoard, notices_of
from shmcast._group.offers import Offer, check
from shmcast._group.parties import Parties, source_rank
from shmcast._nodes import topology
from shmcast._nodes.topology import Topology
from shmcast.errors import InvalidArgument, SegmentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from shmcast._devices.lane import Terms
    from shmcast._group.notices import NoticeStore

_T = TypeVar("_T")


def _do_nothing() -> None:
    """Do that while others come."""


class Rendezvous:
    """The ranks that set up a broadcaster, as one of them sees it.

    Args:
        parties: the ranks.
        src: the source as a global rank; None to give it by `group_src`.
        group_src: the source as a rank in the group.
        timeout: seconds for the whole set-up; None: what gathers has its own time-out.
        label: what to call the group; None: what it is called.
    """

    def __init__(
        self,
        parties: Parties,
        src: int | None,
        group_src: int,
        timeout: float | None = None,
        label: str | None = None,
    ) -> None:
        self.ranks: list[int] = parties.ranks
        """The group's global ranks, in the order of the group."""
        self.rank: int = parties.rank
        """This process's rank in the group."""
        self.group: ProcessGroup | None = parties.group
        """The process group; None: there is none."""
        self.group_name: str = str(label or parties.name)
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
        self.store: NoticeStore | None = parties.store
        """By which the ranks find what others have made; None: it is not known."""
        self.key: str = ""
        """The broadcaster's, the same on all ranks and no other's: known when all agree."""
        self._rank_names = [f"rank {rank}" for rank in self.ranks]
        self.names: list[str] = [self._rank_names[r] for r in [*self.readers, self.group_src]]
        """How errors name the ring's members: the readers by index, then the source."""
        self.isolation: str = ""
        """Why ranks of one machine don't share memory; "": they do."""
        self._offers: list[Offer] = []
        self._ring_error: Exception | None = None
        # (What gathers must not refer to `self`: in a circle, the process group would outlive its
        # destruction, and a thread of gloo's that outlives Python ends the process by abort().)
        self._gatherer = parties.gatherer and parties.gatherer(
            self.label, self._rank_names, timeout
        )

    def agree(
        self,
        terms: Terms | None,
        codec: CodecKind | None,
        error: Exception | None,
        make_ring: Callable[[], Handle],
        meanwhile: Callable[[], object],
    ) -> Handle | None:
        """Find out whether all ranks want the same, and where the source's ring for all of them is.

        Args:
            terms: what this rank has for device tensors.
            codec: this rank's; None: it is not known.
            error: why this rank can't take part.
            make_ring: makes a ring for all ranks, on the source.
            meanwhile: called while this waits for the others; must not fail.

        Returns:
            None: the source could not make one, which is no error yet: on several nodes there will
            be others.

        Raises:
            InvalidArgument: the ranks don't fit together.
            Exception: `error`, if there is one and no disagreement explains it.
        """
        error = self.error or error
        handle: Handle | None = None
        key = secrets.token_hex(16)
        board: NoticeBoard | None = None
        if error is None and self.rank == self.group_src:
            try:
                handle = make_ring()
            except Exception as caught:
                self._ring_error = caught
            if self.group is None:
                try:
                    self.store = board = NoticeBoard(key)
                except OSError as caught:
                    error = caught
        offer = Offer(
            self.rank,
            tuple(self.ranks),
            None if self.error else self.group_src,
            str(error or ""),
            terms,
            codec,
            topology.host_name(),
            topology.machine_id(),
            handle,
            str(self._ring_error or ""),
            key,
            () if board is None else (*board.addresses,),
        )
        self._offers = self._all_gather(offer, meanwhile)
        check(self._offers, self.ranks, self.label, error)
        source = self._offers[self.group_src]
        self.key = source.key
        if source.board and board is None:
            self.store = notices_of(source.board, self.key, self.rank)
        return source.handle

    def explore(
        self,
        handle: Handle | None,
        attach: Callable[[Handle, Topology], object],
        meanwhile: Callable[[], object],
    ) -> Topology:
        """Attach to the source's ring, and find out who shares memory with whom if not all can.

        Args:
            handle: of that ring; None: there is none.
            attach: makes this rank's end of it, with the topology that the group has if all can.
                Called where it is in reach, and on the source.
            meanwhile: called while this waits for the others; must not fail.

        Returns:
            The group's topology. Of one node: every rank has attached.

        Raises:
            SegmentError: another rank could not attach, or the source has no ring for one node.
            Exception: what `attach` has raised here, or why this source has no ring.
        """
        probe: topology.Probe | None = None
        here = self._offers[self.rank]
        source = self._offers[self.group_src]
        hosts = [offer.host for offer in self._offers]
        of_one_node = Topology.of(self.ranks, [0] * len(hosts), hosts, self.group_src)

        def look() -> _Finding:
            nonlocal probe
            obstacle = ""
            if handle is not None:
                if self.rank != self.group_src:
                    card = topology.Card(
                        handle.name,
                        handle.nonce,
                        source.host,
                        source.machine,
                        geometry_of(handle).file_bytes,
                        _core.NONCE_OFFSET,
                    )
                    obstacle = topology.obstacle_to(card) or ""
                if not obstacle:
                    attach(handle, of_one_node)
                    return _Finding(None, "")
            probe = topology.Probe()
            is_one_machine = bool(source.machine) and source.machine == here.machine
            return _Finding(probe.card, obstacle if is_one_machine else "")

        try:
            findings = self.share(look, None, meanwhile)
            cards = [finding.card for finding in findings]
            near = [rank for rank, card in enumerate(cards) if card is None]
            if len(near) == len(cards):
                return of_one_node
            views = self.share(lambda: self._view(findings, near), None)
        finally:
            if probe is not None:
                probe.close()
        self.isolation = topology.isolation(hosts, views, self._rank_names)
        found = Topology.of(self.ranks, [view.first for view in views], hosts, self.group_src)
        if handle is None and len(found.nodes) == 1:
            self._raise_failed([(self.group_src, source.ring_error)], self._ring_error)
        return found

    def _view(self, findings: list[_Finding], near: list[int]) -> topology.View:
        mine = findings[self.rank]
        if mine.card is None:  # it has attached, as all others that are near the source
            return topology.View(near[0], None)
        view = topology.look([finding.card for finding in findings], self.rank)
        if mine.obstacle and view.obstacle is None:
            return topology.View(view.first, (self.group_src, mine.obstacle))
        return view

    def share(
        self,
        make: Callable[[], _T],
        error: Exception | None,
        meanwhile: Callable[[], object] = _do_nothing,
    ) -> list[_T]:
        """Make this rank's part of the set-up and gather everybody's, by rank in the group.

        Args:
            make: makes it.
            error: why this rank can't; `make` is then not called.
            meanwhile: called while this waits for the others; must not fail.

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
        parts: list[_Part] = self._all_gather(_Part(mine, str(error) if error else ""), meanwhile)
        self._raise_failed([(r, p.error) for r, p in enumerate(parts) if p.error], error)
        return [part.thing for part in parts]

    def _raise_failed(self, failed: list[tuple[int, str]], error: Exception | None) -> None:
        """Raise what went wrong, here or elsewhere, if anything did."""
        if error is not None:
            raise error
        if failed:
            said = "; ".join(
                f"{'the source, ' if r == self.group_src else ''}rank {self.ranks[r]}, could not "
                f"set up: {why}"
                for r, why in failed
            )
            raise SegmentError(f"{self.label}: {said}")

    def conclude(self) -> None:
        """Come to the end of the set-up, as the others.

        Raises:
            SegmentError: another rank has not come so far.
        """
        if self._gatherer is not None:
            self._gatherer.conclude()

    def _all_gather(self, mine: Any, meanwhile: Callable[[], object]) -> list[Any]:
        return [mine] if self._gatherer is None else self._gatherer.gather(mine, meanwhile)

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
            _Outcome(topology.host_name(), str(error or "")), _do_nothing
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
class _Finding:
    """What a rank has found out about the source's ring."""

    card: topology.Card | None
    """Of its probe; None: it needs none, it has attached."""
    obstacle: str
    """Why it can't, although it runs on the source's machine; "": it can, or it does not."""


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
