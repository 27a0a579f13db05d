"""Only `close()` is leaving: after every other end of a member, its peers are told of a death."""

from __future__ import annotations

import base64
import contextlib
import errno
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import shmcast
from shmcast import PeerDied, Reader, Writer
from shmcast._endpoints.ending import Ending
from shmcast._endpoints.handle import Handle
from shmcast._host import proc
from tests.support.endings import ENDINGS, SECONDS, StepFailed
from tests.support.processes import Crew
from tests.support.ring_roles import attach_only, fill, send_until_told
from tests.support.subprocess_programs import ROOT, wait_until

PROGRAM = """
import base64, pickle, sys
from tests.support.endings import read_then_end
read_then_end(pickle.loads(base64.b64decode(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
"""


@contextlib.contextmanager
def member(handle: Handle, index: int, ending: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a reader that ends so as soon as it is sent None."""
    packed = base64.b64encode(pickle.dumps(handle)).decode()
    command = [sys.executable, "-c", PROGRAM, packed, str(index), ending]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_end_but_close_is_told_while_messages_flow(ending: str) -> None:
    with (
        Writer(2, slots=2**14, slot_bytes=256) as writer,
        Reader(writer.handle, 1) as survivor,
        member(writer.handle, 0, ending) as process,
    ):
        writer.wait_ready(SECONDS)
        writer.send(None)  # and never waits: there is room
        told = send_until_told(writer)
        assert told.how in ENDINGS[ending][1]
        assert (told.peer, told.pid) == ("reader 0", process.pid)
        with pytest.raises(PeerDied):
            writer.send("again")
        for _ in range(writer.statistics().messages):  # what was sent before comes first
            survivor.recv(SECONDS)
        with pytest.raises(PeerDied, match=r"reader 0 \(pid \d+\) has died"):
            survivor.recv(SECONDS)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_place_of_who_ended_can_be_taken_again(ending: str) -> None:
    with (
        Writer(2, slots=2**14, slot_bytes=256, on_reader_death="drop") as writer,
        Reader(writer.handle, 1) as survivor,
        member(writer.handle, 0, ending),
    ):
        writer.wait_ready(SECONDS)
        writer.send(None)
        seat = writer._end._ring.peers

        def is_dropped() -> bool:
            writer.send("more", SECONDS)
            return seat()[0].state == "dropped"

        wait_until(is_dropped)
        with Reader(writer.handle, 0, rejoin=True) as replacement:
            writer.send("welcome")
            assert replacement.recv(SECONDS) == "welcome"
        assert survivor.recv(SECONDS) is None


def test_the_next_send_tells_of_a_death_that_somebody_else_has_reaped() -> None:
    with Writer(1, slots=64) as writer, member(writer.handle, 0, "SIGKILL") as process:
        writer.wait_ready(SECONDS)
        writer.send(None)
        process.wait()  # reaped, and the kernel has raised the alarm
        pid, ring = process.pid, writer._end._ring
        wait_until(lambda: ring.peers()[0].behind == 0)
        told = send_until_told(writer)
        assert (told.pid, told.how) == (pid, "killed by SIGKILL")


def test_who_came_while_messages_flowed_is_watched_before_any_wait() -> None:
    with (
        Writer(1, slots=2**10, slot_bytes=256) as writer,
        member(writer.handle, 0, "SIGKILL") as process,
    ):
        wait_until(lambda: writer._end._ring.attached() == 1)
        writer.send(None)  # no wait_ready(), and no wait
        process.wait()
        assert send_until_told(writer).how == "killed by SIGKILL"


def test_a_source_that_fails_is_not_read_as_closed() -> None:
    with Reader((writer := Writer(1)).handle, 0) as reader:
        writer.wait_ready(SECONDS)
        writer.send("sent before")
        with pytest.raises(StepFailed), writer:
            raise StepFailed
        assert reader.recv(SECONDS) == "sent before"
        for _ in range(2):
            with pytest.raises(PeerDied, match=r"writer \(pid \d+\) has died: ended without close"):
                reader.recv(SECONDS)


@pytest.mark.parametrize("error", [SystemExit(), SystemExit(0), GeneratorExit()], ids=repr)
def test_a_with_block_left_in_order_is_closed(error: BaseException) -> None:
    with Reader((writer := Writer(1)).handle, 0) as reader:
        with pytest.raises(type(error)), writer:
            raise error
        with pytest.raises(shmcast.Closed):
            reader.recv(SECONDS)


def test_collected_is_not_closed(no_gc: None) -> None:
    writer = Writer(2)
    readers = [Reader(writer.handle, i) for i in range(2)]
    writer.wait_ready(SECONDS)
    writer.send("last")
    readers.pop()
    gc.collect()
    with pytest.raises(PeerDied, match=r"reader 1.*ended without close"):
        writer.send("more")
    (reader,) = readers
    assert reader.recv(SECONDS) == "last"
    with pytest.raises(PeerDied, match=r"reader 1.*ended without close"):
        reader.recv(SECONDS)
    writer.close()
    reader.close()


def test_who_waits_is_told_of_an_end_in_a_living_process(wait: shmcast.WaitPolicy) -> None:
    with Writer(2, wait=wait) as writer, Reader(writer.handle, 0, wait=wait) as reader:
        other = Reader(writer.handle, 1)
        writer.wait_ready(SECONDS)
        told: list[BaseException] = []

        def work() -> None:
            try:
                reader.recv(SECONDS)
            except PeerDied as error:
                told.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        with pytest.raises(StepFailed), other:
            raise StepFailed
        thread.join(SECONDS)
        assert "ended without close" in str(told[0])


def test_a_place_is_held_until_its_end_is_told() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        go_on.wait(SECONDS)

    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        ring, places = reader._end._ring, reader._end._watch._places
        thread = threading.Thread(target=writer._end._ring.warm, args=(stay,))
        thread.start()
        inside.wait(SECONDS)
        writer.close()  # which the other thread will tell
        assert (ring.peers()[-1].state, places.is_held(1)) == ("attached", True)
        go_on.set()
        thread.join(SECONDS)
        assert (ring.peers()[-1].state, places.is_held(1)) == ("left", False)


def test_a_reader_that_failed_holds_its_views_until_it_lets_go(crew: Crew) -> None:
    with Writer(1, arena_bytes=1 << 20, on_reader_death="drop") as writer:
        reader = Reader(writer.handle, 0)
        writer.wait_ready(SECONDS)
        large = pickle.PickleBuffer(b"v" * 300_000)
        writer.send(large)
        view = reader.recv(SECONDS, copy=False)
        with pytest.raises(StepFailed), reader:
            raise StepFailed
        with pytest.raises(PeerDied):
            writer.send("nobody")
        with pytest.raises(shmcast.AlreadyAttached, match="still has views"):
            Reader(writer.handle, 0, rejoin=True)
        ring = writer._end._ring
        assert ring.loan(1 << 20) is None
        assert bytes(view) == b"v" * 300_000
        del view
        gc.collect()
        with Reader(writer.handle, 0, rejoin=True) as again:
            writer.send("welcome")
            assert again.recv(SECONDS) == "welcome"
            assert ring.loan(1 << 20) is not None


def test_readers_that_end_after_the_writer_has_closed_trouble_nobody() -> None:
    writer = Writer(2)
    with Reader(writer.handle, 0) as reader:
        other = Reader(writer.handle, 1)
        writer.send("last")
        writer.close()
        with pytest.raises(StepFailed), other:
            raise StepFailed
        assert reader.recv(SECONDS) == "last"
        with pytest.raises(shmcast.Closed):
            reader.recv(SECONDS)


def test_an_interpreter_that_exits_leaves_no_name_behind() -> None:
    program = "from shmcast import Writer\nwriter = Writer(1, arena_bytes=1 << 20)\n"
    tell = "import os\nprint(writer.handle.name, writer.handle.arena.name)\n"
    for end in ("", "raise RuntimeError\n"):
        ran = subprocess.run(  # noqa: S603
            [sys.executable, "-c", program + tell + end],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        for name in ran.stdout.split():
            assert not os.path.exists(f"/dev/shm{name}")  # noqa: PTH110
        assert len(ran.stdout.split()) == 2


def test_a_driver_is_told_whom_it_has_dropped(crew: Crew) -> None:
    told: list[PeerDied] = []
    with Writer(2, on_reader_death="drop", on_death=told.append) as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        with Reader(writer.handle, 1) as survivor:
            writer.wait_ready(SECONDS)
            assert writer.dropped == {}
            pid = job.kill()

            def is_told() -> bool:
                writer.send("more", SECONDS)
                survivor.recv(SECONDS)
                return bool(told)

            wait_until(is_told)
            assert [(died.peer, died.pid) for died in told] == [("reader 0", pid)]
            assert writer.dropped == {0: told[0]}
            with Reader(writer.handle, 0, rejoin=True) as replacement:
                writer.send("welcome")
                assert replacement.recv(SECONDS) == "welcome"
                assert writer.dropped == {}
        assert len(told) == 1


def test_what_on_death_raises_ends_the_send_and_nothing_was_sent(crew: Crew) -> None:
    def refuse(_died: PeerDied) -> None:
        raise StepFailed

    with Writer(2, on_reader_death="drop", on_death=refuse, slots=2**14, slot_bytes=256) as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        with Reader(writer.handle, 1) as survivor:
            writer.wait_ready(SECONDS)
            job.kill()
            sent = 0
            with contextlib.suppress(StepFailed):
                while sent < 2**14 - 1:
                    writer.send(sent)
                    sent += 1
            assert sent < 2**14 - 1
            writer.send("next")
            assert [survivor.recv(SECONDS) for _ in range(sent + 1)] == [*range(sent), "next"]


@pytest.mark.parametrize("on_death", [print, 3])
def test_on_death_is_for_writers_that_drop(on_death: Any) -> None:
    drops: Any = "raise" if on_death is print else "drop"
    with pytest.raises(shmcast.InvalidArgument, match=r"on_death=.*on_reader_death"):
        Writer(1, on_death=on_death, on_reader_death=drops)


def test_a_moment_without_descriptors_does_not_blind_for_ever(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, "no descriptors")

    with Writer(1) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(proc, "pidfd_open", refuse)
            job = crew.workers[0].start(attach_only, 0, writer.handle)
            writer.wait_ready(SECONDS)
        watch = writer._end._watch
        assert watch._watched[0].pidfd is None

        def is_watched() -> bool:
            with contextlib.suppress(shmcast.Timeout):
                fill(writer, 0.05)
            return watch._watched[0].pidfd is not None

        wait_until(is_watched)
        job.kill()
        with pytest.raises(PeerDied):
            fill(writer)


@pytest.mark.parametrize("flows", [True, False])
def test_without_pidfds_and_without_a_thread_it_is_looked_once_a_second(
    crew: Crew, monkeypatch: pytest.MonkeyPatch, flows: bool
) -> None:
    def refuse(*_arguments: int) -> int:
        raise OSError(errno.ENOSYS, "as gVisor does")

    monkeypatch.setattr(proc, "pidfd_open", refuse)
    with Writer(1, slots=2**16 if flows else 2, slot_bytes=256) as writer:
        ring = writer._end._ring

        class NoThread:
            """The ring, where the core can start no thread."""

            watch_process = watch_lock = staticmethod(refuse)
            unwatch, tell_death, told_death = ring.unwatch, ring.tell_death, ring.told_death

        writer._end._watch._ring = NoThread()
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        with pytest.warns(shmcast.ShmcastWarning, match="once a second"):
            writer.wait_ready(SECONDS)
        pid = job.kill()
        assert send_until_told(writer).pid == pid


def test_who_is_looked_after_once_a_second_is_known_to_have_ended_how_when_reaped() -> None:
    def refuse(*_arguments: int) -> int:
        raise OSError(errno.EAGAIN, "no thread")

    with (
        Writer(1, slots=2**10, slot_bytes=256) as writer,
        member(writer.handle, 0, "SIGKILL") as process,
    ):
        ring = writer._end._ring

        class NoThread:
            """The ring, where the core can start no thread."""

            watch_process = watch_lock = staticmethod(refuse)
            unwatch, tell_death, told_death = ring.unwatch, ring.tell_death, ring.told_death

        writer._end._watch._ring = NoThread()
        with pytest.warns(shmcast.ShmcastWarning, match="once a second"):
            writer.wait_ready(SECONDS)
        writer.send(None)
        process.wait()
        assert send_until_told(writer).how == "killed by SIGKILL"


def test_without_pidfds_the_lock_tells(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.ENOSYS, "as gVisor does")

    monkeypatch.setattr(proc, "pidfd_open", refuse)
    with Writer(1, slots=2**14, slot_bytes=256) as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        writer.wait_ready(SECONDS)
        assert not writer._end._watch.must_look
        pid = job.kill()
        assert send_until_told(writer).pid == pid


def test_an_ending_that_another_thread_completes_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ending, pid = Ending(), os.getpid()
    taken: list[int] = []
    ending.add(lambda: taken.append(1))

    def other_thread() -> int:
        monkeypatch.undo()
        ending()
        return pid

    monkeypatch.setattr(os, "getpid", other_thread)  # between two steps of the first one
    ending()
    assert taken == [1]
