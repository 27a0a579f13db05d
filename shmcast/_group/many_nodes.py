"""Set up a broadcaster whose group spans several nodes: a ring on each, the relay between them.

Imported once torch is in use.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Callable

from shmcast._endpoints.description import Description
from shmcast._endpoints.frame_end import FrameEnd
from shmcast._group.group_handle import title_of
from shmcast._group.offers import NodesOffer
from shmcast._group.one_node import ALL_MUST_RECEIVE
from shmcast._group.options import Options
from shmcast._group.rendezvous import Rendezvous
from shmcast._nodes.failure import FailurePage
from shmcast._nodes.leader import LeaderRelay
from shmcast._nodes.node_ring import NodeReader, NodeWriter
from shmcast._nodes.source import SourceRelay
from shmcast._nodes.topology import Topology


def connect_many_nodes(
    meeting: Rendezvous,
    topology: Topology,
    options: Options,
    warmup: Callable[[], object] | None,
    equip: Callable[[SourceRelay | NodeReader, Topology], None],
    error: Exception | None,
) -> LeaderRelay | None:
    """Bring the source, the leaders and all readers together: a collective of the group.

    What goes wrong on one rank is raised on every rank.

    Args:
        meeting: of the group.
        topology: of several nodes.
        options: the user's. Those of a ring count on the rank that makes it: the source, or a
            leader.
        warmup: see `FrameReader`.
        equip: is given this rank's end and the topology.
        error: why this rank can't take part, which the others are told.

    Returns:
        The relay, on a leader that is not the source.
    """
    set_up = _SetUp(meeting, topology, options, warmup, equip)
    try:
        return set_up.run(error)
    except BaseException:
        set_up.undo()
        raise


class _SetUp:
    """One rank's steps, in the order in which all ranks take them."""

    def __init__(
        self,
        meeting: Rendezvous,
        topology: Topology,
        options: Options,
        warmup: Callable[[], object] | None,
        equip: Callable[[SourceRelay | NodeReader, Topology], None],
    ) -> None:
        self._meeting = meeting
        self._topology = topology
        self._options = options
        self._warmup = warmup
        self._equip = equip
        self._rank = meeting.ranks[meeting.rank]
        self._src = meeting.ranks[meeting.group_src]
        self._node = topology.node_of(self._rank)
        self._readers = [rank for rank in self._node.ranks if rank != self._src]
        # The other nodes' leaders; a leader's rank in the relay's group is its place here + 1.
        self._leaders = [node.leader for node in topology.nodes if self._src not in node.ranks]
        self._page: FailurePage | None = None
        self._writer: NodeWriter | None = None
        self._end: SourceRelay | NodeReader | None = None
        self._relay: LeaderRelay | None = None

    def run(self, error: Exception | None) -> LeaderRelay | None:
        """Take all steps."""
        meeting = self._meeting
        offers = dict(zip(meeting.ranks, meeting.share(self._make_offer, error), strict=True))
        meeting.confirm(lambda: self._attach(offers))
        meeting.confirm(lambda: self._join(offers))
        meeting.conclude()
        if self._writer is not None:
            self._writer.watch_peers()
        if isinstance(self._end, NodeReader):
            self._end.watch_peers()
        if self._page is not None:
            self._page.unlink()
        if self._relay is not None:
            self._relay.start()
        return self._relay

    def undo(self) -> None:
        """End what was made, otherwise than in order: others may be through with the set-up."""
        if self._relay is not None:
            self._relay.give_up()
        if self._end is not None:
            self._end.give_up()
        if self._writer is not None:
            self._writer.give_up()
        if self._page is not None:
            self._page.unlink()

    def _make_offer(self) -> NodesOffer:
        if self._rank == self._src:
            return self._make_source()
        if self._rank != self._node.leader:
            return NodesOffer(os.getpid())
        writer, page = self._make_ring(f"rank {self._rank}, which relays to it, on {self._node}")
        return NodesOffer(os.getpid(), writer.handle, page.name)

    def _make_source(self) -> NodesOffer:
        if self._readers:
            self._make_ring(f"rank {self._rank} on {self._node}")
        key = secrets.token_hex(16)
        self._end = source = SourceRelay(
            self._writer,
            self._page,
            self._topology,
            src=self._src,
            label=self._meeting.label,
            key=key,
            drops=self._options.on_reader_death == "drop",
            warn_after=self._options.warn_after,
        )
        page = "" if self._page is None else self._page.name
        return NodesOffer(
            os.getpid(), source.handle, page, key, tuple(source.addresses), source.store_port
        )

    def _make_ring(self, writer_name: str) -> tuple[NodeWriter, FailurePage]:
        options = self._options
        if self._rank != self._src:
            options = dataclasses.replace(options, pin=False, on_death=None)  # it only copies
        names = [*map(self._topology.name, self._readers), writer_name]
        title = title_of(self._meeting.ranks, self._meeting.group_name)
        self._page = page = FailurePage()
        self._writer = writer = NodeWriter(
            len(self._readers),
            label=self._meeting.label,
            reader_label=names.__getitem__,
            description=Description(title, len(self._topology.nodes)),
            **options.for_writer(),
        )
        if self._rank == self._src:
            writer.advise(ALL_MUST_RECEIVE)
        return writer, page

    def _attach(self, offers: dict[int, NodesOffer]) -> None:
        if self._rank == self._src:
            return
        node, topology = self._node, self._topology
        leader = offers[node.leader]
        assert leader.handle is not None  # noqa: S101 (a leader with readers has a ring)
        waits_for = topology.name(self._src)
        names = [topology.name(rank) for rank in self._readers]
        if node.leader == self._src:
            names.append(waits_for)
        else:
            names.append(f"rank {node.leader}, which relays to it, on {node}")
            waits_for += f", through rank {node.leader} on {node}"
        self._end = NodeReader(
            leader.handle,
            self._readers.index(self._rank),
            FailurePage(leader.failure_page),
            waits_for,
            label=self._meeting.label,
            peer_label=names.__getitem__,
            warmup=self._warmup,
            **self._options.for_reader(),
        )
        if self._rank == node.leader:
            self._connect_relay(offers[self._src])

    def _connect_relay(self, source: NodesOffer) -> None:
        assert self._page is not None and self._writer is not None  # noqa: S101, PT018
        self._relay = LeaderRelay(
            self._writer,
            self._page,
            self._topology,
            src=self._src,
            rank=self._rank,
            source_pid=source.pid,
            label=self._meeting.label,
            key=source.key,
        )
        assert isinstance(self._end, NodeReader)  # noqa: S101
        self._end.on_failure = self._relay.report
        self._relay.connect([*source.addresses], source.key, self._rank, source.store_port)

    def _join(self, offers: dict[int, NodesOffer]) -> None:
        """Make the relay's first gloo group, and what this rank sends or receives with."""
        if isinstance(self._end, SourceRelay):
            self._end.join({leader: offers[leader].pid for leader in self._leaders})
        elif self._relay is not None:
            self._relay.join(1 + self._leaders.index(self._rank), 1 + len(self._leaders))
        assert self._end is not None  # noqa: S101 (the steps before have made it)
        self._equip(self._end, self._topology)
        for end in (self._writer, self._end):
            if isinstance(end, FrameEnd):
                end.populate()
