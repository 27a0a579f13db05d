"""When an extent is free: as soon as its last view is gone in every reader, and never before."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Reader, Writer
from tests.support import arena_roles
from tests.support.arena import EXTENTS, address, check_whole, is_free
from tests.support.arena_roles import ARENA, LARGE, MIB, SECONDS, RawCodec, filled
from tests.support.processes import Crew

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
    """Give up a message with an arena frame and more bytes than the ring holds."""
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
        monkeypatch.setattr(type(writer._end._watch), "resumed", interrupt)
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
