"""A hub that sends and members that reply never wait for one another without end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import shmcast
from shmcast import Hub
from tests.support.hub_roles import SECONDS, fill_ring, reply_all
from tests.support.processes import Crew, results
from tests.support.subprocess_programs import wait_until

MESSAGES = 40


@pytest.mark.parametrize("nbytes", [10, 5_000])  # a reply of one slot; and of more than the ring
def test_a_hub_may_send_without_receiving(crew: Crew, nbytes: int) -> None:
    with Hub(3, slots=2, slot_bytes=128, reply_slots=2, reply_slot_bytes=128, spill_bytes=0) as hub:
        jobs = crew.start(3, reply_all, hub.handle, MESSAGES, nbytes)
        for k in range(MESSAGES):
            hub.send(k, SECONDS)
        for k in range(MESSAGES):
            assert hub.recv_all(SECONDS) == [(i, k, bytes(nbytes)) for i in range(3)]
        assert results(jobs) == [MESSAGES] * 3


def test_so_it_may_while_another_thread_receives_from_somebody_else(crew: Crew) -> None:
    with Hub(2, slots=2, slot_bytes=128, reply_slots=2, reply_slot_bytes=128, spill_bytes=0) as hub:
        # Of member 1 nothing is received: what it replies is in the way of what it is sent.
        jobs = crew.start(2, reply_all, hub.handle, MESSAGES, 1_000)
        got: list[Any] = []

        def receive() -> None:
            got.extend(hub.recv(0, SECONDS) for _ in range(MESSAGES))

        thread = threading.Thread(target=receive)
        thread.start()
        for k in range(MESSAGES):
            hub.send(k, SECONDS)
        thread.join(SECONDS)
        assert [reply[1] for reply in got] == [*range(MESSAGES)]
        assert [hub.recv(1, SECONDS)[1] for _ in range(MESSAGES)] == [*range(MESSAGES)]
        assert results(jobs) == [MESSAGES] * 2


def test_and_when_that_thread_receives_no_more(crew: Crew) -> None:
    with Hub(1, slots=2, slot_bytes=128, reply_slots=2, reply_slot_bytes=128, spill_bytes=0) as hub:
        job = crew.workers[0].start(reply_all, 0, hub.handle, MESSAGES, 1_000)

        def send() -> None:
            for k in range(MESSAGES):
                hub.send(k, SECONDS)

        thread = threading.Thread(target=send)
        thread.start()
        got = [hub.recv(0, SECONDS)]
        thread.join(SECONDS)
        assert not thread.is_alive()
        got += [hub.recv_any(SECONDS)[1] for _ in range(MESSAGES - 1)]
        assert [reply[1] for reply in got] == [*range(MESSAGES)]
        assert job.result() == MESSAGES


def test_a_member_that_finds_no_room_says_who_does_not_receive(crew: Crew) -> None:
    with Hub(1, slots=16, reply_slots=2, reply_slot_bytes=128, spill_bytes=0) as hub:
        job = crew.workers[0].start(fill_ring, 0, hub.handle, 3, 0.01)
        for k in range(3):
            hub.send(k)
        told = job.result()
        assert told == (
            "Timeout: member 0: reply timed out after 0.01 s: the hub has yet to receive 2 "
            "fragments of earlier replies (reply_slots=2)"
        )
        assert [hub.recv(0) for _ in range(2)] == [0, 1]


def test_a_hub_that_closes_ends_replies_that_wait(crew: Crew) -> None:
    with Hub(2, slots=16, reply_slots=2, reply_slot_bytes=128, spill_bytes=0) as hub:
        jobs = crew.start(2, fill_ring, hub.handle, 5, SECONDS)
        for k in range(5):
            hub.send(k)
        wait_until(lambda: hub.reply_statistics().lag == (2, 2))
    assert results(jobs) == [
        f"Closed: member {i}: reply: the hub has closed, nobody is left to receive it"
        for i in range(2)
    ]


def test_a_send_that_is_given_up_leaves_replies_to_be_received(crew: Crew) -> None:
    with Hub(2, slots=2, slot_bytes=128, reply_slots=2, reply_slot_bytes=128, spill_bytes=0) as hub:
        job = crew.workers[0].start(reply_all, 0, hub.handle, 2, 2_000)
        hub.send(0)
        hub.send(1)
        with pytest.raises(shmcast.Timeout, match="member 1 is 2 fragments behind"):
            hub.send(2, 0.2)  # as there is no member 1
        assert [hub.recv(0, SECONDS)[1] for _ in range(2)] == [0, 1]
        assert job.result() == 2
