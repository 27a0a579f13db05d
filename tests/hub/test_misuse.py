"""What can't work is an error that says what would; nothing is lost, and nobody else notices."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import re
import threading
from typing import Any

import numpy as np
import pytest

import shmcast
from shmcast import Hub, InvalidArgument, Member, Reader, Writer
from shmcast._host import shared_memory
from tests.support.hub_roles import SECONDS, misuse, reply_badly
from tests.support.loops import in_asyncio
from tests.support.processes import Crew, results
from tests.support.subprocess_programs import wait_until


def test_a_member_that_is_asked_nothing_has_nothing_to_reply(crew: Crew) -> None:
    with Hub(1) as hub:
        job = crew.workers[0].start(misuse, 0, hub.handle)
        hub.send("a")
        unasked, taken, again, closed, left = job.result()
        for told in (unasked, again):
            assert told == (
                "NoMessage: member 0: reply without a message: each message that was received can "
                "be answered once; recv() first"
            )
        pid = crew.workers[0].pid
        name = re.escape(hub.handle.name)
        lives = (
            f"AlreadyAttached: member 0: index 0 of {name} is held by process {pid}, which lives"
        )
        assert re.match(lives, taken)
        assert closed == "Closed: member 0: reply after close(); make a new endpoint"
        assert re.match(f"AlreadyAttached: member 0: index 0 of {name} has left in order", left)
        assert hub.recv(0, SECONDS) == "a"


def test_what_can_not_be_sent_or_received_harms_nobody_else(crew: Crew) -> None:
    with Hub(3) as hub:
        jobs = crew.start(3, reply_badly, hub.handle)
        hub.send(0)
        with pytest.raises(
            shmcast.DecodeError, match=r"can't decode a reply of member 1.*no; it is"
        ):
            hub.recv_all(SECONDS)
        hub.send(1)
        firsts = [("first", 0), ("second", 1), ("first", 2)]
        assert hub.recv_all(SECONDS) == firsts
        assert [hub.recv(i, SECONDS) for i in (0, 2)] == [("second", 0), ("second", 2)]
        for i, told in enumerate(results(jobs)):
            assert told.startswith(f"member {i}: can't encode a dict: in ")
            assert told.endswith("nothing was sent")


@pytest.mark.parametrize("call", ["recv", "recv_any"])
def test_a_reply_that_can_not_be_received_is_the_only_one(crew: Crew, call: str) -> None:
    with Hub(2) as hub:
        jobs = crew.start(2, reply_badly, hub.handle)
        hub.send(0)
        hub.send(1)
        results(jobs)
        receive: Any = {"recv": lambda: hub.recv(1), "recv_any": hub.recv_any}[call]
        if call == "recv_any":
            assert receive() == (0, ("first", 0))
        with pytest.raises(shmcast.DecodeError, match="of member 1"):
            receive()
        assert hub.recv(1) == ("second", 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"members": 0}, "hub: members=0 must be an integer from 1 to 4096"),
        ({"members": 5000}, "hub: members=5000 must"),
        ({"slots": 3}, "hub: slots=3 is not a power of two"),
        ({"slot_bytes": 100}, "hub: slot_bytes=100 must be"),
        ({"reply_slots": 3}, "hub: reply_slots=3 is not a power of two"),
        ({"reply_slot_bytes": 130}, "hub: reply_slot_bytes=130 is not a multiple of 128"),
        ({"on_member_death": "ignore"}, "hub: on_member_death='ignore' is neither"),
        (
            {"on_death": print},
            "hub: on_death=<built-in function print> must be callable, and is for a hub that goes "
            'on: pass on_member_death="drop"; otherwise send() raises PeerDied',
        ),
        ({"warn_after": -1}, "hub: warn_after=-1 must"),
        ({"label": 5}, "label=5 must be a string"),
        ({"label": "a\0b"}, "label='a\\x00b' must be a string without a NUL"),
        ({"member_label": 3}, "hub: member_label=3 must be callable"),
        ({"wait": "spin"}, "hub: wait='spin' is not a WaitPolicy"),
        ({"codec": 3}, "hub: codec=3 has no method encode"),
        ({"pin": True}, r"hub: pin=True needs an arena; pass arena_bytes="),
    ],
)
def test_a_hub_that_can_not_be_is_not_made(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(told)):
        Hub(**{"members": 2, **arguments})


def test_a_handle_leads_to_what_it_is_of() -> None:
    with Hub(2) as hub, Writer(2) as writer:
        with pytest.raises(
            InvalidArgument, match=r"member 0: handle=.* is not a HubHandle; pass hub"
        ):
            Member(writer.handle, 0)  # type: ignore[arg-type]
        with pytest.raises(
            InvalidArgument, match=r"reader 0: handle=.* is not a Handle; pass writer"
        ):
            Reader(hub.handle, 0)
        with pytest.raises(InvalidArgument, match="is not a HubHandle"):
            Member("handle", 0)  # type: ignore[arg-type]
        for index in (2, -1, "0", None):
            with pytest.raises(InvalidArgument, match=f"index={index!r} must be an integer from 0"):
                Member(hub.handle, index)  # type: ignore[arg-type]
        for number in (2, -1, "0", 1.0):
            with pytest.raises(
                InvalidArgument, match=f"hub: recv: index={number!r} must be an int"
            ):
                hub.recv(number, 0)  # type: ignore[arg-type]
        for timeout in (-1, "soon"):
            with pytest.raises(InvalidArgument, match=f"hub: recv_any: timeout={timeout!r} must"):
                hub.recv_any(timeout)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="hub: warn_after=-1 must"):
            hub.recv_all(0, warn_after=-1)
        with pytest.raises(InvalidArgument, match="hub: recv_async: index=2 must be an int"):
            in_asyncio(lambda: hub.recv_async(2))
        for name, call in {
            "recv_async": functools.partial(hub.recv_async, 0),
            "recv_any_async": hub.recv_any_async,
            "recv_all_async": hub.recv_all_async,
        }.items():
            receive: Any = call
            for argument, value in {"timeout": -1, "copy": "bytes"}.items():
                with pytest.raises(InvalidArgument, match=f"hub: {name}: {argument}={value!r} "):
                    in_asyncio(functools.partial(receive, **{argument: value}))
    with pytest.raises(shmcast.SegmentNotFound, match="member 0"):
        Member(hub.handle, 0)


def test_a_member_whose_replies_are_not_received_is_told_that_no_message_has_come() -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        hub.send("step")
        member.reply(member.recv(SECONDS))
        with pytest.raises(shmcast.Timeout) as told:
            member.recv(0.01)
        assert str(told.value) == (
            "member 0: recv timed out after 0.01 s: no message has come, and the hub has yet to "
            "receive 1 fragment of earlier replies (reply_slots=16)"
        )


def test_what_warns_of_long_waits_and_waits_is_checked_at_the_call() -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        for endpoint, label in ((hub, "hub"), (member, "member 0")):
            with pytest.raises(InvalidArgument, match=f"{label}: warn_after=-1 must"):
                endpoint.warning_after(-1)
            with pytest.raises(InvalidArgument, match=f"{label}: wait=None is not a WaitPolicy"):
                endpoint.change_wait_policy(None)  # type: ignore[arg-type]


def test_the_segment_of_another_user_is_no_place_for_a_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Hub(1) as hub:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(shmcast.SegmentMismatch, match=r"member 0: .* has owner uid"):
            Member(hub.handle, 0)


def test_an_index_is_taken_once() -> None:
    with Hub(2) as hub, Member(hub.handle, 1):
        with pytest.raises(shmcast.AlreadyAttached) as told:
            Member(hub.handle, 1)
        assert "which lives" in str(told.value)


def test_one_that_has_failed_can_be_replaced_only_where_the_hub_goes_on() -> None:
    with Hub(1) as hub:
        with pytest.raises(KeyError), Member(hub.handle, 0):
            raise KeyError
        with pytest.raises(shmcast.AlreadyAttached, match='make it with on_member_death="drop"'):
            Member(hub.handle, 0)


def test_two_threads_do_not_receive_at_once() -> None:
    with Hub(1) as hub:
        told: list[str] = []

        def receive() -> None:
            try:
                hub.recv(0)
            except shmcast.ShmcastError as error:
                told.append(type(error).__name__)

        thread = threading.Thread(target=receive)
        thread.start()
        wait_until(lambda: hub.reply_statistics().parks > 0)
        with pytest.raises(shmcast.ConcurrentUse, match="hub: recv_any while another thread"):
            hub.recv_any(0)
        hub.send("meanwhile")
        hub.interrupt()
        thread.join(SECONDS)
        assert told == ["Interrupted"]


def test_after_close_nothing_is_received() -> None:
    hub = Hub(1)
    member = Member(hub.handle, 0)
    hub.send(1)
    hub.send(2)
    member.reply(member.recv())
    hub.close()
    hub.close()
    assert hub.closed
    for call in (hub.recv_any, hub.recv_all, lambda: hub.recv(0)):
        with pytest.raises(shmcast.Closed, match=r"hub: recv\S* after close\(\)"):
            call()
    with pytest.raises(shmcast.Closed, match="hub: send after close"):
        hub.send(1)
    assert member.recv() == 2
    with pytest.raises(shmcast.Closed, match="member 0: reply: the hub has closed"):
        member.reply("late")
    with pytest.raises(shmcast.Closed, match="member 0: recv: the hub has closed"):
        member.recv()
    member.close()
    assert [found.name for found in shared_memory.clean(dry_run=True)] == []


def test_neither_end_can_be_pickled_or_used_in_a_fork() -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        with pytest.raises(TypeError, match=r"hub: .* make a Member\(handle, index\) where"):
            pickle.dumps(hub)
        with pytest.raises(TypeError, match=r"member 0: .* make a Member\(handle, index\) where"):
            pickle.dumps(member)
        hub.send("x")
        assert member.recv() == "x"
        calls = (hub.recv_any, lambda: hub.send(1), member.recv, lambda: member.reply(1))
        pid = os.fork()
        if pid == 0:
            forked = 0
            for call in calls:
                try:
                    call()
                except shmcast.Forked:
                    forked += 1
            os._exit(forked)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == len(calls)
        member.reply("y")
        assert hub.recv(0) == "y"


def test_both_ends_say_what_they_are() -> None:
    with Hub(2) as hub, Member(hub.handle, 0) as member:
        assert repr(hub) == f"<shmcast.Hub 'hub': 2 members, segment {hub.handle.name}>"
        assert repr(member) == f"<shmcast.Member 'member 0': 2 members, segment {hub.handle.name}>"
        with pytest.raises(
            shmcast.Timeout, match=r"1 of 2 members have attached; each needs a Member\(handle"
        ):
            hub.wait_ready(0)


@pytest.mark.parametrize("index", [None, True, "0", 1.0, np.float64(0)])
def test_an_index_that_is_no_int_takes_nobodys_reply(index: Any) -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        hub.send(1)
        assert member.recv(SECONDS) == 1
        told = f"hub: recv: index={re.escape(repr(index))} must be an integer from 0 to 0"
        with pytest.raises(InvalidArgument, match=told):  # at once
            hub.recv(index)
        member.reply("reply")
        with pytest.raises(InvalidArgument, match=told):
            hub.recv(index, SECONDS)
        with pytest.raises(InvalidArgument, match=told.replace("recv", "recv_async")):
            asyncio.run(hub.recv_async(index, SECONDS))
        assert hub.recv(0, SECONDS) == "reply"


def test_an_integer_of_numpys_is_one() -> None:
    two = np.int64(2)
    shape: dict[str, Any] = {
        "slots": two, "slot_bytes": 128 * two, "spill_bytes": 4096 * two, "reply_slots": two,
        "reply_slot_bytes": np.uint16(256), "arena_bytes": np.int32(1 << 20),
    }  # fmt: skip
    with Hub(two, **shape) as hub, Member(hub.handle, np.int64(1)) as member:  # type: ignore[arg-type]
        assert {type(value) for value in (hub.handle.readers, hub.handle.reply_slots)} == {int}
        hub.send("once", SECONDS)
        member.reply(member.recv(SECONDS), SECONDS)
        member_1: Any = np.int64(1)
        assert hub.recv(member_1, SECONDS) == "once"
        hub.send("again", SECONDS)
        member.reply(member.recv(SECONDS), SECONDS)
        assert asyncio.run(hub.recv_async(member_1, SECONDS)) == "again"
        bad: Any
        for bad in (np.int64(2), np.True_, np.float64(1)):
            with pytest.raises(InvalidArgument, match=r"index=.* must be an integer from 0 to 1"):
                hub.recv(bad)
    for name in shape:
        with pytest.raises(InvalidArgument, match=rf"hub: {name}=.*-1.* must be an integer"):
            Hub(1, **{name: np.int64(-1)})  # type: ignore[arg-type]
