"""`python -m bench deaths`: every kill is told to all who are left, and written by cadence."""

from __future__ import annotations

import multiprocessing

import pytest

from bench import commands, terminal
from bench.run import deaths
from tests.support.terminal import rendered


def test_a_kill_is_told_to_the_source_the_other_reader_and_the_hub() -> None:
    before = {*multiprocessing.active_children()}  # other tests' crews
    written: list[int] = []
    gaps = (0.0, 1.0, deaths.IDLE)
    rows = deaths.run(terminal.console(), gaps, 2, lambda rows: written.append(len(rows)))
    assert written == [3, 6, 9]
    assert [(row["gap_ms"], row["who"]) for row in rows] == [
        (gap_ms, who) for gap_ms in gaps for who in (deaths.SOURCE, deaths.READER, deaths.HUB)
    ]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] for row in rows)
    assert all(row["kills"] == 2 for row in rows)
    lines = rendered(commands.deaths_table(rows))
    assert len(lines) == 2 + len(rows)
    assert lines[-1].startswith("none, a hub")
    assert {*multiprocessing.active_children()} <= before


def test_a_member_that_is_told_something_else_ends_it() -> None:
    mine, its = multiprocessing.Pipe()
    its.send((5_000_000, "writer: reader 0 (pid 7) has died: killed by SIGKILL"))
    its.send((5_000_000, "writer: reader 0 (pid 7) has died: unknown how"))
    assert deaths._told(mine, 2_000_000) == 3.0
    with pytest.raises(RuntimeError, match="unknown how"):
        deaths._told(mine, 2_000_000)
