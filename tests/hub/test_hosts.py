"""A hub's members may be on other hosts: the same calls, one message to each host."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmcast
from shmcast import Hub, Member
from shmcast._hub.hosts import ends
from tests.support.fake_nodes import threads
from tests.support.hub_over import echo, echo_and_end, hub_over, member_over
from tests.support.hub_roles import LARGE, SECONDS, answer
from tests.support.loops import once
from tests.support.processes import Crew, WorkerFailed, forking, results
from tests.support.subprocess_programs import run_to_its_end, wait_until

ONE = ("a",) * 4
TWO = ("a", "a", "b", "b")
SPREADS = [ONE, TWO, ("a", "b", "c", "d"), ("a", "b", "b", "b"), ("a", "b", "a", "c")]


def drive(rank: int, hosts: tuple[str, ...], path: str, hub_rank: int) -> Any:
    """Be the hub, and receive in all ways; or a member that answers until the hub closes."""
    if rank != hub_rank:
        return echo(rank, hosts, path, hub_rank)[:2]
    members = len(hosts) - 1
    with hub_over(rank, hosts, path, reply_slots=4, reply_slot_bytes=1024) as hub:
        choose = random.Random(1)  # noqa: S311
        missing: list[list[int]] = [[] for _ in range(members)]
        for k in range(10, 70):
            hub.send(k, SECONDS)
            for member in missing:
                member.append(k)
            how = choose.choice(["all", "any", "one", "awaited", "later"])
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
            elif how == "awaited":
                asyncio.run(await_all(hub, missing))
        while any(missing):
            i, reply = hub.recv_any(SECONDS)
            assert reply == answer(missing[i].pop(0), i)
        return "hub"


async def await_all(hub: Hub, missing: list[list[int]]) -> None:
    got = await hub.recv_all_async(SECONDS)
    assert got == [answer(those.pop(0), i) for i, those in enumerate(missing)]
    last = len(missing) - 1
    while missing[last]:
        assert await hub.recv_async(last, SECONDS) == answer(missing[last].pop(0), last)
    while any(missing):
        i, reply = await hub.recv_any_async(SECONDS)
        assert reply == answer(missing[i].pop(0), i)


@pytest.mark.parametrize("hosts", SPREADS)
@pytest.mark.parametrize("hub_rank", [0, 2])
def test_every_reply_arrives_whole_and_in_order(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], hub_rank: int
) -> None:
    crew, path = fresh
    told = crew.run(4, drive, hosts, path, hub_rank)
    assert told.pop(hub_rank) == "hub"
    assert told == [(60, "Closed")] * 3


def counted(rank: int, hosts: tuple[str, ...], path: str) -> str:
    """Return what an end calls itself."""
    with hub_over(rank, hosts, path) if rank == 0 else member_over(rank, hosts, path) as end:
        return repr(end)


@pytest.mark.parametrize("hosts", SPREADS)
def test_all_ends_know_how_many_members_there_are(
    fresh: tuple[Crew, str], hosts: tuple[str, ...]
) -> None:
    crew, path = fresh
    assert all(": 3 members, segment" in told for told in crew.run(4, counted, hosts, path))


# The hub is this process, on the first host; the members are workers 1 to 3.


def members_of(
    crew: Crew, function: Any, hosts: tuple[str, ...], path: str, *args: Any
) -> list[Any]:
    return [crew.workers[rank].start(function, rank, hosts, path, *args) for rank in (1, 2, 3)]


ENDINGS = [
    (hosts, who, how)
    for hosts in (TWO, ("a", "b", "b", "c"))
    for who in (1, 2, 3)
    for how in ("killed", "collected")
]


def start_with(
    crew: Crew, hosts: tuple[str, ...], path: str, who: int, how: str, count: int = 1
) -> dict[int, Any]:
    return {
        rank: crew.workers[rank].start(
            echo_and_end, rank, hosts, path, count, how if rank == who else "all"
        )
        for rank in (1, 2, 3)
    }


@pytest.mark.parametrize(("hosts", "who", "how"), ENDINGS)
def test_a_member_that_dies_is_named_everywhere(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], who: int, how: str
) -> None:
    crew, path = fresh
    jobs = start_with(crew, hosts, path, who, how)
    with hub_over(0, hosts, path) as hub:
        hub.send(1)
        assert hub.recv_all(SECONDS) == [answer(1, i) for i in range(3)]
        hub.send(2)
        for call in (hub.recv_all, hub.recv_all):
            with pytest.raises(shmcast.PeerDied, match=f"member {who - 1} on node") as told:
                call(SECONDS)
            assert f"member {who - 1} on" in told.value.peer
        others = [jobs[rank].result() for rank in jobs if rank != who]
    for _, kind, text in others:
        assert kind == "PeerDied", text
        assert f"member {who - 1} on node" in text


@pytest.mark.parametrize(("hosts", "who", "how"), ENDINGS)
def test_the_others_go_on_without_the_dead(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], who: int, how: str
) -> None:
    crew, path = fresh
    jobs = start_with(crew, hosts, path, who, how)
    told: list[shmcast.PeerDied] = []
    is_leader = how == "killed" and hosts.index(hosts[who]) == who
    dead = {r - 1 for r in (1, 2, 3) if r == who or (is_leader and hosts[r] == hosts[who])}
    with hub_over(0, hosts, path, on_member_death="drop", on_death=told.append) as hub:
        hub.send(1)
        assert hub.recv_all(SECONDS) == [answer(1, i) for i in range(3)]
        hub.send(2)
        for index in {0, 1, 2} - dead:
            assert hub.recv(index, SECONDS) == answer(2, index)
        with pytest.raises(shmcast.PeerDied, match=f"^hub: .*member {who - 1} on node"):
            hub.recv(who - 1, SECONDS)
        for k in (3, 4):
            hub.send(k)
            received = [reply_of_the_living(hub, index) for index in range(3)]
            for index in {0, 1, 2} - dead:
                assert received[index] == answer(k, index)
        assert all(isinstance(received[index], shmcast.PeerDied) for index in dead)
        assert {*hub.dropped} == dead
        assert len(told) == len(dead)
        hub.close()
        for rank, job in jobs.items():
            if rank - 1 not in dead:
                assert job.result()[:2] == (4, "Closed")


def reply_of_the_living(hub: Hub, index: int) -> Any:
    """Return a member's next reply; of one that dies, its death."""
    try:
        return hub.recv(index, SECONDS)
    except shmcast.PeerDied as error:
        return error


def test_a_death_is_told_once_to_who_receives_from_any(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    jobs = start_with(crew, TWO, path, 3, "killed")
    with hub_over(0, TWO, path, on_member_death="drop") as hub:
        hub.send(1)
        assert sorted(hub.recv_any(SECONDS)[0] for _ in range(3)) == [0, 1, 2]
        hub.send(2)
        got = dict(hub.recv_any(SECONDS) for _ in range(3))
        assert isinstance(got.pop(2), shmcast.PeerDied)
        assert got == {i: answer(2, i) for i in (0, 1)}
        hub.send(3)
        assert sorted(hub.recv_any(SECONDS)[0] for _ in range(2)) == [0, 1]
        with pytest.raises(shmcast.Timeout):
            hub.recv_any(0)
    assert jobs[1].result()[:2] == (3, "Closed")


def be_hub(rank: int, hosts: tuple[str, ...], path: str, how: str) -> None:
    hub = hub_over(rank, hosts, path)
    hub.send(1)
    hub.recv_all(SECONDS)
    hub.send(2)
    if how == "killed":
        hub.recv_all(SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)
    del hub


@pytest.mark.parametrize("how", ["killed", "collected"])
def test_the_end_of_the_hub_is_told_on_all_hosts(fresh: tuple[Crew, str], how: str) -> None:
    crew, path = fresh
    hub = crew.workers[0].start(be_hub, 0, TWO, path, how)
    jobs = members_of(crew, echo, TWO, path)
    for job in jobs:
        count, kind, text = job.result()
        assert count == 2 or how == "collected"
        assert kind == "PeerDied"
        assert "hub on node 0 (a)" in text
    if how == "killed":
        with pytest.raises(WorkerFailed):
            hub.result()
    else:
        hub.result()


@pytest.mark.parametrize("who", [1, 2, 3])
def test_a_member_may_close_and_the_others_go_on(fresh: tuple[Crew, str], who: int) -> None:
    crew, path = fresh
    jobs = start_with(crew, TWO, path, who, "closed")
    with hub_over(0, TWO, path) as hub:
        hub.send(1)
        assert hub.recv_all(SECONDS) == [answer(1, i) for i in range(3)]
        with pytest.raises(shmcast.Closed, match=f"member {who - 1} on node . .* has closed"):
            hub.recv(who - 1, SECONDS)
        others = [rank - 1 for rank in (1, 2, 3) if rank != who]
        hub.send(2)
        assert sorted(hub.recv_any(SECONDS)[0] for _ in others) == others
        with pytest.raises(shmcast.Closed, match=f"member {who - 1}"):
            hub.recv_all(SECONDS)
        hub.close()
        assert [jobs[rank].result() for rank in (1, 2, 3) if rank == who] == [None]
        assert [jobs[i + 1].result()[:2] for i in others] == [(2, "Closed")] * 2


def answer_nothing(rank: int, hosts: tuple[str, ...], path: str, who: int) -> None:
    """Receive a message; close then, or wait until the hub does."""
    with member_over(rank, hosts, path) as member:
        member.recv(SECONDS)
        if rank != who:
            with pytest.raises(shmcast.Closed):
                member.recv(SECONDS)


@pytest.mark.parametrize("who", [1, 2, 3])
def test_a_member_that_closes_ends_the_wait_for_all(fresh: tuple[Crew, str], who: int) -> None:
    crew, path = fresh
    jobs = members_of(crew, answer_nothing, TWO, path, who)
    with hub_over(0, TWO, path) as hub:
        hub.send("step")
        with pytest.raises(shmcast.Closed, match=f"member {who - 1} on node . .* has closed"):
            hub.recv_all()
        hub.close()
        results(jobs)


def test_when_all_have_closed_nobody_is_left(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    jobs = members_of(crew, echo_and_end, TWO, path, 2, "closed")
    with hub_over(0, TWO, path) as hub:
        for k in (1, 2):
            hub.send(k)
            assert hub.recv_all(SECONDS) == [answer(k, i) for i in range(3)]
        with pytest.raises(shmcast.Closed, match="every member has closed"):
            hub.recv_any(SECONDS)
        wait_until(lambda: closed_on(hub))
    results(jobs)


def closed_on(hub: Hub) -> bool:
    try:
        hub.send("?", 0)
    except shmcast.Timeout:
        return False
    except shmcast.Closed:
        return True
    return False


def wait_for_two(rank: int, hosts: tuple[str, ...], path: str) -> None:
    """Answer the first message, and the second one when there is a third."""
    with member_over(rank, hosts, path) as member:
        member.reply(member.recv(SECONDS))
        second = member.recv(SECONDS)
        if rank != 1:
            member.recv(SECONDS)
        member.reply((second, rank))
        if rank == 1:
            member.recv(SECONDS)
        with pytest.raises(shmcast.Closed):
            member.recv(SECONDS)


def test_a_time_out_names_who_is_missing_and_loses_nothing(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    jobs = members_of(crew, wait_for_two, TWO, path)
    with hub_over(0, TWO, path) as hub:
        hub.send("one")
        assert hub.recv_all(SECONDS) == ["one"] * 3
        hub.send("two")
        wait_until(lambda: hub.reply_statistics().lag[0] > 0)
        who = r"no reply of member 1 on node 1 \(b\) and member 2 on node 1 \(b\);"
        with pytest.raises(shmcast.Timeout, match=rf"^hub: recv_all timed .*{who}"):
            hub.recv_all(0.05)
        with pytest.raises(shmcast.Timeout, match=r"recv\(2\) timed .* no reply of member 2"):
            hub.recv(2, 0)
        assert hub.recv_any(SECONDS) == (0, ("two", 1))
        everybody = rf"member 0 on node 0 \(a\) and {who.removeprefix('no reply of ')}"
        for timeout in (0, 0.05):
            with pytest.raises(
                shmcast.Timeout, match=rf"recv_any timed .* no reply of {everybody}"
            ):
                hub.recv_any(timeout)
        hub.send("three")
        assert [hub.recv(i, SECONDS) for i in (1, 2)] == [("two", rank) for rank in (2, 3)]
        hub.close()
        results(jobs)


def test_a_slow_host_is_told_of_without_a_process(
    fresh: tuple[Crew, str], caplog: pytest.LogCaptureFixture
) -> None:
    crew, path = fresh
    jobs = members_of(crew, wait_for_two, TWO, path)
    with hub_over(0, TWO, path) as hub, caplog.at_level(logging.WARNING, "shmcast"):
        with pytest.raises(shmcast.Timeout):
            hub.recv_all(0.3, warn_after=0.05)
        told = caplog.records[0].getMessage()
        assert told.startswith("hub: recv_all has waited ")
        assert f"member 0 on node 0 (a), pid {crew.workers[1].pid}: " in told
        assert "members 1 and 2 on node 1 (b)" in told
        assert str(os.getpid()) not in told
        for text in ("one", "two", "three"):
            hub.send(text)
        assert hub.recv_all(SECONDS) == ["one"] * 3
        assert hub.recv_all(SECONDS) == [("two", rank) for rank in (1, 2, 3)]
        hub.close()
        results(jobs)


def fail_once(told: list[shmcast.PeerDied], error: shmcast.PeerDied) -> None:
    told.append(error)
    if len(told) == 1:
        raise KeyError(error.peer)


def test_what_is_told_of_a_death_may_raise_and_nothing_is_lost(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    hosts = ("a", "b", "b", "b")
    jobs = start_with(crew, hosts, path, 1, "killed")  # (their leader: all of them)
    told: list[shmcast.PeerDied] = []
    on_death = functools.partial(fail_once, told)
    with hub_over(0, hosts, path, on_member_death="drop", on_death=on_death) as hub:
        hub.send(1)
        assert hub.recv(0, SECONDS) == answer(1, 0)
        hub.send(2)
        with pytest.raises(KeyError):
            hub.recv(0, SECONDS)
        for index in range(3):
            with pytest.raises(shmcast.PeerDied):  # noqa: PT012 (after what came before it)
                while True:
                    hub.recv(index, SECONDS)
        assert len(told) == 3
        assert {*hub.dropped} == {0, 1, 2}
    for rank, job in jobs.items():
        if rank != 1:
            job.result()


def reply_much(rank: int, hosts: tuple[str, ...], path: str, count: int) -> None:
    with member_over(rank, hosts, path) as member:
        for _ in range(count):
            k = member.recv(SECONDS)
            if rank == 2 or k == count - 1:
                member.reply((rank, k, bytes(LARGE)), SECONDS)
        with pytest.raises(shmcast.Closed):
            member.recv(SECONDS)


def test_replies_that_nobody_asks_for_don_t_hold_up_others(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    jobs = members_of(crew, reply_much, ("a", "a", "b", "b"), path, 50)
    with hub_over(0, TWO, path, slots=4, slot_bytes=1024, spill_bytes=0, reply_slots=2) as hub:
        for k in range(50):
            hub.send(k, SECONDS)  # (the rings are full of replies of member 1 meanwhile)
        assert hub.recv(2, SECONDS)[:2] == (3, 49)
        assert [hub.recv(1, SECONDS)[1] for _ in range(50)] == [*range(50)]
        assert hub.recv(0, SECONDS)[:2] == (1, 49)
        hub.close()
        results(jobs)


def double(rank: int, hosts: tuple[str, ...], path: str) -> None:
    with member_over(rank, hosts, path) as member:
        member.reply(member.recv(SECONDS, copy=False) * 2, SECONDS)
        with pytest.raises(shmcast.Closed):
            member.recv(SECONDS)


def test_large_arrays_travel_both_ways(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    jobs = members_of(crew, double, TWO, path)
    with hub_over(0, TWO, path, arena_bytes=2**24) as hub:
        array = np.arange(1_000_000)
        hub.send(array)
        for reply in hub.recv_all(SECONDS):
            assert (reply == array * 2).all()
        hub.close()
        results(jobs)


def answer_late(rank: int, hosts: tuple[str, ...], path: str, done: Path) -> None:
    """Answer a message: the leader of a host at once, then its process ends; others after that."""
    with member_over(rank, hosts, path) as member:
        member.recv(SECONDS)
        if rank == 3:
            wait_until(done.exists)
        member.reply(rank, SECONDS)
    if rank == 2:
        done.touch()


def test_a_leader_s_process_that_ends_waits_for_its_host(tmp_path: Path) -> None:
    context: Any = forking()
    path = str(tmp_path / "store")
    processes = [
        context.Process(target=answer_late, args=(rank, TWO, path, tmp_path / "done"))
        for rank in (1, 2, 3)
    ]
    for process in processes:
        process.start()
    with hub_over(0, TWO, path) as hub:
        hub.send("step")
        assert hub.recv_all(SECONDS) == [1, 2, 3]
        with pytest.raises(shmcast.Closed):
            hub.recv_any(SECONDS)
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode == 0


def test_an_interrupt_ends_a_wait_and_loses_nothing(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    jobs = members_of(crew, wait_for_two, TWO, path)
    with hub_over(0, TWO, path) as hub:
        hub.send("one")
        assert hub.recv_all(SECONDS) == ["one"] * 3
        hub.send("two")
        for call in (hub.recv_all, lambda timeout: hub.recv(2, timeout), hub.recv_all):
            with once(lambda: True, hub.interrupt), pytest.raises(shmcast.Interrupted):
                call(SECONDS)
        hub.send("three")
        assert hub.recv_all(SECONDS) == [("two", rank) for rank in (1, 2, 3)]
        hub.close()
        results(jobs)


def test_a_host_that_does_not_confirm_the_end_is_named(
    fresh: tuple[Crew, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "EXIT_SECONDS", 0.1)
    crew, path = fresh
    jobs = members_of(crew, echo, TWO, path)
    with hub_over(0, TWO, path) as hub:
        hub.send(1)
        assert hub.recv_all(SECONDS) == [answer(1, i) for i in range(3)]
        os.kill(crew.workers[2].pid, signal.SIGSTOP)
        hub.close()
        os.kill(crew.workers[2].pid, signal.SIGCONT)
    assert "hub: closed although node 1 (b) has not confirmed" in caplog.text
    assert [job.result()[:2] for job in jobs] == [(1, "Closed")] * 3


def open_and_close(rank: int, hosts: tuple[str, ...], path: str) -> list[int]:
    """Be the hub or a member, and end in order; return how many descriptors there are then."""
    counts = []
    for turn in range(3):
        if rank:
            with member_over(rank, hosts, f"{path}{turn}") as member:
                member.reply(member.recv(SECONDS))
                with pytest.raises(shmcast.Closed):
                    member.recv(SECONDS)
            wait_until(lambda: not threads())
        else:
            with hub_over(rank, hosts, f"{path}{turn}") as hub:
                hub.send(turn)
                assert hub.recv_all(SECONDS) == [turn] * 3
        gc.collect()
        counts.append(len([*Path("/proc/self/fd").iterdir()]))
    return counts


def test_what_has_ended_leaves_nothing_open(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    for first, *later in crew.run(4, open_and_close, TWO, path):
        assert later == [first, first]


NO_TORCH = """
import os, sys
pipes = [os.pipe(), os.pipe()]
rank = 0 if os.fork() else 1
from shmcast import Hub, Member
from shmcast._hub.hosts import ends
from tests.support.fake_nodes import on_host

def exchange(mine):
    os.write(pipes[rank][1], len(mine).to_bytes(4, "big") + mine)
    size = int.from_bytes(os.read(pipes[1 - rank][0], 4), "big")
    other = os.read(pipes[1 - rank][0], size)
    return [mine, other] if rank == 0 else [other, mine]

with on_host("ab"[rank]), (Member if rank else Hub).over(rank, 2, exchange) as end:
    if rank:
        end.reply(end.recv(30) + 1)
        end.recv(30)
    else:
        end.send(1)
        assert end.recv(0, 30) == 2
        end.send("through")
assert "torch" not in sys.modules
if rank == 1:
    os._exit(0)
assert os.wait()[1] == 0
"""


def test_no_torch_is_needed() -> None:
    ran = run_to_its_end(NO_TORCH)
    assert ran.returncode == 0, ran.stderr


# Bad inputs.


def fails(rank: int, hosts: tuple[str, ...], path: str, fault: str) -> tuple[str, str]:
    """Take part in a set-up with a fault; return the error."""
    options: dict[str, Any] = {}
    if rank == 0 and fault == "slots":
        options = {"slots": 3}
    if fault == "codec" and rank == (0 if len({*hosts}) == 1 else 2):
        options = {"codec": object()}
    is_hub = rank == 0 if fault != "no hub" else False
    is_hub = is_hub or (fault == "two hubs" and rank == 2)
    try:
        (hub_over if is_hub else member_over)(rank, hosts, path, **options).close()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize("hosts", [ONE, TWO])
@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("slots", "InvalidArgument", "slots=3"),
        ("codec", "InvalidArgument", "codec="),
        ("no hub", "InvalidArgument", "no rank is the hub"),
        ("two hubs", "InvalidArgument", "ranks 0 and 2 all are the hub"),
    ],
)
def test_what_does_not_fit_is_told_to_everybody(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], fault: str, kind: str, text: str
) -> None:
    crew, path = fresh
    told = crew.run(4, fails, hosts, path, fault)
    for its_kind, its_text in told:
        assert its_kind in (kind, "SegmentError"), its_text
        assert text in its_text
    assert kind in [its_kind for its_kind, _ in told]


def test_a_rank_must_be_one() -> None:
    for rank, size, exchange in ((2, 2, list), (-1, 2, list), (0, 0, list), (0, 2, None)):
        for make in (Hub.over, Member.over):
            with pytest.raises(shmcast.InvalidArgument):
                make(rank, size, exchange)  # type: ignore[arg-type]


def test_a_hub_needs_members() -> None:
    with pytest.raises(shmcast.InvalidArgument, match="a hub without members"):
        Hub.over(0, 1, lambda mine: [mine])


def test_nobody_else_takes_a_place(fresh: tuple[Crew, str]) -> None:
    crew, path = fresh
    jobs = members_of(crew, echo, TWO, path)
    with hub_over(0, TWO, path) as hub:
        with pytest.raises(shmcast.InvalidArgument, match=r"this hub spans hosts.* Member\.over"):
            Member(hub.handle, 0)
        with pytest.raises(shmcast.InvalidArgument, match="index"):
            hub.recv(3)
        hub.close()
        results(jobs)
