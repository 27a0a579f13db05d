"""Collectives go on without ranks that have died, if the source drops such: with who is left."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch.distributed as dist

import shmcast
from shmcast._nodes import stream
from shmcast._operators.snapshot import all_snapshots
from tests.support import ranks
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.processes import Crew, WorkerFailed, results

SECONDS = 30.0
APART = ("a", "b", "c", "d")
OTHERS_TOGETHER = ("a", "b", "b", "b")

# Hosts, who is killed, and who is lost with them.
CASES = [
    (ONE, (3,), ()),
    (ONE, (1, 2, 3), ()),
    (TWO, (1,), ()),
    (TWO, (3,), ()),
    (TWO, (2,), (3,)),
    (TWO, (1, 3), ()),
    (TWO, (1, 2, 3), ()),
    (OTHERS_TOGETHER, (2, 3), ()),
    (OTHERS_TOGETHER, (3,), ()),
    (OTHERS_TOGETHER, (1,), (2, 3)),
    (APART, (2,), ()),
    (APART, (1, 3), ()),
]


def described(objs: list[Any]) -> list[Any]:
    return ["dead" if isinstance(obj, shmcast.PeerDied) else obj for obj in objs]


def collectives(bc: shmcast.ShmBroadcaster, rank: int) -> list[Any]:
    """Take part in one of each; return what this rank gets."""
    objs = [10, 11, 12, 13] if bc.is_src else None
    everybody = described(bc.all_gather_object(rank, SECONDS))
    mine = bc.scatter_object(objs, SECONDS)
    gathered = bc.gather_object(rank, SECONDS)
    bc.barrier(SECONDS)
    return [everybody, mine, gathered and described(gathered)]


def go_on(
    rank: int, store: str, hosts: tuple[str, ...], killed: tuple[int, ...], warm: bool
) -> Any:
    ranks.join(rank, 4, store)
    bc = opened(rank, hosts, on_reader_death="drop")
    if warm:
        collectives(bc, rank)
    dist.barrier()
    if rank in killed:
        os.kill(os.getpid(), signal.SIGKILL)
    log = Log()
    patient: list[float] = []

    def wait(check: Callable[[], object], seconds: float = 0.0) -> None:
        check()
        patient.append(seconds)

    stream.wait_for_cause = wait
    with bc:
        try:
            told = [collectives(bc, rank) for _ in range(3)]
        except shmcast.ShmcastError as error:
            return f"{type(error).__name__}: {error}"
        hub = cast("Any", bc)._collectives._hub.end
        name = "" if hub is None else hub.handle.name.removeprefix("/")
        assert [seen.error for seen in all_snapshots() if seen.name == name] == (
            [""] if hub else []
        )
        if bc.is_src and len(bc.dropped) < 3:
            bc.send("and broadcasts do, too", SECONDS)
        elif not bc.is_src:
            bc.recv(SECONDS)
        bc.barrier(SECONDS)
        return told, sorted(bc.dropped), log.lines, len(patient)


class Log(logging.Handler):
    """What is logged of deaths from now on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("shmcast").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.parametrize(("hosts", "killed", "lost"), CASES)
@pytest.mark.parametrize("warm", [False, True], ids=["at first", "later"])
def test_all_collectives_go_on_with_who_is_left(
    fresh: tuple[Crew, str],
    hosts: tuple[str, ...],
    killed: tuple[int, ...],
    lost: tuple[int, ...],
    warm: bool,
) -> None:
    crew, store = fresh
    jobs = crew.start(4, go_on, store, hosts, killed, warm)
    for rank in killed:
        with pytest.raises(WorkerFailed, match="exit code -9"):
            jobs[rank].result()
    gone = {*killed, *lost}
    everybody = ["dead" if rank in gone else rank for rank in range(4)]
    for rank, job in enumerate(jobs):
        if rank in lost:
            assert job.result().startswith("PeerDied: ")
        elif rank not in gone:
            result = job.result()
            assert not isinstance(result, str), result
            told, dropped, lines, waits_for_a_cause = result
            assert told == [[everybody, 10 + rank, everybody if rank == 0 else None]] * 3
            assert dropped == (sorted(gone) if rank == 0 else [])
            for dead in killed:
                about = [line for line in lines if f"rank {dead}" in line and "dropped" in line]
                is_told_here = hosts[dead] == hosts[rank] and rank == hosts.index(hosts[rank])
                assert len(about) <= 1, lines
                assert len(about) == 1 or not is_told_here or len(gone) == 3
            others = {hosts[dead] for dead in gone} - {hosts[0]}
            assert waits_for_a_cause <= len(others)


def tell_of_one_death(rank: int, store: str) -> list[str]:
    """Receive from a rank that is killed, and send to it when the source has dropped it."""
    ranks.join(rank, 4, store)
    bc = opened(rank, ONE, on_reader_death="drop")
    dist.barrier()
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    with bc:
        hows = []
        if rank == 1:
            with pytest.raises(shmcast.PeerDied) as told:
                bc.recv_object(3, SECONDS)
            hows.append(told.value.how)
        bc.barrier(SECONDS)
        bc.barrier(SECONDS)  # (in the first one, it may have been the source's turn to wait)
        if rank == 1:
            with pytest.raises(shmcast.PeerDied) as told:
                bc.send_object("nobody", 3, SECONDS)
            hows.append(told.value.how)
        return hows


def test_a_death_is_told_in_the_same_words_once_it_is_dropped(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    jobs = crew.start(4, tell_of_one_death, store)
    _, hows, _ = results(jobs[:3])
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    assert hows[0] == hows[1]  # ("" if its parent has reaped it before anybody could look)
