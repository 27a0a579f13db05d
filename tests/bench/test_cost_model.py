"""The model behind the tables of docs/nodes.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import cost_model

DOCS = Path(__file__).parents[2] / "docs" / "nodes.md"


@given(st.integers(1, 300))
def test_gloos_tree_reaches_everybody_once_from_somebody_who_has_it(size: int) -> None:
    reached = [0]
    for sender, receiver in cost_model.edges(size):
        assert sender in reached
        assert receiver not in reached
        reached.append(receiver)
    assert sorted(reached) == [*range(size)]


@pytest.mark.parametrize("nodes", cost_model.NODES)
def test_every_other_node_gets_one_copy_and_not_one_for_each_rank(nodes: int) -> None:
    assert cost_model.relayed(nodes).crossing == nodes - 1
    assert cost_model.star(nodes).crossing == 8 * (nodes - 1)
    assert cost_model.gloo_flat(nodes).crossing == 2 * 8 * (nodes - 1)
    assert cost_model.relayed(nodes).steps == nodes.bit_length() - 1


@given(st.integers(2, 100), st.integers(1, 1 << 24))
def test_a_tree_takes_no_longer_than_its_deepest_way(nodes: int, size: int) -> None:
    network = cost_model.Network()
    one = network.occupied_us(size)
    tree = cost_model.tree_us(cost_model.edges(nodes), size, network)
    assert one + network.latency_us <= tree * (1 + 1e-9)
    assert tree <= cost_model.steps(nodes) * (one + network.latency_us) * (1 + 1e-9)


def test_the_documents_tables_are_the_models() -> None:
    text = DOCS.read_text()
    assert cost_model.counts_table() in text
    assert cost_model.times_table(cost_model.Network()) in text
