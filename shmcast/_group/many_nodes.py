"""Sets up a broadcaster whose group spans several nodes: a ring on each, the relay between them.

Imported once torch is in use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmcast._endpoints.handle import Handle
from shmcast._group.options import Options
from shmcast._group.rendezvous import Rendezvous
from shmcast._nodes.addresses import Address
from shmcast._nodes.failure import LastWords
from shmcast._nodes.leader import LeaderRelay
from shmcast._nodes.node_ring import NodeReader, NodeWriter
from shmcast._nodes.source import SourceRelay
from shmcast._nodes.topology import Topology


@dataclass(frozen=True)
class _Offer:
    """What a node's leader has made; nothing from the other ranks."""

    pid: int
    handle: Handle | None
    words: str
    drops: bool
    key: str = ""
    addresses: tuple[Address, ...] = ()


class Members:
    """This rank's part: one endpoint, and on a leader the relay.

    Making one is a collective. What goes wrong on one rank is raised on every rank.

    Args:
        meeting: of the group.
        topology: of several nodes.
        options: on the source, `slots`, `slot_bytes` and `on_reader_death` count for all.
        warmup: see `FrameReader`.
        error: why this rank can't take part, which the others are told.
    """

    def __init__(
        self,
        meeting: Rendezvous,
        topology: Topology,
        options: Options,
        warmup: Callable[[], object] | None,
        error: Exception | None,
    ) -> None:
        self._meeting = meeting
        self._topology = topology
        self._options = options
        self._warmup = warmup
        self._error = error
        self.rank: int = meeting.ranks[meeting.rank]
        self._src = meeting.ranks[meeting.group_src]
        self._node = topology.node_of(self.rank)
        self.readers: list[int] = [rank for rank in self._node.ranks if rank != self._src]
        """Global ranks of this node's readers, by index."""
        self._words: LastWords | None = None
        self._writer: NodeWriter | None = None
        self.end: SourceRelay | NodeReader
        """What this rank sends or receives with."""
        self.relay: LeaderRelay | None = None
        """On a leader that is not the source."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo)
            self._set_up()
            undo.pop_all()
        if self._words is not None:
            self._words.unlink()
        if self.relay is not None:
            self.relay.start()

    def _set_up(self) -> None:
        meeting, source = self._meeting, self._src
        if self._error is not None:
            offers = meeting.share(None, self._error)
        elif self.rank == source:
            offers = meeting.share(*_attempt(self._offer_as_source))
        else:
            offers = meeting.share(*_attempt(self._offer_as_leader))
        by_rank: dict[int, _Offer] = dict(zip(meeting.ranks, offers, strict=True))
        _, error = _attempt(lambda: self._attach(by_rank))
        meeting.confirm(error)
        leaders = [node.leader for node in self._topology.nodes if source not in node.ranks]
        pids = {leader: by_rank[leader].pid for leader in leaders}
        _, error = _attempt(lambda: self._join(leaders, pids))
        meeting.confirm(error)
        if self._writer is not None:
            self._writer.watch_peers()
        if self.rank != source:
            self.end.watch_peers()  # type: ignore[union-attr]

    def _offer_as_source(self) -> _Offer:
        key = secrets.token_hex(16)
        if self.readers:
            self._make_ring()
        drops = self._options.on_reader_death == "drop"
        self.end = SourceRelay(
            self._writer,
            self._words,
            self._topology,
            self._src,
            self._meeting.label,
            key,
            drops,
            self._options.warn_after,
        )
        words = "" if self._words is None else self._words.name
        handle = None if self._writer is None else self._writer.handle
        addresses = tuple(self.end.addresses)
        return _Offer(os.getpid(), handle, words, drops, key, addresses)

    def _offer_as_leader(self) -> _Offer:
        if self.rank != self._node.leader:
            return _Offer(os.getpid(), None, "", drops=False)
        self._make_ring()
        assert self._words is not None and self._writer is not None  # noqa: S101, PT018
        return _Offer(os.getpid(), self._writer.handle, self._words.name, drops=False)

    def _make_ring(self) -> None:
        topology, leader, options = self._topology, self.rank, self._options
        self._words = LastWords()
        relays = ""
        if leader != self._src:
            relays = ", which relays to it"
            options = dataclasses.replace(options, pin=False, on_death=None)  # it only copies
        names = [*map(topology.name, self.readers), f"rank {leader}{relays} on {self._node}"]
        self._writer = NodeWriter(
            len(self.readers),
            label=self._meeting.label,
            reader_label=names.__getitem__,
            **options.for_writer(),
        )

    def _attach(self, offers: dict[int, _Offer]) -> None:
        if self.rank == self._src:
            return
        node, topology = self._node, self._topology
        own, source = offers[node.leader], offers[self._src]
        assert own.handle is not None  # noqa: S101 (a leader with readers has a ring)
        words = LastWords(own.words)
        waits_for = topology.name(self._src)
        names = [topology.name(rank) for rank in self.readers]
        if node.leader == self._src:
            names.append(waits_for)
        else:
            names.append(f"rank {node.leader}, which relays to it, on {node}")
            waits_for += f", through rank {node.leader} on {node}"
        self.end = NodeReader(
            own.handle,
            self.readers.index(self.rank),
            words,
            waits_for,
            label=self._meeting.label,
            peer_label=names.__getitem__,
            warmup=self._warmup,
            **self._options.for_reader(),
        )
        if self.rank == node.leader:
            assert self._words is not None and self._writer is not None  # noqa: S101, PT018
            self.relay = LeaderRelay(
                self._writer,
                self._words,
                topology,
                self._src,
                self.rank,
                source.pid,
                self._meeting.label,
                source.key,
            )
            self.relay.connect([*source.addresses], source.key, self.rank)

    def _join(self, leaders: list[int], pids: dict[int, int]) -> None:
        if isinstance(self.end, SourceRelay):
            self.end.join(pids)
        elif self.relay is not None:
            self.relay.join(1 + leaders.index(self.rank), 1 + len(leaders))

    def _undo(self) -> None:
        if self.relay is not None:
            self.relay.close()
        if hasattr(self, "end"):
            self.end.close()
        if self._writer is not None:
            self._writer.close()
        if self._words is not None:
            self._words.unlink()


def _attempt(do: Any) -> tuple[Any, Exception | None]:
    """What `do` returns, or the exception that it raises."""
    try:
        return do(), None
    except Exception as error:
        return None, error
