"""`ShmBroadcaster.interrupt` ends this rank's call, on one node and on several."""

from __future__ import annotations

import pytest

import shmcast
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.processes import Crew

HOSTS = {"one node": ONE, "two nodes": TWO, "a node each": ("a", "b", "c", "d")}
SECONDS = 30.0


def interrupted_and_then_all(rank: int, hosts: tuple[str, ...]) -> list[int]:
    with opened(rank, hosts, slots=2) as bc:
        if not bc.is_src:
            bc.interrupt()
            with pytest.raises(shmcast.Interrupted, match=r"recv was ended by interrupt\(\)"):
                bc.recv(SECONDS)
            bc.broadcast_object(timeout=SECONDS)  # the source's first, sent before its interrupt
            return [bc.recv(SECONDS) for _ in range(10)]
        bc.send("first", SECONDS)
        bc.interrupt()
        with pytest.raises(shmcast.Interrupted, match=r"send was ended by interrupt\(\)"):
            bc.send("never", SECONDS)
        for k in range(10):
            bc.send(k, SECONDS)
        return list(range(10))


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_an_interrupt_ends_one_call_and_loses_nothing(world: Crew, hosts: tuple[str, ...]) -> None:
    assert world.run(4, interrupted_and_then_all, hosts) == [list(range(10))] * 4
