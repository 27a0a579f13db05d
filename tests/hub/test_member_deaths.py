"""A member that dies ends the waits of its hub by name, or is dropped and can be replaced."""

from __future__ import annotations

import asyncio
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmcast
from shmcast import Hub, PeerDied, WaitPolicy
from tests.support.hub_roles import (
    SECONDS,
    answer,
    attach_and_wait,
    be_killed_in_mid_reply,
    be_told_late,
    echo,
    echo_and_die,
    echo_and_fail,
    echo_even,
    fill_ring,
    hub_of_two,
    receive_and_exit,
    receive_and_wait,
    reply_all,
)
from tests.support.processes import Crew, Job, WorkerFailed, results
from tests.support.ring_roles import send_until_told
from tests.support.subprocess_programs import wait_until

KILLED = r"member 2 \(pid \d+\) has died.*: killed by SIGKILL"


def waits(hub: Hub) -> Callable[[], bool]:
    parks = hub.reply_statistics().parks
    return lambda: hub.reply_statistics().parks > parks


@pytest.mark.parametrize("call", ["recv", "recv_any", "recv_all"])
def test_a_death_ends_any_wait_of_the_hub(children: Crew, call: str) -> None:
    with Hub(3, wait=WaitPolicy.semaphore()) as hub:
        jobs = children.start(3, receive_and_wait, hub.handle)
        hub.wait_ready(SECONDS)
        hub.send(0)
        told: list[str] = []

        def receive() -> None:
            try:
                hub.recv(0) if call == "recv" else getattr(hub, call)()
            except PeerDied as error:
                told.append(f"{error.peer}: {error}")

        thread = threading.Thread(target=receive)
        parked = waits(hub)
        thread.start()
        wait_until(parked)
        jobs[2].kill()
        thread.join(SECONDS)
        assert len(told) == 1
        assert re.search(KILLED, told[0])
        with pytest.raises(PeerDied, match=KILLED):
            hub.recv(1)  # and so does each that follows
        assert send_until_told(hub).peer == "member 2"
        with pytest.raises(WorkerFailed, match="PeerDied: member 0: member 2"):
            jobs[0].result()


@pytest.mark.parametrize("end", [receive_and_wait, receive_and_exit])
def test_the_first_death_is_named_when_others_have_died_of_it(
    children: Crew, end: Callable[..., None]
) -> None:
    with Hub(3, wait=WaitPolicy.semaphore()) as hub:
        jobs = children.start(3, end, hub.handle)
        hub.wait_ready(SECONDS)
        hub.send(0)
        jobs[2].kill()
        for victim in jobs[:2]:
            with pytest.raises(WorkerFailed):
                victim.result()
        for _ in range(2):
            with pytest.raises(PeerDied, match=KILLED):
                hub.recv_any(SECONDS)
        assert send_until_told(hub).peer == "member 2"


@pytest.mark.parametrize("is_told", [True, False], ids=["a death", "nothing"])
def test_a_hub_that_closes_because_of_a_death_hides_it_from_nobody(
    children: Crew, tmp_path: Path, is_told: bool
) -> None:
    closed = tmp_path / "closed"
    with Hub(3) as hub:
        jobs = children.start(3, be_told_late, hub.handle, closed)
        hub.wait_ready(SECONDS)
        hub.send(0)
        wait_until(lambda: hub.statistics().lag == (0, 0, 0))
        if is_told:
            jobs[2].kill()
            with pytest.raises(PeerDied, match=KILLED):
                hub.recv_all(SECONDS)
    if not is_told:
        jobs[2].kill()  # which nobody has to know any more
    closed.touch()
    for index, told in enumerate(results(jobs[:2])):
        dead = rf"PeerDied: member {index}: member 2 \(pid \d+\) has died"
        kind = dead if is_told else r"Closed: .* the hub has closed"
        assert [bool(re.match(kind, text)) for text in told] == [True, True], told


def test_what_the_dead_has_replied_is_received_first(children: Crew) -> None:
    with Hub(3) as hub:
        for i in (0, 1):
            children.workers[i].start(attach_and_wait, i, hub.handle)
        job = children.workers[2].start(echo_and_die, 2, hub.handle, 2)
        hub.wait_ready(SECONDS)
        hub.send(0)
        hub.send(1)
        with pytest.raises(WorkerFailed, match="exit code -9"):
            job.result()
        assert [hub.recv(2, SECONDS), hub.recv_any(SECONDS)] == [answer(0, 2), (2, answer(1, 2))]
        with pytest.raises(PeerDied, match=KILLED):
            hub.recv_any(SECONDS)


def test_a_reply_that_the_dead_did_not_end_is_nobodys(children: Crew) -> None:
    with Hub(3, on_member_death="drop", reply_slots=4, reply_slot_bytes=128) as hub:
        job = children.workers[2].start(be_killed_in_mid_reply, 2, hub.handle)
        wait_until(lambda: hub._end._ring.attached() == 1)
        with pytest.raises(shmcast.Timeout):
            hub.recv(2, 0.01)  # and has seen it
        hub.send(0)
        with pytest.raises(WorkerFailed, match="exit code -9"):
            job.result()
        with pytest.raises(PeerDied, match=KILLED):
            hub.recv(2, SECONDS)
        again = children.workers[2].start(reply_all, 2, hub.handle, 3, 400, 1)
        wait_until(lambda: hub._end._ring.peers()[2].state == "rejoining")
        for k in range(1, 4):
            hub.send(k)
        assert [hub.recv(2, SECONDS)[1] for _ in range(3)] == [1, 2, 3]
        assert again.result() == 3


def test_a_dropped_member_is_told_of_in_its_place(children: Crew) -> None:
    deaths: list[PeerDied] = []
    with Hub(3, on_member_death="drop", on_death=deaths.append) as hub:
        others = [children.workers[i].start(echo, i, hub.handle) for i in (0, 1)]
        job = children.workers[2].start(echo_and_die, 2, hub.handle, 1)
        hub.wait_ready(SECONDS)
        hub.send(0)
        assert hub.recv_all(SECONDS) == [answer(0, i) for i in range(3)]
        with pytest.raises(WorkerFailed, match="exit code -9"):
            job.result()
        hub.send(1)
        *living, dead = hub.recv_all(SECONDS)
        assert living == [answer(1, 0), answer(1, 1)]
        assert isinstance(dead, PeerDied)
        assert (dead.peer, dead.how) == ("member 2", "killed by SIGKILL")
        assert [(error.peer, error.pid) for error in deaths] == [("member 2", dead.pid)]
        assert list(hub.dropped) == [2]
        for _ in range(2):
            with pytest.raises(PeerDied, match=KILLED):
                hub.recv(2, SECONDS)
        hub.send(2)
        assert sorted(hub.recv_any(SECONDS) for _ in range(2)) == [
            (i, answer(2, i)) for i in range(2)
        ]
        with pytest.raises(shmcast.Timeout):
            hub.recv_any(0)
        hub.close()
        assert results(others) == [(3, "Closed")] * 2


def test_recv_any_tells_once_that_somebody_is_dropped(children: Crew) -> None:
    with Hub(3, on_member_death="drop") as hub:
        others = [children.workers[i].start(echo, i, hub.handle) for i in (0, 1)]
        job = children.workers[2].start(echo_and_die, 2, hub.handle, 0)
        with pytest.raises(WorkerFailed, match="exit code -9"):
            job.result()
        hub.send(0)
        got = dict(hub.recv_any(SECONDS) for _ in range(3))
        assert isinstance(got.pop(2), PeerDied)
        assert got == {0: answer(0, 0), 1: answer(0, 1)}
        with pytest.raises(shmcast.Timeout):
            hub.recv_any(0.01)
        hub.close()
        assert results(others) == [(1, "Closed")] * 2


@pytest.mark.parametrize("end", [echo_and_die, echo_and_fail])
def test_a_replacement_goes_on_in_its_place(crew: Crew, end: Callable[..., None]) -> None:
    with Hub(2, on_member_death="drop") as hub:
        other = crew.workers[0].start(echo, 0, hub.handle)
        for turn in range(3):
            job = crew.workers[1].start(end, 1, hub.handle, 1)
            wait_until(lambda: hub._end._ring.peers()[1].state in ("attached", "rejoining"))
            hub.send(turn)
            if end is echo_and_die:
                with pytest.raises(WorkerFailed, match="exit code -9"):
                    job.result()
            else:
                job.result()
            assert hub.recv(0, SECONDS) == answer(turn, 0)
            assert hub.recv(1, SECONDS) == answer(turn, 1)  # first of all
            with pytest.raises(PeerDied, match="member 1"):
                hub.recv(1, SECONDS)
        last = crew.workers[1].start(echo, 1, hub.handle)
        wait_until(lambda: hub._end._ring.peers()[1].state == "rejoining")
        hub.send(9)
        assert hub.recv_all(SECONDS) == [answer(9, 0), answer(9, 1)]
        assert hub.dropped == {}
        hub.close()
        assert [other.result(), last.result()] == [(4, "Closed"), (1, "Closed")]


@pytest.mark.parametrize("call", ["recv", "recv_any", "recv_all"])
def test_replies_of_two_in_one_place_are_told_apart(crew: Crew, call: str) -> None:
    """Although nobody asked for anything while one took the place of the other."""
    with Hub(1, on_member_death="drop") as hub:
        job = crew.workers[0].start(echo_and_die, 0, hub.handle, 1)
        hub.wait_ready(SECONDS)
        hub.send(0)
        hub.send(1)  # is lost with it
        with pytest.raises(WorkerFailed, match="exit code -9"):
            job.result()
        job = crew.workers[0].start(echo, 0, hub.handle)
        wait_until(lambda: hub._end._ring.peers()[0].state == "rejoining")
        hub.send(2)
        wait_until(lambda: hub._end._ring.reader_figures()[0]["messages"] == 2)
        got: list[Any] = []
        for _ in range(3):
            if call == "recv":
                try:
                    got.append(hub.recv(0, SECONDS))
                except PeerDied as error:
                    got.append(error)
            else:
                reply = getattr(hub, call)(SECONDS)
                got.append(reply[1] if call == "recv_any" else reply[0])
        assert [got[0], got[2]] == [answer(0, 0), answer(2, 0)]
        assert isinstance(got[1], PeerDied)
        hub.close()
        assert job.result() == (1, "Closed")


def take_the_place(crew: Crew, hub: Hub, role: Callable[..., object] = echo) -> Job:
    """Have another process take the place of member 1, which has died."""
    job = crew.workers[1].start(role, 1, hub.handle)
    wait_until(lambda: hub._end._ring.peers()[1].state == "rejoining")
    return job


def start_one_that_dies(crew: Crew, hub: Hub, count: int) -> Job:
    """Start member 1, which answers so many messages."""
    job = crew.workers[1].start(echo_and_die, 1, hub.handle, count)
    wait_until(lambda: hub._end._ring.peers()[1].state == "attached")
    return job


def await_death(job: Job) -> None:
    with pytest.raises(WorkerFailed, match="exit code -9"):
        job.result()


def recv_all(hub: Hub, awaits: bool) -> list[Any]:
    """Receive a reply of each, in a task or not; return "dead" for a `PeerDied`."""
    got = asyncio.run(hub.recv_all_async(SECONDS)) if awaits else hub.recv_all(SECONDS)
    return ["dead" if isinstance(reply, PeerDied) else reply for reply in got]


def both(number: int) -> list[Any]:
    return [answer(number, 0), answer(number, 1)]


@pytest.mark.parametrize("awaits", [False, True])
def test_who_has_come_after_a_message_owes_no_answer_to_it(crew: Crew, awaits: bool) -> None:
    with Hub(2, on_member_death="drop") as hub:
        crew.workers[0].start(echo, 0, hub.handle)
        dies = start_one_that_dies(crew, hub, 1)
        hub.send(0)
        assert recv_all(hub, awaits) == both(0)
        await_death(dies)
        hub.send(1)
        assert recv_all(hub, awaits) == [answer(1, 0), "dead"]
        hub.send(2)
        take_the_place(crew, hub)
        assert recv_all(hub, awaits) == [answer(2, 0), "dead"]
        hub.send(3)
        assert recv_all(hub, awaits) == both(3)


@pytest.mark.parametrize("awaits", [False, True])
def test_answers_to_two_messages_are_not_in_one_list(crew: Crew, awaits: bool) -> None:
    """Nor when the next message is sent before anybody asks for the answers to the last one."""
    with Hub(2, on_member_death="drop") as hub:
        crew.workers[0].start(echo, 0, hub.handle)
        await_death(start_one_that_dies(crew, hub, 0))
        hub.send(1)
        hub.send(2)
        take_the_place(crew, hub)
        hub.send(3)
        hub.send(4)
        wait_until(lambda: sum(hub.reply_statistics().lag) == 6)
        assert recv_all(hub, awaits) == [answer(1, 0), "dead"]
        hub.send(5)
        assert recv_all(hub, awaits) == [answer(2, 0), "dead"]
        assert [recv_all(hub, awaits) for _ in range(3)] == [both(3), both(4), both(5)]


@pytest.mark.parametrize("awaits", [False, True])
def test_a_death_that_owes_nothing_takes_no_place_in_a_list(crew: Crew, awaits: bool) -> None:
    deaths: list[PeerDied] = []
    with Hub(2, on_member_death="drop", on_death=deaths.append) as hub:
        crew.workers[0].start(echo, 0, hub.handle)
        dies = start_one_that_dies(crew, hub, 1)
        hub.send(0)
        assert recv_all(hub, awaits) == both(0)
        await_death(dies)
        take_the_place(crew, hub)
        hub.send(1)
        assert recv_all(hub, awaits) == both(1)
        hub.send(2)
        assert recv_all(hub, awaits) == both(2)


def test_messages_that_need_no_answer_shift_nothing(crew: Crew) -> None:
    with Hub(2, on_member_death="drop") as hub:
        crew.workers[0].start(echo_even, 0, hub.handle)
        dies = start_one_that_dies(crew, hub, 1)
        hub.send(0)
        assert recv_all(hub, awaits=False) == both(0)
        await_death(dies)
        for number in (1, 3, 5):
            hub.send(number)
        take_the_place(crew, hub, echo_even)
        for number in (7, 8, 9, 10):
            hub.send(number)
        assert [recv_all(hub, awaits=False) for _ in range(2)] == [both(8), both(10)]


def test_in_a_hub_of_one_nobody_is_waited_for_who_was_asked_nothing(crew: Crew) -> None:
    with Hub(1, on_member_death="drop") as hub:
        dies = crew.workers[0].start(echo_and_die, 0, hub.handle, 1)
        hub.send(0)
        assert recv_all(hub, awaits=False) == [answer(0, 0)]
        await_death(dies)
        assert recv_all(hub, awaits=False) == ["dead"]
        crew.workers[0].start(echo, 0, hub.handle)
        wait_until(lambda: hub._end._ring.peers()[0].state == "rejoining")
        assert recv_all(hub, awaits=False) == ["dead"]
        hub.send(1)
        assert recv_all(hub, awaits=False) == [answer(1, 0)]


def test_when_the_last_has_died_there_is_nobody_to_wait_for(children: Crew) -> None:
    with Hub(1, on_member_death="drop") as hub:
        job = children.workers[0].start(echo_and_die, 0, hub.handle, 0)
        with pytest.raises(WorkerFailed, match="exit code -9"):
            job.result()
        index, last = hub.recv_any(SECONDS)
        assert (index, type(last)) == (0, PeerDied)
        with pytest.raises(PeerDied, match="every member has died or closed"):
            hub.recv_any(SECONDS)


def test_a_hub_that_dies_is_told_of_to_its_members(children: Crew, tmp_path: Path) -> None:
    """Those who wait for a message, and those who wait for room for a reply."""
    job = children.workers[2].start(hub_of_two, 2, tmp_path / "handle", 4)
    wait_until((tmp_path / "handle").exists)
    handle = pickle.loads((tmp_path / "handle").read_bytes())  # noqa: S301
    members = [
        children.workers[0].start(echo, 0, handle),
        children.workers[1].start(fill_ring, 1, handle, 9, SECONDS),
    ]
    wait_until((tmp_path / "full").exists)
    job.kill()
    assert members[0].result() == (4, "PeerDied")
    assert members[1].result().startswith("PeerDied: member 1: hub (pid ")
