"""What an endpoint keeps and gives back: memory of received frames, mappings, what was sent."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Reader, Writer
from tests.support import confined

MIB = 1 << 20
SECONDS = 20


def anonymous_mib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no RssAnon")


def receive_many_sizes(reader: Reader, writer: Writer) -> None:
    """Receive 16 large messages of as many sizes, and drop each."""
    for i in range(16):
        array = np.zeros((10 * MIB) + i * 4096, "u1")
        sending = threading.Thread(target=writer.send, args=(array, SECONDS))
        sending.start()
        assert reader.recv(SECONDS).nbytes == array.nbytes
        sending.join()


def memory_kept() -> tuple[int, int, int]:
    """Return MiB of dropped frames kept: right after the last, after a pause, after close()."""
    with Writer(1) as writer:
        before = anonymous_mib()
        reader = Reader(writer.handle, 0)
        receive_many_sizes(reader, writer)
        at_once = anonymous_mib()
        with pytest.raises(shmcast.Timeout):
            reader.recv(2.5)  # more than the second after which an idle reader gives back
        idle = anonymous_mib()
        receive_many_sizes(reader, writer)
        reader.close()
        closed = anonymous_mib()
    return at_once - before, idle - before, closed - before


def test_dropped_frames_are_not_kept_for_ever() -> None:
    with confined.process() as alone:
        at_once, idle, closed = alone.start(memory_kept).result()
    assert at_once < 90  # of 160
    assert idle < 15
    assert closed < 15


def test_memory_of_large_messages_is_still_used_again() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        places = set()
        for _ in range(8):
            sending = threading.Thread(target=writer.send, args=(np.zeros(20 * MIB, "u1"), SECONDS))
            sending.start()
            got = reader.recv(SECONDS)
            sending.join()
            places.add(got.ctypes.data)
            del got
    assert len(places) <= 2


def faults_of_many_frames() -> int:
    """Return the page faults of 50 messages of 20 arrays, each held until the next is there."""
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        sent = [np.zeros(100 * 1024, "u1") for _ in range(20)]
        held = before = None
        for i in range(60):
            if i == 10:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            writer.send(sent, SECONDS)
            held = reader.recv(SECONDS)
        assert held is not None
        assert before is not None
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_of_many_frames_is_used_again() -> None:
    with confined.process() as alone:
        assert alone.start(faults_of_many_frames).result() < 50 * 20  # of 50 * 500


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_more_views_than_a_process_may_have_mappings_arrive(kind: str) -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit > 70_000:
        pytest.skip(f"vm.max_map_count is {limit} here")
    count = limit + 1000
    with Writer(1, arena_bytes=512 * MIB) as writer, Reader(writer.handle, 0) as reader:
        loan: Any
        if kind == "array":
            loan = writer.empty((count, 4096), "u1")
        else:
            loan = writer.empty_tensor((count, 4096), torch.uint8)
        loan[:, 0] = 7
        writer.send([*loan], SECONDS)
        got = reader.recv(SECONDS, copy=False)
        assert len(got) == count
        assert all(int(part[0]) == 7 for part in got[:: count // 100])
        if kind == "tensor":
            got[-1][0] = 9
            assert int(loan[-1, 0]) == 7
        writer.send("the next")
        assert reader.recv(SECONDS) == "the next"


def test_a_writer_that_lingers_waits_for_its_readers() -> None:
    writer = Writer(1, linger=SECONDS)
    writer.send("early")
    closing = threading.Thread(target=writer.close)
    closing.start()
    with Reader(writer.handle, 0) as reader:
        closing.join(SECONDS)
        assert not closing.is_alive()
        assert reader.recv(SECONDS) == "early"
        with pytest.raises(shmcast.Closed):
            reader.recv(SECONDS)


def test_a_linger_that_ends_says_what_is_lost() -> None:
    writer = Writer(2, linger=0.01)
    writer.send("early")
    with (
        Reader(writer.handle, 0),
        pytest.warns(shmcast.ShmcastWarning, match="1 of 2 readers.*: 1 messages are lost"),
    ):
        writer.close()
    with pytest.raises(shmcast.SegmentNotFound):
        Reader(writer.handle, 1)


def test_nobody_lingers_for_nothing() -> None:
    Writer(1, linger=3600).close()  # nothing was sent
    writer = Writer(1)
    writer.send("early")
    writer.close()  # the default
    with pytest.raises(shmcast.SegmentNotFound):
        Reader(writer.handle, 0)


@pytest.mark.parametrize("linger", [-1, float("nan"), float("inf"), "1", None])
def test_a_linger_that_is_no_time_is_refused_by_value(linger: float) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=f"writer: linger={linger!r}"):
        Writer(1, linger=linger)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_memory_is_given_back_when_all_have_closed_whoever_has_their_objects(first: int) -> None:
    writer = Writer(2, spill_bytes=0)
    readers = [Reader(writer.handle, index) for index in range(2)]
    ends: list[Writer | Reader] = [writer, *readers]
    fd = os.open(f"/proc/self/fd/{writer.handle.holder[1]}", os.O_RDONLY)
    try:
        for _ in range(300):
            writer.send(b"x" * 20_000)
            for reader in readers:
                reader.recv(10)
        before = taken(fd)
        assert before > 256 * 16_384
        for end in (*ends[first:], *ends[:first]):
            assert taken(fd) == before
            end.close()
        assert taken(fd) < before / 10
        assert [end.statistics().messages for end in ends] == [300] * 3
    finally:
        os.close(fd)


def test_what_somebody_may_still_receive_is_not_given_back() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for number in range(200):
            writer.send([number, "x" * 10_000])
        writer.close()
        assert [reader.recv(10)[0] for _ in range(200)] == [*range(200)]


def taken(fd: int) -> int:
    """Return the bytes of memory that a file takes."""
    return os.fstat(fd).st_blocks * 512
