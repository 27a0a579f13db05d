"""`SHMCAST_TRACE`: a profiler's ranges around the steps of a message, and nothing without it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any
from unittest import mock

import pytest
import torch.cuda.nvtx
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

import shmcast
from shmcast import Hub, Member, ObjectCodec, Reader, ShmBroadcaster, Writer
from shmcast._endpoints import tracing
from tests.support.device_objects import CPU, LARGE
from tests.support.differential import python_calls
from tests.support.objects import tensor
from tests.support.processes import Crew
from tests.support.signals import Handled, another_pending, not_on_310

SECONDS = 30.0


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCAST_TRACE", "torch")


@contextlib.contextmanager
def standing_in_for_nvtx() -> Iterator[list[str]]:
    """Yield what NVTX is told."""
    told: list[str] = []
    with (
        mock.patch.dict(os.environ, {"SHMCAST_TRACE": "nvtx"}),
        mock.patch.multiple(
            torch.cuda.nvtx,
            mark=lambda _name: None,
            range_push=told.append,
            range_pop=lambda: told.append("end"),
        ),
    ):
        yield told


@pytest.fixture
def by_nvtx() -> Iterator[list[str]]:
    with standing_in_for_nvtx() as told:
        yield told


def profiled(action: Callable[[], object]) -> list[FunctionEvent]:
    """Return the ranges of ours that torch.profiler has seen."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        action()
    return [event for event in profiler.events() if event.name.startswith("shmcast.")]


def names(events: list[FunctionEvent]) -> list[str]:
    return [event.name for event in sorted(events, key=lambda event: event.time_range.start)]


def answer(hub: Hub, member: Member, reply: object) -> None:
    hub.send("x")
    member.recv(SECONDS)
    member.reply(reply)


def test_without_it_nothing_is_on_a_messages_way() -> None:
    codec = ObjectCodec()
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0, codec=codec) as reader:
        writer.send("the first sees who has come")
        assert reader.recv(SECONDS)
        assert python_calls(lambda: writer.send([1])) == {"send"}
        assert python_calls(lambda: reader.recv(SECONDS)) == {"recv"}
        assert reader._messages is reader._end.messages
        assert reader._decode == codec.decode
    with Hub(1) as hub:
        assert hub._replies is hub._end.replies


@pytest.mark.usefixtures("by_torch")
def test_each_step_of_a_message_is_a_range() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:

        def one() -> None:
            writer.send("x")
            assert reader.recv(SECONDS) == "x"

        steps = [tracing.ENCODE, tracing.PUBLISH, tracing.WAIT, tracing.DECODE]
        found = profiled(one)
    assert names(found) == steps
    assert {event.cpu_parent for event in found} == {None}


def test_each_range_ends_however_its_step_ends(by_nvtx: list[str]) -> None:
    with Writer(1, slots=2) as writer, Reader(writer.handle, 0) as reader:
        with pytest.raises(shmcast.Timeout):
            reader.recv(0)
        with pytest.raises(shmcast.EncodeError):
            writer.send(lambda: None)
        writer.send(1)
        writer.send(2)
        with pytest.raises(shmcast.Timeout):
            writer.send(3, 0)
    send = [tracing.ENCODE, "end", tracing.PUBLISH, "end"]
    assert by_nvtx == [tracing.WAIT, "end", tracing.ENCODE, "end", *send * 3]


def test_a_hubs_replies_have_ranges(by_nvtx: list[str]) -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        calls: list[Callable[[], Any]] = [lambda: hub.recv(0), hub.recv_any, hub.recv_all]
        for recv in calls:
            answer(hub, member, "y")
            by_nvtx.clear()
            recv()
            assert by_nvtx == [tracing.WAIT, "end", tracing.DECODE, "end"]
        with pytest.raises(shmcast.NoMessage):
            member.reply("y")


def test_who_awaits_has_no_range_that_others_would_be_in(by_nvtx: list[str]) -> None:
    async def wait_and_send() -> Any:
        receiving = asyncio.ensure_future(reader.recv_async(SECONDS))
        await asyncio.sleep(0)
        writer.send("x")
        return await receiving

    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        assert asyncio.run(wait_and_send()) == "x"
    assert [told for told in by_nvtx if told != "end"] == [
        tracing.ENCODE, tracing.PUBLISH, tracing.DECODE
    ]  # fmt: skip


@contextlib.contextmanager
def interrupted_at(number: int) -> Iterator[list[int]]:
    """Raise at so many lines of tracing; yield a list of the lines that came before."""
    lines: list[int] = []

    def in_step(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            lines.append(frame.f_lineno)
            if len(lines) == number:
                raise Handled
        return in_step

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        return in_step if frame.f_code.co_filename == tracing.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def interruptions(step: Callable[[], Any]) -> Iterator[None]:
    """Take a step again and again, interrupted at its first line of tracing, the second and so on.

    Yields after each that was interrupted, until one was not.
    """
    number = 0
    while True:
        number += 1
        with interrupted_at(number) as lines, contextlib.suppress(Handled):
            step()
        if len(lines) < number:
            return
        yield


@pytest.mark.usefixtures("by_nvtx")
def test_an_interrupt_in_between_loses_no_message() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send(0)
        due = 0
        for _ in interruptions(lambda: reader.recv(SECONDS)):
            assert reader.recv(SECONDS) == due
            due += 1
            writer.send(due)
        assert due > 3


@pytest.mark.usefixtures("by_nvtx")
def test_an_interrupt_in_between_loses_no_reply() -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        calls: list[Callable[[], Any]] = [
            lambda: [hub.recv(0, SECONDS)],
            lambda: [hub.recv_any(SECONDS)[1]],
            lambda: hub.recv_all(SECONDS),
        ]
        for recv in calls:
            due = 0
            answer(hub, member, due)
            for _ in interruptions(recv):
                assert recv() == [due]
                due += 1
                answer(hub, member, due)
            assert due > 3


@contextlib.contextmanager
def interrupted_twice_at_an_end() -> Iterator[None]:
    with (
        another_pending() as interrupt,
        mock.patch.object(torch.cuda.nvtx, "range_pop", interrupt),
        pytest.raises(Handled),
    ):
        yield


@not_on_310
def test_two_signals_at_the_end_of_a_range_lose_no_message() -> None:
    with standing_in_for_nvtx(), Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for kept in range(2):
            writer.send(kept)
        with interrupted_twice_at_an_end():
            reader.recv(SECONDS)
        assert [reader.recv(0), reader.recv(0)] == [0, 1]


@not_on_310
@pytest.mark.parametrize("call", ["recv", "recv_any", "recv_all"])
def test_two_signals_at_the_end_of_a_range_lose_no_reply(call: str) -> None:
    with standing_in_for_nvtx(), Hub(1) as hub, Member(hub.handle, 0) as member:
        answer(hub, member, "y")
        with interrupted_twice_at_an_end():
            hub.recv(0, SECONDS) if call == "recv" else getattr(hub, call)(SECONDS)
        assert hub.recv_all(0) == ["y"]


@pytest.mark.usefixtures("by_nvtx")
def test_who_is_interrupted_in_between_knows_whether_it_was_sent() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        told = set()
        for _ in interruptions(lambda: writer.send("x")):
            told.add(writer.was_sent)
            assert writer.was_sent == (writer.statistics().lag[0] == 1)
            if writer.was_sent:
                reader.recv(SECONDS)
    assert told == {True, False}


def broadcast_traced(rank: int) -> list[str]:
    with standing_in_for_nvtx() as told, ShmBroadcaster(device_types=CPU) as bc:
        bc.broadcast_object(tensor(shape=LARGE) if bc.is_src else None, SECONDS)
    return told


def test_device_tensors_have_ranges(world: Crew) -> None:
    source, *readers = world.run(4, broadcast_traced)
    lane = ["shmcast.device", "end", "shmcast.device_wait", "end"]
    assert source == [tracing.ENCODE, "end", tracing.PUBLISH, "end", *lane]
    assert readers == [[tracing.WAIT, "end", *lane]] * 3


def talk_traced(rank: int) -> dict[str, list[str]]:
    """Return what NVTX was told, by the call: of all collectives, and of a message to and fro."""
    found = {}
    with standing_in_for_nvtx() as told, ShmBroadcaster() as bc:
        calls: dict[str, Callable[[], Any]] = {
            "gather_object": lambda: bc.gather_object(rank, SECONDS),
            "all_gather_object": lambda: bc.all_gather_object(rank, SECONDS),
            "scatter_object": lambda: bc.scatter_object([*range(4)] if bc.is_src else None),
            "barrier": lambda: bc.barrier(SECONDS),
            "send_object": lambda: bc.send_object(rank, rank ^ 1, SECONDS),
            "recv_object": lambda: bc.recv_object(rank ^ 1, SECONDS),
        }
        for name, call in calls.items():
            told.clear()
            call()
            found[name] = [*told]
    return found


def test_collectives_and_messages_between_ranks_have_ranges(world: Crew) -> None:
    source, *others = world.run(4, talk_traced)
    encode, decode = [tracing.ENCODE, "end"], [tracing.DECODE, "end"]
    for found in (source, *others):
        assert found["barrier"] == ["shmcast.barrier", "end"]
        assert found["send_object"] == [*encode, tracing.PUBLISH, "end"]
        assert found["recv_object"] == [tracing.WAIT, "end", *decode]
        all_gather = ["shmcast.all_gather_object", "end"]
        assert found["all_gather_object"] == [*encode, *all_gather, *decode * 3]
    assert source["gather_object"] == ["shmcast.gather_object", "end", *decode * 3]
    assert source["scatter_object"] == [*encode * 3, "shmcast.scatter_object", "end"]
    for other in others:
        assert other["gather_object"] == [*encode, "shmcast.gather_object", "end"]
        assert other["scatter_object"] == ["shmcast.scatter_object", "end", *decode]


def test_a_members_reply_has_ranges(by_nvtx: list[str]) -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        hub.send("x")
        member.recv(SECONDS)
        by_nvtx.clear()
        member.reply("y")
        assert by_nvtx == [tracing.ENCODE, "end", tracing.PUBLISH, "end"]


def talk_interrupted(rank: int) -> int:
    """Receive and gather, rank 1 with an interrupt at each line of tracing."""
    due = 0
    with standing_in_for_nvtx(), ShmBroadcaster() as bc:
        if rank == 0:
            for number in range(100):
                bc.isend_object(number, 1, SECONDS)  # (not all of them are received)
        if rank != 1:
            while bc.all_gather_object(rank, SECONDS)[1] != "end":
                due += 1
            return due
        for _ in interruptions(lambda: bc.recv_object(0, SECONDS)):
            assert bc.recv_object(0, SECONDS) == due
            due += 1
        assert due < 100
        for _ in interruptions(lambda: bc.all_gather_object(1, SECONDS)):
            assert bc.all_gather_object(1, SECONDS) == [0, 1, 2, 3]
        bc.all_gather_object("end", SECONDS)
    return due


def test_an_interrupt_in_between_loses_nothing_between_ranks(world: Crew) -> None:
    assert min(world.run(4, talk_interrupted)) > 5


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("perf", "SHMCAST_TRACE='perf' is none of nvtx, torch, off; unset it"),
        pytest.param(
            "nvtx",
            "SHMCAST_TRACE='nvtx' asks for what is not here: RuntimeError: ",
            marks=pytest.mark.skipif(torch.version.cuda is not None, reason="NVTX is there"),
        ),
    ],
)
def test_a_profiler_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str, told: str
) -> None:
    monkeypatch.setenv("SHMCAST_TRACE", value)
    with pytest.raises(shmcast.InvalidArgument, match=told):
        Writer(1)


@pytest.mark.parametrize("value", ["", "0", "off", "none", " off "])
def test_it_can_be_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SHMCAST_TRACE", value)
    assert tracing.chosen() is None
