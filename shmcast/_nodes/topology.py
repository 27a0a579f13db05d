"""Who shares a node with whom, by test: ranks that can reach one another's shared memory.

Host names don't count: two hosts may have the same name, and a container with a /dev/shm of its own
is a node of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from shmcast._host import shared_memory
from shmcast.errors import SegmentError

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
        """Make a topology of what `first_reached` has found on every rank.

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
    """Lets other ranks find this one's probe."""

    name: str
    nonce: bytes
    host: str


class Probe:
    """A segment of one page with a nonce in it, for others to find or not to find.

    Raises:
        SharedMemoryFull: there is no room for it.
    """

    def __init__(self) -> None:
        name, memory, fd = shared_memory.create(_NONCE_BYTES)
        os.close(fd)
        self._memory = memory
        self.card = Card(name, os.urandom(_NONCE_BYTES), host_name())
        """What to tell the others."""
        memory[:] = self.card.nonce

    def close(self) -> None:
        """Remove it, once all ranks have looked."""
        self._memory.close()
        shared_memory.unlink(self.card.name)


def host_name() -> str:
    """Return this host's name, as people know it."""
    return os.uname().nodename


def first_reached(cards: Sequence[Card], me: int) -> int:
    """Return the lowest rank in the group whose probe can be reached from here; at most `me`."""
    return next((rank for rank in range(me) if reaches(cards[rank])), me)


def reaches(card: Card) -> bool:
    """Return whether this process can attach the probe, and it is the one that is meant."""
    with contextlib.suppress(SegmentError):
        memory = shared_memory.attach(card.name, _NONCE_BYTES)
        with contextlib.closing(memory):
            return memory[:] == card.nonce
    return False
