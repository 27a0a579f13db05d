"""One endpoint and several loops, one after the other; and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import selectors
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import shmcast
from shmcast import ConcurrentUse, Hub, Member, Reader, Writer
from shmcast._endpoints import awaiting
from tests.awaiting.conftest import Sender
from tests.support.hub_roles import SECONDS
from tests.support.loops import LOOPS, Run, in_asyncio, in_trio, in_uvloop, once
from tests.support.processes import Crew
from tests.support.ring_roles import send_until_told
from tests.support.subprocess_programs import wait_until


def fds() -> dict[str, str]:
    """Return what is open, but for segments, which stay so until their endpoints are collected."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # (that of the look itself)
            found[entry.name] = str(entry.readlink())
    return {name: what for name, what in found.items() if "/shmcast-" not in what}


@contextmanager
def nothing_is_left() -> Iterator[None]:
    """Check that a block leaves descriptors and threads as they were."""
    with Writer(1) as writer, Reader(writer.handle, 0):
        in_uvloop(lambda: anyio.sleep(0))  # what a process keeps: the watcher, libuv's pipe
    gc.collect()
    before, threads = fds(), threading.active_count()
    yield
    gc.collect()
    wait_until(lambda: threading.active_count() == threads)
    assert fds() == before


def open_pipe(reader: Reader) -> None:
    """Await in vain."""
    with pytest.raises(shmcast.Timeout):
        in_asyncio(lambda: reader.recv_async(0.001))


@pytest.mark.usefixtures("only_bytes")
def test_loops_of_all_kinds_take_turns(sender: Sender) -> None:
    job, reader = sender(600)
    got: list[int] = []

    async def some() -> None:
        with anyio.move_on_after(0.001):
            while True:
                got.append((await reader.recv_async())[0])

    with reader:
        while len(got) < 600:
            for run in LOOPS:
                if len(got) < 600:
                    run(lambda: suppressing(some))
    assert got == [*range(600)]
    job.result()


async def suppressing(receive: Any) -> None:
    with contextlib.suppress(shmcast.Closed):
        await receive()


def test_nothing_is_left_behind_by_any_end_of_a_loop(run: Run) -> None:
    with nothing_is_left():
        with Writer(1) as writer, Reader(writer.handle, 0) as reader:

            async def main() -> None:
                with anyio.move_on_after(0.005):
                    await reader.recv_async()

            for _ in range(3):
                run(main)
            writer.send(1)
            assert run(reader.recv_async) == 1
        with Hub(1) as hub, Member(hub.handle, 0) as member:
            hub.send(1)
            member.reply(run(member.recv_async))
            assert run(hub.recv_any_async) == (0, 1)


def test_a_loop_that_is_closed_with_tasks_that_wait_is_forgotten() -> None:
    with nothing_is_left(), Writer(1) as writer, Reader(writer.handle, 0) as reader:
        loop = asyncio.new_event_loop()
        task = loop.create_task(reader.recv_async())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task
        writer.send("for the next")
        assert in_asyncio(reader.recv_async) == "for the next"


def test_a_loop_that_only_stopped_is_left(sender: Sender) -> None:
    job, reader = sender(40)
    loops = [asyncio.new_event_loop() for _ in range(2)]
    with reader:
        got = [loops[k % 2].run_until_complete(reader.recv_async())[0] for k in range(40)]
    assert got == [*range(40)]
    for loop in loops:
        assert loop._selector.get_map() is not None  # type: ignore[attr-defined]
        left = [key.fd for key in loop._selector.get_map().values()]  # type: ignore[attr-defined]
        assert left == [loop._ssock.fileno()]  # type: ignore[attr-defined]
        loop.close()
    job.result()


@pytest.mark.parametrize("second", LOOPS, ids=lambda run: run.__name__)
def test_tasks_of_two_living_loops_are_refused(run: Run, second: Run) -> None:
    got: list[Any] = []
    told: list[str] = []

    def receive(run: Run) -> None:
        try:
            got.append(run(lambda: receive_soon(reader)))
        except ConcurrentUse as error:  # (also the first one, if it was looking just then)
            told.append(str(error))
            writer.send("on")

    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        first = in_thread(lambda: receive(run))
        wait_until(lambda: is_awaited(reader))
        receive(second)
        first.join()
        assert got == ["on"]
        assert len(told) == 1
        others = "recv_async while tasks of another event loop wait|recv while another thread"
        assert re.match(f"reader 0: ({others})", told[0])


def is_awaited(reader: Reader) -> bool:
    """Return whether a task waits (the pipe is armed before)."""
    loop = reader._end.awaiting._loop
    return loop is not None and loop.is_in_use


@contextmanager
def before_it_waits(act: Callable[[], object]) -> Iterator[None]:
    """Act between the first look of a task, which finds nothing, and its wait."""
    again = awaiting.Looking.again
    with pytest.MonkeyPatch.context() as patch:

        def act_once(looking: awaiting.Looking) -> Awaitable[None]:
            patch.undo()
            act()
            return again(looking)

        patch.setattr(awaiting.Looking, "again", act_once)
        yield


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


async def receive_soon(reader: Reader) -> Any:
    with anyio.fail_after(SECONDS):
        return await reader.recv_async()


@pytest.mark.parametrize("second", LOOPS, ids=lambda run: run.__name__)
def test_a_task_whose_loop_was_left_before_it_waits_is_woken_all_the_same(
    run: Run, second: Run
) -> None:
    def look_in_another_loop() -> None:
        def look() -> None:
            with pytest.raises(shmcast.Timeout):
                second(lambda: reader.recv_async(0))

        in_thread(look).join()

    with (
        Writer(1) as writer,
        Reader(writer.handle, 0) as reader,
        before_it_waits(look_in_another_loop),
        once(lambda: is_awaited(reader), lambda: writer.send("on")),
    ):
        assert run(lambda: receive_soon(reader)) == "on"


@pytest.mark.parametrize("second", LOOPS, ids=lambda run: run.__name__)
def test_a_task_before_whose_wait_those_of_another_loop_wait_is_refused(
    run: Run, second: Run
) -> None:
    got: list[Any] = []
    others: list[threading.Thread] = []

    def wait_in_another_loop() -> None:
        others.append(in_thread(lambda: got.append(second(lambda: receive_soon(reader)))))
        wait_until(lambda: is_awaited(reader))

    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        with (
            before_it_waits(wait_in_another_loop),
            pytest.raises(ConcurrentUse, match="recv_async while tasks of another event loop wait"),
        ):
            run(lambda: receive_soon(reader))
        writer.send("on")
        others[0].join()
        assert got == ["on"]


def test_a_task_before_whose_wait_its_end_is_closed_is_told(run: Run) -> None:
    with (
        Writer(1) as writer,
        Reader(writer.handle, 0) as reader,
        before_it_waits(reader.close),
        pytest.raises(shmcast.Closed, match="after close"),
    ):
        run(lambda: receive_soon(reader))


@pytest.mark.usefixtures("only_bytes")
def test_a_loop_that_runs_on_without_waiting_gives_way(run: Run) -> None:
    with nothing_is_left(), Writer(1) as writer:
        reader = Reader(writer.handle, 0)
        go_on, over = threading.Event(), threading.Event()

        def first() -> None:
            async def main() -> None:
                writer.send("first")
                assert await reader.recv_async() == "first"
                go_on.set()
                while not over.is_set():
                    await anyio.sleep(0.001)

            run(main)

        thread = threading.Thread(target=first)
        thread.start()
        assert go_on.wait(SECONDS)

        async def main() -> None:
            for k in range(50):
                core = reader._end.awaiting._core
                with once(core.is_armed, lambda k=k: writer.send(k)):  # type: ignore[misc]
                    assert await reader.recv_async() == k

        in_asyncio(main)
        reader.close()
        over.set()
        thread.join()


def test_a_reader_that_is_collected_leaves_a_living_loop() -> None:
    with nothing_is_left(), Writer(1) as writer:

        async def main() -> None:
            reader = Reader(writer.handle, 0)
            writer.send(1)
            assert await reader.recv_async() == 1
            end = weakref.ref(reader._end)
            del reader
            gc.collect()
            assert end() is None
            await asyncio.sleep(0)
            loop = asyncio.get_running_loop()
            assert len(loop._selector.get_map()) == 1  # type: ignore[attr-defined]

        in_asyncio(main)


def test_no_loop_is_an_error_that_says_so() -> None:
    with (
        Writer(1) as writer,
        Reader(writer.handle, 0) as reader,
        pytest.raises(RuntimeError, match="no running event loop"),
    ):
        reader.recv_async().send(None)


@pytest.mark.usefixtures("only_bytes")
def test_any_loop_can_poll_the_descriptor(sender: Sender) -> None:
    job, reader = sender(500)
    got: list[int] = []
    with selectors.DefaultSelector() as selector, reader:
        selector.register(reader, selectors.EVENT_READ)
        while len(got) < 500:
            assert selector.select(SECONDS)
            with contextlib.suppress(shmcast.Timeout):
                while len(got) < 500:
                    got.append(reader.recv(0)[0])
        selector.unregister(reader)
    assert got == [*range(500)]
    job.result()


@pytest.mark.usefixtures("only_bytes")
def test_the_descriptor_of_a_hub_tells_of_replies() -> None:
    with selectors.DefaultSelector() as selector, Hub(1) as hub, Member(hub.handle, 0) as member:
        selector.register(hub, selectors.EVENT_READ)
        assert not selector.select(0)
        for k in range(3):
            hub.send(k)
            member.reply(member.recv())
            assert selector.select(SECONDS)
            assert hub.recv_any(0) == (0, k)
            with pytest.raises(shmcast.Timeout):
                hub.recv_any(0)
            assert not selector.select(0)
        hub.interrupt()
        assert selector.select(SECONDS)
        with pytest.raises(shmcast.Interrupted):
            hub.recv_any(0)
        selector.unregister(hub)


def refuse_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have others see loops in another pid namespace, where they can open no pipe."""
    monkeypatch.setattr(awaiting, "pid_namespace", lambda: 1)


def test_where_the_pipe_is_refused_a_thread_stands_in(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_pipes(monkeypatch)
    with nothing_is_left():
        with Writer(1) as writer, Reader(writer.handle, 0) as reader:
            stands_in = reader._end.awaiting

            async def main() -> None:
                async with anyio.create_task_group() as group:
                    for k in range(200):
                        arrived = anyio.Event()
                        group.start_soon(receive, k, arrived)
                        while not reader._end._ring.is_armed():
                            await anyio.sleep(0)
                        if k > 0:  # the first one was found by time, and told that nobody may ring
                            while stands_in._stand_in is None:
                                await anyio.sleep(0)
                            # Time alone tells nothing any more.
                            monkeypatch.setattr(awaiting, "USUAL_INTERVAL", 3600.0)
                        writer.send(k)
                        await arrived.wait()

            async def receive(k: int, arrived: anyio.Event) -> None:
                assert await reader.recv_async(SECONDS) == k
                arrived.set()

            run(main)
            assert reader._end._ring.refused() == 1
            assert reader._end._ring.opened() == 0
        stand_in = stands_in._stand_in
        assert stand_in is not None
        stand_in.join(SECONDS)


def test_a_pipe_that_another_file_has_replaced_gets_no_byte(crew: Crew) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        fd = reader.fileno()
        core = reader._end._ring
        reads, writes = os.pipe()
        where = next(
            int(name) for name in fds() if int(name) != fd and os.path.sameopenfile(int(name), fd)
        )
        os.dup2(writes, where)
        writer.send(1)
        assert core.refused() == 1
        os.set_blocking(reads, False)
        with pytest.raises(BlockingIOError):
            os.read(reads, 1)
        os.close(reads)
        os.close(writes)


def test_an_end_that_is_not_awaited_has_neither_pipe_nor_thread() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        before, threads = fds(), threading.active_count()
        for k in range(100):
            writer.send(k)
            assert reader.recv() == k
        assert (fds(), threading.active_count()) == (before, threads)


def test_a_loop_that_dies_with_its_reader_does_not_disturb_the_writer(
    children: Crew, tmp_path: Path
) -> None:
    with Writer(1, on_reader_death="drop") as writer:
        job = children.workers[0].start(await_one, 0, writer.handle)
        writer.wait_ready(SECONDS)
        writer.send(0)
        wait_until(lambda: writer.statistics().readers[0].messages == 1)
        job.kill()
        assert send_until_told(writer).peer == "reader 0"


def await_one(_index: int, handle: shmcast.Handle) -> None:
    """Receive in a loop for ever."""
    with Reader(handle, 0) as reader:

        async def main() -> None:
            while True:
                await reader.recv_async()

        in_asyncio(main)


def test_trio_is_asked_only_where_it_runs() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:

        async def main() -> Any:
            return await asyncio.to_thread(in_trio, reader.recv_async)

        writer.send("from another thread's trio")
        assert in_asyncio(main) == "from another thread's trio"
