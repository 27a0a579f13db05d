"""Large buffers lie in the arena: nobody's view ever changes, and nothing is lost of the memory."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shmcast
from shmcast import Reader, Writer
from tests.support import arena_roles
from tests.support.arena import EXTENTS, PAGE, address, check_whole
from tests.support.arena_roles import ARENA, LARGE, MIB, SECONDS, Array, Held, filled
from tests.support.permissions import needs_mounts
from tests.support.processes import Crew

# Which buffers, and where


@pytest.mark.parametrize(("nbytes", "frames"), [(LARGE - 1, 0), (LARGE, 1), (LARGE + 1, 1)])
@pytest.mark.parametrize("copy", [True, False])
def test_buffers_of_256_kib_and_more_lie_in_the_arena(
    writer: Writer, reader: Reader, nbytes: int, frames: int, copy: bool
) -> None:
    sent = np.arange(nbytes, dtype=np.uint8)
    writer.send({"a": sent, "b": b"x" * LARGE, "c": "text"})
    got = reader.recv(SECONDS, copy)
    assert np.array_equal(got["a"], sent)
    assert (got["b"], got["c"]) == (b"x" * LARGE, "text")
    in_arena = writer.statistics().arena_frames
    assert in_arena == reader.statistics().arena_frames
    assert in_arena == writer.statistics().readers[0].arena_frames
    assert in_arena == frames + (in_arena > frames)  # the pickle, too, where it is a large frame
    assert got["a"].flags.writeable is (copy or not frames)
    assert writer.statistics().arena_full == 0


def test_without_an_arena_all_is_streamed_and_owned() -> None:
    with Writer(1, slots=64) as writer, Reader(writer.handle, 0) as reader:
        assert writer.handle.arena is None
        writer.send([filled(MIB), torch.ones(MIB)[:LARGE]])
        array, tensor = reader.recv(SECONDS, copy=False)
        assert array.flags.writeable
        tensor += 1
        figures = writer.statistics()
        assert (figures.arena_frames, figures.arena_full, figures.arena_reserved_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    "arena_bytes", [-1, 1, LARGE - 1, 2**40, 1.5, "64 MiB", None, True], ids=repr
)
def test_an_arena_that_cannot_be_is_refused_by_name(arena_bytes: Any) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="arena_bytes="):
        Writer(1, arena_bytes=arena_bytes)


@pytest.mark.parametrize("arena_bytes", [LARGE, LARGE + 1, LARGE + PAGE - 1, LARGE + PAGE])
def test_an_arena_of_any_size_holds_what_fits_and_no_more(arena_bytes: int) -> None:
    with Writer(1, arena_bytes=arena_bytes) as writer, Reader(writer.handle, 0) as reader:
        assert writer.handle.arena is not None
        assert os.fstat(writer.handle.arena.fd).st_size <= arena_bytes
        check_whole(writer, reader)
        writer.send(filled(arena_bytes // PAGE * PAGE + 1))
        assert len(reader.recv(SECONDS)) == arena_bytes // PAGE * PAGE + 1
        assert writer.statistics().arena_full == 1


def test_the_handle_stays_small(writer: Writer) -> None:
    assert len(pickle.dumps(writer.handle)) < 500
    assert pickle.loads(pickle.dumps(writer.handle)) == writer.handle  # noqa: S301


def test_the_lowest_memory_that_was_used_before_is_used_again(
    writer: Writer, reader: Reader
) -> None:
    def send_and_receive(nbytes: int) -> Array:
        writer.send(filled(nbytes))
        got: Array = reader.recv(SECONDS, copy=False)
        return got

    first = send_and_receive(MIB)
    base = address(first)
    second = send_and_receive(MIB)
    assert address(second) == base + MIB
    for _ in range(3):
        assert address(send_and_receive(2 * MIB)) == base + 2 * MIB
    del first
    assert address(send_and_receive(MIB + 1)) == base + 2 * MIB  # too large for the gap
    for _ in range(3):
        assert address(send_and_receive(MIB)) == base
    third = send_and_receive(LARGE)
    assert address(third) == base
    assert address(send_and_receive(LARGE)) == base + LARGE
    del second
    assert address(send_and_receive(3 * MIB)) == base + LARGE


def test_memory_is_taken_in_steps_and_never_above_the_bound() -> None:
    bound = 10 * MIB
    with Writer(1, arena_bytes=bound) as writer, Reader(writer.handle, 0) as reader:
        assert writer.handle.arena is not None
        fd = writer.handle.arena.fd

        def taken() -> int:
            used = os.fstat(fd).st_blocks * 512
            assert used == writer.statistics().arena_reserved_bytes
            return used

        assert taken() == 0
        kept = []
        steps = []
        for k in range(12):
            writer.send(torch.full((MIB,), k, dtype=torch.uint8))
            kept.append(reader.recv(SECONDS, copy=False))
            kept[-1] += 1  # its own pages, not the arena's
            steps.append(taken())
        assert steps == [4 * MIB] * 4 + [8 * MIB] * 4 + [bound] * 4
        assert writer.statistics().arena_full == 2
        kept.clear()
        check_whole(writer, reader)
        assert taken() == bound


# Sizes and orders of release by lot


steps = st.lists(
    st.one_of(
        st.integers(LARGE, 2 * MIB),  # send so many bytes
        st.integers(-20, -1),  # drop the one of that number
    ),
    min_size=5,
    max_size=30,
)


def space(array: Array) -> tuple[int, int]:
    """Return where its extent begins and ends."""
    begin = address(array)
    return begin, begin + -(-len(array) // PAGE) * PAGE


def largest_gap(spaces: list[tuple[int, int]], base: int) -> int:
    """Check that they lie in the arena and apart; return the largest gap between them."""
    at, largest = base, 0
    for begin, end in [*sorted(spaces), (base + ARENA, base + ARENA)]:
        assert begin % PAGE == 0
        assert at <= begin <= end
        largest = max(largest, begin - at)
        at = end
    return largest


def play(steps: list[int], writer: Writer, reader: Reader) -> None:
    writer.send(filled(LARGE))
    base = address(reader.recv(SECONDS, copy=False))  # where the lowest extent lies
    held: list[Held] = []
    for value, step in enumerate(steps, 1):
        if step < 0:
            if held:
                held.pop(step % len(held))
            continue
        room = largest_gap([space(one.array) for one in held], base)
        writer.send(filled(step, value))
        array = reader.recv(SECONDS, copy=False)
        assert np.array_equal(array, filled(step, value))
        assert array.flags.writeable is (room < step)  # streamed if, and only if, it must be
        if not array.flags.writeable:
            held.append(Held(array, value))
        del array
    largest_gap([space(one.array) for one in held], base)
    for one in held:
        one.check()


@settings(max_examples=40)
@given(steps=steps)
def test_views_never_overlap_never_change_and_leave_one_free_extent(steps: list[int]) -> None:
    with Writer(1, arena_bytes=ARENA) as writer, Reader(writer.handle, 0) as reader:
        play(steps, writer, reader)
        check_whole(writer, reader)


# No room


def test_what_finds_no_room_because_of_views_is_streamed_and_counted(
    writer: Writer, reader: Reader
) -> None:
    writer.send(filled(3 * MIB))
    view = reader.recv(SECONDS, copy=False)
    writer.send([filled(2 * MIB, 2), filled(MIB, 3)])
    two, three = reader.recv(SECONDS, copy=False)
    assert (two.flags.writeable, three.flags.writeable) == (True, False)
    assert np.array_equal(two, filled(2 * MIB, 2))
    assert np.array_equal(three, filled(MIB, 3))
    figures = writer.statistics()
    assert (figures.arena_frames, figures.arena_full) == (2, 1)
    assert reader.statistics().arena_frames == 2
    assert np.array_equal(view, filled(3 * MIB))


def test_what_is_larger_than_the_arena_is_streamed_and_counted(waiting_writer: Writer) -> None:
    writer, reader = waiting_writer, Reader(waiting_writer.handle, 0)
    writer.send(filled(ARENA - PAGE))
    assert len(reader.recv(SECONDS)) == ARENA - PAGE
    for k in range(1, 4):
        sent = filled(ARENA + 1)
        with pytest.raises(shmcast.Timeout):  # the ring is as large: nobody reads
            writer.send(sent, 0)
        assert writer.statistics().arena_full == k
    with Writer(1, slots=128, arena_bytes=ARENA) as roomy, Reader(roomy.handle, 0) as other:
        roomy.send(sent)
        assert np.array_equal(other.recv(SECONDS, copy=False), sent)
        assert roomy.statistics().arena_full == 1
        check_whole(roomy, other)
    reader.close()


def test_there_are_256_extents_and_no_more(reader: Reader, writer: Writer) -> None:
    loans = [writer.empty(1, np.uint8) for _ in range(EXTENTS)]
    assert writer.statistics().arena_full == 0
    writer.send(filled(LARGE, 5))
    assert np.array_equal(reader.recv(SECONDS, copy=False), filled(LARGE, 5))
    assert writer.statistics().arena_full == 1
    loans.pop()
    writer.send(filled(LARGE, 6))
    assert not reader.recv(SECONDS, copy=False).flags.writeable
    assert writer.statistics().arena_full == 1
    loans.clear()
    check_whole(writer, reader)


def in_small_shared_memory(role: Callable[..., Any], *args: Any) -> Any:
    """Return what a role returns that has a /dev/shm of its own."""
    with Crew(1) as crew:
        return crew.run(1, role, *args)[0]


@needs_mounts
def test_a_full_shared_memory_means_streaming_and_no_crash() -> None:
    in_arena, full_again, _ = in_small_shared_memory(arena_roles.fill_shared_memory)
    assert 8 <= in_arena < 12  # the ring has more than 4 MiB of the 16
    assert full_again == 0


@needs_mounts
@pytest.mark.parametrize("arena_bytes", [0, 48 * MIB, 1024 * MIB])
def test_arrays_larger_than_shared_memory_arrive_and_the_arena_stays_within_its_bound(
    arena_bytes: int,
) -> None:
    sums, most_arena, most_shm = in_small_shared_memory(arena_roles.pass_large_arrays, arena_bytes)
    assert sums == [n * (i + 1) for i, n in enumerate(arena_roles.LARGE_ARRAYS)]
    assert most_arena <= arena_bytes
    assert most_shm <= arena_roles.SMALL_SHM
