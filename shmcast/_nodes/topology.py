"""Who shares a node with whom, by test: ranks that can reach one another's shared memory.

Host names don't count: two hosts may have the same name, and a container with a /dev/shm of its own
is a node of its own.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shmcast._host import shared_memory
from shmcast.errors import SegmentMismatch, SegmentNotFound, ShmcastWarning

_NONCE_BYTES = 16


@dataclass(frozen=True)
class Node:
    """Ranks that share memory.

    Attributes:
        index: its place in `Topology.nodes`.
        host: its leader's host name: for people to read, nothing depends on it.
        leader: the global rank that gets the messages for this node; on the source's node, the
            source.
        ranks: global ranks, in the order of the group.
    """

    index: int
    host: str
    leader: int
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        return f"node {self.index} ({self.host})"


@dataclass(frozen=True)
class Topology:
    """Which ranks of a process group share memory; the same on every rank.

    Attributes:
        nodes: in the order of their first ranks.
    """

    nodes: tuple[Node, ...]

    def node_of(self, rank: int) -> Node:
        """Return the node of a global rank.

        Raises:
            KeyError: it is not in the group.
        """
        for node in self.nodes:
            if rank in node.ranks:
                return node
        raise KeyError(rank)

    def name(self, rank: int) -> str:
        """Return how errors name a global rank."""
        return f"rank {rank} on {self.node_of(rank)}"

    @classmethod
    def of(
        cls, ranks: Sequence[int], firsts: Sequence[int], hosts: Sequence[str], group_src: int
    ) -> Topology:
        """Make a topology of what `look` has found on every rank.

        Args:
            ranks: the group's global ranks.
            firsts: by rank in the group, the lowest rank in the group on the same node.
            hosts: by rank in the group, the host name.
            group_src: the source's rank in the group.
        """
        members: dict[int, list[int]] = {}
        for rank, first in enumerate(firsts):
            while firsts[first] != first:  # (it goes down: a rank's first is no higher than it)
                first = firsts[first]
            members.setdefault(first, []).append(rank)
        nodes = []
        for index, (first, inside) in enumerate(members.items()):
            leader = group_src if group_src in inside else first
            nodes.append(Node(index, hosts[leader], ranks[leader], tuple(ranks[r] for r in inside)))
        return cls(tuple(nodes))


@dataclass(frozen=True)
class Card:
    """Lets other ranks find a segment of this one, a probe or a ring."""

    name: str
    nonce: bytes
    host: str
    machine: str
    """The same for all that run under one kernel, whatever their containers; "": not known."""
    nbytes: int = _NONCE_BYTES
    """The segment's size."""
    nonce_at: int = 0
    """Where the nonce lies in it."""


@dataclass(frozen=True)
class View:
    """Whom a rank can share memory with."""

    first: int
    """The lowest rank in the group whose probe it reaches; at most its own."""
    obstacle: tuple[int, str] | None
    """A rank on its machine whose segment it can't reach, and why; None: there is none."""


class Probe:
    """A segment of one page with a nonce in it, for others to find or not to find.

    Raises:
        SharedMemoryFull: there is no room for it.
    """

    def __init__(self) -> None:
        name, memory, fd = shared_memory.create(_NONCE_BYTES)
        os.close(fd)
        self._memory = memory
        self.card = Card(name, os.urandom(_NONCE_BYTES), host_name(), machine_id())
        """What to tell the others."""
        memory[:] = self.card.nonce

    def close(self) -> None:
        """Remove it, once all ranks have looked."""
        self._memory.close()
        shared_memory.unlink(self.card.name)


def host_name() -> str:
    """Return this host's name, as people know it."""
    return os.uname().nodename


def machine_id() -> str:
    """Return what this kernel calls the time since it was started; "" where it is hidden."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def look(cards: Sequence[Card | None], me: int) -> View:
    """Try to reach the probes of the ranks below `me`, a rank in the group that has one.

    Args:
        cards: by rank in the group; None: that rank has no probe.
        me: this rank.

    Raises:
        OSError: it could not be tried.
    """
    obstacle: tuple[int, str] | None = None
    mine = cards[me]
    for rank, card in enumerate(cards[:me]):
        if card is None:
            continue
        why = obstacle_to(card)
        if why is None:
            return View(rank, obstacle)
        if obstacle is None and mine is not None and card.machine and card.machine == mine.machine:
            obstacle = (rank, why)
    return View(me, obstacle)


def obstacle_to(card: Card) -> str | None:
    """Return why this process can't attach the segment that is meant; None: it can.

    Raises:
        OSError: it could not be tried, for want of descriptors, say.
    """
    try:
        fd = shared_memory.find(card.name, card.nbytes)
    except (SegmentNotFound, SegmentMismatch) as error:
        return str(error)
    try:
        found = os.pread(fd, len(card.nonce), card.nonce_at)
    finally:
        os.close(fd)
    return None if found == card.nonce else f"{card.name} is another segment here"


def isolation(hosts: Sequence[str], views: Sequence[View], names: Sequence[str]) -> str:
    """Describe what keeps ranks of one machine from sharing memory; "": nothing does.

    Args:
        hosts: the names of all ranks' hosts.
        views: of all ranks.
        names: how to name the ranks, by rank in the group.
    """
    said = []
    for rank, view in enumerate(views):
        # (Whose first rank it is not has an obstacle in common with that one.)
        if view.obstacle is not None and view.first == rank:
            other, why = view.obstacle
            said.append(
                f"{names[rank]} on host {hosts[rank]} can't attach the segment of {names[other]} "
                f"on host {hosts[other]}: {why}"
            )
    return "; ".join(said)


def warn_of_isolation(label: str, topology: Topology, why: str) -> None:
    """Warn that ranks of one machine are of different nodes.

    Args:
        label: how warnings name this rank.
        topology: the group's.
        why: as `isolation` describes it.
    """
    nodes = "; ".join(
        f"{n}: rank{'s' if len(n.ranks) > 1 else ''} {', '.join(map(str, n.ranks))}"
        for n in topology.nodes
    )
    warnings.warn(
        f"{label}: ranks of one machine can't share memory, so that messages between them go over "
        f"the network, 15 to 30 times slower ({nodes}): {why}. Let their containers "
        "share one /dev/shm, and run them as one user",
        ShmcastWarning,
        stacklevel=4,  # the caller of the broadcaster
    )
