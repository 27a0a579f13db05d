"""`send` does not wait for busy readers while there is memory: what they hold up is spilled."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Reader, Writer
from tests.support import confined, spill_roles
from tests.support.arena_roles import LARGE, MIB, SECONDS, filled
from tests.support.permissions import needs_mounts, needs_root
from tests.support.processes import Crew, Worker
from tests.support.spill_roles import blocks
from tests.support.subprocess_programs import wait_until


@pytest.fixture
def alone() -> Iterator[Worker]:
    with confined.process() as worker:
        yield worker


def large_objects() -> dict[str, Any]:
    return {
        "an array": np.arange(2 * MIB, dtype=np.int32),
        "a tensor": torch.arange(MIB),
        "bytes": bytes(range(256)) * (20 * 4096),
        "a large pickle": {str(k): [k, float(k), (k,)] for k in range(50_000)},
        "many arrays": [filled(LARGE // 2, k) for k in range(40)],
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | torch.Tensor):
        return bool((one == other).all())
    return bool(one == other)


@pytest.mark.parametrize("timeout", [None, SECONDS, 0])
def test_no_large_message_waits_for_a_reader_that_does_not_look(timeout: float | None) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        sent = large_objects()
        for obj in sent.values():
            writer.send(obj, timeout)
        assert writer.statistics().spilled == len(sent)
        assert writer.statistics().spill_full == 0
        for what, obj in sent.items():
            assert same(reader.recv(0), obj), what
        assert reader.statistics().messages == len(sent)


def test_small_messages_find_slots_behind_large_ones() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for k in range(5):
            writer.send(filled(8 * MIB, k), 0)
            writer.send(k, 0)
        for k in range(5):
            assert np.array_equal(reader.recv(0), filled(8 * MIB, k))
            assert reader.recv(0) == k


def test_when_every_slot_is_taken_send_waits_all_the_same() -> None:
    with Writer(1, slots=4) as writer, Reader(writer.handle, 0) as reader:
        for k in range(4):
            writer.send(k)
        with pytest.raises(shmcast.Timeout, match="the ring of 4 slots is full"):
            writer.send(filled(MIB), 0)
        assert writer.statistics().spilled == 0
        assert reader.recv(0) == 0
        with pytest.raises(shmcast.Timeout):  # its first fragment has the only slot
            writer.send(filled(MIB), 0)
        assert [reader.recv(0) for _ in range(3)] == [1, 2, 3]
        writer.send(filled(MIB, 3), 0)
        assert np.array_equal(reader.recv(0), filled(MIB, 3))


def test_it_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCAST_SPILL_BYTES", "0")
    forbidden = Writer(1)
    monkeypatch.delenv("SHMCAST_SPILL_BYTES")
    for writer in (forbidden, Writer(1, spill_bytes=0)):
        with writer, Reader(writer.handle, 0):
            assert writer.handle.spill_bytes == 0
            with pytest.raises(shmcast.Timeout):
                writer.send(filled(8 * MIB), 0)
            assert writer.statistics().spilled == writer.statistics().spill_full == 0


def test_what_does_not_fit_waits_and_is_counted() -> None:
    with Writer(1, spill_bytes=6 * MIB) as writer, Reader(writer.handle, 0) as reader:
        writer.send(filled(4 * MIB, 1), 0)
        with pytest.raises(shmcast.Timeout):
            writer.send(filled(8 * MIB), 0)
        assert (writer.statistics().spilled, writer.statistics().spill_full) == (1, 1)
        assert np.array_equal(reader.recv(0), filled(4 * MIB, 1))
        with pytest.raises(shmcast.Timeout):
            reader.recv(0)
        for k in range(20):  # the same memory, again and again
            writer.send(filled(6 * MIB, k), 0)
            assert np.array_equal(reader.recv(0), filled(6 * MIB, k))
        assert writer.statistics().spill_reserved_bytes <= 6 * MIB


def test_memory_is_taken_when_it_is_needed() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        before = blocks(writer)
        for _ in range(100):
            writer.send(b"small")
            reader.recv(0)
        assert blocks(writer) == before
        assert writer.statistics().spill_reserved_bytes == 0
        writer.send(filled(16 * MIB))
        taken = writer.statistics().spill_reserved_bytes
        assert blocks(writer) == before + taken
        assert 12 * MIB <= taken <= 16 * MIB


def test_warm_takes_a_little_memory_for_who_sends_large_messages() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for _ in range(3):
            writer.send("small")
            writer.warm()
            reader.recv(0)
        assert writer.statistics().spill_reserved_bytes == 0
        writer.send(filled(MIB))  # fits the ring
        assert np.array_equal(reader.recv(0), filled(MIB))
        assert writer.statistics().spill_reserved_bytes == 0
        writer.warm()
        assert writer.statistics().spill_reserved_bytes == 4 * MIB
        writer.send(filled(64 * MIB))
        reader.recv(0)
        taken = writer.statistics().spill_reserved_bytes
        writer.warm()
        assert writer.statistics().spill_reserved_bytes == taken
    with Writer(1, spill_bytes=0) as writer, Reader(writer.handle, 0) as reader:
        writer.send(filled(MIB))
        writer.warm()
        reader.recv(0)
        assert writer.statistics().spill_reserved_bytes == 0


@pytest.mark.parametrize("nbytes", [-1, 1.5, True])
def test_what_is_no_number_of_bytes_is_refused(nbytes: Any) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=f"spill_bytes={nbytes}"):
        Writer(1, spill_bytes=nbytes)


# With the arena


def test_frames_go_to_the_arena_and_what_finds_no_room_there_is_spilled() -> None:
    with Writer(1, arena_bytes=4 * MIB) as writer, Reader(writer.handle, 0) as reader:
        first, second = filled(3 * MIB, 1), filled(7 * MIB, 2)
        writer.send(first, 0)
        writer.send(second, 0)
        assert (writer.statistics().arena_frames, writer.statistics().arena_full) == (1, 1)
        assert writer.statistics().spilled == 1
        view = reader.recv(0, copy=False)
        assert not view.flags.writeable
        copy = reader.recv(0, copy=False)
        assert copy.flags.writeable  # its own memory: nothing else may be kept from being used
        for k in range(3):
            writer.send(filled(7 * MIB, k), 0)
            assert np.array_equal(reader.recv(0), filled(7 * MIB, k))
        assert np.array_equal(view, first)
        assert np.array_equal(copy, second)


# Ends


def test_a_reader_receives_what_was_spilled_after_the_writer_has_closed() -> None:
    writer = Writer(1)
    with Reader(writer.handle, 0) as reader:
        for k in range(3):
            writer.send(filled(4 * MIB, k), 0)
        writer.close()
        del writer
        for k in range(3):
            assert np.array_equal(reader.recv(0), filled(4 * MIB, k))
        with pytest.raises(shmcast.Closed):
            reader.recv(0)


def test_a_reader_receives_what_was_spilled_after_the_writer_has_died(
    crew: Crew, tmp_path: Path
) -> None:
    path = tmp_path / "handle"
    job = crew.workers[0].start(spill_roles.spill_and_die, 0, path)
    wait_until(path.exists)
    with Reader(pickle.loads(path.read_bytes()), 0) as reader:  # noqa: S301
        wait_until(lambda: reader._end.tensor_sets()[1] == 1)
        job.kill()
        for k in range(3):
            assert np.array_equal(reader.recv(SECONDS), filled(4 * MIB, k))
        with pytest.raises(shmcast.PeerDied):
            reader.recv(SECONDS)


def test_the_others_go_on_without_a_reader_that_dies_with_spilled_messages_unread(
    crew: Crew,
) -> None:
    with (
        Writer(2, slots=8, on_reader_death="drop", spill_bytes=64 * MIB) as writer,
        Reader(writer.handle, 1) as other,
    ):
        job = crew.workers[0].start(spill_roles.hold_on, 0, writer.handle)
        wait_until(lambda: writer._end.tensor_sets()[0] == 1)
        for k in range(2):
            writer.send(filled(16 * MIB, k), SECONDS)
            assert np.array_equal(other.recv(SECONDS), filled(16 * MIB, k))
        assert writer.statistics().spilled == 2
        job.kill()
        wait_until(lambda: other.statistics().messages == 2)
        for k in range(20):  # more than there is room for
            writer.send(filled(32 * MIB, k), SECONDS)
            assert np.array_equal(other.recv(SECONDS), filled(32 * MIB, k))
        assert [*writer.dropped] == [0]
        with Reader(writer.handle, 0, rejoin=True) as again:
            for k in range(2):
                writer.send(filled(8 * MIB, k), SECONDS)
            for reader in (again, other):
                for k in range(2):
                    assert np.array_equal(reader.recv(SECONDS), filled(8 * MIB, k))


def test_four_readers_get_all_of_it(crew: Crew) -> None:
    with Writer(4) as writer:
        jobs = crew.start(4, spill_roles.receive_all, writer.handle)
        writer.wait_ready(SECONDS)
        sizes = [MIB, 5 * MIB, 3 * LARGE, 9 * MIB + 1, 12] * 6
        for k, nbytes in enumerate(sizes):
            writer.send(filled(nbytes, k + 1), SECONDS)
        writer.close()
        for job in jobs:
            assert job.result() == [nbytes * (k + 1) for k, nbytes in enumerate(sizes)]


# What the system refuses


def test_a_reader_that_cannot_map_it_is_waited_for(alone: Worker) -> None:
    with Writer(1) as writer:
        job = alone.start(spill_roles.receive_with_few_addresses, 0, writer.handle)
        writer.wait_ready(SECONDS)
        writer.send(filled(32 * MIB, 3), SECONDS)
        assert job.result() == 3 * 32 * MIB
        assert writer.statistics().spilled == 0
        assert writer.statistics().spill_reserved_bytes == 0


@pytest.mark.parametrize(
    "role", [spill_roles.write_with_few_addresses, spill_roles.write_small_files]
)
def test_a_writer_that_cannot_have_it_does_without(alone: Worker, role: Any) -> None:
    assert alone.start(role).result() == (0, True)


@needs_root
def test_it_takes_no_memory_in_a_program_that_locks_its_memory(alone: Worker) -> None:
    taken = alone.start(spill_roles.lock_all_memory).result()
    if taken is None:
        pytest.skip("this user may not lock so much memory")
    with Writer(1) as writer:
        assert taken == blocks(writer)


@needs_mounts
def test_in_a_small_shared_memory_others_keep_half_of_it(alone: Worker) -> None:
    sums, spilled, most = alone.start(spill_roles.spill_in_small_memory, 64 * MIB).result()
    assert sums == [4 * MIB * k for k in range(20)]
    assert spilled > 2
    assert most <= 40 * MIB


def test_a_cgroups_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from shmcast._host import shared_memory

    left = 20 * MIB
    monkeypatch.setattr(shared_memory, "_arena_room", lambda: lambda: left)
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        with pytest.raises(shmcast.Timeout):
            writer.send(filled(16 * MIB), 0)
        assert writer.statistics().spill_full == 1
        assert writer.statistics().spill_reserved_bytes == 0
        with pytest.raises(shmcast.Timeout):
            reader.recv(0)
        writer.send(filled(8 * MIB, 2), 0)
        assert writer.statistics().spilled == 1
        assert np.array_equal(reader.recv(0), filled(8 * MIB, 2))


def test_an_error_while_looking_for_memory_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from shmcast._host import shared_memory

    def room() -> int:
        raise KeyboardInterrupt  # as a signal's handler may, in whatever runs

    monkeypatch.setattr(shared_memory, "_arena_room", lambda: room)
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt) as caught:
                writer.send(filled(16 * MIB))
            if sys.version_info >= (3, 11):
                assert "has sent nothing" in caught.value.__notes__[0]
            assert not writer.was_sent
            with pytest.raises(shmcast.Timeout):
                reader.recv(0)
        writer.send("goes on")
        assert reader.recv(0) == "goes on"


def test_a_fork_gives_nothing_back() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send(filled(4 * MIB, 5), 0)
        before = blocks(writer)
        pid = os.fork()
        if pid == 0:
            try:
                writer.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert blocks(writer) == before
        assert np.array_equal(reader.recv(0), filled(4 * MIB, 5))
