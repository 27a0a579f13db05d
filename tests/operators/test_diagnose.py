"""`shmcast diagnose`: who waits for whom, and who holds everybody up."""

from __future__ import annotations

import os
import re
import signal

import pytest

from shmcast import Hub, HubHandle, Member, Reader, Timeout, Writer
from shmcast._operators import diagnosis, stacks
from shmcast._operators.snapshot import Member as Seen
from shmcast._operators.snapshot import all_snapshots, chosen
from shmcast._operators.stacks import NO_STACKS
from shmcast._operators.wait_chain import Chain, Link, follow
from tests.support import operators
from tests.support.operators import rows, run_shmcast
from tests.support.processes import Crew, results
from tests.support.ring_roles import attach_only
from tests.support.subprocess_programs import wait_until


def chain_of(label: str) -> Chain:
    [found] = diagnosis.diagnose(label, lambda _member: NO_STACKS)
    assert found.chain is not None
    return found.chain


def links_of(label: str) -> tuple[Link, ...]:
    return chain_of(label).links


@pytest.mark.parametrize("stopped", [3, 0], ids=["a reader", "the source"])
def test_of_four_ranks_the_stopped_one_is_the_root(fresh: tuple[Crew, str], stopped: int) -> None:
    crew, store = fresh
    pids = crew.run(4, operators.join, 4, store, "decode")
    crew.start(4, operators.broadcast_for_ever)
    os.kill(pids[stopped], signal.SIGSTOP)
    try:
        [row] = rows("diagnose", "decode, ranks 0-3: ", code=4)
    finally:
        os.kill(pids[stopped], signal.SIGCONT)
    assert (row["root_pid"], row["root_state"], row["is_stuck"]) == (pids[stopped], "stopped", True)
    assert row["root_name"].startswith(f"rank {stopped} of 4 in group 'decode'")
    assert [m["pid"] for m in row["chain"][-1]["members"]] == [pids[stopped]]


def test_a_full_ring_leads_to_the_reader_that_is_in_the_way(crew: Crew) -> None:
    with Writer(2, slots=2, slot_bytes=128, label="full") as writer:
        pid = crew.workers[0].start(operators.keep_reader, 1, writer.handle).result()
        quick = crew.workers[1]
        quick.start(operators.keep_reader, 0, writer.handle).result()
        receiving = quick.start(operators.receive_until_closed, 0)
        try:
            for _ in range(2):
                writer.send("x", 10)
            with pytest.raises(Timeout):
                writer.send("x", 0.0)
            wait_until(lambda: len(chain_of("full:").links) == 3)
            chain = chain_of("full:")
            ran = run_shmcast("diagnose", "full:")
        finally:
            writer.close()
            receiving.result()
            crew.run(2, operators.close_all)
    assert [link.does for link in chain.links] == [
        "waits for a message",
        "waits for room",
        "is 2 fragments behind",
    ]
    assert (chain.root.pid, chain.root.index, chain.is_stuck) == (pid, 1, True)
    assert ran.returncode == 4
    assert "STUCK" in ran.stdout
    assert f"reader 1 (pid {pid}, " in ran.stdout


def test_who_is_in_the_way_tells_its_stacks(fresh: tuple[Crew, str]) -> None:
    worker = fresh[0].workers[0]
    with Writer(1, slots=2, slot_bytes=128, label="asked") as writer:
        worker.start(operators.keep_reader, 0, writer.handle, True).result()
        for _ in range(2):
            writer.send("x", 10)
        with pytest.raises(Timeout):
            writer.send("x", 0.0)
        [row] = rows("diagnose", "asked:", code=4)
        worker.start(operators.close_all, 0).result()
    assert row["stack"].startswith('Thread "')
    assert "    _serve (processes.py:" in row["stack"]  # where it waits for its next job


@pytest.mark.parametrize(
    ("state", "spy", "told"),
    [
        ("dead", None, ""),
        ("not attached", None, ""),
        ("in another pid namespace", None, "not seen from this pid namespace"),
        ("stopped", None, "stopped, it can't answer, and there is no py-spy"),
        ("stopped", "/bin/false", "stopped, it can't answer, and py-spy does not see them"),
        ("sleeping", None, "does not answer (SHMCAST_REPORTS=1 in its environment lets it), and"),
    ],
)
def test_why_there_are_no_stacks_is_told(
    state: str, spy: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shmcast._host.process.py_spy", lambda: spy)
    monkeypatch.setattr(stacks, "py_spy", lambda: spy)
    pid = None if state == "not attached" else os.getpid()
    found = stacks.stacks_of(Seen(0, "reader 0", pid, "attached", state, 1, 0.0, {}))
    assert found.text == ""
    assert told in found.why_none if told else found == NO_STACKS


def test_a_dead_reader_is_the_root(crew: Crew) -> None:
    with Writer(1, label="deadly") as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        writer.wait_ready(30)
        job.kill()
        wait_until(lambda: chain_of("deadly:").root.state == "dead")
        assert chain_of("deadly:").is_stuck
        ran = run_shmcast("diagnose", "deadly:")
    assert ran.stdout.endswith(", dead): has received everything\n")


def test_who_has_not_attached_is_told() -> None:
    with Writer(2, label="early") as writer, Reader(writer.handle, 1):
        chain = chain_of("early:")
        assert chain.links[0].does == "waits for readers to attach"
        assert (chain.root.index, chain.root.pid, chain.is_stuck) == (0, None, False)
        [row] = rows("diagnose", "early:")
        assert (row["root_pid"], row["root_state"]) == (None, "not attached")


def test_who_has_not_attached_has_no_threads_to_tell_of() -> None:
    with Writer(1, slots=2, slot_bytes=128, label="nobody") as writer:
        for _ in range(2):
            writer.send("x")
        with pytest.raises(Timeout):
            writer.send("x", 0.0)
        ran = run_shmcast("diagnose", "nobody:")
    assert "STUCK" in ran.stdout
    assert ran.stdout.endswith("reader 0 (not attached): is 2 fragments behind\n")


def test_an_idle_broadcaster_is_not_stuck(crew: Crew) -> None:
    with Writer(2, label="idle") as writer:
        crew.run(2, operators.keep_reader, writer.handle)
        jobs = crew.start(2, operators.receive_until_closed)
        wait_until(lambda: len(links_of("idle:")) == 2 and len(links_of("idle:")[0].members) == 2)
        chain = chain_of("idle:")
        assert [link.does for link in chain.links] == ["wait for a message", "has sent nothing yet"]
        writer.send("x")
        wait_until(lambda: len(links_of("idle:")) == 2)
        chain = chain_of("idle:")
    results(jobs)
    crew.run(2, operators.close_all)
    assert chain.links[0].does == "wait for a message"
    assert re.fullmatch(r"has sent nothing for [\d.]+ m?s", chain.links[1].does)
    assert (chain.root.pid, chain.is_stuck) == (os.getpid(), False)


def test_a_reader_that_is_behind_is_not_stuck_while_there_is_room() -> None:
    with Writer(1, label="busy") as writer, Reader(writer.handle, 0):
        writer.send("x")
        chain = chain_of("busy:")
    assert (chain.root.index, chain.root.lag, chain.is_stuck) == (0, 1, False)


def test_a_ring_that_is_full_but_moves_is_not_stuck() -> None:
    writer = Writer(1, slots=2, slot_bytes=128, label="moving")
    with writer, Reader(writer.handle, 0) as reader:
        writer.send(1)
        writer.send(2)
        [before] = chosen(all_snapshots(), "moving:")
        assert follow(before, before).is_stuck
        reader.recv(10)
        writer.send(3)
        [now] = chosen(all_snapshots(), "moving:")
        assert not follow(before, now).is_stuck


def test_a_hub_leads_to_the_member_that_has_not_replied() -> None:
    with Hub(2, label="asks") as hub:
        members = [Member(hub.handle, index) for index in range(2)]
        hub.send("question")
        for member in members:
            member.recv(10)
        members[0].reply("answer")
        chain = chain_of("asks:")
        assert [link.does for link in chain.links] == ["waits for replies", "has not replied"]
        assert chain.root.index == 1
        for member in members:
            member.close()


def keep_member(index: int, handle: HubHandle, is_first_received: bool) -> int:
    member = Member(handle, index)
    member.reply(member.recv(30))
    if is_first_received:
        member.recv(30)
    operators.keep(member)
    return os.getpid()


@pytest.mark.parametrize("has_received", [False, True])
def test_a_hub_that_waits_for_a_stopped_member_is_in_the_chain(
    fresh: tuple[Crew, str], has_received: bool
) -> None:
    worker = fresh[0].workers[0]
    with Hub(2, label="held up") as hub, Member(hub.handle, 0) as member:
        job = worker.start(keep_member, 1, hub.handle, has_received)
        for question in range(2):
            hub.send(question)
            member.reply(member.recv(30))
        hub.recv_all(30)
        pid = job.result()
        os.kill(pid, signal.SIGSTOP)
        try:
            [row] = rows("diagnose", "held up:", code=4)
        finally:
            os.kill(pid, signal.SIGCONT)
        worker.start(operators.close_all, 0).result()
    does = "has not replied" if has_received else "is 1 fragment behind"
    assert [link["does"] for link in row["chain"]] == ["waits for replies", does]
    assert [m["pid"] for link in row["chain"] for m in link["members"]] == [os.getpid(), pid]
    assert (row["root_pid"], row["root_state"]) == (pid, "stopped")


def test_a_hub_that_nobody_replies_to_waits_for_nobody() -> None:
    with Hub(2, label="tells") as hub:
        members = [Member(hub.handle, index) for index in range(2)]
        for _ in range(3):
            hub.send("news")
            members[0].recv(10)
        chain = chain_of("tells:")
        assert [link.does for link in chain.links] == ["is 3 fragments behind"]
        assert chain.root.index == 1
        for member in members:
            member.close()


def test_nothing_of_that_label_has_a_code_of_its_own() -> None:
    assert rows("diagnose", "no such label", code=3) == []
