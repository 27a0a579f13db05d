"""Long waits of tasks are told in the log, with who is waited for, as those of threads are."""

from __future__ import annotations

import logging
import os
import re

import pytest

import shmcast
from shmcast import Hub, Member, Reader, Writer
from tests.support.hub_roles import SECONDS
from tests.support.loops import Run, all_of, in_asyncio, once


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    """Catch all of the log."""
    caplog.set_level(logging.DEBUG, "shmcast")


@pytest.mark.usefixtures("only_bytes")
def test_the_log_names_who_has_not_replied(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with (
        Hub(2, warn_after=0.02, label="driver") as hub,
        Member(hub.handle, 0) as member,
        Member(hub.handle, 1),
    ):
        hub.send("step")

        async def main() -> None:
            answer = member.recv(SECONDS)
            with once(lambda: len(caplog.records) > 0, lambda: member.reply(answer)):
                assert await hub.recv_async(0, SECONDS) == "step"

        run(main)
    told, *more = caplog.records
    text = told.getMessage()
    assert re.match(
        rf"driver: recv\(0\) has waited \d.\d s for a reply\n  member 0, pid {os.getpid()}", text
    )
    assert told.levelno == logging.WARNING
    assert "member 1" not in text
    assert more[-1].getMessage().startswith("driver: recv(0) went on after ")


@pytest.mark.usefixtures("only_bytes")
def test_each_of_several_tasks_is_told_of(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> set[str]:
        texts = [record.getMessage() for record in [*caplog.records]]
        return {name for text in texts for name in re.findall("member .", text)}

    with Hub(3, warn_after=0.02) as hub:
        members = [Member(hub.handle, index) for index in range(3)]
        hub.send("step")
        answers = [member.recv(SECONDS) for member in members]

        def reply() -> None:
            for member, answer in zip(members, answers, strict=True):
                member.reply(answer)

        async def receive(index: int) -> None:
            assert await hub.recv_async(index, SECONDS) == "step"

        async def main() -> None:
            with once(lambda: len(told()) == 3, reply):
                await all_of(*[lambda i=i: receive(i) for i in range(3)])

        run(main)
        for member in members:
            member.close()
    assert told() == {"member 0", "member 1", "member 2"}


@pytest.mark.usefixtures("only_bytes")
def test_a_reader_s_wait_is_told_for_debugging_only(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0, warn_after=0.02) as reader:

        async def main() -> None:
            with once(lambda: len(caplog.records) > 0, lambda: writer.send("late")):
                assert await reader.recv_async(SECONDS) == "late"

        run(main)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    text = caplog.records[0].getMessage()
    assert re.match(
        rf"reader 0: recv has waited \d.\d s for a message\n  writer, pid {os.getpid()}", text
    )


def test_when_it_is_told_can_be_set_for_a_block(caplog: pytest.LogCaptureFixture) -> None:
    with Hub(1) as hub, Member(hub.handle, 0):

        async def until_it_is_told() -> None:
            with hub.warning_after(0.02), pytest.raises(shmcast.Interrupted):
                await hub.recv_any_async(SECONDS)

        with once(lambda: len(caplog.records) > 0, hub.interrupt):
            in_asyncio(until_it_is_told)
        before = len(caplog.records)

        async def never() -> None:
            with hub.warning_after(None), pytest.raises(shmcast.Timeout):
                await hub.recv_any_async(0.1)

        in_asyncio(never)
        assert len(caplog.records) == before
