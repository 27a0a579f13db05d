"""How a hub and its members find one another by the caller's all-gather: each one's steps.

What goes wrong on one rank is carried to the others, so that none of them is left waiting.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from shmcast._hub.handle import HubHandle
from shmcast._hub.hosts.seating import Seating
from shmcast._nodes import topology
from shmcast._nodes.addresses import Address
from shmcast._nodes.exchange import AllGather, Exchange, check_exchange
from shmcast._nodes.topology import Topology
from shmcast.errors import InvalidArgument

_Self = TypeVar("_Self", bound="Meeting")


@dataclass(frozen=True)
class HubOffer:
    """What the members need to know of the hub."""

    handle: HubHandle
    pid: int
    label: str
    page: str = ""
    """The name of its page; "": all are on one host."""
    secret: str = ""
    """What leaders must know."""
    addresses: tuple[Address, ...] = ()
    """Where they find it."""
    options: dict[str, Any] | None = None
    """What the parts of the hub on other hosts are made with."""


@dataclass(frozen=True)
class LeaderOffer:
    """What the hub, and the members on its host, need to know of a leader."""

    handle: HubHandle
    pid: int
    page: str


class Meeting:
    """One rank's set-up, in whose block its end is made.

    Args:
        rank: this process's.
        size: the number of ranks.
        exchange: the caller's.
        is_hub: whether this rank is the hub.
        label: how errors name this rank.

    Raises:
        InvalidArgument: there is no such rank.
    """

    seating: Seating

    def __init__(self, rank: int, size: int, exchange: AllGather, is_hub: bool, label: str) -> None:
        rank, size = check_exchange(exchange, rank, size)
        self._exchange = Exchange(exchange, rank, size, label)
        self._is_hub = is_hub
        self._is_told = False  # all know that this has failed, or fail by themselves
        self._rank = rank
        self._label = label
        self._isolation = ""
        self.undo: contextlib.ExitStack = contextlib.ExitStack()
        """Ends what was made, if the set-up fails here or elsewhere."""
        self.begin: contextlib.ExitStack = contextlib.ExitStack()
        """What is to be done when all are through."""

    def __enter__(self: _Self) -> _Self:
        """Find out who is the hub, and who shares a host.

        Raises:
            InvalidArgument: there is no hub, or several are; or there is no member.
            ShmcastError: what `Exchange` raises.
        """
        try:
            self._explore()
        except BaseException as error:
            self._fail(error)
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """End the set-up: all have come through it, or what there is of it is undone."""
        if error is not None:
            self._fail(error)
            return
        try:
            if self._isolation and self._is_hub:
                topology.warn_of_isolation(self._label, self.seating.topology, self._isolation)
            self._is_told = True
            self._exchange.conclude()
        except BaseException as late:
            self._fail(late)
            raise
        self.undo.pop_all()
        self.begin.close()

    def _fail(self, error: BaseException) -> None:
        self.begin.pop_all()
        self.undo.close()
        if not self._is_told:
            self._exchange.refuse(error)

    def share(self, mine: Any) -> list[Any]:
        """Return what every rank has passed in this step, by rank."""
        self._is_told = True
        gathered = self._exchange.gather(mine, _do_nothing)
        self._is_told = False
        return gathered

    def _explore(self) -> None:
        probe = topology.Probe()
        try:
            told = self.share((self._is_hub, probe.card))
            hubs = [rank for rank, (is_hub, _) in enumerate(told) if is_hub]
            cards = [card for _, card in told]
            self._is_told = True  # (they all see the same)
            if len(hubs) != 1 or len(told) < 2:
                raise InvalidArgument(f"{self._label}: {_misfit(hubs, len(told))}")
            self._is_told = False
            views = self.share(topology.look(cards, self._rank))
        finally:
            probe.close()
        ranks, hosts = range(len(told)), [card.host for card in cards]
        found = Topology.of(ranks, [view.first for view in views], hosts, hubs[0])
        self.seating = Seating(found, hubs[0])
        self._isolation = topology.isolation(hosts, views, [f"rank {rank}" for rank in ranks])

    @property
    def names(self) -> list[str]:
        """How errors name the members."""
        return self.seating.names()

    @property
    def is_on_one_host(self) -> bool:
        """Whether the hub and all members are."""
        return len(self.seating.topology.nodes) == 1


def _misfit(hubs: list[int], size: int) -> str:
    if size < 2:
        return f"size={size}: a hub without members; each is a rank, too"
    if not hubs:
        return "no rank is the hub: one of them must call Hub.over, the others Member.over"
    return f"ranks {' and '.join(map(str, hubs))} all are the hub: only one may call Hub.over"


def _do_nothing() -> None:
    """Do that while others come."""
