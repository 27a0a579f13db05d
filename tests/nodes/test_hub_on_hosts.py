"""Hubs whose members are on other hosts, over real networks: hosts as network namespaces."""

from __future__ import annotations

import os
from typing import Any

import pytest
from torch._C._distributed_c10d import TCPStore

import shmcast
from shmcast import Hub, Member
from tests.support.exchanges import StoreExchange
from tests.support.hosts import PORT, Network, hurry
from tests.support.hub_over import echo_to_the_end
from tests.support.hub_roles import answer
from tests.support.processes import results

SECONDS = 30.0
MESSAGES = 50
NBYTES = 100_000

_stores: list[TCPStore] = []  # kept: rank 0 serves it, and may be through before the others


def opened(rank: int, size: int, **options: Any) -> Hub | Member:
    hurry()
    store = TCPStore(os.environ["MASTER_ADDR"], PORT, size, is_master=rank == 0)
    _stores.append(store)
    exchange = StoreExchange(store, rank, size)
    if rank:
        return Member.over(rank, size, exchange)
    return Hub.over(rank, size, exchange, **options)


def send_and_receive(rank: int, size: int) -> Any:
    with opened(rank, size) as end:
        if isinstance(end, Member):
            for k in range(MESSAGES):
                assert end.recv(SECONDS)[0] == k
                end.reply((k, rank), SECONDS)
            with pytest.raises(shmcast.Closed):
                end.recv(SECONDS)
            return None
        for k in range(MESSAGES):
            end.send((k, b"x" * NBYTES), SECONDS)
            assert end.recv_all(SECONDS) == [(k, member) for member in range(1, size)]
        return None


@pytest.mark.parametrize("network", [(["here", "there"], (1, 3))], indirect=True)
def test_a_message_crosses_to_another_host_once(network: Network) -> None:
    before = network.received(1)
    results(network.start(send_and_receive, 4))
    crossed = network.received(1) - before
    assert MESSAGES * NBYTES < crossed < 1.3 * MESSAGES * NBYTES  # (and not three times)


def until_it_ends(rank: int, size: int) -> tuple[str, str]:
    with opened(rank, size) as end:
        if isinstance(end, Member):
            return echo_to_the_end(end, rank - 1)[1:]
        try:
            for k in range(10, 1_000_000):
                end.send(k, SECONDS)
                assert end.recv_all(SECONDS) == [answer(k, i) for i in range(size - 1)]
        except shmcast.ShmcastError as error:
            return type(error).__name__, str(error)
    raise AssertionError


def test_a_cut_network_is_told_on_both_sides(network: Network) -> None:
    jobs = network.start(until_it_ends, 4)
    network.wait_for_traffic(0, 1_000_000)
    network.cut(1)
    told = results(jobs)
    assert [kind for kind, _ in told] == ["NodeLost"] * 4, told
    assert "node 1 (there), with members 1 and 2, can't be reached" in told[0][1]
    assert "node 0 (here), with the hub, can't be reached" in told[3][1]


def test_a_leader_that_is_killed_is_named_on_every_host(network: Network) -> None:
    jobs = network.start(until_it_ends, 4)
    network.wait_for_traffic(0, 1_000_000)
    jobs[2].kill()
    for rank in (0, 1, 3):
        kind, error = jobs[rank].result()
        assert kind == "PeerDied", error
        assert "member 1 on node 1 (there)" in error
