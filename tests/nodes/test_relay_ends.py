"""Ranks and nodes that close, fail, die or exit: the others drain what was sent, and know why."""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import shmcast
from shmcast._nodes import envelope
from shmcast._nodes import leader as _relay_leader
from shmcast._nodes import source as _relay_source
from shmcast._nodes.addresses import Address
from tests.support import ranks
from tests.support.fake_nodes import SPREADS, TWO, opened, threads
from tests.support.processes import Crew
from tests.support.shared_memory import segments_of
from tests.support.subprocess_programs import (
    ROOT,
    TORCH_SECONDS,
    imports_torch,
    wait_until,
    without_gloo,
)

SECONDS = 30
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")


def close_orders(rank: int, first: int) -> list[Any]:
    bc = opened(rank, TWO)
    dist.barrier()
    got: list[Any] = []
    if rank == first:
        bc.close()
    dist.barrier()
    if bc.is_src:
        if first != 0:
            for k in range(100):
                bc.send(k, SECONDS)
        bc.close()
        with pytest.raises(shmcast.Closed, match=r"send after close"):
            bc.send("too late")
    elif rank != first:
        with pytest.raises(shmcast.Closed) as caught:  # noqa: PT012 (until then)
            while True:
                got.append(bc.recv(SECONDS))
        assert f"rank {rank} " in str(caught.value)
    bc.close()
    wait_until(lambda: not threads() and not _relay_source._open)
    dist.barrier()
    return got


@pytest.mark.parametrize("first", [0, 1, 2, 3], ids=["source", "near", "leader", "remote"])
def test_closed_in_any_order_the_others_get_all_that_was_sent(world: Crew, first: int) -> None:
    _, *others = world.run(4, close_orders, first)
    for rank, got in enumerate(others, 1):
        assert got == ([] if first in (0, rank) else [*range(100)])


def all_but_the_source_close(rank: int, hosts: tuple[str, ...]) -> str:
    with opened(rank, hosts) as bc:
        bc.broadcast_object("one" if bc.is_src else None, SECONDS)
        if not bc.is_src:
            bc.close()
        dist.barrier()
        if bc.is_src:
            with pytest.raises(shmcast.Closed) as caught:  # noqa: PT012 (until then)
                while True:
                    bc.send("for nobody", SECONDS)
            return str(caught.value)
    return ""


@pytest.mark.parametrize("hosts", SPREADS, ids="".join)
def test_a_source_that_all_have_left_is_told(world: Crew, hosts: tuple[str, ...]) -> None:
    error = world.run(4, all_but_the_source_close, hosts)[0]
    assert "nobody is left to receive" in error


def near_ones_close(rank: int) -> list[int]:
    """Close on the source's node; the other node goes on."""
    with opened(rank, TWO) as bc:
        if rank == 1:
            bc.close()
        dist.barrier()
        if rank != 1:
            return [bc.broadcast_object(k if bc.is_src else None, SECONDS) for k in range(50)]
    return []


def test_the_source_goes_on_for_other_nodes_when_its_own_has_left(world: Crew) -> None:
    assert world.run(4, near_ones_close) == [[*range(50)], [], [*range(50)], [*range(50)]]


def a_node_leaves(rank: int) -> list[int]:
    """Leave in the middle, as one node's only rank; the source regroups and loses nothing."""
    with opened(rank, ("a", "b", "c", "d")) as bc:
        got = []
        for k in range(300):
            if rank == 2 and k == 100:
                break
            got.append(bc.broadcast_object(k if bc.is_src else None, SECONDS))
    return got


def test_a_node_that_leaves_costs_the_others_nothing(world: Crew) -> None:
    lengths = {0: 300, 1: 300, 2: 100, 3: 300}
    for rank, got in enumerate(world.run(4, a_node_leaves)):
        assert got == [*range(lengths[rank])]


def set_up_fails(rank: int, failing: int) -> tuple[str, str]:
    before = segments_of(os.getpid())
    options = {"slots": 48} if rank == failing else {}
    with pytest.raises(shmcast.ShmcastError) as caught:
        opened(rank, TWO, **options)
    dist.barrier()
    assert segments_of(os.getpid()) <= before
    return type(caught.value).__name__, str(caught.value)


@pytest.mark.parametrize("failing", [0, 2], ids=["source", "leader"])
def test_whoever_fails_in_set_up_is_named_everywhere(world: Crew, failing: int) -> None:
    for rank, (kind, error) in enumerate(world.run(4, set_up_fails, failing)):
        assert kind == ("InvalidArgument" if rank == failing else "SegmentError")
        assert "slots=48 is not a power of two" in error
        assert f"rank {failing}" in error


def nowhere(port: int) -> list[Address]:
    assert port > 0
    return [("127.0.0.1", 9)]


def is_unreachable(rank: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr("shmcast._nodes.leaders.local_addresses", nowhere)
        with pytest.raises((shmcast.SegmentError, ConnectionError)) as caught:
            opened(rank, TWO)
    return str(caught.value)


def test_a_leader_that_cannot_connect_tells_every_rank_where_it_tried(world: Crew) -> None:
    for error in world.run(4, is_unreachable):
        assert "127.0.0.1 port 9" in error
        assert "GLOO_SOCKET_IFNAME" in error


def one_dies(rank: int, store: str, victim: int, drops: bool) -> tuple[str, str, list[int], int]:
    ranks.join(rank, 4, store)
    got: list[int] = []
    with opened(rank, TWO, on_reader_death="drop" if drops else "raise") as bc:
        try:
            for k in range(200 if drops else 10**9):
                if rank == victim and k == 50:
                    os.kill(os.getpid(), signal.SIGKILL)
                got.append(bc.broadcast_object(k if bc.is_src else None, SECONDS))
        except shmcast.ShmcastError as error:
            return type(error).__name__, str(error), got, os.getpid()
    return "", "", got, os.getpid()


@pytest.mark.parametrize("victim", [0, 1, 2, 3], ids=["source", "near", "leader", "remote"])
def test_a_dead_rank_is_named_on_every_node(fresh: tuple[Crew, str], victim: int) -> None:
    crew, store = fresh
    jobs = crew.start(4, one_dies, store, victim, False)
    pid = jobs[victim].worker.pid
    for rank in {0, 1, 2, 3} - {victim}:
        kind, error, got, _ = jobs[rank].result()
        assert kind == "PeerDied"
        assert error.startswith(f"rank {rank} of 4: ")
        assert f"rank {victim}" in error.partition(": ")[2]
        assert f"node {victim // 2} ({TWO[victim]})" in error
        assert f"(pid {pid})" in error
        assert got == [*range(len(got))]


def one_dies_and_its_leader_exits(rank: int, store: str) -> str:
    ranks.join(rank, 4, store)
    # The thread that is told of deaths comes too late.
    setattr(_relay_leader.LeaderRelay, "_on_death", lambda _self: None)  # noqa: B010
    bc = opened(rank, TWO)
    try:
        for k in range(10**9):
            if rank == 3 and k == 50:
                os.kill(os.getpid(), signal.SIGKILL)
            bc.broadcast_object(k if bc.is_src else None, SECONDS)
    except shmcast.PeerDied as error:
        if rank == 2:
            os._exit(1)
        return error.peer
    raise AssertionError


def test_a_leader_that_exits_at_once_has_told_who_died(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    jobs = crew.start(4, one_dies_and_its_leader_exits, store)
    for rank in (0, 1):
        assert jobs[rank].result() == "rank 3 on node 1 (b)"


@pytest.mark.parametrize("victim", [2, 3], ids=["leader", "remote"])
def test_dropping_goes_on_without_a_dead_rank_and_with_a_dead_leader_without_its_node(
    fresh: tuple[Crew, str], victim: int
) -> None:
    crew, store = fresh
    jobs = crew.start(4, one_dies, store, victim, True)
    for rank in {0, 1, 2, 3} - {victim}:
        kind, error, got, _ = jobs[rank].result()
        assert got == [*range(len(got))]
        if victim == 2 and rank == 3:
            assert kind == "PeerDied"
            assert "rank 2" in error
            assert "on node 1 (b)" in error
        else:
            assert len(got) == 200


class StepFailed(Exception):
    """What a rank's step raises."""


def exit_without_close() -> None:
    """End this worker as an interpreter ends, by `sys.exit(3)`."""
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(3)


def one_fails(rank: int, store: str, victim: int, exits: bool) -> tuple[str, str, list[int]]:
    ranks.join(rank, 4, store)
    got: list[int] = []
    try:
        with opened(rank, TWO) as bc:
            dist.barrier()
            for k in range(10**9):
                if rank == victim and k == 50:
                    if exits:
                        exit_without_close()
                    raise StepFailed
                got.append(bc.broadcast_object(k if bc.is_src else None, SECONDS))
    except (shmcast.ShmcastError, StepFailed) as error:
        return type(error).__name__, str(error), got
    raise AssertionError


@pytest.mark.parametrize("exits", [False, True], ids=["exception", "exit"])
@pytest.mark.parametrize("victim", [0, 1, 2, 3], ids=["source", "near", "leader", "remote"])
def test_only_close_is_leaving_on_every_node(
    fresh: tuple[Crew, str], victim: int, exits: bool
) -> None:
    crew, store = fresh
    jobs = crew.start(4, one_fails, store, victim, exits)
    pid = jobs[victim].worker.pid
    for rank in {0, 1, 2, 3} - {victim}:
        kind, error, got = jobs[rank].result()
        assert kind == "PeerDied", error
        assert f"rank {victim}" in error.partition(": ")[2]
        assert f"(pid {pid})" in error
        assert got == [*range(len(got))]
        if victim == 0:
            assert len(got) == 50  # what was sent comes first


def stopped_then_continued(rank: int, store: str) -> tuple[int, list[int], str]:
    ranks.join(rank, 3, store)
    with opened(rank, ("a", "b", "c")) as bc:
        pids = [0] * 3
        dist.all_gather_object(pids, os.getpid())
        if not bc.is_src:
            got = []
            while (k := bc.recv(SECONDS)) is not None:
                got.append(k)
            return 0, got, ""
        os.kill(pids[2], signal.SIGSTOP)
        sent = 0
        try:
            while True:
                bc.send(sent, timeout=0.3)
                sent += 1
        except shmcast.Timeout as caught:
            error = str(caught)
        finally:
            os.kill(pids[2], signal.SIGCONT)
        bc.send(None, SECONDS)
        return sent, [], error


def test_a_stopped_rank_is_back_pressure_and_not_dead(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    (sent, _, error), *others = crew.run(3, stopped_then_continued, store)
    assert "node 2 (c) (leader rank 2 of ranks 2) has taken" in error
    assert "does not answer" in error
    for _, got, _ in others:
        assert got == [*range(sent)]


@imports_torch
def test_the_interpreter_exits_while_a_relay_waits(tmp_path: Path) -> None:
    orders = ["source-first", "source-last"]
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "tests.support.relay_exits", str(tmp_path), *orders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TORCH_SECONDS,
        check=False,
    )
    said = "".join(f"{how}: all have ended\n" for how in orders)
    assert (ran.returncode, without_gloo(ran.stdout)) == (0, said), ran.stderr


def all_leave_during_close(rank: int) -> bool:
    """Let the leaders leave between the source's look at them and its last message."""
    with opened(rank, ("a", "b", "c", "d")) as bc, pytest.MonkeyPatch.context() as patch:
        if isinstance(bc._end, _relay_source.SourceRelay):
            leaders = bc._end._remote._leaders
            pack = envelope.pack

            def pack_late(*args: Any) -> envelope.Envelope:
                wait_until(lambda: not leaders.live())
                return pack(*args)

            patch.setattr("shmcast._nodes.outbox.pack", pack_late)
        bc.close()
        wait_until(lambda: not _relay_source._open)
    dist.barrier()
    return True


def test_a_source_that_all_leave_while_it_closes_ends(world: Crew) -> None:
    assert world.run(4, all_leave_during_close) == [True] * 4


def one_leaves_after_close(rank: int) -> list[int]:
    """Rank 1 leaves with the source closed: in gloo's tree, rank 3 got everything through it."""
    got: list[int] = []
    with opened(rank, ("a", "b", "c", "d"), slots=2) as bc:
        if bc.is_src:
            for k in range(40):
                bc.send(k, SECONDS)
            bc.close()
        dist.barrier()
        if rank == 1:
            bc.close()
        dist.barrier()
        if rank > 1:
            with pytest.raises(shmcast.Closed):  # noqa: PT012 (until then)
                while True:
                    got.append(bc.recv(SECONDS))
        wait_until(lambda: not _relay_source._open)
    return got


def test_what_was_sent_arrives_though_a_node_leaves_after_close(world: Crew) -> None:
    assert world.run(4, one_leaves_after_close) == [[], [], [*range(40)], [*range(40)]]


def another_leaves_when_asked_to_regroup(rank: int) -> list[int]:
    with opened(rank, ("a", "b", "c", "d")) as bc, pytest.MonkeyPatch.context() as patch:
        if rank == 2:
            relay = _relay_leader.LeaderRelay
            patch.setattr(relay, "_make_ready", relay._leave)
        got = []
        try:
            for k in range(300):
                if rank == 1 and k == 100:
                    break
                got.append(bc.broadcast_object(k if bc.is_src else None, SECONDS))
        except shmcast.Closed:
            assert rank == 2
    return got


def test_nobody_waits_for_a_node_that_leaves_while_the_others_regroup(world: Crew) -> None:
    source, _, _, other = world.run(4, another_leaves_when_asked_to_regroup)
    assert source == other == [*range(300)]
