"""Large buffers lie in the arena: nobody's view ever changes, and nothing is lost of the memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shmcast
from shmcast import Reader, Writer
from shmcast._host import shared_memory as segment
from tests.support import arena_roles
from tests.support.arena_roles import ARENA, KIB, LARGE, MIB, SECONDS, Array, Held, RawCodec, filled
from tests.support.objects import DTYPES, describe
from tests.support.objects import tensor as make_tensor
from tests.support.processes import Crew, WorkerFailed, results
from tests.support.shared_memory import needs_root
from tests.support.subprocess_programs import run_to_its_end, wait_until

PAGE = 4 * KIB
EXTENTS = 256


def address(array: Any) -> int:
    if isinstance(array, torch.Tensor):
        return array.data_ptr()
    return int(array.__array_interface__["data"][0])


def is_free(writer: Writer) -> bool:
    """Whether the whole arena is one free extent."""
    assert writer.handle.arena is not None
    before = writer.statistics().arena_full
    writer.empty(writer.handle.arena.nbytes, np.uint8)
    return writer.statistics().arena_full == before


def check_whole(writer: Writer, *readers: Reader) -> None:
    """Sends as much as the arena holds."""
    assert writer.handle.arena is not None
    assert is_free(writer)
    before = writer.statistics()
    sent = filled(writer.handle.arena.nbytes, 77)
    writer.send(sent, SECONDS)
    for reader in readers:
        assert np.array_equal(reader.recv(SECONDS, copy=False), sent)
    after = writer.statistics()
    assert (after.arena_full, after.arena_frames) == (before.arena_full, before.arena_frames + 1)


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer(1, arena_bytes=ARENA) as writer:
        yield writer


@pytest.fixture
def reader(writer: Writer) -> Iterator[Reader]:
    with Reader(writer.handle, 0) as reader:
        yield reader


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
    """Where its extent begins and ends."""
    begin = address(array)
    return begin, begin + -(-len(array) // PAGE) * PAGE


def largest_gap(spaces: list[tuple[int, int]], base: int) -> int:
    """Checks that they lie in the arena and apart; the most that is free between them."""
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


@settings(max_examples=40, deadline=None)
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


def test_what_is_larger_than_the_arena_is_streamed_and_counted(
    writer: Writer, reader: Reader
) -> None:
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
    """What a role returns that has a /dev/shm of its own."""
    with Crew(1) as crew:
        try:
            (result,) = crew.run(1, role, *args)
        except WorkerFailed as error:
            if "can't make a mount namespace" in str(error):
                pytest.skip("this container may not make mount namespaces")
            raise
    return result


@needs_root
def test_a_full_shared_memory_means_streaming_and_no_crash() -> None:
    in_arena, full_again, _ = in_small_shared_memory(arena_roles.fill_shared_memory)
    assert 8 <= in_arena < 12  # the ring has more than 4 MiB of the 16
    assert full_again == 0


@needs_root
@pytest.mark.parametrize("arena_bytes", [0, 48 * MIB, 1024 * MIB])
def test_arrays_larger_than_shared_memory_arrive_and_the_arena_stays_within_its_bound(
    arena_bytes: int,
) -> None:
    sums, most_arena, most_shm = in_small_shared_memory(arena_roles.pass_large_arrays, arena_bytes)
    assert sums == [n * (i + 1) for i, n in enumerate(arena_roles.LARGE_ARRAYS)]
    assert most_arena <= arena_bytes
    assert most_shm <= arena_roles.SMALL_SHM


# What arrives


ARRAYS: dict[str, Callable[[], Array]] = {
    "floats": lambda: np.arange(LARGE, dtype=np.float64),
    "big-endian": lambda: np.arange(LARGE, dtype=">i4"),
    "datetimes": lambda: np.arange(LARGE).astype("datetime64[ms]"),
    "structured": lambda: np.ones(LARGE, [("id", "<u4"), ("x", "<f2", (3,)), ("when", "<M8[s]")]),
    "strings": lambda: np.array(["grüß", "dich"] * LARGE),
    "bytes": lambda: np.full(LARGE, b"ab"),
    "bools": lambda: np.ones(LARGE, np.bool_),
    "complex": lambda: np.full((512, 512), 1 + 2j),
    "F order": lambda: np.asfortranarray(np.arange(MIB).reshape(1024, -1)),
    "transposed": lambda: np.arange(MIB, dtype=np.int32).reshape(64, 32, -1).transpose(2, 1, 0),
    "strided": lambda: np.arange(4 * LARGE).reshape(1024, -1)[::2, 1::3],
    "backwards": lambda: np.arange(LARGE)[::-1],
    "read-only": lambda: np.frombuffer(bytes(range(256)) * 1024, np.uint8),
    "0-dim": lambda: np.array("x" * LARGE),
    "one element of 1 MiB": lambda: np.zeros((1, 1), "V1048576"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_arrive_as_read_only_views(kind: str) -> None:
    sent = ARRAYS[kind]()
    with Writer(1, arena_bytes=64 * MIB) as writer, Reader(writer.handle, 0) as reader:
        writer.send([sent, np.empty((0, 3), sent.dtype)])
        got, empty = reader.recv(SECONDS, copy=False)
        assert reader.statistics().arena_frames == 1
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert got.tobytes() == sent.tobytes()
        assert (empty.shape, empty.dtype) == ((0, 3), sent.dtype)
        assert not got.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            got.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            got[...] = got
        assert got.flags.aligned or sent.dtype.type is np.void
        writer.send(sent)
        copied = reader.recv(SECONDS)
        copied[...] = copied
        assert copied.tobytes() == sent.tobytes()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        *((dtype, "contiguous") for dtype in DTYPES),
        *((torch.bfloat16, layout) for layout in ("transposed", "channels last", "strided")),
    ],
    ids=str,
)
def test_tensors_of_every_dtype_and_layout_arrive_as_views(
    writer: Writer, reader: Reader, dtype: torch.dtype, layout: str
) -> None:
    sent = make_tensor(dtype, (32, 16, 16, 32), layout)
    writer.send({"a": sent, "empty": sent[:0], "0-dim": sent[0, 0, 0, 0]})
    got = reader.recv(SECONDS, copy=False)
    assert reader.statistics().arena_frames == (sent.nbytes >= LARGE)
    assert describe(got["a"]) == describe(sent)
    assert describe(got["0-dim"]) == describe(sent[0, 0, 0, 0])
    assert got["empty"].shape == sent[:0].shape
    assert got["a"].stride() == (sent.stride() if layout != "strided" else got["a"].stride())
    got["a"].zero_()  # it may be written to


def test_tensors_that_want_a_gradient_and_parameters_arrive_as_views(
    writer: Writer, reader: Reader
) -> None:
    sent = torch.nn.Parameter(torch.arange(float(LARGE)))
    writer.send([sent, torch.ones(LARGE, requires_grad=True)])
    parameter, leaf = reader.recv(SECONDS, copy=False)
    assert reader.statistics().arena_frames == 2
    assert isinstance(parameter, torch.nn.Parameter)
    assert leaf.requires_grad
    (parameter * leaf).sum().backward()
    assert torch.equal(leaf.grad, sent.detach())


def test_pickle_buffers_arrive_as_read_only_memory(writer: Writer, reader: Reader) -> None:
    writer.send([pickle.PickleBuffer(bytearray(b"ab" * MIB)), pickle.PickleBuffer(b"c" * MIB)])
    one, two = reader.recv(SECONDS, copy=False)
    assert reader.statistics().arena_frames == 2
    for got, sent in ((one, b"ab" * MIB), (two, b"c" * MIB)):
        assert isinstance(got, memoryview)
        assert got.readonly
        assert got == sent


# Who writes to a tensor


def test_what_a_reader_writes_to_a_tensor_nobody_else_sees() -> None:
    with (
        Writer(2, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0) as reader,
        Reader(writer.handle, 1) as other,
    ):
        loan = writer.empty_tensor(MIB, torch.uint8)
        loan.fill_(7)
        writer.send([loan, filled(MIB, 8)])
        mine, array = reader.recv(SECONDS, copy=False)
        theirs, their_array = other.recv(SECONDS, copy=False)
        mine[: MIB // 2] = 1
        mine[-1] = 2
        assert int(mine[0]) == 1
        assert int(mine[MIB // 2]) == 7
        theirs.fill_(3)
        assert int(mine[-1]) == 2
        assert torch.all(loan == 7)
        assert np.array_equal(array, filled(MIB, 8))
        assert np.array_equal(their_array, filled(MIB, 8))
        place = loan.data_ptr()
        del mine, theirs, loan
        again = writer.empty_tensor(MIB, torch.uint8)  # later messages in the same extent
        assert again.data_ptr() == place
        assert torch.all(again == 7)
        again[0] = 9
        writer.send(again)
        for one in (reader, other):
            got = one.recv(SECONDS, copy=False)
            assert int(got[0]) == 9
            assert torch.all(got[1:] == 7)


def test_what_was_written_to_a_tensor_stays_while_it_is_kept(
    writer: Writer, reader: Reader
) -> None:
    kept = []
    for k in range(3):
        writer.send(torch.full((MIB,), k, dtype=torch.uint8))
        kept.append(reader.recv(SECONDS, copy=False))
        kept[-1][::2] = 100 + k
    for k, tensor in enumerate(kept):
        assert torch.all(tensor[::2] == 100 + k)
        assert torch.all(tensor[1::2] == k)


# When an extent is free


def failing() -> NoReturn:
    raise RuntimeError("not to be rebuilt")


class Failing:
    def __reduce__(self) -> Any:
        return failing, ()


@dataclass
class Nested:
    parts: dict[str, Any]
    itself: Any = None


USES: dict[str, Callable[[Any], Any]] = {
    "the array": lambda got: got["array"],
    "a slice": lambda got: got["array"][5:6],
    "a reshaped view": lambda got: got["array"].reshape(2, -1).T,
    "a view of another dtype": lambda got: got["array"].view(np.float32),
    "one row of a view of a view": lambda got: got["array"].reshape(4, -1)[1:][2][::-1],
    "a memoryview": lambda got: memoryview(got["array"]),
    "a slice of a memoryview": lambda got: memoryview(got["array"])[3:4],
    "a pickle buffer": lambda got: pickle.PickleBuffer(got["array"]),
    "an iterator": lambda got: iter(got["array"]),
    "a bound method": lambda got: got["array"].sum,
    "nested objects": lambda got: Nested({"x": [(got["array"],)]}),
    "the whole message": lambda got: got,
    "the tensor": lambda got: got["tensor"],
    "a tensor's view": lambda got: got["tensor"].view(2, -1)[1, 3:],
    "a detached tensor": lambda got: got["tensor"].detach()[:1],
    "a tensor's storage": lambda got: got["tensor"].untyped_storage(),
    "a tensor's array": lambda got: got["tensor"].numpy()[1:],
    "a tensor of the array": lambda got: torch.asarray(got["array"], copy=None)[1:],
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("use", USES)
def test_an_extent_is_used_again_when_its_last_view_is_gone_in_every_reader(use: str) -> None:
    with (
        Writer(2, arena_bytes=2 * MIB) as writer,
        Reader(writer.handle, 0) as one,
        Reader(writer.handle, 1) as two,
    ):
        for _ in range(3):
            message = {"array": filled(MIB), "tensor": torch.ones(MIB, dtype=torch.uint8)}
            writer.send(message)
            assert not is_free(writer)  # nobody has received it
            kept = USES[use](one.recv(SECONDS, copy=False))
            assert not is_free(writer)
            also_kept = USES[use](two.recv(SECONDS, copy=False))
            assert not is_free(writer)
            del kept
            assert not is_free(writer)
            del also_kept
            assert is_free(writer)
        check_whole(writer, one, two)


@pytest.mark.usefixtures("no_gc")
def test_a_message_that_cannot_be_decoded_frees_its_extents(writer: Writer, reader: Reader) -> None:
    for copy in (False, True):
        writer.send([filled(MIB), torch.ones(LARGE), Failing(), filled(MIB)])
        with pytest.raises(shmcast.DecodeError, match="not to be rebuilt"):
            reader.recv(SECONDS, copy)
        assert is_free(writer)
    check_whole(writer, reader)


@pytest.mark.usefixtures("no_gc")
def test_a_copy_is_owned_and_its_extent_free(writer: Writer, reader: Reader) -> None:
    kept = []
    for k in range(10):
        writer.send([filled(2 * MIB, k), torch.full((MIB,), k, dtype=torch.uint8)])
        kept.append(reader.recv(SECONDS))
        assert is_free(writer)
    for k, (array, tensor) in enumerate(kept):
        assert array.flags.writeable
        assert np.array_equal(array, filled(2 * MIB, k))
        assert torch.all(tensor == k)


def test_a_message_waits_in_the_arena_until_it_is_received(writer: Writer, reader: Reader) -> None:
    for k in range(6):  # the last two are streamed
        writer.send(filled(MIB, k))
    for k in range(6):
        assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, k))
    assert writer.statistics().arena_full == 2
    assert is_free(writer)


def test_small_streamed_and_arena_messages_keep_their_order(writer: Writer, reader: Reader) -> None:
    kept = []
    for k in range(60):
        sent: Any = (k, filled((0, 10, 100_000, LARGE, MIB)[k % 5], k))
        writer.send(sent)
        number, array = reader.recv(SECONDS, copy=bool(k % 3))
        assert number == k
        kept.append((number, array))
        if len(kept) > 3:
            kept.pop(0)
        for number, array in kept:
            assert np.array_equal(array, filled(len(array), number))
    assert writer.statistics().arena_frames + writer.statistics().arena_full == 24


# Ends


def test_views_outlive_both_endpoints(no_gc: None) -> None:
    writer = Writer(1, arena_bytes=ARENA)
    reader = Reader(writer.handle, 0)
    writer.send([filled(MIB, 4), torch.full((MIB,), 5, dtype=torch.uint8)])
    array, tensor = reader.recv(SECONDS, copy=False)
    reader.close()
    assert np.array_equal(array, filled(MIB, 4))
    writer.close()
    assert np.array_equal(array, filled(MIB, 4))
    del reader, writer
    assert np.array_equal(array, filled(MIB, 4))
    tensor += 1
    assert torch.all(tensor == 6)


def test_views_of_a_closed_or_collected_reader_are_still_held(no_gc: None) -> None:
    with Writer(2, arena_bytes=ARENA) as writer, Reader(writer.handle, 1) as other:
        reader = Reader(writer.handle, 0)
        writer.send(filled(MIB, 1))
        view = reader.recv(SECONDS, copy=False)
        writer.send(filled(MIB, 2))  # never received there
        reader.close()
        for _ in range(2):
            other.recv(SECONDS)
        assert not is_free(writer)
        assert address(writer.empty(2 * MIB, np.uint8))
        del reader
        assert not is_free(writer)
        for k in range(20):
            writer.send(filled(MIB, k))
            assert np.array_equal(other.recv(SECONDS, copy=False), filled(MIB, k))
            assert np.array_equal(view, filled(MIB, 1))
        del view
        check_whole(writer, other)


def give_up_in_mid_message(writer: Writer, value: int) -> None:
    """A message with an arena frame, and more bytes than the ring holds."""
    with pytest.raises(shmcast.Timeout):
        writer.send([bytes([value % 256]) * LARGE, bytes(10_000)], 0)


def test_abandoned_messages_leak_no_extents() -> None:
    with (
        Writer(1, slots=4, slot_bytes=128, arena_bytes=ARENA, codec=RawCodec()) as writer,
        Reader(writer.handle, 0, codec=RawCodec()) as reader,
    ):
        for k in range(2 * EXTENTS):
            give_up_in_mid_message(writer, k)
            with pytest.raises(shmcast.Timeout):  # some meet it in its midst
                reader.recv(0, copy=False)
            if k % 3 == 0:
                writer.send([b"small", bytes([7]) * LARGE])
                small, large = reader.recv(SECONDS, copy=False)
                assert (bytes(small), bytes(large)) == (b"small", bytes([7]) * LARGE)
                del small, large
        writer.send([b"last"])  # until it comes, the reader may be in the midst of one
        assert [bytes(frame) for frame in reader.recv(SECONDS)] == [b"last"]
        assert writer.statistics().abandoned == 2 * EXTENTS
        assert reader.statistics().abandoned > 0
        assert is_free(writer)
        assert writer.statistics().arena_full == 0


def test_a_reader_that_closes_in_mid_message_holds_nothing() -> None:
    shape: dict[str, Any] = {"slots": 4, "slot_bytes": 128, "arena_bytes": ARENA}
    with (
        Writer(2, codec=RawCodec(), **shape) as writer,
        Reader(writer.handle, 1, codec=RawCodec()) as other,
    ):
        reader = Reader(writer.handle, 0, codec=RawCodec())
        give_up_in_mid_message(writer, 1)
        with pytest.raises(shmcast.Timeout):
            reader.recv(0, copy=False)
        reader.close()
        with pytest.raises(shmcast.Timeout):
            other.recv(0, copy=False)
        writer.send([b"", bytes(LARGE)])
        assert len(other.recv(SECONDS)[1]) == LARGE
        assert is_free(writer)


def test_a_send_that_raises_when_its_message_is_out_keeps_its_extents(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Writer(1, slots=2, slot_bytes=128, arena_bytes=MIB, warn_after=0.0) as writer:
        job = crew.workers[0].start(arena_roles.receive_slowly, 0, writer.handle)
        monkeypatch.setattr(type(writer._watch), "went_on", interrupt)
        sent = 0
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                writer.send([sent, filled(MIB // 4, sent)], SECONDS)
                sent += 1
        monkeypatch.undo()
        for _ in range(4):  # wherever there is room
            sent += 1
            loan = writer.empty(MIB // 4, np.uint8)
            loan[:] = 255
        del loan
        writer.close()
        assert job.result() >= 1


def interrupt(*_args: object) -> NoReturn:
    raise KeyboardInterrupt


# Several processes


def has_said(writer: Writer, index: int, times: int = 1) -> Callable[[], bool]:
    return lambda: writer._tensor_sets()[index] >= times


@pytest.mark.parametrize("on_death", ["raise", "drop"])
def test_what_a_killed_reader_held_is_free(crew: Crew, on_death: Any) -> None:
    with (
        Writer(2, arena_bytes=ARENA, on_reader_death=on_death) as writer,
        Reader(writer.handle, 1) as other,
    ):
        job = crew.workers[0].start(arena_roles.hold, 0, writer.handle, 2)
        writer.wait_ready(SECONDS)
        for k in range(3):  # the last is unread there
            writer.send(filled(MIB, k))
        kept = [other.recv(SECONDS, copy=False) for _ in range(2)]
        other.recv(SECONDS)
        wait_until(has_said(writer, 0))
        kept.clear()
        assert not is_free(writer)
        job.kill()
        wait_until(lambda: is_free(writer))
        if on_death == "drop":
            for _ in range(100):
                check_whole(writer, other)
        else:
            check_whole(writer, other)


def test_a_replacement_holds_what_it_receives_and_its_predecessors_views_are_free(
    crew: Crew,
) -> None:
    with Writer(1, slots=4, arena_bytes=ARENA, on_reader_death="drop") as writer:
        job = crew.workers[0].start(arena_roles.hold, 0, writer.handle, 1)
        for turn in range(3):
            wait_until(lambda: writer._ring.peers()[0].state in ("attached", "rejoining"))
            writer.send(filled(MIB, turn), SECONDS)
            wait_until(has_said(writer, 0, turn + 1))
            assert not is_free(writer)
            job.kill()
            if turn == 1:  # before anybody takes the place, or after
                wait_until(lambda: is_free(writer))
            job = crew.workers[0].start(arena_roles.hold, 0, writer.handle, 1, True)
            wait_until(lambda: writer._ring.peers()[0].state == "rejoining")
        job.kill()
        with Reader(writer.handle, 0, rejoin=True) as reader:
            writer.send(filled(MIB, 9))
            view = reader.recv(SECONDS, copy=False)
            for k in range(10):
                assert not is_free(writer)
                writer.send(filled(LARGE, k))
                assert np.array_equal(reader.recv(SECONDS, copy=False), filled(LARGE, k))
                assert np.array_equal(view, filled(MIB, 9))
            del view
            check_whole(writer, reader)


def test_what_the_dead_held_is_free_even_if_their_replacement_leaves_at_once(crew: Crew) -> None:
    with (
        Writer(2, arena_bytes=ARENA, on_reader_death="drop") as writer,
        Reader(writer.handle, 1) as other,
    ):
        job = crew.workers[0].start(arena_roles.hold, 0, writer.handle, 1)
        writer.wait_ready(SECONDS)
        writer.send(filled(MIB))
        other.recv(SECONDS)
        wait_until(has_said(writer, 0))
        job.kill()
        Reader(writer.handle, 0, rejoin=True).close()
        check_whole(writer, other)


def test_a_message_that_is_refused_admits_nobody(crew: Crew) -> None:
    shape: dict[str, Any] = {"arena_bytes": MIB, "on_reader_death": "drop", "codec": RawCodec()}
    with Writer(1, **shape) as writer, contextlib.closing(mmap.mmap(-1, 1 << 30)) as untouched:
        job = crew.workers[0].start(arena_roles.hold_raw, 0, writer.handle)
        writer.send([b"", bytes(MIB)])
        wait_until(has_said(writer, 0))
        job.kill()
        wait_until(lambda: is_free(writer))
        with Reader(writer.handle, 0, rejoin=True, codec=RawCodec()) as reader:
            with (
                memoryview(untouched) as gibibyte,
                pytest.raises(shmcast.MessageTooLarge, match="1099511627776 bytes"),
            ):
                writer.send([gibibyte] * 1024)
            writer.send([b"", b"x" * MIB])
            view = reader.recv(SECONDS, copy=False)[1]
            assert view.readonly
            assert not is_free(writer)
            del view
            assert is_free(writer)


def test_a_stopped_reader_is_not_dead(crew: Crew) -> None:
    with Writer(1, arena_bytes=ARENA) as writer:
        job = crew.workers[0].start(arena_roles.hold_until_told, 0, writer.handle)
        pid = job.worker.pid
        writer.send(filled(MIB))
        wait_until(has_said(writer, 0))
        os.kill(pid, signal.SIGSTOP)
        assert not is_free(writer)
        assert address(writer.empty(3 * MIB, np.uint8))
        os.kill(pid, signal.SIGCONT)
        assert not is_free(writer)
        writer.send("let go")
        wait_until(has_said(writer, 0, 2))
        assert is_free(writer)
        writer.send("end")
        job.result()


def test_views_outlive_the_death_of_the_writer(crew: Crew, tmp_path: Path) -> None:
    path = tmp_path / "handle"
    job = crew.workers[0].start(arena_roles.write_and_die, 0, path)
    wait_until(path.exists)
    with Reader(pickle.loads(path.read_bytes()), 0) as reader:  # noqa: S301
        array, other = reader.recv(SECONDS, copy=False)
        wait_until(lambda: reader._ring.peers()[0].behind == 1)
        job.kill()
        assert np.array_equal(array, filled(MIB, 3))
        assert np.array_equal(other, filled(MIB, 4))
        assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, 5))
        with pytest.raises(shmcast.PeerDied):
            reader.recv(SECONDS)
        assert np.array_equal(array, filled(MIB, 3))


def test_readers_that_copy_and_readers_that_keep_views_all_get_everything(
    crew: Crew,
) -> None:
    rng = random.Random(5)  # noqa: S311
    with Writer(4, arena_bytes=ARENA, slot_bytes=8192) as writer:
        jobs = crew.start(4, arena_roles.receive_and_keep, writer.handle, 5)
        for number in range(150):
            nbytes = rng.choice((10, 50_000, LARGE, 400_000, MIB))
            writer.send((number, filled(nbytes, number)), SECONDS)
        writer.send(None, SECONDS)
        views = results(jobs)
        assert views[0] > views[2] > views[3] == 0
        assert is_free(writer)  # the workers have closed and let go of all
        figures = writer.statistics()
        assert figures.arena_frames > 0
        assert [r.arena_frames for r in figures.readers] == [figures.arena_frames] * 4


FORK = """
import os, sys, numpy as np, torch, shmcast
writer = shmcast.Writer(1, arena_bytes=1 << 20)
reader = shmcast.Reader(writer.handle, 0)
writer.send([np.full(1 << 18, 3, np.uint8), torch.full((1 << 18,), 4, dtype=torch.uint8)])
array, tensor = reader.recv(10, copy=False)
loan = writer.empty(10, np.uint8)
def room():
    before = writer.statistics().arena_full
    writer.empty(1 << 20, np.uint8)
    return writer.statistics().arena_full == before
torch.set_num_threads(1)  # no pool of threads survives a fork
pid = os.fork()
if pid == 0:
    assert (array == 3).all() and (tensor == 4).all()
    tensor += 1
    reader.close()
    del array, tensor, loan, reader
    sys.exit()  # with all that runs at exit
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert not room()
assert (array == 3).all() and (tensor == 4).all()
del array, loan
assert not room()
del tensor
assert room()
print("done")
"""

EXIT = """
import numpy as np, torch, shmcast
writer = shmcast.Writer(2, arena_bytes=1 << 22)
reader = shmcast.Reader(writer.handle, 0)
loans = [writer.empty(1 << 19, np.uint8), writer.empty_tensor(1 << 19, dtype=torch.uint8)]
writer.send([*loans, np.ones(1 << 19, np.uint8), torch.ones(1 << 19)])
unread = writer.empty(10)
got = reader.recv(10, copy=False)
views = [part[1:] for part in got]
buffer = memoryview(got[0])
cycle = [views, loans]
cycle.append(cycle)
print("done")
"""

EXIT_AFTER_CLOSE = EXIT.replace("print(", "reader.close(); writer.close(); del writer\nprint(")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(FORK, id="a forked child's views do not release its parent's"),
        pytest.param(EXIT, id="exit with live views and loans is clean"),
        pytest.param(EXIT_AFTER_CLOSE, id="exit with views of closed endpoints is clean"),
    ],
)
def test_program(program: str) -> None:
    ran = run_to_its_end(program)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


# Names


def names(writer: Writer) -> list[Path]:
    assert writer.handle.arena is not None
    return [Path("/dev/shm", name[1:]) for name in (writer.handle.name, writer.handle.arena.name)]


def exist(paths: Sequence[Path]) -> list[bool]:
    return [path.exists() for path in paths]


def test_both_names_are_gone_when_all_have_attached() -> None:
    with Writer(2, arena_bytes=ARENA) as writer:
        paths = names(writer)
        with Reader(writer.handle, 0):
            assert exist(paths) == [True, True]
            assert [path.stat().st_mode & 0o777 for path in paths] == [0o600, 0o600]
            with Reader(writer.handle, 1):
                assert exist(paths) == [False, False]


@pytest.mark.parametrize("end", ["close", "collect"])
def test_both_names_are_gone_when_the_writer_is(end: str) -> None:
    writer = Writer(2, arena_bytes=ARENA)
    paths = names(writer)
    files = len([*Path("/proc/self/fd").iterdir()])
    assert exist(paths) == [True, True]
    if end == "close":
        writer.close()
    del writer
    assert exist(paths) == [False, False]
    assert len([*Path("/proc/self/fd").iterdir()]) < files


def test_a_writer_that_cannot_be_made_leaves_no_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_size: int) -> NoReturn:
        raise shmcast.SharedMemoryFull("full")

    Writer(1).close()  # opens what stays open
    files = len([*Path("/proc/self/fd").iterdir()])
    monkeypatch.setattr(segment, "create", fail)
    with pytest.raises(shmcast.SharedMemoryFull):
        Writer(1, arena_bytes=ARENA)
    assert len([*Path("/proc/self/fd").iterdir()]) == files
    # (That no segment is left, every test checks.)


def test_clean_removes_the_arena_of_a_killed_writer(crew: Crew, tmp_path: Path) -> None:
    path = tmp_path / "handle"
    job = crew.workers[0].start(arena_roles.write_and_die, 0, path)
    wait_until(path.exists)
    handle = pickle.loads(path.read_bytes())  # noqa: S301
    assert handle.arena is not None
    left = [Path("/dev/shm", name[1:]) for name in (handle.name, handle.arena.name)]
    assert exist(left) == [True, True]
    job.kill()
    # (What it prints is not looked at: another process may be faster.)
    subprocess.run([sys.executable, "-m", "shmcast", "clean"], timeout=50, check=True)
    assert exist(left) == [False, False]
