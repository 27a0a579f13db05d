"""What tasks receive: everything, once and in order, whatever happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import shmcast
from shmcast import Hub, Interrupted, Member, PeerDied, Reader, Writer
from tests.awaiting.conftest import Sender
from tests.support.hub_roles import (
    SECONDS,
    Undecodable,
    answer,
    echo,
    echo_and_die,
    receive_and_wait,
)
from tests.support.loops import Run, all_of, in_asyncio, once
from tests.support.processes import Crew, results
from tests.support.ring_roles import handle_at, write

STORM = 3000


def is_armed(end: Reader | Hub) -> Callable[[], bool]:
    """Return what says whether a task waits for a byte."""
    core = end._end.awaiting._core
    return core.is_armed


@pytest.mark.usefixtures("only_bytes")
def test_a_task_receives_what_comes_later(run: Run) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:

        async def main() -> list[Any]:
            with once(is_armed(reader), lambda: writer.send("first")):
                got = [await reader.recv_async()]
            writer.send("second")
            got.append(await reader.recv_async(timeout=SECONDS))
            for k in range(3):  # the pipe is known by now
                with once(is_armed(reader), lambda k=k: writer.send(k)):  # type: ignore[misc]
                    got.append(await reader.recv_async(SECONDS))
            return got

        assert run(main) == ["first", "second", 0, 1, 2]


@pytest.mark.usefixtures("only_bytes")
def test_a_loop_over_a_reader_ends_when_the_writer_closes(run: Run) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:

        async def main() -> list[Any]:
            return [step async for step in reader]

        for k in range(3):
            writer.send(k)
        with once(is_armed(reader), writer.close):
            assert run(main) == [0, 1, 2]
        assert run(main) == []


@pytest.mark.usefixtures("only_bytes")
def test_a_storm_of_cancelled_tasks_loses_nothing(run: Run, sender: Sender) -> None:
    job, reader = sender(STORM)
    rng = random.Random(1)  # noqa: S311
    got: list[int] = []
    cancelled = 0

    async def main() -> None:
        nonlocal cancelled
        while len(got) < STORM:
            with anyio.move_on_after(rng.choice((0.0, 0.00001, 0.0001, 0.001))) as scope:
                got.append((await reader.recv_async())[0])
            cancelled += scope.cancelled_caught

    with reader:
        run(main)
    assert got == [*range(STORM)]
    assert cancelled > 50
    job.result()


@pytest.mark.usefixtures("only_bytes")
def test_tasks_that_are_cancelled_take_nothing_from_others(run: Run, sender: Sender) -> None:
    job, reader = sender(STORM)
    rng = random.Random(2)  # noqa: S311
    got: list[int] = []

    async def receive() -> None:
        with contextlib.suppress(shmcast.Closed):
            while True:
                with anyio.move_on_after(rng.choice((0.00001, 0.0005, 0.01))):
                    got.append((await reader.recv_async())[0])

    with reader:
        run(lambda: all_of(receive, receive, receive, receive))
    assert got == [*range(STORM)]
    job.result()


def test_time_outs_of_asyncio_lose_nothing(sender: Sender) -> None:
    job, reader = sender(STORM)
    got: list[int] = []

    async def main() -> None:
        while len(got) < STORM:
            try:
                got.append((await asyncio.wait_for(reader.recv_async(), 0.0003))[0])
            except asyncio.TimeoutError:
                continue

    with reader:
        in_asyncio(main)
    assert got == [*range(STORM)]
    job.result()


def test_a_time_out_of_its_own_says_so(run: Run) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:

        async def main() -> None:
            for seconds in (0, 0.01):
                text = rf"reader 0: recv timed out after {seconds} s"
                with pytest.raises(shmcast.Timeout, match=text):
                    await reader.recv_async(seconds)
            with pytest.raises(shmcast.InvalidArgument, match="reader 0: recv_async: timeout=-1"):
                await reader.recv_async(-1)

        run(main)


@pytest.mark.usefixtures("only_bytes")
def test_a_message_larger_than_the_ring_is_awaited(run: Run, sender: Sender) -> None:
    job, reader = sender(5, nbytes=300_000)

    async def main() -> list[Any]:
        return [await reader.recv_async() for _ in range(5)]

    with reader:
        got = run(main)
    assert got == [(k, bytes([k]) * 300_000) for k in range(5)]
    job.result()


def test_views_are_received_by_tasks() -> None:
    with Writer(1, arena_bytes=1 << 24) as writer, Reader(writer.handle, 0) as reader:
        writer.send({"a": np.ones(1 << 20, "u1")})
        writer.send({"a": np.ones(1 << 20, "u1")})

        async def main() -> tuple[Any, Any]:
            return await reader.recv_async(copy=False), await reader.recv_async()

        view, copied = in_asyncio(main)
        assert not view["a"].flags.writeable
        assert copied["a"].flags.writeable


def test_what_can_not_be_decoded_is_consumed(run: Run) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send(Undecodable())
        writer.send("good")

        async def main() -> Any:
            with pytest.raises(shmcast.DecodeError):
                await reader.recv_async()
            return await reader.recv_async()

        assert run(main) == "good"


@pytest.mark.usefixtures("only_bytes")
def test_a_killed_writer_ends_the_wait(run: Run, children: Crew, tmp_path: Path) -> None:
    path = tmp_path / "handle"
    job = children.workers[0].start(write, 0, path, 1, [0, 1])
    reader = Reader(handle_at(path), 0)

    async def main() -> None:
        assert [await reader.recv_async(SECONDS) for _ in range(2)] == [0, 1]
        with once(is_armed(reader), job.kill), pytest.raises(PeerDied, match="killed by SIGKILL"):
            await reader.recv_async(SECONDS)

    with reader:
        run(main)


@pytest.mark.usefixtures("only_bytes")
def test_an_interrupt_ends_one_wait_and_no_more(run: Run) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:

        async def main() -> Any:
            with once(is_armed(reader), reader.interrupt), pytest.raises(Interrupted):
                await reader.recv_async(SECONDS)
            with once(is_armed(reader), lambda: writer.send("on")):
                return await reader.recv_async(SECONDS)

        assert run(main) == "on"


@pytest.mark.usefixtures("only_bytes")
def test_close_in_another_thread_ends_the_wait(run: Run) -> None:
    with Writer(1) as writer:
        reader = Reader(writer.handle, 0)

        async def main() -> None:
            with once(is_armed(reader), reader.close), pytest.raises(shmcast.Closed, match="close"):
                await reader.recv_async()
            with pytest.raises(shmcast.Closed, match=r"after close\(\)"):
                await reader.recv_async()

        run(main)


@pytest.mark.usefixtures("only_bytes")
def test_close_in_another_task_ends_the_wait(run: Run) -> None:
    with Writer(1) as writer:
        reader = Reader(writer.handle, 0)

        async def receive() -> None:
            with pytest.raises(shmcast.Closed):
                await reader.recv_async()

        async def close() -> None:
            while not is_armed(reader)():
                await anyio.sleep(0)
            reader.close()

        run(lambda: all_of(receive, receive, close))


@pytest.mark.usefixtures("only_bytes")
def test_a_hub_awaits_replies_of_one_of_any_and_of_all(run: Run, crew: Crew) -> None:
    with Hub(3) as hub:
        jobs = crew.start(3, echo, hub.handle)
        hub.wait_ready(SECONDS)

        async def main() -> None:
            for k in range(200):
                hub.send(k)
                match k % 3:
                    case 0:
                        assert await hub.recv_all_async() == [answer(k, i) for i in range(3)]
                    case 1:
                        got = dict([await hub.recv_any_async() for _ in range(3)])
                        assert got == {i: answer(k, i) for i in range(3)}
                    case _:
                        for i in (2, 0, 1):
                            assert await hub.recv_async(i) == answer(k, i)

        run(main)
        hub.close()
        assert [count for count, _ in results(jobs)] == [200] * 3


@pytest.mark.usefixtures("only_bytes")
def test_a_task_for_each_member_and_cancelled_ones_lose_no_reply(run: Run, crew: Crew) -> None:
    with Hub(3, slots=4, reply_slots=2) as hub:
        jobs = crew.start(3, echo, hub.handle)
        hub.wait_ready(SECONDS)
        got: list[list[Any]] = [[], [], []]
        rng = random.Random(3)  # noqa: S311

        async def receive(index: int) -> None:
            while len(got[index]) < 300:
                with anyio.move_on_after(rng.choice((0.0, 0.0001, 0.01))):
                    got[index].append(await hub.recv_async(index))

        async def send() -> None:
            for k in range(300):
                hub.send(k, SECONDS)
                await anyio.sleep(0)

        run(lambda: all_of(send, *(lambda i=i: receive(i) for i in range(3))))
        assert got == [[answer(k, i) for k in range(300)] for i in range(3)]
        hub.close()
        results(jobs)


@pytest.mark.usefixtures("only_bytes")
def test_a_members_death_ends_an_awaited_wait_for_another(run: Run, children: Crew) -> None:
    with Hub(2) as hub:
        dying = children.workers[0].start(receive_and_wait, 0, hub.handle)
        children.workers[1].start(receive_and_wait, 1, hub.handle)
        hub.wait_ready(SECONDS)
        hub.send(1)

        async def main() -> None:
            with once(is_armed(hub), dying.kill), pytest.raises(PeerDied, match="member 0"):
                await hub.recv_async(1, SECONDS)

        run(main)


@pytest.mark.usefixtures("only_bytes")
def test_the_death_of_a_member_that_is_dropped_is_raised_to_who_awaits_it(
    run: Run, children: Crew
) -> None:
    with Hub(2, on_member_death="drop") as hub:
        dying = children.workers[0].start(receive_and_wait, 0, hub.handle)
        children.workers[1].start(receive_and_wait, 1, hub.handle)
        hub.wait_ready(SECONDS)
        hub.send(1)

        async def main() -> None:
            with once(is_armed(hub), dying.kill), pytest.raises(PeerDied, match="member 0"):
                await hub.recv_async(0, SECONDS)

        run(main)


@pytest.mark.usefixtures("only_bytes")
def test_a_member_that_closes_ends_an_awaited_wait(run: Run) -> None:
    with Hub(1) as hub:
        member = Member(hub.handle, 0)

        async def main() -> None:
            with once(is_armed(hub), member.close), pytest.raises(shmcast.Closed):
                await hub.recv_any_async(SECONDS)

        run(main)


def test_a_dropped_member_is_told_to_tasks(run: Run, children: Crew) -> None:
    with Hub(2, on_member_death="drop") as hub:
        other = children.workers[1].start(echo, 1, hub.handle)
        dying = children.workers[0].start(echo_and_die, 0, hub.handle, 1)
        hub.wait_ready(SECONDS)
        hub.send(0)

        async def main() -> None:
            assert await hub.recv_all_async(SECONDS) == [answer(0, 0), answer(0, 1)]
            index, death = await hub.recv_any_async(SECONDS)
            assert (index, type(death)) == (0, PeerDied)

        run(main)
        hub.close()
        other.result()
        del dying


@pytest.mark.usefixtures("only_bytes")
def test_a_member_awaits_messages_and_replies(run: Run) -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:

        async def main() -> Any:
            with once(is_armed(member), lambda: hub.send(7)):
                member.reply(await member.recv_async() + 1)
            return await hub.recv_any_async()

        assert run(main) == (0, 8)


@pytest.mark.usefixtures("only_bytes")
def test_a_hub_that_sends_in_a_thread_and_awaits_in_a_loop_is_not_stuck(crew: Crew) -> None:
    with Hub(2, slots=2, reply_slots=2, reply_slot_bytes=128) as hub:
        jobs = crew.start(2, echo, hub.handle)
        hub.wait_ready(SECONDS)

        async def main() -> None:
            def send() -> None:
                for k in range(100):
                    hub.send(k, SECONDS)

            sending = asyncio.get_running_loop().run_in_executor(None, send)
            for k in range(100):
                assert await hub.recv_all_async() == [answer(k, i) for i in range(2)]
            await sending

        in_asyncio(main)
        hub.close()
        results(jobs)
