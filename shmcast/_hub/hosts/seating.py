"""Which member of a hub sits where, if they are on several hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shmcast._nodes.topology import Node, Topology


@dataclass(frozen=True)
class Seating:
    """The ranks of a hub and its members: the same on each of them."""

    topology: Topology
    hub: int
    """The hub's rank."""

    @property
    def home(self) -> Node:
        """The hub's host."""
        return self.topology.node_of(self.hub)

    @property
    def others(self) -> list[Node]:
        """The other hosts: each has a seat at the hub, behind those of the members at home."""
        return [node for node in self.topology.nodes if self.hub not in node.ranks]

    def member(self, rank: int) -> int:
        """Return which member a rank is, which is not the hub."""
        return rank - (rank > self.hub)

    def members_on(self, node: Node) -> tuple[int, ...]:
        """Return the members on a host: so they sit at the hub that they attach to."""
        return tuple(self.member(rank) for rank in node.ranks if rank != self.hub)

    def seats(self) -> list[tuple[int, ...]]:
        """Return which members each seat at the hub stands for."""
        at_home = [(member,) for member in self.members_on(self.home)]
        return [*at_home, *map(self.members_on, self.others)]

    def names(self) -> list[str]:
        """Return how errors name the members."""
        ranks = [rank for node in self.topology.nodes for rank in node.ranks if rank != self.hub]
        nodes = self.topology.nodes
        return [
            f"member {self.member(rank)}"
            + (f" on {self.topology.node_of(rank)}" if len(nodes) > 1 else "")
            for rank in sorted(ranks)
        ]

    def hub_name(self) -> str:
        """Return how errors of other hosts name the hub."""
        return f"hub on {self.home}" if len(self.topology.nodes) > 1 else "hub"

    def names_at(self, node: Node) -> list[str]:
        """Return how errors name who sits at the hub of a host, by seat, and last that hub."""
        names = self.names()
        if node == self.home:
            hosts = [f"{named(self.members_on(other))} on {other}" for other in self.others]
            return [*(names[member] for member in self.members_on(node)), *hosts, self.hub_name()]
        leader = f"{names[self.member(node.leader)]}, which relays to it"
        return [*(names[member] for member in self.members_on(node)), leader]


def named(members: Sequence[int]) -> str:
    """Name members by their numbers: "members 2 and 3"."""
    return f"member{'s' if len(members) > 1 else ''} {' and '.join(map(str, members))}"
