"""`python -m bench collectives`: every operation with either arrival, beside its peers."""

from __future__ import annotations

import multiprocessing

import numpy as np

from bench import commands, terminal
from bench.run import collectives
from tests.support.permissions import needs_torch
from tests.support.terminal import rendered


@needs_torch
def test_each_operation_is_measured_beside_gloos() -> None:
    before = {*multiprocessing.active_children()}  # other tests' crews
    rows = collectives.run(terminal.console(), ranks=2, calls=5, turns=2)
    assert [(row["operation"], row["arrival"], row["transport"]) for row in rows] == [
        (operation, arrival, who)
        for operation, transports in collectives.OPERATIONS.items()
        for arrival in (collectives.BACK_TO_BACK, collectives.RANDOM)
        for who in transports
    ]
    assert {row["calls"] for row in rows} == {8, 10}
    assert all(row["p50_us"] <= row["p99_us"] for row in rows)
    lines = rendered(commands.collectives_table(rows))  # (a heading of two lines)
    assert len(lines) == 3 + 2 * len(collectives.OPERATIONS)
    assert lines[3].startswith("barrier, back to back")
    assert {*multiprocessing.active_children()} <= before


def test_times_are_from_the_last_to_come_to_the_last_to_go() -> None:
    stamps = np.array([[(0, 9_000), (10_000, 15_000)], [(4_000, 8_000), (12_000, 14_000)]])
    assert collectives._times(stamps, collectives.RANDOM).tolist() == [5.0, 3.0]
    assert collectives._times(stamps, collectives.BACK_TO_BACK).tolist() == [6.0]
