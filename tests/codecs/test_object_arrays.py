"""Arrays of numpy in the core: as `reduce_array` says, and practised."""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from shmcast import ObjectCodec, PickleCodec
from shmcast._codecs import arrays, object_classes
from tests.support.codec_fuzz import practise

AnyArray = Any

CODES = "?bBhHiIlLqQefdgFDGmMSUV"


class Sub(np.ndarray):
    """A program's own kind of array."""


def _swapped(array: AnyArray) -> AnyArray:
    return array.astype(array.dtype.newbyteorder())


def _read_only(array: AnyArray) -> AnyArray:
    array.flags.writeable = False
    return array


def _own(code: str, *shape: int) -> AnyArray:
    count = int(np.prod(shape, dtype=int))
    values: AnyArray = np.arange(1, count + 1)
    if code in "mM":
        return values.astype(f"{code}8[s]").reshape(shape)
    if code in "SUV":
        return values.astype("S3").astype(f"{code}3").reshape(shape)
    return values.astype(code).reshape(shape).copy()


GRID: AnyArray = np.arange(1200.0).reshape(30, 40)
RECORD = np.dtype([("a", "<i4"), ("b", "<f8")])
ARRAYS: dict[str, AnyArray] = {
    **{f"{code} {shape}": _own(code, *shape) for code in CODES for shape in ((5,), (3, 700), ())},
    "empty": np.empty((3, 0, 2)),
    "eight dimensions": np.ones((1, 2, 1, 3, 1, 2, 1, 2)),
    "long": np.zeros((1 << 17, 1)),
    "swapped": _swapped(np.arange(7)),
    "a dtype with metadata": np.zeros(3, np.dtype("f8", metadata={"unit": "m"})),
    "records": np.zeros(4, RECORD),
    "objects": np.array([1, "a", None], object),
    "in order of Fortran": np.asfortranarray(GRID),
    "transposed": GRID.T,
    "a view": GRID[3:7],
    "a view of a view": GRID[3:7][1:],
    "a column": GRID[:, 3],
    "backwards": GRID[::-1],
    "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
    "read-only": _read_only(np.arange(9)),
    "of bytes": np.frombuffer(b"abcdefgh", np.uint8),
    "of a bytearray": np.frombuffer(bytearray(800), np.int32),
    "a subclass": np.arange(5).view(Sub),
    "a view of a subclass": np.asarray(np.arange(5).view(Sub)),
    "reinterpreted": np.arange(8, dtype=np.int64).view(np.int16),
}


def facts(array: AnyArray) -> tuple[Any, ...]:
    """Return all that tells one array from another."""
    flags = array.flags
    return (
        (type(array), array.dtype, array.dtype.metadata, array.dtype.str, array.shape),
        (array.strides, flags.writeable, flags.c_contiguous, flags.f_contiguous),
        array.tolist(),
    )


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_an_array_arrives_as_by_the_codec_that_reduces_it(array: AnyArray) -> None:
    codec, other = ObjectCodec(), PickleCodec()
    for obj in ([array], {"a": array, "b": array}, [array, (array, 1), array]):
        for _ in range(3):
            frames = [bytearray(frame) for frame in codec.encode(obj)]
            got = codec.decode(frames)
            expected = other.decode([bytearray(frame) for frame in other.encode(obj)])
            parts = got.values() if isinstance(got, dict) else got
            wanted = expected.values() if isinstance(expected, dict) else expected
            first, *rest = (part[0] if type(part) is tuple else part for part in parts)
            assert facts(first) == facts(next(iter(wanted)))
            assert all(part is first for part in rest)


def test_what_arrives_is_the_receivers_own() -> None:
    codec = ObjectCodec()
    for sent in (np.arange(4), np.zeros(4096)):
        got = codec.decode([bytearray(frame) for frame in codec.encode([sent])])[0]
        got[:] = 7
        assert got.flags.writeable
        assert not (sent == 7).any()


def test_many_arrays_and_what_they_hold_are_one_message() -> None:
    codec = ObjectCodec()
    arrays = [np.full(k, k, np.int32) for k in range(60)]
    frames = codec.encode({"all": arrays, "again": arrays[::-1]})
    assert len(frames) == 1
    got = codec.decode([bytearray(frames[0])])
    assert [list(array) for array in got["all"]] == [[k] * k for k in range(60)]
    assert all(a is b for a, b in zip(got["all"], got["again"][::-1], strict=True))


def test_an_entry_of_copyreg_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = ObjectCodec()
    assert type(codec.decode([bytearray(codec.encode([np.arange(2)])[0])])[0]) is np.ndarray
    monkeypatch.setitem(copyreg.dispatch_table, np.ndarray, lambda array: (list, (array.tolist(),)))
    assert codec.decode([bytearray(codec.encode([np.arange(2)])[0])]) == [[0, 1]]
    monkeypatch.undo()
    assert type(codec.decode([bytearray(codec.encode([np.arange(2)])[0])])[0]) is np.ndarray


@pytest.mark.parametrize("shape", [(4,), (3, 500)])
def test_messages_with_small_arrays_are_practised(shape: tuple[int, ...]) -> None:
    codec = ObjectCodec()
    codec.practise_encode(None)
    held = [{"ids": np.ones(shape, np.int64), "name": "step"}]  # by another, as what is practised
    frames = [bytes(frame) for frame in codec.encode(held[0])]
    got = codec.decode([bytearray(frame) for frame in frames])
    assert codec.practice_frames() is not None
    assert [bytes(frame) for frame in codec.practise_encode(None)] == frames
    before = got["ids"].copy()
    for _ in range(5):
        practise(codec, codec)
    assert (got["ids"] == before).all()


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
@pytest.mark.parametrize("count", [1200, 1 << 16])
def test_memory_beside_a_message_is_not_kept_for_practice(
    make: Callable[[int], Any], count: int, no_gc: None
) -> None:
    codec = ObjectCodec()
    for obj in ([make(count), "a"], {"a": make(count), "b": bytes(1 << 16)}):
        frames = [bytearray(frame) for frame in codec.encode(obj)]
        memory = frames[1]
        idle = sys.getrefcount(memory)
        codec.decode(frames)
        held = sys.getrefcount(memory)
        assert held == idle
        for _ in range(5):
            practise(codec, codec)
        assert codec.practice_frames() is not None


@pytest.mark.parametrize("count", [0, 4, 1500])
def test_practice_of_arrays_runs_no_code_that_a_signal_could_interrupt(count: int) -> None:
    codec = ObjectCodec()
    codec.decode([bytearray(frame) for frame in codec.encode([np.ones(count), "a"])])
    frames = codec.practice_frames()
    assert frames is not None
    called: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _arg: called.append(frame.f_code.co_name))
    codec.practise_decode(frames)
    sys.setprofile(before)
    own = sys._getframe().f_code.co_name
    assert {*called} <= {own}
    assert codec.practice_frames() is not None


class Length:
    """Runs code of a program's where numpy asks for a number."""

    asked = 0

    def __index__(self) -> int:
        type(self).asked += 1
        return 2


class Call:
    """Is reduced to a call of what rebuilds arrays."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = arguments

    def __reduce__(self) -> Any:
        return arrays._rebuild_array, self._arguments


@pytest.mark.parametrize(
    "arguments",
    [
        (bytearray(16), "<f8", (Length(),), "C"),
        (bytearray(16), np.dtype("f8"), (2,), "C"),
        (bytearray(16), "<f8", [2], "C"),
        (bytes(16), "<f8", (2,), "C"),
        (None, "<f8", (2,), "C"),
        (bytearray(16), "<f8", (2,), "F"),
        (bytearray(16), ">f8", (2,), "C"),
    ],
)
def test_other_arguments_make_an_array_as_ever(arguments: tuple[Any, ...]) -> None:
    codec = ObjectCodec()
    got = codec.decode([bytearray(frame) for frame in codec.encode([Call(*arguments)])])
    assert got[0].shape == (2,)
    assert got[0].dtype == arguments[1]
    asked = Length.asked
    practise(codec, codec)
    assert Length.asked == asked


@pytest.mark.parametrize(
    "arguments",
    [
        (bytearray(15), "<f8", (2,), "C"),
        (bytearray(16), "<f8", (1 << 62, 1 << 62), "C"),
        (bytearray(16), "<f8", (1 << 70,), "C"),
        (bytearray(16), "<f8", (2,), "Z"),
        (bytearray(16), "<f8", (1,) * 70, "C"),
        (bytearray(16), "<f8", ("a",), "C"),
        (bytearray(16), "<f8", (2,)),
        (bytearray(16), "<f8", (2,), "C", "D"),
    ],
)
def test_what_makes_no_array_is_an_error(arguments: tuple[Any, ...]) -> None:
    codec = ObjectCodec()
    frames = [bytearray(frame) for frame in codec.encode([Call(*arguments)])]
    with pytest.raises((ValueError, TypeError)):
        codec.decode(frames)
    codec.practise_decode(frames)
    assert codec.practice_frames() is None


class Reduced:
    """Makes its message take the careful way."""

    def __reduce__(self) -> Any:
        return int, ("3",)


def test_an_array_that_shrinks_while_a_name_is_learnt_is_not_read_where_it_was() -> None:
    codec, array = ObjectCodec(), np.ones(500)

    def shrink(frame: FrameType, _event: str, _arg: object) -> None:
        if (
            frame.f_code is object_classes.name_of.__code__
            and frame.f_locals["obj"] is arrays._rebuild_array
        ):
            array.resize(0, refcheck=False)

    before = sys.gettrace()
    sys.settrace(shrink)
    try:
        frames = codec.encode([Reduced(), array])
    finally:
        sys.settrace(before)
    assert array.size == 0
    assert len(frames[0]) < 500
    assert codec.decode([bytearray(frames[0])])[1].shape == (0,)


def test_arrays_may_be_imported_while_another_thread_encodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, arrays.__name__, ModuleType(arrays.__name__))  # half of it
    monkeypatch.setitem(copyreg.dispatch_table, Length, lambda _length: (int, ("3",)))
    codec = ObjectCodec()
    assert codec.decode([bytearray(codec.encode([Length()])[0])]) == [3]


def test_views_of_the_arena_are_not_kept_for_practice() -> None:
    codec = ObjectCodec()
    message, array = codec.encode([np.arange(1000)])
    codec.decode([bytearray(message), memoryview(bytes(array))])
    assert codec.practice_frames() is None


def test_a_memory_map_arrives_as_by_pickle(tmp_path: Path) -> None:
    mapped: AnyArray = np.memmap(tmp_path / "data", np.int32, "w+", shape=(30,))
    mapped[:] = range(30)
    codec = ObjectCodec()
    for obj in ([mapped], [mapped[2:9]], [np.asarray(mapped)]):
        got = codec.decode([bytearray(frame) for frame in codec.encode(obj)])
        expected = pickle.loads(pickle.dumps(obj, 5))  # noqa: S301
        assert type(got[0]) is type(expected[0])
        assert got[0].tolist() == expected[0].tolist()
