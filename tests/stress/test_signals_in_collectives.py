"""Signals whose handlers raise in collectives: a call that is called again goes on where it was."""

# ruff: noqa: B023 (what is defined in a loop is called at once)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.alarms import Alarmed, AlarmedError, Alarms
from tests.support.exchanges import over_store
from tests.support.fake_nodes import ONE, TWO
from tests.support.processes import Crew
from tests.support.signals import not_on_310

SECONDS = 30.0
ROUNDS = 150
ALARMS = 60

pytestmark = [pytest.mark.usefixtures("no_gc"), not_on_310]


def take_part(rank: int, hosts: tuple[str, ...], path: str, alarmed: int, seed: int) -> int:
    """Take part in many collectives, which a handler ends on one of the ranks again and again."""
    bc = over_store(rank, hosts, path)
    alarms = Alarms(Alarmed, AlarmedError, seed=seed)
    with bc, alarms.in_place():

        def call(function: Callable[[], Any]) -> Any:
            while rank == alarmed:
                try:
                    return alarms.during(function, 300e-6)
                except (Alarmed, AlarmedError):
                    pass
            return function()

        bc.barrier(SECONDS)
        k, is_over = 0, False
        while not is_over:
            k += 1
            # (Plain calls: after f(*args), Python looks for signals before it has the result.)
            mine = (rank, k, bytes(k * 997 % 50_000))
            everybody = call(lambda: bc.all_gather_object((mine, alarms.count), SECONDS))
            assert [other[0][:2] for other in everybody] == [(r, k) for r in range(4)]
            objs = [(r, k) for r in range(4)] if bc.is_src else None
            assert call(lambda: bc.scatter_object(objs, SECONDS)) == (rank, k)
            gathered = call(lambda: bc.gather_object((rank, k), SECONDS))
            assert gathered == ([(r, k) for r in range(4)] if bc.is_src else None)
            call(lambda: bc.barrier(SECONDS))
            is_over = k >= ROUNDS and everybody[alarmed][1] >= ALARMS
        return k


@pytest.mark.parametrize(
    ("hosts", "alarmed"),
    [*((ONE, rank) for rank in range(4)), *((TWO, rank) for rank in range(4))],
    ids=[f"{where}, rank {rank}" for where in ("one node", "two nodes") for rank in range(4)],
)
def test_collectives_go_on(fresh: tuple[Crew, str], hosts: tuple[str, ...], alarmed: int) -> None:
    crew, path = fresh
    assert len({*crew.run(4, take_part, hosts, path, alarmed, 1)}) == 1
