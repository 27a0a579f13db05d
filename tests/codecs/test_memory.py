"""Memory that changes or vanishes while it is read: what arrives was there, or `send` tells."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import MsgspecCodec, PickleCodec, Reader, Writer, _core
from shmcast._codecs.base import Received
from shmcast._codecs.byte_strings import bytearray_of, bytes_of

PAYLOAD = 64 * 1024  # pickle writes larger bytes objects by themselves
SECONDS = 30.0


def transfer(obj: Any) -> tuple[Any, list[int]]:
    codec = PickleCodec()
    frames: list[Received] = [bytearray(frame) for frame in codec.encode(obj)]
    return codec.decode(frames), [len(frame) for frame in frames]


# Bytes and bytearrays


class Changes:
    """Changes a bytearray while the message that it is in is pickled."""

    def __init__(self, target: bytearray, change: Callable[[bytearray], object]) -> None:
        self.target = target
        self.change = change

    def __reduce__(self) -> tuple[Any, ...]:
        self.change(self.target)
        return dict, ()


CHANGES: dict[str, Callable[[bytearray], object]] = {
    "longer, by opcodes": lambda b: b.extend(b"\x8c\x02os\x8c\x06getcwd\x93)R."),
    "shorter": lambda b: b.clear(),
    "other bytes": lambda b: b.__setitem__(slice(0, 9), b"123456789"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [PAYLOAD - 1, PAYLOAD, 3 * PAYLOAD])
def test_a_bytearray_that_changes_while_it_is_pickled_arrives_as_it_was(
    size: int, change: str
) -> None:
    data = bytearray(b"x" * size)
    got = transfer([data, Changes(data, CHANGES[change])])[0]
    assert got == [bytearray(b"x" * size), {}]
    assert type(got[0]) is bytearray


SIZES = [0, 1, 255, 256, PAYLOAD - 20, PAYLOAD - 1, PAYLOAD, PAYLOAD + 1, 300_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("before", [0, 1, 3, 5, 2000])
def test_bytes_arrive_whatever_is_around_them(size: int, kind: Any, before: int) -> None:
    data = kind(b"\x95" * size)
    small, array, text = kind(b"B" * 9), np.arange(9000), "\u00e4" * 40_000
    for obj in (
        data,
        [*range(before), data, text, data, array, kind(data), small],
        {"a": [kind(b"C") + data, kind(b"B") + data], "b": (text * 2, data[:-1] + kind(b"D"))},
    ):
        got, sizes = transfer(obj)
        assert repr(got) == repr(obj)
        assert (size >= PAYLOAD) == (size in sizes[1:])


def test_a_payload_that_reads_like_a_header_is_none() -> None:
    for size in (PAYLOAD, PAYLOAD + 5):
        fake = b"\x80\x05\x95" + (size - 11).to_bytes(8, "little")
        bad = [fake + bytes(size - 11 - 5) + b"B" + size.to_bytes(4, "little"), bytes(size)]
        assert transfer(bad)[0] == bad
        many = ["B" + chr(0) * 3] * 40_000  # frames that end in what might announce bytes
        assert transfer([many, bytes(size)])[0] == [many, bytes(size)]


def test_bytes_that_are_in_two_places_are_one_object_there_too() -> None:
    data = bytearray(PAYLOAD)
    (one, two), sizes = transfer([data, data])
    assert one is two
    assert sizes[1:] == [PAYLOAD]


def test_pickle_reads_what_the_collector_has_taken_apart() -> None:
    pieces: list[bytes] = []
    buffers: list[Any] = []

    class File:
        write = staticmethod(_core.piece_collector(pieces, buffers))

    pickle.Pickler(File(), 5).dump({"a": bytes(PAYLOAD), "b": bytearray(PAYLOAD)})
    assert buffers == [bytes(PAYLOAD)] * 2
    got = pickle.loads(b"".join(pieces), buffers=buffers)  # noqa: S301
    assert got == {"a": bytes(PAYLOAD), "b": bytearray(PAYLOAD)}
    assert type(got["b"]) is bytearray


def test_bytes_are_in_the_arena_and_own_their_memory() -> None:
    sent = [b"a" * 300_000, bytearray(b"b" * 300_000), pickle.PickleBuffer(b"c" * 300_000)]
    with Writer(1, arena_bytes=1 << 22) as writer, Reader(writer.handle, 0) as reader:
        for copy in (True, False):
            writer.send(sent)
            one, two, three = reader.recv(SECONDS, copy)
            assert (one, two, bytes(three)) == (sent[0], sent[1], b"c" * 300_000)
            assert (type(one), type(two)) == (bytes, bytearray)
            two += b"longer"
        assert isinstance(three, memoryview)  # a view of the arena
        assert writer.statistics().arena_frames == 6
    assert bytes_of(memoryview(b"ab")) == b"ab"
    assert bytearray_of(memoryview(b"ab")) == b"ab"


# Tensors without memory


def free(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def freed(size: int) -> torch.Tensor:
    return free(torch.arange(float(size)))


def shortened(size: int) -> torch.Tensor:
    tensor = torch.arange(float(size))
    tensor.untyped_storage().resize_(size * 4 - 1)
    return tensor


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = 1  # type: ignore[attr-defined]
    return tensor


class Tagged(torch.Tensor):
    pass


GONE: dict[str, Callable[[int], Any]] = {
    "freed": freed,
    "shortened": shortened,
    "transposed": lambda size: free(torch.zeros(3, size).T),
    "strided": lambda size: free(torch.zeros(size * 2)[::2]),
    "expanded": lambda size: free(torch.zeros(size).expand(3, -1)),
    "conjugated": lambda size: freed(size * 2).view(torch.complex64).conj(),
    "with an attribute": lambda size: with_attribute(freed(size)),
    "parameter": lambda size: torch.nn.Parameter(freed(size)),
    "subclass": lambda size: freed(size).as_subclass(Tagged),
}


@pytest.mark.parametrize("size", [10, 3000])
@pytest.mark.parametrize("kind", GONE)
def test_a_tensor_whose_memory_was_freed_is_told(kind: str, size: int) -> None:
    tensor = GONE[kind](size)
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        with pytest.raises(shmcast.EncodeError, match=r"its memory was freed.*nothing was sent"):
            writer.send([tensor])
        writer.send("next")
        assert reader.recv(SECONDS) == "next"


def test_a_tensor_of_a_message_type_whose_memory_was_freed_is_told() -> None:
    pytest.importorskip("msgspec")
    writer = Writer(1, codec=MsgspecCodec(list[torch.Tensor]))
    with writer, pytest.raises(shmcast.EncodeError, match="its memory was freed"):
        writer.send([freed(3000)])


@pytest.mark.parametrize("size", [5, 3000])
def test_zeros_without_memory_arrive_as_zeros(size: int) -> None:
    zeros = torch._efficientzerotensor((size,))
    got, _ = transfer([zeros, freed(0)])
    assert torch.equal(got[0], torch.zeros(size))
    assert got[1].shape == (0,)


# Tensors that get other memory while `send` waits


REPLACED: dict[str, Callable[[torch.Tensor], object]] = {
    "other data": lambda t: setattr(t, "data", torch.zeros(1)),
    "another storage": lambda t: t.set_(),  # type: ignore[call-overload]
}
RESIZED: dict[str, Callable[[torch.Tensor], object]] = {
    "freed": lambda t: t.untyped_storage().resize_(0),
    "shorter": lambda t: t.untyped_storage().resize_(1_000_000),
    "longer": lambda t: t.resize_(100_000_000),
}


def send_and_change(
    writer: Writer, tensor: torch.Tensor, change: Callable[[torch.Tensor], object]
) -> tuple[threading.Thread, list[Exception]]:
    """Send in a thread and, once it waits for room, change the tensor."""
    errors: list[Exception] = []

    def send() -> None:
        try:
            writer.send([tensor], SECONDS)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    while writer.statistics().fragments < writer.handle.slots:
        pass  # the ring fills
    change(tensor)
    return thread, errors


@pytest.mark.parametrize("change", REPLACED)
def test_a_tensor_that_gets_another_storage_while_send_waits_arrives_as_it_was(change: str) -> None:
    with Writer(1, spill_bytes=0) as writer, Reader(writer.handle, 0) as reader:
        tensor = torch.full((20_000_000,), 7, dtype=torch.uint8)
        thread, errors = send_and_change(writer, tensor, REPLACED[change])
        del tensor
        other = torch.full((20_000_000,), 9, dtype=torch.uint8)
        got = reader.recv(SECONDS)[0]
        thread.join()
        assert got.unique().tolist() == [7]
        assert not errors
        del other


@pytest.mark.parametrize("change", RESIZED)
def test_a_storage_that_is_resized_while_send_waits_is_told_and_nobody_receives_it(
    change: str,
) -> None:
    with Writer(1, spill_bytes=0) as writer, Reader(writer.handle, 0) as reader:
        tensor = torch.full((20_000_000,), 7, dtype=torch.uint8)
        thread, errors = send_and_change(writer, tensor, RESIZED[change])
        other = torch.full((20_000_000,), 9, dtype=torch.uint8)
        while thread.is_alive():
            with pytest.raises(shmcast.Timeout):
                reader.recv(0.01)
        with pytest.raises(shmcast.Timeout):
            reader.recv(0)
        assert isinstance(errors[0], shmcast.EncodeError)
        assert "another thread has resized its storage" in str(errors[0])
        assert reader.statistics().messages == 0
        writer.send(other.sum())
        assert reader.recv(SECONDS) == 180_000_000
        assert writer.statistics().abandoned == 1


def test_the_core_tells_a_storage_that_was_resized_before_it_is_published() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        tensor = torch.zeros(9000)
        frames = PickleCodec().encode([tensor])
        assert len(frames) == 2
        tensor.untyped_storage().resize_(0)
        with pytest.raises(_core.MemoryChanged, match="was freed or replaced"):
            writer._end.publish(frames)
        writer.send(1)
        assert reader.recv(SECONDS) == 1


def test_storages_stay_resizable_after_they_were_sent() -> None:
    tensor = torch.zeros(9000)
    transfer(tensor)
    assert tensor.untyped_storage().resizable()
    with pytest.raises(BufferError):
        _core.StorageView(tensor.untyped_storage(), 0, 36_001)
    with pytest.raises(BufferError):
        _core.copy_storage(tensor.untyped_storage(), 36_000, 1)
    assert _core.copy_storage(tensor.untyped_storage(), 35_999, 1) == b"\0"


# Frames of a user's codec


class Odd:
    """A codec whose frames are arrays of several shapes and dtypes."""

    def encode(self, _obj: Any, /) -> list[Any]:
        return [np.empty((0, 3)), np.ones((2, 3)), b"", np.zeros(0, "M8[s]").view("i8"),
                np.float64(1.0), np.arange(5)[:0]]  # fmt: skip

    def decode(self, frames: list[Received], /) -> list[int]:
        return [len(frame) for frame in frames]


def test_frames_of_any_shape_and_none_are_fine() -> None:
    with Writer(1, codec=Odd()) as writer, Reader(writer.handle, 0, codec=Odd()) as reader:
        writer.send(0)
        assert reader.recv(SECONDS) == [0, 48, 0, 0, 8, 0]
