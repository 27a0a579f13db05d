"""Patterns of messages that cross: no rank waits for ever, and nothing is lost or out of order.

A program is made for all ranks at once: blocks of messages, with collectives between them. Each
rank sends what is its own of a block, and receives what is for it then or much later. No send waits
for a receive, so every program ends; on one node and over several.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections import deque
from typing import Any, NamedTuple

import pytest
import torch

import shmcast
from shmcast import ShmBroadcaster
from tests.support import ranks
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.processes import Crew, WorkerFailed, results

HOSTS = {"one node": ONE, "two nodes": TWO, "three nodes": tuple("abca")}
SECONDS = 40.0
PROGRAMS = 6
SIZES = [0, 10, 1000, 70_000, 700_000]
on_hosts = pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)

Block = list[tuple[int, int]]
"""Who sends to whom."""


class Message(NamedTuple):
    """One of a program's messages."""

    number: int
    src: int
    dst: int
    nbytes: int

    @property
    def is_dict(self) -> bool:
        return self.number % 3 == 0

    def obj(self) -> Any:
        return (self.number, bytes([self.number % 256]) * self.nbytes)

    def tensors(self) -> dict[str, Any]:
        return {"number": self.number, "t": torch.full((self.nbytes,), self.number % 128)}


def blocks(rng: random.Random, members: int) -> list[Block]:
    """Make a program: symmetric and crossing blocks, rings and chance."""
    everybody = range(members)
    pairs = [*itertools.permutations(everybody, 2)]
    kinds: list[Block] = [
        pairs,
        [(rank, (rank + 1) % members) for rank in everybody],
        [(rank, rank ^ 1) for rank in everybody if rank ^ 1 < members],
        [(rank, (rank + members // 2) % members) for rank in everybody] * 3,
        [pair for pair in pairs if 0 in pair],
        rng.choices(pairs, k=9),
    ]
    return [rng.sample(kind, len(kind)) for kind in rng.choices(kinds, k=5)]


def messages(rng: random.Random, program: list[Block]) -> list[list[Message]]:
    numbers = itertools.count()
    return [
        [Message(next(numbers), src, dst, rng.choice(SIZES)) for src, dst in block]
        for block in program
    ]


class Rank:
    """One rank's part of a program.

    Args:
        bc: its broadcaster.
        rng: by which it chooses.
        mortal: who may be dead; -1: nobody.
    """

    def __init__(self, bc: ShmBroadcaster, rng: random.Random, mortal: int = -1) -> None:
        self.bc = bc
        self.me = bc.group_rank
        self._rng = rng
        self._mortal = mortal
        self._works: list[Any] = []
        self._due: dict[int, deque[Message]] = {}

    def take_part(self, block: list[Message]) -> None:
        """Send what is to be sent of a block, and receive some of what is there by then."""
        for message in block:
            if message.src == self.me:
                self._try(message.dst, lambda message=message: self._send(message))
            if message.dst == self.me:
                self._due.setdefault(message.src, deque()).append(message)
        for src, due in self._rng.sample([*self._due.items()], len(self._due)):
            self._receive(src, self._rng.randint(0, len(due)))

    def end(self) -> None:
        """Receive the rest."""
        for src, due in self._due.items():
            self._receive(src, len(due))
        for dst, work in self._works:
            self._try(dst, work.wait)

    def _try(self, peer: int, call: Any) -> bool:
        try:
            call()
        except shmcast.PeerDied as died:
            if peer != self._mortal or not died.peer.startswith(f"rank {peer}"):
                raise
            return False
        return True

    def _send(self, message: Message) -> None:
        bc, waits = self.bc, self._rng.random() < 0.5
        what = message.tensors() if message.is_dict else message.obj()
        send, isend = (
            (bc.send_tensor_dict, bc.isend_tensor_dict)
            if message.is_dict
            else (bc.send_object, bc.isend_object)
        )
        if waits:
            send(what, message.dst, SECONDS)
        else:
            self._works.append((message.dst, isend(what, message.dst, SECONDS)))

    def _receive(self, src: int, count: int) -> None:
        due = self._due[src]
        taken = [due.popleft() for _ in range(count)]
        if self._rng.random() < 0.5:
            for message in taken:
                if not self._try(src, lambda message=message: self._receive_one(message)):
                    due.clear()  # it has died
                    return
            return
        begun = [(message, self._begin(message)) for message in taken]
        for message, work in self._rng.sample(begun, count):
            self._try(src, lambda m=message, w=work: _check(m, w.wait()))

    def _begin(self, message: Message) -> Any:
        irecv = self.bc.irecv_tensor_dict if message.is_dict else self.bc.irecv_object
        return irecv(message.src, SECONDS)

    def _receive_one(self, message: Message) -> None:
        receive: Any = self.bc.recv_tensor_dict if message.is_dict else self.bc.recv_object
        if self._rng.random() < 0.5:
            _check(message, receive(message.src, SECONDS))
            return
        while True:  # impatiently: a time-out loses nothing
            try:
                _check(message, receive(message.src, 0.0005))
            except shmcast.Timeout:
                continue
            return


def _check(message: Message, got: Any) -> None:
    if message.is_dict:
        assert got["number"] == message.number
        assert torch.equal(got["t"], message.tensors()["t"])
    else:
        assert got == message.obj()


def runs_programs(rank: int, hosts: tuple[str, ...], seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)  # noqa: S311 (not for secrets; so for the next)
        spill_bytes = rng.choice([1 << 26, 1 << 30])
        with opened(rank, hosts, spill_bytes=spill_bytes) as bc:
            part = Rank(bc, random.Random(f"{seed}/{rank}"))  # noqa: S311
            for block in messages(rng, blocks(rng, 4)):
                part.take_part(block)
                match rng.randrange(4):
                    case 0:
                        bc.barrier(SECONDS)
                    case 1:
                        assert bc.all_gather_object(rank, SECONDS) == [0, 1, 2, 3]
                    case 2:
                        assert bc.broadcast_object(seed if bc.is_src else None, SECONDS) == seed
            part.end()


@on_hosts
def test_programs_whose_messages_cross_end_and_lose_nothing(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, runs_programs, hosts, range(PROGRAMS))


def runs_until_one_dies(rank: int, store: str, hosts: tuple[str, ...], seed: int) -> None:
    ranks.join(rank, 4, store)
    rng = random.Random(seed)  # noqa: S311
    with opened(rank, hosts, on_reader_death="drop") as bc:
        part = Rank(bc, random.Random(f"{seed}/{rank}"), mortal=3)  # noqa: S311
        program = messages(rng, blocks(rng, 4))
        last = rng.randrange(1, len(program))
        for number, block in enumerate(program):
            if rank == 3 and number == last:
                os.kill(os.getpid(), signal.SIGKILL)
            part.take_part(block)
        part.end()
        if rank != 0:  # (who has died, the source has to see)
            bc.send_object("done", 0, SECONDS)
        else:
            assert [bc.recv_object(src, SECONDS) for src in (1, 2)] == ["done"] * 2


@on_hosts
@pytest.mark.parametrize("seed", [1, 2])
def test_programs_end_also_when_a_rank_dies_in_them(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], seed: int
) -> None:
    crew, store = fresh
    jobs = crew.start(4, runs_until_one_dies, store, hosts, seed)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    results(jobs[:3])
