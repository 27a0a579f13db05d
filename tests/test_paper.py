"""The model behind the tables of docs/nodes.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import paper

DOCS = Path(__file__).parent.parent / "docs" / "nodes.md"


@given(st.integers(1, 300))
def test_gloos_tree_reaches_everybody_once_from_somebody_who_has_it(size: int) -> None:
    reached = [0]
    for sender, receiver in paper.edges(size):
        assert sender in reached
        assert receiver not in reached
        reached.append(receiver)
    assert sorted(reached) == [*range(size)]


@pytest.mark.parametrize("nodes", paper.NODES)
def test_every_other_node_gets_one_copy_and_not_one_for_each_rank(nodes: int) -> None:
    assert paper.relayed(nodes).crossing == nodes - 1
    assert paper.star(nodes).crossing == 8 * (nodes - 1)
    assert paper.gloo_flat(nodes).crossing == 2 * 8 * (nodes - 1)
    assert paper.relayed(nodes).steps == nodes.bit_length() - 1


@given(st.integers(2, 100), st.integers(1, 1 << 24))
def test_a_tree_takes_no_longer_than_its_deepest_way(nodes: int, size: int) -> None:
    network = paper.Network()
    one = network.occupied_us(size)
    tree = paper.tree_us(paper.edges(nodes), size, network)
    assert one + network.latency_us <= tree * (1 + 1e-9)
    assert tree <= paper.steps(nodes) * (one + network.latency_us) * (1 + 1e-9)


def test_the_documents_tables_are_the_models() -> None:
    text = DOCS.read_text()
    assert paper.counts_table() in text
    assert paper.times_table(paper.Network()) in text
