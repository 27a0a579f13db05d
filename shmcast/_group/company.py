"""What a rank knows of the others: their names, and whether they can still be waited for."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.peers import ENDED_WITHOUT_CLOSE
from shmcast._group.departures import Departures
from shmcast._group.notices import Notices
from shmcast._group.options import Options
from shmcast._group.single_rank import SingleRank
from shmcast._nodes.failure import Failure
from shmcast._nodes.topology import Node, Topology
from shmcast.errors import Closed, Forked, Interrupted, NodeLost, PeerDied, SegmentError

if TYPE_CHECKING:
    from shmcast._nodes.node_ring import NodeReader
    from shmcast._nodes.source import SourceRelay


@dataclass
class Company:
    """The ranks of a broadcaster, as one of them sees them.

    Ranks are global ones, but for `rank`, and for places in `ranks`.
    """

    label: str
    """How errors name this rank."""
    title: str
    """What the group's segments are called."""
    ranks: list[int]
    """In the order of the group."""
    rank: int
    """This one, in the group."""
    src: int
    topology: Topology
    end: FrameWriter | FrameReader | SourceRelay | SingleRank
    """Of the broadcasts: who dies is told there."""
    options: Options
    notices: Notices
    departures: Departures
    pid: int = field(default_factory=os.getpid)
    is_closed: bool = False
    failure: Failure | None = None
    """What a call of this rank has raised because of others, and it may end because of that."""
    deaths: dict[int, PeerDied] = field(default_factory=dict)
    """How ranks have died that are dropped, as far as collectives have found it."""
    _interrupts: int = 0
    _calls: threading.local = field(default_factory=threading.local)
    """Of each thread: its last call, and how many interrupts there had been when it began."""

    @property
    def me(self) -> int:
        """This rank."""
        return self.ranks[self.rank]

    @property
    def here(self) -> Node:
        """The node of this rank."""
        return self.topology.node_of(self.me)

    @property
    def drops(self) -> bool:
        """Whether the others go on without ranks that have died."""
        return self.options.on_reader_death == "drop"

    def name(self, rank: int) -> str:
        """Return how errors name a rank."""
        return self.topology.name(rank) if len(self.topology.nodes) > 1 else f"rank {rank}"

    def names(self, ranks: Collection[int]) -> str:
        """Return how errors name some ranks."""
        return " and ".join(map(self.name, ranks)) or "nobody"

    def begin_to_wait(self, action: str) -> None:
        """Note that a call begins, which may `check` while it waits: earlier interrupts are past.

        To be called before `interrupt` can know of the call.

        Args:
            action: how errors name it.
        """
        self._calls.action, self._calls.interrupts = action, self._interrupts

    def interrupt(self) -> None:
        """End all calls that have begun to wait and look up now and then, whatever thread's."""
        self._interrupts += 1

    def check(self, awaited: Collection[int] = ()) -> None:
        """Look whether a call of this rank can go on waiting: `look`, and whether it is to end.

        Args:
            awaited: see `look`.

        Raises:
            Interrupted: `interrupt` was called since this thread's `begin_to_wait`.
            ShmcastError: what `look` raises.
        """
        self.check_open()
        if getattr(self._calls, "interrupts", self._interrupts) != self._interrupts:
            self._calls.interrupts = self._interrupts
            raise Interrupted(
                f"{self.label}: {self._calls.action} was ended by interrupt(); call again"
            )
        self.look(awaited)

    def look(self, awaited: Collection[int] = ()) -> None:
        """Look whether others can still be waited for.

        Args:
            awaited: for whom it waits.

        Raises:
            Closed: this broadcaster was closed, or one of them has closed theirs.
            PeerDied: some rank has died; or, where such ranks are dropped or the source has closed,
                one of these, or one that has made one of these leave.
            NodeLost: a node can't be reached any more.
        """
        self.check_open()
        self.look_at_others(awaited)

    def look_at_others(self, awaited: Collection[int]) -> None:
        """Do what `look` does, also while this broadcaster is being closed."""
        self.end.check_peers()
        here = self.departed() if awaited else {}
        for rank in awaited:
            state: str | Failure | None = here.get(rank)
            # (Of who is in its close(), the ring of this node does not tell yet.)
            if state is None and (self.is_closed or rank not in self.here.ranks):
                state = self.departures.of(rank)
            if isinstance(state, Failure):
                raise state.error(self.label)
            if state == "left":
                raise self.left(rank)
            if state is not None:
                raise self.dropped(rank)

    def check_dropped(self, rank: int) -> None:
        """Do what `check` does, and look whether a rank was dropped; it may have closed.

        Raises:
            PeerDied: it was.
            ShmcastError: what `check` raises.
        """
        self.check()
        if self.drops and self.departed().get(rank) == "dropped":
            raise self.dropped(rank)

    def leave(self, in_order: bool) -> None:
        """Take part no more, and tell those who see it nowhere else; idempotent."""
        is_first, self.is_closed = not self.is_closed, True
        if not is_first or not (in_order or self.drops):
            return
        # (What has made it leave may be known here only so far.)
        is_told_why = self.failure is not None and self.failure.kind != "Closed" and not self.drops
        state = self.failure if is_told_why else None
        self.departures.tell(self.me, state or ("left" if in_order else "dropped"))

    @contextlib.contextmanager
    def telling_causes(self) -> Iterator[None]:
        """Raise why a rank has ended that is waited for in the block, if others were the cause.

        Raises:
            PeerDied: another rank has died, and the one of the block has ended because of that.
            NodeLost: a node can't be reached any more.
        """
        try:
            yield
        except (PeerDied, NodeLost, Closed, SegmentError) as error:
            if self.failure is None and not isinstance(error, Closed):
                self.failure = Failure.of(error, self.label)
            if not self.is_closed:
                try:
                    self.end.check_peers()
                except (PeerDied, NodeLost) as cause:
                    raise cause from None  # (the error that it has caused says no more)
                if isinstance(error, PeerDied) and not self.drops:
                    self._tell_death(error)
            raise

    def _tell_death(self, error: PeerDied) -> None:
        """Tell those who hear of others by this rank: they must know why, should it end.

        (Whoever fails ends its part of the collectives first: the broadcast's end may not know.)
        """
        for index, rank in enumerate(self._members()):
            if rank in self.here.ranks and self.name(rank) == error.peer:
                assert not isinstance(self.end, SingleRank)  # noqa: S101 (there is somebody else)
                self.end.tell_death(index)
                return
        # (Not of who has ended without a close: that may have been because of yet another one.)
        if len(self.topology.nodes) > 1 and error.how != ENDED_WITHOUT_CLOSE:
            cast("SourceRelay | NodeReader", self.end).end_all(Failure.of(error, self.label))

    def check_open(self) -> None:
        """Raise Closed if this rank has closed its broadcaster, and Forked in a fork."""
        if os.getpid() != self.pid:
            raise Forked(
                f"{self.label}: used in a process forked from the one that made this broadcaster; "
                "start processes with spawn"
            )
        if self.is_closed:
            raise Closed(f"{self.label}: used after close(); make a new broadcaster")

    def departed(self) -> dict[int, str]:
        """Return which ranks are no more there: "left" or "dropped".

        Those of this node, and on the source also those of other nodes that were lost. Elsewhere
        also the source, if it has closed: the leader of a node then closes the ring there.
        """
        members = self._members()
        gone = {members[index]: state for index, state in self.end.departed().items()}
        return gone | dict.fromkeys(self._lost(), "dropped")

    def left(self, rank: int) -> Closed:
        """Make the error for a rank that has closed."""
        return Closed(f"{self.label}: {self.name(rank)} has closed, and will not come")

    def dropped(self, rank: int) -> PeerDied:
        """Make the error that stands for a rank that was dropped."""
        known = self._dropped_here().get(rank) or self.deaths.get(rank) or self._lost().get(rank)
        if known is None and rank in (readers := self._readers()):
            assert not isinstance(self.end, SingleRank)  # noqa: S101 (there is somebody else)
            known = self.end.death_of_reader(readers.index(rank))
        if known is None:
            name = self.name(rank)
            return PeerDied(f"{self.label}: {name} has died, and was dropped", name, 0, "")
        return PeerDied(str(known), known.peer, known.pid, known.how)

    def note_death(self, error: PeerDied) -> None:
        """Note how a rank of this node has died."""
        self.deaths |= {rank: error for rank in self.here.ranks if self.name(rank) == error.peer}

    def all_dropped(self) -> dict[int, PeerDied]:
        """Return how all ranks have died that are dropped, as far as the source knows."""
        gone = [rank for rank, state in self.departed().items() if state == "dropped"]
        elsewhere = [rank for rank in self.deaths if rank not in self.here.ranks]
        return {rank: self.dropped(rank) for rank in sorted({*gone, *elsewhere})}

    def _members(self) -> list[int]:
        """Return who has a place at the ring of this node, in its order; the writer is the last."""
        return [*self._readers(), self.src]

    def _readers(self) -> list[int]:
        return [rank for rank in self.here.ranks if rank != self.src]

    def _dropped_here(self) -> dict[int, PeerDied]:
        """Return what the writer of this node's ring has found, on the source."""
        if self.me != self.src:
            return {}
        readers, end = self._readers(), cast("FrameWriter | SourceRelay | SingleRank", self.end)
        return {readers[index]: error for index, error in end.dropped().items()}

    def _lost(self) -> dict[int, PeerDied]:
        """Return how the ranks of other nodes were lost, on the source."""
        if self.me != self.src or len(self.topology.nodes) == 1:
            return {}
        lost = {}
        for index, failure in cast("SourceRelay", self.end).lost_nodes().items():
            for rank in self.topology.nodes[index].ranks:
                text = f"{self.label}: {failure.text}"
                peer = failure.peer or self.name(rank)
                lost[rank] = PeerDied(text, peer, failure.pid, failure.how)
        return lost
