"""Signals whose handlers raise while one rank receives of another: no message is lost."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import shmcast
from tests.support.alarms import Alarmed, AlarmedError, Alarms
from tests.support.exchanges import over_store
from tests.support.fake_nodes import ONE, TWO
from tests.support.processes import Crew
from tests.support.signals import not_on_310

SECONDS = 55.0
MESSAGES = 600
ALARMS = 200

pytestmark = [pytest.mark.usefixtures("no_gc"), not_on_310]


def message(k: int) -> dict[str, Any]:
    """Return the k-th one: some are larger than what the kernel takes at once."""
    return {"number": k, "data": torch.full((1_000_000 if k % 50 == 7 else k % 100,), k)}


def number_of(got: dict[str, Any]) -> int:
    """Return which one it is; it is whole."""
    k: int = got["number"]
    expected = message(k)["data"]
    assert torch.equal(got["data"], expected)
    return k


CALLS: dict[str, Callable[[shmcast.ShmBroadcaster], Callable[[], Any]]] = {
    "recv_object": lambda bc: lambda: bc.recv_object(0, SECONDS),
    "recv_tensor_dict": lambda bc: lambda: bc.recv_tensor_dict(0, SECONDS),
    "irecv_object": lambda bc: bc.irecv_object(0, SECONDS).wait,
}
"""Begins to receive a message; what is returned does so, and is called until it has."""


def received(receive: Callable[[], Any], alarms: Alarms) -> Any:
    """Call until no handler has ended it."""
    while True:
        try:
            return alarms.during(receive, 300e-6)
        except (Alarmed, AlarmedError):
            pass


def exchange(rank: int, hosts: tuple[str, ...], path: str, how: str) -> None:
    """Send from rank 0 to rank 2, whose calls a handler ends again and again."""
    alarms = Alarms(Alarmed, AlarmedError)
    with over_store(rank, hosts, path) as bc:
        enough = False
        sent = 0
        if rank == 2:
            bc.recv_object(0, SECONDS)
        elif rank == 0:
            bc.send_object("first", 2, SECONDS)
        while not enough:
            if rank == 0:
                for k in range(sent, sent + MESSAGES):
                    send = bc.isend_tensor_dict if how == "recv_tensor_dict" else bc.isend_object
                    send(message(k), 2, SECONDS)
            if rank == 2:
                with alarms.in_place():
                    for k in range(sent, sent + MESSAGES):
                        assert number_of(received(CALLS[how](bc), alarms)) == k
            sent += MESSAGES
            enough = bc.all_gather_object(alarms.count, SECONDS)[2] >= ALARMS


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("hosts", [ONE, TWO], ids=["one node", "two nodes"])
def test_no_message_is_lost(fresh: tuple[Crew, str], hosts: tuple[str, ...], how: str) -> None:
    crew, path = fresh
    crew.run(4, exchange, hosts, path, how)


def send_interrupted(rank: int, hosts: tuple[str, ...], path: str) -> None:
    """Send from rank 0, whose calls a handler ends, to rank 2, which tells it what has come."""
    alarms = Alarms(Alarmed, AlarmedError)
    with over_store(rank, hosts, path) as bc:
        if rank == 2:
            bc.recv_object(0, SECONDS)
            got = []
            while (item := bc.recv_object(0, SECONDS)) is not None:
                got.append(number_of(item))
            bc.send_object(got, 0, SECONDS)
        elif rank == 0:
            bc.send_object("first", 2, SECONDS)
            returned = set()
            k = 0
            while k < MESSAGES or alarms.count < ALARMS:
                with alarms.in_place(), contextlib.suppress(Alarmed, AlarmedError):
                    send = functools.partial(bc.isend_object, message(k), 2, SECONDS)
                    work = alarms.during(send, 300e-6)
                    returned.add(k)
                    alarms.during(work.wait, 300e-6)
                k += 1
            bc.send_object(None, 2, SECONDS)
            got = bc.recv_object(2, SECONDS)
            assert got == sorted({*got})
            assert returned <= {*got}
        bc.barrier(SECONDS)


@pytest.mark.parametrize("hosts", [ONE, TWO], ids=["one node", "two nodes"])
def test_what_was_sent_arrives_once_and_in_order(
    fresh: tuple[Crew, str], hosts: tuple[str, ...]
) -> None:
    crew, path = fresh
    crew.run(4, send_interrupted, hosts, path)
