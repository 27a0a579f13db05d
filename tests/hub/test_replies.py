"""A hub's messages reach every member, and every reply reaches the hub, whole and in order."""

from __future__ import annotations

import itertools
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Hub, Member, WaitPolicy
from tests.support.hub_roles import (
    LARGE,
    SECONDS,
    answer,
    echo,
    echo_some,
    receive_and_wait,
    reply_all,
    reply_arrays,
)
from tests.support.processes import Crew, results
from tests.support.subprocess_programs import wait_until


def test_every_reply_arrives_whole_and_in_order(crew: Crew, wait: WaitPolicy) -> None:
    members = 1 if wait == WaitPolicy.spin() else 4  # more than CPUs would wait for time slices
    with Hub(members, wait=wait, reply_slots=4, reply_slot_bytes=1024) as hub:
        jobs = crew.start(members, echo, hub.handle, wait)
        choose = random.Random(1)  # noqa: S311
        missing: list[list[int]] = [[] for _ in range(members)]
        for k in range(10, 70):
            hub.send(k, SECONDS)
            for member in missing:
                member.append(k)
            how = choose.choice(["all", "any", "one", "later"])
            if how == "all":
                got = hub.recv_all(SECONDS)
                assert got == [answer(missing[i].pop(0), i) for i in range(members)]
            elif how == "any":
                while any(missing):
                    i, reply = hub.recv_any(SECONDS)
                    assert reply == answer(missing[i].pop(0), i)
            elif how == "one":
                i = choose.randrange(members)
                while missing[i]:
                    assert hub.recv(i, SECONDS) == answer(missing[i].pop(0), i)
        while any(missing):
            i, reply = hub.recv_any(SECONDS)
            assert reply == answer(missing[i].pop(0), i)
        hub.close()
        assert results(jobs) == [(60, "Closed")] * members


def test_members_may_come_long_after_messages(children: Crew) -> None:
    with Hub(3) as hub:
        hub.send(0)
        hub.send(1)
        handle = pickle.loads(pickle.dumps(hub.handle))  # noqa: S301
        assert len(pickle.dumps(handle)) < 500
        jobs = children.start(3, echo_some, handle, 2)
        assert hub.recv_all(SECONDS) == [answer(0, i) for i in range(3)]
        assert hub.recv_all(SECONDS) == [answer(1, i) for i in range(3)]
        results(jobs)


def test_arrays_and_tensors_travel_both_ways(crew: Crew) -> None:
    with Hub(2, arena_bytes=8 * 2**20) as hub:
        jobs = crew.start(2, reply_arrays, hub.handle)
        for size in (10, 700_000):
            sent: dict[str, Any] = {
                "array": np.arange(size, dtype=np.float64),
                "tensor": torch.arange(size),
            }
            hub.send(sent)
            for reply in hub.recv_all(SECONDS):
                np.testing.assert_array_equal(reply["array"], 2 * sent["array"])
                assert torch.equal(reply["tensor"], 2 * sent["tensor"])
                reply["array"][0] = 1  # memory of its own
        results(jobs)


def test_nobody_is_passed_over_by_recv_any(crew: Crew) -> None:
    with Hub(3) as hub:
        jobs = crew.start(3, reply_all, hub.handle, 5, 10)
        for k in range(5):
            hub.send(k)
        results(jobs)
        assert [hub.recv_any(SECONDS)[0] for _ in range(15)] == [0, 1, 2] * 5


def test_one_member_is_received_from_while_the_others_wait(crew: Crew) -> None:
    with Hub(3, reply_slots=2, reply_slot_bytes=128) as hub:
        jobs = crew.start(3, reply_all, hub.handle, 3, 20_000)  # in parts: the hub must take them
        for k in range(3):
            hub.send(k)
        order = [(i, k) for i in (2, 0, 1) for k in range(3)]
        assert [hub.recv(i, SECONDS)[:2] for i, _ in order] == order
        assert results(jobs) == [3, 3, 3]


def test_what_has_come_in_time_is_received_later(crew: Crew) -> None:
    with Hub(3) as hub:
        jobs = [crew.workers[i].start(reply_all, i, hub.handle, 2, 9) for i in (0, 2)]
        for k in range(2):
            hub.send(k)
        results(jobs)
        with pytest.raises(shmcast.Timeout, match=r"hub: recv_all timed out after 0 s: .*member 1"):
            hub.recv_all(0)
        with pytest.raises(shmcast.Timeout, match=r"hub: recv\(1\) timed .* no reply of member 1;"):
            hub.recv(1, 0.01)
        assert hub.recv(0)[:2] == (0, 0)
        last = crew.workers[1].start(reply_all, 1, hub.handle, 2, 9)
        assert hub.recv(1, SECONDS)[:2] == (1, 0)
        assert [reply[:2] for reply in hub.recv_all(SECONDS)] == [(0, 1), (1, 1), (2, 0)]
        assert last.result() == 2
        with pytest.raises(shmcast.Closed, match=r"recv_all: member 0 .* have closed"):
            hub.recv_all(SECONDS)
        assert hub.recv(2)[:2] == (2, 1)


def test_a_reply_that_is_not_all_there_is_received_later(crew: Crew) -> None:
    with Hub(2, reply_slots=2, reply_slot_bytes=128) as hub:
        job = crew.workers[0].start(reply_all, 0, hub.handle, 1, LARGE)
        hub.send(0)
        wait_until(lambda: bool(hub.reply_statistics().lag[0]))
        for receive in itertools.islice(itertools.cycle([hub.recv_any, hub.recv_all]), 6):
            with pytest.raises(shmcast.Timeout):
                receive(0)
        assert hub.recv(0, SECONDS) == (0, 0, bytes(LARGE))
        assert job.result() == 1


def test_a_member_may_answer_late_or_not_at_all(crew: Crew) -> None:
    with Hub(2) as hub, Member(hub.handle, 1) as member:
        job = crew.workers[0].start(echo, 0, hub.handle)
        for k in range(3):
            hub.send(k)
        assert [member.recv(SECONDS) for _ in range(3)] == [0, 1, 2]
        member.reply("one for all")
        hub.send(3)
        assert member.recv(SECONDS) == 3
        member.reply("for the last")
        assert [hub.recv(1, SECONDS) for _ in range(2)] == ["one for all", "for the last"]
        assert [hub.recv(0, SECONDS) for _ in range(4)] == [answer(k, 0) for k in range(4)]
        hub.close()
        assert job.result() == (4, "Closed")


def test_a_closed_member_is_received_from_to_the_last_reply(crew: Crew) -> None:
    with Hub(2) as hub:
        crew.workers[0].start(echo_some, 0, hub.handle, 1)
        job = crew.workers[1].start(receive_and_wait, 1, hub.handle)
        hub.wait_ready(SECONDS)
        hub.send(7)
        assert hub.recv(0, SECONDS) == answer(7, 0)
        with pytest.raises(shmcast.Closed, match=r"hub: recv\(0\): member 0 has closed"):
            hub.recv(0, SECONDS)
        with pytest.raises(shmcast.Closed, match="hub: recv_all: member 0 has closed"):
            hub.recv_all(SECONDS)
        with pytest.raises(shmcast.Timeout, match="no reply of member 1"):
            hub.recv_any(0.01)
        hub.close()
        with pytest.raises(AssertionError, match="Closed: member 1: recv: the hub has closed"):
            job.result()


def test_statistics_count_replies_by_member(crew: Crew) -> None:
    with Hub(2) as hub:
        jobs = crew.start(2, reply_all, hub.handle, 3, 9)
        for k in range(3):
            hub.send(k)
        results(jobs)
        assert hub.reply_statistics().lag != (0, 0)
        for _ in range(3):
            hub.recv_all(SECONDS)
        replies: Any = hub.reply_statistics()
        assert (replies.messages, replies.lag) == (6, (0, 0))
        assert [member.messages for member in replies.readers] == [3, 3]
        assert hub.statistics().messages == 3
        assert [member.messages for member in hub.statistics().readers] == [3, 3]
