"""`python -m bench replies`: every way in every case, and the tables that show them."""

from __future__ import annotations

import multiprocessing
from typing import Any
from unittest import mock

import pytest

from bench import terminal
from bench.report import reply_tables
from bench.report.results import ReplyRow
from bench.run import replies
from bench.transports import exchanges
from tests.support.permissions import needs_torch


@needs_torch
def test_each_way_is_measured_in_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = exchanges.missing() | {exchanges.VLLM: "not here"}
    ways = [who for who in exchanges.EXCHANGES if who not in missing]
    monkeypatch.setattr(replies, "MESSAGES", ("49 B",))
    monkeypatch.setattr(replies, "GAPS_MS", (0.3, 1.0))
    monkeypatch.setattr(exchanges, "missing", lambda: missing)
    before = {*multiprocessing.active_children()}  # other tests' crews
    written: list[int] = []
    rows: Any = replies.run(
        terminal.console(), [1, 2], 1, lambda rows: written.append(len(rows)), 0.02
    )
    by_case = {
        case: [row for row in rows if row["case"] == case]
        for case in (replies.ROUND_TRIP, replies.ANY, replies.AWAITED)
    }
    assert [(r["members"], r["gap_ms"], r["who"]) for r in by_case[replies.ROUND_TRIP]] == [
        (members, gap_ms, who) for members in (1, 2) for gap_ms in (0.3, 1.0) for who in ways
    ]
    assert [(r["members"], r["who"]) for r in by_case[replies.ANY]] == [
        (members, who) for members in replies.ANY_OF for who in (replies.KNOWN, replies.WHOEVER)
    ]
    waited = [row["who"] for row in by_case[replies.AWAITED]]
    assert waited == [way for way in replies.WAYS if way in waited]
    assert {replies.BLOCKING, "await recv_async(), asyncio"} <= {*waited}
    assert all(0 < row["p50_us"] <= row["p99_us"] and row["calls"] >= 2 for row in rows)
    half = 2 * len(ways)
    assert written == [half, 2 * half, 2 * half + 2, 2 * half + 4, len(rows)]
    assert {*multiprocessing.active_children()} <= before

    _, round_trips, _, any_of, _, awaited = reply_tables.all_tables(rows)
    assert round_trips.splitlines()[0] == f"| message, members, gap | {' | '.join(ways)} |"
    assert [line.split(" | ")[0] for line in round_trips.splitlines()[2:]] == [
        "| 49 B, 1 member, 0.3 ms apart",
        "| 49 B, 1 member, 1 ms apart",
        "| 49 B, 2 members, 0.3 ms apart",
        "| 49 B, 2 members, 1 ms apart",
    ]
    assert any_of.splitlines()[0] == "| members | `recv` | `recv_any` |"
    assert len(awaited.splitlines()) == 2 + len(waited)


def test_a_reply_that_is_another_one_ends_it() -> None:
    end = mock.Mock(ask=lambda _message: [{"step": 7}])
    with pytest.raises(RuntimeError, match=r"Hub: \[\{'step': 7\}\] in place of"):
        replies._drive(end, replies._Turn(exchanges.HUB, "49 B", 0.0, 1), 0, 2)


def test_figures_are_beside_those_of_the_hub() -> None:
    def row(who: str, p50: float) -> ReplyRow:
        return {
            "case": replies.ROUND_TRIP,
            "who": who,
            "message": "49 B",
            "members": 4,
            "gap_ms": 0.3,
            "calls": 9,
            "p50_us": p50,
            "p99_us": 2 * p50,
        }

    table = reply_tables.round_trips([row("Hub", 10.0), row("vLLM", 25.0)])
    assert table.splitlines()[2] == (
        "| 49 B, 4 members, 0.3 ms apart | 10.0 / 20.0 | 25.0 / 50.0, 2.50x |"
    )
