"""A model of a broadcast over many nodes: messages, bytes, steps, and when a tree of leaders pays.

    python -m bench.cost_model    # the tables of docs/nodes.md

The model is LogGP: a send occupies its sender for `overhead_us` and while the bytes go into the
network card, and arrives `latency_us` later. gloo's broadcast is a binomial tree: in step i, the
first 2^i ranks send to the rank 2^i further. The ranks of a node have successive numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RANKS = 8
NODES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
SIZES = {"0.5 KB": 500, "16 KB": 16_384, "1 MiB": 1 << 20}


@dataclass(frozen=True)
class Network:
    """The costs of a message."""

    latency_us: float = 30.0
    """Between processes of two hosts, over TCP, wake-up included."""
    near_us: float = 10.0
    """Between processes of one host."""
    overhead_us: float = 5.0
    """The sender's time for each message."""
    gbit_per_s: float = 25.0

    def occupied_us(self, size: int) -> float:
        """Return how long a send keeps its sender from the next one."""
        return self.overhead_us + size * 8e-3 / self.gbit_per_s


@dataclass(frozen=True)
class Cost:
    """The costs of one broadcast."""

    messages: int
    crossing: int
    """The messages from one node to another: copies on the network."""
    from_source: int
    """Those of them that leave through the source's network card."""
    steps: int
    """The longest chain of messages until the last rank has it."""


def edges(size: int) -> list[tuple[int, int]]:
    """Return who sends to whom in gloo's broadcast from rank 0, in the order of time."""
    found = []
    reach = 1
    while reach < size:
        found += [(rank, rank + reach) for rank in range(reach) if rank + reach < size]
        reach *= 2
    return found


def steps(size: int) -> int:
    """Return the steps of gloo's broadcast."""
    return max(0, size - 1).bit_length()


def gloo_flat(nodes: int) -> Cost:
    """Return the costs of `broadcast_object_list`: two collectives over all ranks."""
    ranks = nodes * RANKS
    crossing = [(a, b) for a, b in edges(ranks) if a // RANKS != b // RANKS]
    from_source = sum(a // RANKS == 0 for a, _ in crossing)
    return Cost(2 * (ranks - 1), 2 * len(crossing), 2 * from_source, 2 * steps(ranks))


def star(nodes: int) -> Cost:
    """Return the costs of vLLM's `MessageQueue`: a TCP stream to every rank of another node."""
    remote = (nodes - 1) * RANKS
    return Cost(remote, remote, remote, remote)


def relayed(nodes: int) -> Cost:
    """Return the costs of shmcast: one gloo collective of the source and the leaders."""
    from_source = sum(a == 0 for a, _ in edges(nodes))
    return Cost(nodes - 1, nodes - 1, from_source, steps(nodes))


def star_of_leaders_us(nodes: int, size: int, network: Network) -> float:
    """Return how long it takes if the source sends to each leader in turn."""
    return (nodes - 1) * network.occupied_us(size) + network.latency_us


def tree_us(pairs: Iterable[tuple[int, int]], size: int, network: Network, ranks: int = 1) -> float:
    """Return when the last rank has it, if ranks send to one another in this order.

    Args:
        pairs: senders and receivers.
        size: the bytes of the message.
        network: the network between the nodes.
        ranks: the number of ranks on each node.
    """
    free = {0: 0.0}  # when each rank can send again
    arrivals = [0.0]
    for sender, receiver in pairs:
        free[sender] += network.occupied_us(size)
        is_near = sender // ranks == receiver // ranks
        free[receiver] = free[sender] + (network.near_us if is_near else network.latency_us)
        arrivals.append(free[receiver])
    return max(arrivals)


def tree_pays_from(size: int, network: Network) -> int:
    """Return the least number of nodes for which a tree of leaders is faster than a star."""
    nodes = 2
    while tree_us(edges(nodes), size, network) >= star_of_leaders_us(nodes, size, network):
        nodes += 1
    return nodes


def counts_table() -> str:
    """Return messages and steps, in Markdown."""
    lines = [
        "| nodes x 8 | gloo flat: messages, on the network, steps | star: messages, steps | "
        "shmcast: messages, steps | bytes on the network, gloo : star : shmcast |",
        "| --- | --- | --- | --- | --- |",
    ]
    for nodes in NODES:
        flat, one_each, ours = gloo_flat(nodes), star(nodes), relayed(nodes)
        lines.append(
            f"| {nodes} | {flat.messages}, {flat.crossing}, {flat.steps} | "
            f"{one_each.messages}, {one_each.steps} | {ours.messages}, {ours.steps} | "
            f"{flat.crossing // 2}m : {one_each.crossing}m : {ours.crossing}m |"
        )
    return "\n".join(lines)


def times_table(network: Network) -> str:
    """Return the modelled times of each kind of broadcast, in Markdown."""
    lines = ["| nodes x 8 |" + "".join(f" {size} |" for size in SIZES), "| --- |" + " --- |" * 3]
    for nodes in NODES:
        cells = []
        for size in SIZES.values():
            flat = tree_us(edges(nodes * RANKS), 8, network, RANKS)
            flat += tree_us(edges(nodes * RANKS), size, network, RANKS)
            one_each = star(nodes).messages * network.occupied_us(size) + network.latency_us
            leaders = star_of_leaders_us(nodes, size, network)
            tree = tree_us(edges(nodes), size, network)
            cells.append(f" {flat:,.0f} / {one_each:,.0f} / {leaders:,.0f} / {tree:,.0f} |")
        lines.append(f"| {nodes} |" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    network = Network()
    print(counts_table(), times_table(network), sep="\n\n")  # noqa: T201
    for name, size in SIZES.items():
        print(f"\n{name}: a tree from {tree_pays_from(size, network)} nodes on")  # noqa: T201
