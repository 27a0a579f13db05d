"""`shmcast diagnose` of members that wait, though no process has stopped: for whom, and why."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shmcast import Hub, Interrupted, Member, Reader, Timeout, Writer
from shmcast._operators import diagnosis
from shmcast._operators.diagnosis import Diagnosis
from shmcast._operators.snapshot import Member as Seen
from shmcast._operators.stacks import Stacks
from shmcast._operators.wait_chain import Chain, Link
from tests.support import operators
from tests.support.operators import rows
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until


def stacks_of(member: Seen) -> Stacks:
    return Stacks(f"the stack of {member.pid}")


def look(label: str, what: str | None = None) -> Diagnosis:
    """Look at the segment of a label; `what`: as the command is told."""
    [found] = [
        each
        for each in diagnosis.diagnose(what, stacks_of)
        if each.snapshot.label.startswith(label)
    ]
    return found


def does(found: Diagnosis) -> list[str]:
    assert found.chain is not None
    return [link.does for link in found.chain.links]


def verdict(found: Diagnosis) -> str:
    assert found.chain is not None
    return found.chain.verdict


@contextmanager
def waiting_for_replies(hub: Hub) -> Iterator[None]:
    """Have a thread wait for the replies of all members in the block."""

    def wait() -> None:
        with pytest.raises(Interrupted):
            hub.recv_all(60)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        hub.interrupt()
        thread.join()


@pytest.mark.parametrize("is_stopped", [False, True], ids=["computes", "stopped"])
def test_who_has_not_come_to_a_barrier_is_the_root(
    fresh: tuple[Crew, str], is_stopped: bool
) -> None:
    crew, store = fresh
    label = "rank 0 of 4 in group 'meets'"
    pids = crew.run(4, operators.join, 4, store, "meets")
    crew.run(4, operators.call, "barrier")  # (which makes what the ranks meet by)
    jobs = [crew.workers[i].start(operators.call, i, "barrier") for i in (0, 1, 3)]
    wait_until(lambda: len(look(label).chain.links[0].members) == 3)  # type: ignore[union-attr]
    if is_stopped:
        os.kill(pids[2], signal.SIGSTOP)
    try:
        [row] = rows("diagnose", label, code=4 if is_stopped else 0)
    finally:
        os.kill(pids[2], signal.SIGCONT)
    crew.workers[2].start(operators.call, 2, "barrier").result()
    for job in jobs:
        job.result()
    assert [link["does"] for link in row["chain"]] == [
        "wait in the barrier",
        "has not come to the barrier",
    ]
    assert {m["pid"] for m in row["chain"][0]["members"]} == {pids[i] for i in (0, 1, 3)}
    assert (row["root_pid"], row["verdict"]) == (pids[2], "stuck" if is_stopped else "waits")
    assert look(label).chain.verdict == "moves"  # type: ignore[union-attr]


def test_a_hub_that_takes_no_replies_is_the_root(crew: Crew) -> None:
    with Hub(2, label="deaf", reply_slots=2, reply_slot_bytes=128) as hub:
        crew.run(2, operators.keep_member, hub.handle)
        jobs = crew.start(2, operators.reply_until_closed)
        for _ in range(3):
            hub.send("question", 30)
        wait_until(lambda: does(look("deaf:"))[0] == "wait for room for replies")
        found = look("deaf:")
        hub.recv_all(30)
        hub.recv_all(30)
        wait_until(lambda: verdict(look("deaf:")) != "stuck")
    for job in jobs:
        job.result()
    crew.run(2, operators.close_all)
    assert does(found)[1:] == ["does not receive"]
    assert (verdict(found), found.stacks.text) == ("stuck", f"the stack of {os.getpid()}")


@pytest.mark.parametrize("others", [1, 0], ids=["others have", "nobody has"])
def test_who_lets_a_hub_wait_for_a_reply_is_the_root(crew: Crew, others: int) -> None:
    with Hub(1 + others, label="asks long") as hub, Member(hub.handle, others) as busy:
        jobs = []
        if others:
            crew.run(1, operators.keep_member, hub.handle)
            jobs = crew.start(1, operators.reply_until_closed)
        hub.send("question", 30)
        busy.recv(30)
        with waiting_for_replies(hub):
            wait_until(
                lambda: does(look("asks long:"))[-2:] == ["waits for replies", "has not replied"]
            )
            wait_until(lambda: verdict(look("asks long:")) == "waits")
            found = look("asks long:")
        # Nobody waits any more, but the member that has replied.
        assert verdict(look("asks long:")) != "stuck"
    for job in jobs:
        job.result()
    crew.run(1, operators.close_all)
    assert found.chain is not None
    assert found.chain.root.index == others
    assert (found.is_stuck, found.stacks.text) == (False, f"the stack of {os.getpid()}")
    assert found.as_text().startswith("asks long: ")
    assert "waits, nothing was sent for " in found.as_text()


def test_who_does_something_else_is_not_said_to_wait() -> None:
    with Writer(1, label="elsewhere") as writer, Reader(writer.handle, 0) as reader:
        writer.send("x")
        reader.recv(10)
        found = look("elsewhere:")
    assert found.chain is not None
    assert [link.members[0].index for link in found.chain.links] == [1]
    assert (verdict(found), found.stacks.text) == ("moves", "")


def test_of_what_is_named_the_stack_is_always_told() -> None:
    with Writer(1, label="by name") as writer, Reader(writer.handle, 0):
        assert look("by name:", "by name:").stacks.text == f"the stack of {os.getpid()}"
        assert look("by name:").stacks.text == ""


def test_messages_held_back_for_another_rank_are_nobodys_fault(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    pids = crew.run(2, operators.join, 2, store, "pipeline")
    crew.workers[0].start(operators.send_ahead, 0, 1, 40).result()
    label = "rank 0 to rank 1 of pipeline, ranks 0-1: "
    wait_until(lambda: does(look(label))[0] == "holds messages back")
    [row] = rows("diagnose", label)
    crew.workers[1].start(operators.call, 1, "recv_object", 0).result()
    assert [link["does"] for link in row["chain"]] == [
        "holds messages back",
        "has not received 16 fragments",
    ]
    assert [m["name"] for m in row["chain"][1]["members"]] == ["rank 1"]
    assert row["chain"][0]["members"][0]["pid"] == pids[0]
    assert row["is_stuck"] is False


def test_the_thread_that_passes_on_what_another_node_sends_is_told_from_its_rank() -> None:
    with Writer(1, label="alone") as writer, Reader(writer.handle, 0):
        found = look("alone:")
    assert found.snapshot.writer is not None
    pid = os.getpid()
    relay = dataclasses.replace(found.snapshot.writer, name="rank 3 of 4")
    [leader] = (dataclasses.replace(r, name="rank 3 of 4") for r in found.snapshot.readers)
    there = dataclasses.replace(found.snapshot, nodes=2, writer=relay, readers=(leader,))
    chain = Chain(
        (Link((leader,), "waits for a message"), Link((relay,), "has sent nothing")), False, True
    )
    text = Diagnosis(there, chain).as_text().splitlines()
    assert text[1] == f"  rank 3 of 4 (pid {pid}, {leader.state}): waits for a message"
    assert text[2] == f"  relay of rank 3 of 4 (pid {pid}, {relay.state}): has sent nothing"
    assert text[3] == "    its group spans 2 nodes: run this on the hosts of the others, too"
    late = Chain((Link((relay,), "waits for room"), Link((leader,), "is 1 fragment behind")), True)
    assert "nodes" not in Diagnosis(there, late).as_text()  # it is here that somebody hangs


def test_each_process_is_asked_once() -> None:
    asked = []

    def stacks_of(member: Seen) -> Stacks:
        asked.append(member.pid)
        return Stacks("the only stack")

    with (
        Writer(1, slots=2, slot_bytes=128, label="twice 1") as first,
        Writer(1, slots=2, slot_bytes=128, label="twice 2") as second,
        Reader(first.handle, 0),
        Reader(second.handle, 0),
    ):
        for writer in (first, second):
            for _ in range(2):
                writer.send("x")
            with pytest.raises(Timeout):
                writer.send("x", 0.0)
        found = diagnosis.diagnose("twice ", stacks_of)
    assert asked == [os.getpid()]
    texts = [each.as_text() for each in found]
    assert texts[0].endswith("\n    the only stack")
    assert texts[1].endswith(f"\n    its threads: see above, {found[0].snapshot.label}")
    assert [each.as_json()["stack"] for each in found] == ["the only stack"] * 2


def test_a_reply_ends_the_quiet_as_a_message_does() -> None:
    with Hub(1, label="quiet") as hub, Member(hub.handle, 0) as member:
        assert look("quiet:").snapshot.quiet is None
        hub.send("question")
        member.recv(10)
        before = look("quiet:").snapshot
        member.reply("answer")
        seen = look("quiet:").snapshot
    assert before.sent_age is not None
    assert before.quiet == pytest.approx(before.sent_age, abs=0.1)
    assert seen.sent_age is not None
    assert seen.quiet is not None
    assert seen.quiet < seen.sent_age  # (two looks were between the two)
