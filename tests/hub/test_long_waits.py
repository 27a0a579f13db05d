"""Long waits of a hub and its members are told, with who is waited for; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmcast
from shmcast import Hub, Member, Reader, Writer
from shmcast._host import shared_memory
from tests.support.hub_roles import SECONDS, attach_and_wait, reply_all
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until


def test_the_log_names_who_has_not_replied(crew: Crew, caplog: pytest.LogCaptureFixture) -> None:
    with Hub(3, warn_after=0.05) as hub:
        for i in (0, 1):
            crew.workers[i].start(attach_and_wait, i, hub.handle)
        wait_until(lambda: hub._end._ring.attached() == 2)
        with caplog.at_level(logging.WARNING, "shmcast"), pytest.raises(shmcast.Timeout):
            hub.recv_all(0.5)
        told = caplog.records[0].getMessage()
        pids = [crew.workers[i].pid for i in (0, 1)]
        assert re.match(r"hub: recv_all has waited \d.\d s for replies\n", told)
        assert [f"  member {i}, pid {pids[i]}: " in told for i in (0, 1)] == [True, True]
        assert "  member 2, not attached" in told


def test_when_it_does_so_can_be_set_for_a_call(caplog: pytest.LogCaptureFixture) -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member, caplog.at_level(logging.WARNING):
        calls: dict[str, Callable[..., Any]] = {
            "recv_any": hub.recv_any,
            "recv_all": hub.recv_all,
            "recv(0)": functools.partial(hub.recv, 0),
        }
        for name, call in calls.items():
            with pytest.raises(shmcast.Timeout):
                call(0.3, warn_after=0.05)
            assert caplog.records[0].getMessage().startswith(f"hub: {name} has waited ")
            caplog.clear()
            with pytest.raises(shmcast.Timeout):
                call(0.2)
            assert caplog.records == []
        with hub.warning_after(0.05), pytest.raises(shmcast.Timeout):
            hub.recv_any(0.3)
        assert len(caplog.records) > 0
        caplog.clear()
        hub.send(0)
        with hub.warning_after(None), pytest.raises(shmcast.Timeout):
            hub.recv_any(0.2)
        for _ in range(16):
            hub.send(0)
        for _ in range(16):
            member.reply(member.recv())
        with member.warning_after(0.05), pytest.raises(shmcast.Timeout):
            member.reply(member.recv(), 0.3)
        told = caplog.records[0].getMessage()
        assert re.match(
            r"member 0: reply has waited \d.\d s for room\n  hub, pid \d+, 16 frag", told
        )


def test_it_can_be_set_for_each_call_that_waits(caplog: pytest.LogCaptureFixture) -> None:
    with (
        Hub(1, slots=2, spill_bytes=0, reply_slots=2) as hub,
        Member(hub.handle, 0) as member,
        Writer(1, slots=2, spill_bytes=0) as writer,
        Reader(writer.handle, 0) as reader,
        caplog.at_level(logging.DEBUG, "shmcast"),
    ):
        calls: dict[str, Callable[..., Any]] = {
            "hub: recv_any": functools.partial(hub.recv_any),
            "hub: recv_any ": lambda *a, **k: asyncio.run(hub.recv_any_async(*a, **k)),
            "hub: recv_all": lambda *a, **k: asyncio.run(hub.recv_all_async(*a, **k)),
            "hub: recv(0)": lambda *a, **k: asyncio.run(hub.recv_async(0, *a, **k)),
            "member 0: recv": member.recv,
            "member 0: recv ": lambda *a, **k: asyncio.run(member.recv_async(*a, **k)),
            "reader 0: recv": reader.recv,
            "reader 0: recv ": lambda *a, **k: asyncio.run(reader.recv_async(*a, **k)),
        }
        told_when(calls, caplog)
        for _ in range(2):
            hub.send(0)
            writer.send(0)
        told_when(
            {
                "hub: send": functools.partial(hub.send, 0),
                "writer: send": functools.partial(writer.send, 0),
            },
            caplog,
        )
        for _ in range(2):
            member.reply(member.recv())
        hub.send(0)
        member.recv()
        told_when({"member 0: reply": functools.partial(member.reply, 0)}, caplog)


def told_when(calls: dict[str, Callable[..., Any]], caplog: pytest.LogCaptureFixture) -> None:
    """Hold that each of these calls, by what the log says of it, is told of when it says so."""
    for told, call in calls.items():
        with pytest.raises(shmcast.Timeout):
            call(timeout=0.2, warn_after=0.02)
        assert caplog.records[0].getMessage().startswith(f"{told.strip()} has waited 0.")
        caplog.clear()
        for more in ({}, {"warn_after": None}):
            with pytest.raises(shmcast.Timeout):
                call(timeout=0.1, **more)
        assert caplog.records == []
        with pytest.raises(shmcast.InvalidArgument, match="warn_after=-1"):
            call(timeout=0.1, warn_after=-1)


def test_a_hub_that_is_collected_leaves_nothing() -> None:
    gc.collect()  # what tests before have left
    before = segments_open()
    hub = Hub(2)
    member = Member(hub.handle, 0)
    hub.send([1])
    member.reply(member.recv())
    ended = [weakref.ref(thing) for thing in (hub, hub._end, member, member._end)]
    del member, hub
    gc.collect()
    assert [reference() for reference in ended] == [None] * 4
    assert shared_memory.clean(dry_run=True) == []
    assert segments_open() == before


def segments_open() -> int:
    """Return how many descriptors and mappings of segments this process has."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            links.append(str(fd.readlink()))
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum("/dev/shm/shmcast-" in line for line in [*links, *maps])


def test_once_all_are_there_the_segment_has_no_name(crew: Crew) -> None:
    with Hub(2) as hub:
        assert [found.name for found in shared_memory.clean(dry_run=True)] == [hub.handle.name]
        jobs = crew.start(2, reply_all, hub.handle, 1, 1)
        wait_until(lambda: shared_memory.clean(dry_run=True) == [])
        hub.send(0)
        hub.recv_all(SECONDS)
        for job in jobs:
            job.result()
