"""The GIL's switch interval is set where somebody asks for it, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

import shmcast
from shmcast import Reader, ShmBroadcaster, Writer
from tests.support.processes import Crew

VARIABLE = "SHMCAST_SWITCH_INTERVAL"


@pytest.fixture(autouse=True)
def usual() -> Iterator[float]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield sys.getswitchinterval()
    sys.setswitchinterval(before)


def test_nothing_sets_it_unasked(usual: float) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0):
        pass
    assert sys.getswitchinterval() == usual


def test_the_shortest_that_is_asked_for_counts_and_stays() -> None:
    with Writer(1, switch_interval=0.001) as writer:
        assert sys.getswitchinterval() == pytest.approx(0.001)
        with Reader(writer.handle, 0, switch_interval=0.0001):
            assert sys.getswitchinterval() == pytest.approx(0.0001)
    with Writer(1, switch_interval=0.5):
        assert sys.getswitchinterval() == pytest.approx(0.0001)
    assert sys.getswitchinterval() == pytest.approx(0.0001)


def test_the_operators_choice_comes_first(monkeypatch: pytest.MonkeyPatch, usual: float) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    Writer(1, switch_interval=0.0001).close()
    assert sys.getswitchinterval() == usual
    monkeypatch.setenv(VARIABLE, "0.0002")
    Writer(1).close()
    assert sys.getswitchinterval() == pytest.approx(0.0002)


@pytest.mark.parametrize("wrong", [0, -1, 1e-7, 1.5, float("nan"), float("inf"), "soon", 10**400])
def test_a_wrong_one_is_refused_by_value(wrong: Any, usual: float) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="switch_interval="):
        Writer(1, switch_interval=wrong)
    with Writer(1) as writer:
        with pytest.raises(shmcast.InvalidArgument, match="reader 0: switch_interval="):
            Reader(writer.handle, 0, switch_interval=wrong)
        Reader(writer.handle, 0).close()  # the seat is free
    assert sys.getswitchinterval() == usual


@pytest.mark.parametrize("wrong", ["soon", "0", "-1", "inf", "2", "1e-9"])
def test_a_wrong_setting_is_named(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, wrong)
    with pytest.raises(shmcast.InvalidArgument, match=f"{VARIABLE}='{wrong}' is not a number"):
        Writer(1)


def asks(rank: int) -> tuple[float, float]:
    sys.setswitchinterval(0.005)
    with ShmBroadcaster(switch_interval=0.0003 if rank == 2 else None):
        inside = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    with ShmBroadcaster() as bc:
        assert bc.handle is not None
    return round(inside, 6), round(sys.getswitchinterval(), 6)


def test_each_rank_of_a_group_asks_for_itself(world: Crew) -> None:
    assert world.run(4, asks) == [(0.0003 if rank == 2 else 0.005, 0.005) for rank in range(4)]


def asks_wrongly(rank: int, wrong_rank: int) -> str:
    with pytest.raises(shmcast.ShmcastError) as caught:
        ShmBroadcaster(switch_interval=-1 if rank == wrong_rank else None)
    return str(caught.value)


@pytest.mark.parametrize("wrong_rank", [0, 3])
def test_a_wrong_one_on_one_rank_is_told_on_all(world: Crew, wrong_rank: int) -> None:
    for error in world.run(4, asks_wrongly, wrong_rank):
        assert "switch_interval=-1 must be" in error
        assert f"rank {wrong_rank}" in error
