"""Readers that have died are dropped, where the writer drops them, and can be replaced."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import pytest

import shmcast
from shmcast import PeerDied, Reader, WaitPolicy, Writer
from shmcast._endpoints import members
from tests.support.processes import Crew, results
from tests.support.ring_roles import (
    SECONDS,
    attach_only,
    fill,
    has_received,
    receive_all,
    receive_one,
    rejoin_and_wait,
)
from tests.support.subprocess_programs import wait_until


def test_dropped_readers_hold_nobody_up_and_can_be_replaced(crew: Crew, wait: WaitPolicy) -> None:
    with Writer(3, wait=wait, slots=2, slot_bytes=128, on_reader_death="drop") as writer:
        survivors = crew.start(2, receive_all, writer.handle, wait)
        job = crew.workers[2].start(receive_one, 2, writer.handle)
        writer.wait_ready(SECONDS)
        writer.send(0, SECONDS)
        wait_until(has_received(writer, 2, 1))
        sent: list[Any] = [0]
        for turn in range(3):
            job.kill()
            for k in range(10):
                sent.append(k if k % 3 else [k] * 200)
                writer.send(sent[-1], SECONDS)
            job = crew.workers[2].start(receive_all, 2, writer.handle, wait, True)
            wait_until(lambda: writer._end._ring.peers()[2].state == "rejoining")
            sent.append("welcome")
            writer.send(sent[-1], SECONDS)
            if turn < 2:
                wait_until(lambda: writer.statistics().lag[2] == 0)
        writer.close()
        got, kind, _ = job.result()
        assert (got, kind) == (["welcome"], "Closed")
        assert [got for got, _, _ in results(survivors)] == [sent, sent]


def test_a_replacement_need_not_wait_until_the_writer_has_noticed(crew: Crew) -> None:
    with Writer(1, slots=2, on_reader_death="drop") as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        writer.wait_ready(SECONDS)
        writer.send("lost")
        job.kill()
        job = crew.workers[0].start(rejoin_and_wait, 0, writer.handle)  # and dies, not admitted
        wait_until(lambda: writer._end._ring.peers()[0].state == "rejoining")
        job.kill()
        with Reader(writer.handle, 0, rejoin=True) as reader:
            with pytest.raises(shmcast.Timeout):
                reader.recv(0)
            for k in range(10):
                writer.send(k, SECONDS)
                assert reader.recv(SECONDS) == k


def seat_of(writer: Writer) -> tuple[str, int]:
    peer = writer._end._ring.peers()[0]
    return peer.state, peer.pid


@pytest.mark.parametrize("is_watched", [True, False])
def test_the_writer_is_told_of_who_died_and_was_replaced_before_it_looked(
    crew: Crew, is_watched: bool
) -> None:
    told: list[PeerDied] = []
    with Writer(2, on_reader_death="drop", on_death=told.append) as writer:
        survivor = Reader(writer.handle, 1)
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        wait_until(lambda: writer._end._ring.attached() == 2)
        if is_watched:
            writer.send("before")
            assert survivor.recv(SECONDS) == "before"
        pids = [job.kill()]
        for _ in range(2):
            job = crew.workers[0].start(rejoin_and_wait, 0, writer.handle)
            seat = ("rejoining", job.worker.pid)
            wait_until(lambda: seat_of(writer) == seat)  # noqa: B023 (it is over in the turn)
            pids.append(job.kill())
        with Reader(writer.handle, 0, rejoin=True) as reader:
            writer.send("after")
            assert reader.recv(SECONDS) == survivor.recv(SECONDS) == "after"
            first = pids[0] if is_watched else 0
            assert [error.pid for error in told] == [first, 0, pids[2]]
            assert {error.peer for error in told} == {"reader 0"}
            assert told[0].how == ("killed by SIGKILL" if is_watched else "")
            writer.send("more")
            assert len(told) == 3
            survivor.close()


def test_a_seat_that_its_own_process_takes_again_has_lost_a_reader() -> None:
    told: list[PeerDied] = []
    with Writer(1, on_reader_death="drop", on_death=told.append) as writer:
        reader = Reader(writer.handle, 0)
        for turn in range(3):
            writer.send(turn)
            with pytest.raises(KeyError), reader:
                raise KeyError
            reader = Reader(writer.handle, 0, rejoin=True)
            writer.send("welcome")
            assert reader.recv(SECONDS) == "welcome"
            assert [error.how for error in told] == ["ended without close()"] * (turn + 1)
            assert {error.pid for error in told} == {os.getpid()}
        reader.close()


def test_who_was_dropped_and_then_replaced_is_told_once(
    crew: Crew, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[PeerDied] = []
    with Writer(2, on_reader_death="drop", on_death=told.append) as writer:
        survivor = Reader(writer.handle, 1)
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        writer.wait_ready(SECONDS)
        pid = job.kill()
        while not told:
            writer.send("more", SECONDS)
            survivor.recv(SECONDS)
        with Reader(writer.handle, 0, rejoin=True) as reader:
            writer.send("welcome")
            assert reader.recv(SECONDS) == "welcome"
        assert [error.pid for error in told] == [pid]
        assert caplog.text.count("has died") == 1
        survivor.close()


def test_a_place_that_is_dropped_while_it_is_looked_at_is_taken(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer(1, slots=2, on_reader_death="drop") as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        writer.wait_ready(SECONDS)
        job.kill()
        has_ended = members.has_ended

        def drop_first(peer: Any, places: Any) -> bool:
            with pytest.raises(PeerDied):
                fill(writer)
            return has_ended(peer, places)

        monkeypatch.setattr(members, "has_ended", drop_first)
        with Reader(writer.handle, 0, rejoin=True) as reader:
            writer.send("welcome")
            assert reader.recv(SECONDS) == "welcome"


def test_dropping_the_last_reader_is_an_error_until_somebody_rejoins(crew: Crew) -> None:
    with Writer(1, slots=2, on_reader_death="drop") as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        writer.wait_ready(SECONDS)
        pid = job.kill()
        with pytest.raises(PeerDied, match=rf"nobody is left.* reader 0 \(pid {pid}\)"):
            fill(writer)
        with pytest.raises(PeerDied):
            writer.send("nobody")
        with Reader(writer.handle, 0, rejoin=True) as reader:
            writer.send("somebody")
            assert reader.recv(SECONDS) == "somebody"
        with pytest.raises(shmcast.Closed):
            writer.send("nobody again")


def test_a_replacement_that_leaves_before_it_is_admitted_is_not_waited_for(crew: Crew) -> None:
    with Writer(2, slots=2, on_reader_death="drop") as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        with Reader(writer.handle, 1) as survivor:
            writer.wait_ready(SECONDS)
            job.kill()
            Reader(writer.handle, 0, rejoin=True).close()
            for k in range(10):
                writer.send(k, SECONDS)
                assert survivor.recv(SECONDS) == k
        with pytest.raises(shmcast.Closed):
            writer.send("nobody")


def test_the_other_readers_do_not_notice_that_one_was_dropped(
    children: Crew, wait: WaitPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Writer(2, slots=2, on_reader_death="drop", wait=wait) as writer,
        Reader(writer.handle, 1, wait=wait) as survivor,
    ):
        job = children.workers[0].start(attach_only, 0, writer.handle)
        writer.wait_ready(SECONDS)
        pid = job.worker.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(shmcast.Timeout):
            survivor.recv(0.1)  # long enough to look after the peers
        for k in range(10):
            writer.send(k, SECONDS)
            assert survivor.recv(SECONDS) == k
    job.kill()
    assert re.search(rf"reader 0 \(pid {pid}\) has died.*: killed by SIGKILL", caplog.text)
    assert "it is dropped, the others go on" in caplog.text


def test_a_place_that_is_not_free_is_not_taken(crew: Crew) -> None:
    with Writer(2) as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        Reader(writer.handle, 1).close()
        writer.wait_ready(SECONDS)
        pid = job.kill()
        with pytest.raises(
            shmcast.AlreadyAttached, match=rf'by process {pid}.*on_reader_death="drop"'
        ):
            Reader(writer.handle, 0, rejoin=True)
    with Writer(3, on_reader_death="drop") as writer:
        job = crew.workers[0].start(attach_only, 0, writer.handle)
        Reader(writer.handle, 1).close()
        with Reader(writer.handle, 2, rejoin=True):  # vacant: as without
            writer.wait_ready(SECONDS)
            with pytest.raises(shmcast.AlreadyAttached, match="which lives"):
                Reader(writer.handle, 0, rejoin=True)
            with pytest.raises(shmcast.AlreadyAttached, match="has left in order"):
                Reader(writer.handle, 1, rejoin=True)
        job.kill()
    with pytest.raises(shmcast.SegmentNotFound):
        Reader(writer.handle, 0, rejoin=True)


def test_on_reader_death_is_one_of_two() -> None:
    with pytest.raises(shmcast.InvalidArgument, match="on_reader_death='ignore' is neither"):
        Writer(1, on_reader_death="ignore")  # type: ignore[arg-type]
