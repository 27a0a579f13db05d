"""An idle gloo flow is kept open, and one that carries nothing any more ends in NodeLost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

import shmcast
from shmcast._nodes import heartbeat
from shmcast._nodes.heartbeat import Pulse
from shmcast._nodes.inbox import Inbox
from shmcast._nodes.leaders import Leader
from tests.support.fake_nodes import TWO, opened
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until

SECONDS = 30


def opened_with(pulse: Pulse, rank: int, hosts: tuple[str, ...], **options: Any) -> Any:
    with mock.patch.object(heartbeat, "PULSE", pulse):
        return opened(rank, hosts, **options)


def forget(_inbox: Inbox, is_interrupted: Callable[[], bool]) -> None:
    """Receive nothing, as when a firewall drops what comes, until somebody says why."""
    wait_until(is_interrupted)


def a_flow_is_forgotten(rank: int, drops: bool) -> tuple[str, list[Any]]:
    patch = mock.patch.object(Inbox, "receive", forget)
    if rank == 2:  # the leader of node b, from the first message on
        patch.start()
    bc = opened_with(
        Pulse(0.05, 0.3, 1e12),
        rank,
        ("a", "a", "b", "c") if drops else TWO,
        on_reader_death="drop" if drops else "raise",
    )
    got: list[Any] = []
    error = ""
    try:
        if bc.is_src:
            until = time.monotonic() + SECONDS
            while len(bc._end._remote._leaders.live()) > drops and time.monotonic() < until:
                bc.send("more", SECONDS)
                time.sleep(0.01)
            bc.send("last", SECONDS)
        while not bc.is_src and got[-1:] != ["last"]:
            got.append(bc.recv(SECONDS))
    except shmcast.NodeLost as lost:
        error = str(lost)
    finally:
        patch.stop() if rank == 2 else None
    dist.barrier()
    bc.close()
    return error, got[-1:]


def test_a_flow_that_carries_nothing_ends_the_group(world: Crew) -> None:
    for rank, (error, _) in enumerate(world.run(4, a_flow_is_forgotten, False)):
        assert f"rank {rank} of 4: " in error
        assert "node 1 (b) (leader rank 2 of ranks 2, 3) has taken nothing over gloo" in error


def test_where_the_dead_are_dropped_the_others_go_on(world: Crew) -> None:
    results = world.run(4, a_flow_is_forgotten, True)
    assert [error for error, _ in results[:2]] == ["", ""]
    assert "has taken nothing over gloo" in results[2][0]
    assert [got for _, got in results[1:]] == [["last"], [], ["last"]]


def idle(rank: int) -> list[Any]:
    bc = opened_with(Pulse(0.02, SECONDS), rank, TWO)
    got = [bc.broadcast_object("before" if bc.is_src else None, SECONDS)]
    if bc.is_src:
        remote = bc._end._remote
        wait_until(lambda: remote._outbox.seq > 5 and not len(remote._outbox))
    dist.barrier()
    got.append(bc.broadcast_object("after" if bc.is_src else None, SECONDS))
    figures = bc.statistics()
    got += [figures.messages, figures.relayed]
    dist.barrier()
    bc.close()
    return got


def test_an_idle_group_keeps_its_flows_open_and_counts_nothing(world: Crew) -> None:
    *_, source, near, leader, far = world.run(4, idle)
    assert source == leader == ["before", "after", 2, 2]
    assert near == far == ["before", "after", 2, 0]


def slow(rank: int) -> list[int]:
    bc = opened_with(Pulse(0.02, 0.1, 1e12), rank, TWO, slots=2)
    if bc.is_src:
        for k in range(8):
            bc.send(k, SECONDS)
        remote = bc._end._remote
        flow = remote._leaders.live()[0].flow
        before = flow.answered_at
        wait_until(lambda: flow.answered_at > before + 0.5)  # it answers, and takes no more
    if rank >= 2:
        dist.barrier()
    got = [*range(8)] if bc.is_src else [bc.recv(SECONDS) for _ in range(8)]
    if rank < 2:
        dist.barrier()
    dist.barrier()
    bc.close()
    return got


def test_a_node_whose_readers_are_slow_is_not_lost(world: Crew) -> None:
    assert world.run(4, slow) == [[*range(8)]] * 4


def busy(rank: int) -> int:
    bc = opened_with(Pulse(0.0001, SECONDS), rank, TWO)
    for k in range(300):
        assert bc.broadcast_object(k if bc.is_src else None, SECONDS) == k
        if k % 10 == 0:
            time.sleep(0.002)
    dist.barrier()
    bc.close()
    return int(bc.statistics().messages)


def test_a_heartbeat_is_nobodys_concurrent_use(world: Crew) -> None:
    assert world.run(4, busy) == [300] * 4


@pytest.mark.parametrize(
    ("answers", "is_lost"),
    [
        ([(0, 1, True)] * 9, True),
        ([(0, 1, False)] * 9, False),  # it waits for its readers
        ([(k, k + 1, True) for k in range(9)], False),  # slowly, but it takes
        ([(0, 1, True)] * 3 + [(1, 1, True)] + [(1, 2, True)] * 3, False),
    ],
)
def test_what_a_leader_says_decides(answers: list[tuple[int, int, bool]], is_lost: bool) -> None:
    assert _lost_at(answers, [float(k) for k in range(len(answers))]) is is_lost


def test_a_process_that_was_stopped_is_not_lost() -> None:
    times = [0.0, 1.0, 60.0, 61.0, 62.0]
    assert not _lost_at([(0, 1, True)] * 5, times)


def _lost_at(answers: list[tuple[int, int, bool]], times: list[float]) -> bool:
    """Return whether a leader that has taken, of how many, and waits for gloo, is given up."""
    lost: list[str] = []
    leader = Leader(mock.Mock(index=1, leader=2, ranks=(2, 3)))
    with mock.patch.object(heartbeat, "PULSE", Pulse(1.0, 5.0, 1e12)):
        flow = heartbeat.Heartbeat(
            mock.Mock(nbytes=100),
            mock.Mock(live=lambda: [leader]),
            mock.Mock(),
            lambda: False,
            lambda _, failure: lost.append(failure.text),
        )
    with mock.patch.object(time, "monotonic") as clock:
        for now, (taken, asked, is_receiving) in zip(times, answers, strict=True):
            clock.return_value = now
            leader.flow.asked_at, leader.flow.asked_seq, leader.taken = now, asked, taken
            flow.on_answer(leader, is_receiving)
    return bool(lost)
