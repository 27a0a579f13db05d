"""Who shares a node: by test, not by name."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcast._host import shared_memory
from shmcast._nodes import topology
from shmcast._nodes.topology import Node, Probe, Topology, View, look


def test_the_lowest_rank_whose_nonce_is_found_is_the_first() -> None:
    probes = [Probe(), Probe()]
    cards = [probe.card for probe in probes]
    try:
        assert look(cards, 0) == View(0, None)
        assert look(cards, 1) == View(0, None)
        # Another host has a segment of that name, by accident: the nonce tells.
        elsewhere = dataclasses.replace(cards[0], nonce=bytes(16))
        seen = look([elsewhere, cards[1]], 1)
        assert (seen.first, seen.obstacle) == (1, (0, f"{cards[0].name} is another segment here"))
        # That ranks of other machines don't share memory is in order.
        elsewhere = dataclasses.replace(elsewhere, machine="another")
        assert look([elsewhere, cards[1]], 1) == View(1, None)
        missing = topology.obstacle_to(dataclasses.replace(cards[0], name="/shmcast-none"))
        assert "no shared-memory segment /shmcast-none" in (missing or "")
    finally:
        for probe in probes:
            probe.close()
    assert topology.obstacle_to(cards[0]) is not None
    assert all(found.name != cards[0].name for found in shared_memory.clean(dry_run=True))


def test_nodes_are_told_in_global_ranks_and_led_by_the_source_on_its_own() -> None:
    got = Topology.of([4, 5, 6, 7], [0, 1, 0, 1], ["a", "b", "a", "b"], group_src=2)
    assert got.nodes == (Node(0, "a", 6, (4, 6)), Node(1, "b", 5, (5, 7)))
    assert got.node_of(7) is got.nodes[1]
    assert got.name(7) == "rank 7 on node 1 (b)"
    with pytest.raises(KeyError):
        got.node_of(0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_any_spread_of_ranks_is_found_again(hosts: list[int], data: st.DataObject) -> None:
    firsts = [hosts.index(host) for host in hosts]
    src = data.draw(st.integers(0, len(hosts) - 1))
    got = Topology.of(range(len(hosts)), firsts, [str(host) for host in hosts], src)
    assert sorted(rank for node in got.nodes for rank in node.ranks) == [*range(len(hosts))]
    for node in got.nodes:
        assert {hosts[rank] for rank in node.ranks} == {int(node.host)}
        assert node.leader == (src if src in node.ranks else min(node.ranks))
