"""Signals whose handlers raise while replies of other hosts are received: none is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import shmcast
from tests.support.alarms import Alarmed, AlarmedError, Alarms
from tests.support.fake_nodes import TWO
from tests.support.hub_over import echo, hub_over
from tests.support.hub_roles import SECONDS, answer
from tests.support.processes import Crew, results
from tests.support.signals import not_on_310

MESSAGES = 600
ALARMS = 200

pytestmark = [pytest.mark.usefixtures("no_gc"), not_on_310]


CALLS: dict[str, Callable[[shmcast.Hub, int], Callable[[], Any]]] = {
    "one": lambda hub, index: lambda: hub.recv(index, SECONDS),
    "any": lambda hub, _index: lambda: hub.recv_any(SECONDS),
    "all": lambda hub, _index: lambda: hub.recv_all(SECONDS),
}


@pytest.mark.parametrize("how", CALLS)
def test_no_reply_is_lost(fresh: tuple[Crew, str], how: str) -> None:
    crew, path = fresh
    jobs = [crew.workers[rank].start(echo, rank, TWO, path) for rank in (1, 2, 3)]
    with Alarms(Alarmed, AlarmedError).in_place() as alarms, hub_over(0, TWO, path) as hub:
        sent, received = 0, [0, 0, 0]
        while sent < MESSAGES or alarms.count < ALARMS:
            for _ in range(4):  # some travel together
                hub.send(sent % 10)
                sent += 1
            while min(received) < sent:
                index = received.index(min(received))
                try:
                    got = alarms.during(CALLS[how](hub, index), 300e-6)
                except (Alarmed, AlarmedError):
                    continue
                if how == "any":
                    index, got = got
                for i, reply in enumerate(got) if how == "all" else [(index, got)]:
                    assert reply == answer(received[i] % 10, i)
                    received[i] += 1
    results(jobs)
