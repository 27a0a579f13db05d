"""A member that dies ends the waits of its peers; one that is slow is told."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import signal
from pathlib import Path

import pytest

import shmcast
from shmcast import PeerDied, Reader, WaitPolicy, Writer
from shmcast._endpoints import members
from shmcast._endpoints import peers as liveness
from tests.support.processes import Crew, results
from tests.support.ring_roles import (
    SECONDS,
    attach_only,
    attach_without_lock,
    fill,
    handle_at,
    leave_in_order,
    receive_all,
    receive_one,
    write,
)
from tests.support.subprocess_programs import wait_until


def test_a_killed_reader_ends_the_writers_wait_and_is_named(
    children: Crew, wait: WaitPolicy
) -> None:
    with Writer(2, wait=wait, reader_label="rank {}".format) as writer:
        jobs = children.start(2, receive_one, writer.handle)
        writer.wait_ready(SECONDS)
        writer.send("first")
        wait_until(lambda: writer.statistics().lag == (0, 0))
        pid = jobs[1].worker.pid
        os.kill(pid, signal.SIGKILL)  # it stays a zombie, which tells how it ended
        for _ in range(2):
            with pytest.raises(PeerDied) as caught:
                fill(writer)
            error = caught.value
            assert (error.peer, error.pid, error.how) == ("rank 1", pid, "killed by SIGKILL")
            assert re.match(rf"writer: rank 1 \(pid {pid}\) has died.*: killed", str(error))
            assert isinstance(error, ConnectionError)
            assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301
        for job in jobs:
            job.kill()


def test_readers_of_a_killed_writer_get_all_that_it_had_sent(
    children: Crew, tmp_path: Path, wait: WaitPolicy
) -> None:
    messages = [1, "two", [3] * 100]
    path = tmp_path / "handle"
    author = children.workers[2].start(write, 2, path, 2, messages)
    jobs = children.start(2, receive_all, handle_at(path), wait)
    wait_until(path.with_suffix(".sent").exists)
    pid = author.worker.pid
    os.kill(pid, signal.SIGKILL)
    for index, (got, kind, error) in enumerate(results(jobs)):
        assert (got, kind) == (messages, "PeerDied")
        assert error.startswith(f"reader {index}: writer (pid {pid}) has died: killed by SIGKILL")
    author.kill()


def test_a_message_whose_writer_died_in_the_middle_of_it_is_not_delivered(
    crew: Crew, tmp_path: Path, wait: WaitPolicy
) -> None:
    path = tmp_path / "handle"
    author = crew.workers[2].start(write, 2, path, 2, ["whole", bytes(10_000)])
    handle = handle_at(path)
    idle = crew.workers[1].start(attach_only, 1, handle)
    with Reader(handle, 0, wait=wait) as reader:
        assert reader.recv(SECONDS) == "whole"
        with pytest.raises(shmcast.Timeout):  # it has begun: the ring holds two fragments of it
            reader.recv(0)
        wait_until(lambda: reader.statistics().fragments >= 1)
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.01)
        pid = author.kill()
        with pytest.raises(PeerDied, match=rf"writer \(pid {pid}\) has died"):
            reader.recv(SECONDS)
    idle.kill()


def test_a_killed_reader_ends_the_waits_of_the_other_readers(crew: Crew, wait: WaitPolicy) -> None:
    with Writer(3, wait=wait) as writer:
        jobs = [
            *crew.start(2, receive_all, writer.handle, wait),
            crew.workers[2].start(attach_only, 2, writer.handle),
        ]
        writer.wait_ready(SECONDS)
        writer.send("all")
        pid = jobs[2].kill()
        for got, kind, error in results(jobs[:2]):
            assert (got, kind) == (["all"], "PeerDied")
            assert f"reader 2 (pid {pid}) has died" in error


def test_a_death_ends_wait_ready(crew: Crew, wait: WaitPolicy) -> None:
    with Writer(2, wait=wait) as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        wait_until(lambda: writer._end._ring.attached() == 1)
        job.kill()
        with pytest.raises(PeerDied, match="reader 0"):
            writer.wait_ready(SECONDS)


def test_a_death_ends_a_loop_of_looks_that_never_wait(crew: Crew, tmp_path: Path) -> None:
    path = tmp_path / "handle"
    author = crew.workers[0].start(write, 0, path, 1, ["only"])
    with Reader(handle_at(path), 0) as reader:
        wait_until(path.with_suffix(".sent").exists)
        author.kill()

        def look() -> bool:
            with contextlib.suppress(shmcast.Timeout):
                assert reader.recv(0) == "only"
            return False

        with pytest.raises(PeerDied):
            wait_until(look)


def test_a_stopped_process_is_not_dead(crew: Crew, wait: WaitPolicy) -> None:
    with Writer(1, wait=wait) as writer:
        job = crew.workers[0].start(receive_one, 0, writer.handle)
        writer.wait_ready(SECONDS)
        pid = job.worker.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(shmcast.Timeout):
            fill(writer, 0.2)
        os.kill(pid, signal.SIGCONT)
        job.kill()


def test_who_closes_before_it_ends_has_not_died(crew: Crew, wait: WaitPolicy) -> None:
    with Writer(2, wait=wait, slots=2) as writer:
        jobs = [
            crew.workers[0].start(leave_in_order, 0, writer.handle),
            crew.workers[1].start(receive_all, 1, writer.handle, wait),
        ]
        writer.wait_ready(SECONDS)
        writer.send(0)
        jobs[0].result()
        crew.workers[0].end()
        for k in range(1, 100):
            writer.send(k, SECONDS)
        writer.close()
        got, kind, _ = jobs[1].result()
        assert (got, kind) == ([*range(100)], "Closed")


def test_who_cannot_be_watched_is_told_at_set_up(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (liveness, members):
        monkeypatch.setattr(module, "pid_namespace", lambda: 7)
    with Writer(1) as writer:
        job = crew.workers[0].start(attach_without_lock, 0, writer.handle)
        with pytest.warns(shmcast.ShmcastWarning, match="can't watch reader 0.*pid namespace"):
            writer.wait_ready(SECONDS)
        job.kill()
        with pytest.raises(shmcast.Timeout):
            fill(writer, 0.2)


@pytest.mark.usefixtures("no_gc")  # which closes what other tests have left
def test_watching_leaves_no_descriptor_behind(crew: Crew) -> None:
    def open_files() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    for turn in range(4):
        if turn == 1:  # the watch and the crew, of which this may be the first use, keep some
            before = open_files()
        with Writer(2) as writer, Reader(writer.handle, 1):
            job = crew.workers[0].start(leave_in_order, 0, writer.handle)
            writer.wait_ready(SECONDS)
            writer.send("end")
            job.result()
    assert open_files() == before


def test_a_long_wait_is_told_with_what_the_peers_do(
    crew: Crew, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "shmcast")
    with Writer(2, slots=2, warn_after=0.05) as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        wait_until(lambda: writer._end._ring.attached() == 1)
        with pytest.raises(shmcast.Timeout):
            writer.wait_ready(0.2)
        assert "writer: wait_ready has waited" in caplog.text
        assert "reader 1, not attached" in caplog.text
        with Reader(writer.handle, 1, warn_after=0.05) as reader:
            caplog.clear()
            with pytest.raises(shmcast.Timeout):
                reader.recv(0.2)
            assert "reader 1: recv has waited" in caplog.text
            assert f"writer, pid {os.getpid()}: running" in caplog.text
            caplog.clear()
            with pytest.raises(shmcast.Timeout):
                fill(writer, 0.2)
            pid = job.worker.pid
            assert f"reader 0, pid {pid}, 2 fragments behind: sleeping" in caplog.text
            assert caplog.text.count("send has waited") < 6  # ever rarer
        job.kill()


@pytest.mark.parametrize("warn_after", [-1, float("nan")])
def test_a_time_to_warn_after_that_is_none_is_refused(warn_after: float) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=f"warn_after={warn_after}"):
        Writer(1, warn_after=warn_after)


def test_a_reader_without_a_message_blames_whom_its_writer_waits_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        Writer(2, slots=2) as writer,
        Reader(writer.handle, 0),
        Reader(writer.handle, 1, warn_after=0.05) as reader,
    ):
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.2)
        assert not caplog.records  # the engine is idle
        for k in range(2):
            writer.send(k)
            assert reader.recv() == k
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.2)
        goal = "recv has waited 0.1 s for a message, as writer waits for room"
        assert goal in re.sub(r"0\.\d s", "0.1 s", caplog.text)
        assert f"reader 0, pid {os.getpid()}, 2 fragments behind" in caplog.text


def test_endpoints_say_what_they_are() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        name = writer.handle.name
        assert repr(writer) == f"<shmcast.Writer 'writer': 1 reader, segment {name}>"
        assert repr(reader) == f"<shmcast.Reader 'reader 0': 1 reader, segment {name}>"
    assert repr(reader) == f"<shmcast.Reader 'reader 0': 1 reader, segment {name}, closed>"
