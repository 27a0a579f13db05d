"""What the object codec takes is its own message, and arrives as by pickle; the rest is pickled."""

from __future__ import annotations

import array
import collections
import contextlib
import copyreg
import enum
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch

from shmcast import PickleCodec
from shmcast._codecs.base import Frame, Received
from shmcast._codecs.object_codec import ObjectCodec

OURS, PICKLE = b"\xf5", b"\x80"


@dataclass
class Step:
    number: int
    ids: Any
    note: str | None = None


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("left", "right")
    left: Any
    right: Any


class Pair(NamedTuple):
    one: Any
    two: Any


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Struct(msgspec.Struct):
    name: str
    tags: list[str]


class Reduced:
    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, self.args

    def __repr__(self) -> str:
        return f"Reduced{self.args}"


def received(frames: list[Frame]) -> list[Received]:
    return [bytearray(frame) for frame in frames]


def transfer(obj: Any, first: bytes = OURS) -> Any:
    codec = ObjectCodec()
    frames = codec.encode(obj)
    assert bytes(frames[0][:1]) == first
    again = ObjectCodec().decode(received(frames))
    assert repr(again) == repr(codec.decode(received(frames)))
    return again


PLAIN: list[Any] = [
    [None, True, False, 0, -16, 111, 112, 255, 256, 2**31, -(2**63), 2**63, -(2**100)],
    [list(range(-300, 300)), [1] * 5000, [0.5, 1.5, 2.5], [70_000, 1, 2], [2**40] * 3],
    ["", "a", "é", "\u20ac", "\U0001f600", "\ud800", "x" * 300, ["a", "b", "c", "d", "e"]],
    {"a": {"b": (1, b"two", bytearray(b"three"), {4}, frozenset({5}))}, None: 1, (1, 2): 3},
    {f"request-{i}": 1 for i in range(300)},
    [Step(i, [i], None) for i in range(5)],
    [Pair(1, [2]), Color.RED, Color.BLUE, Struct("s", ["t"]), array.array("q", [1, 2])],
    [Step, len, Reduced],
]


@pytest.mark.parametrize("index", range(len(PLAIN)))
def test_values_and_types_arrive(index: int) -> None:
    obj = PLAIN[index]
    assert repr(transfer(obj)) == repr(pickle.loads(pickle.dumps(obj, 5)))  # noqa: S301


def test_what_is_shared_arrives_shared() -> None:
    shared, step = [1], Step(1, [2])
    got = transfer([shared, shared, {"k": shared}, step, Step(2, shared), step])
    assert got[0] is got[1] is got[2]["k"] is got[4].ids
    assert got[3] is got[5]
    assert got[3] is not got[4]


def test_what_contains_itself_arrives_so() -> None:
    ring: list[Any] = [([],)]
    ring[0][0].append(ring)
    step = Step(1, ring)
    ring.append(step)
    got = transfer(step)
    assert got.ids[0][0][0] is got.ids
    assert got.ids[1] is got


def test_what_reductions_give_is_shared_with_the_rest() -> None:
    shared = [1]
    got = transfer([collections.deque([shared]), shared])
    assert got[0][0] is got[1]
    got = transfer([Reduced(shared, 2), shared])
    assert got[0].args[0] is got[1]


def test_arrays_and_tensors_travel_beside_the_message() -> None:
    sent: list[Any] = [
        np.arange(1000.0),
        torch.arange(2000.0),
        b"x" * 70_000,
        bytearray(b"y" * 70_000),
    ]
    codec = ObjectCodec()
    frames = codec.encode(sent)
    assert [len(frame) for frame in frames[1:]] == [8000, 8000, 70_000, 70_000]
    got = codec.decode(received(frames))
    assert np.array_equal(got[0], sent[0])
    assert torch.equal(got[1], sent[1])
    assert got[2:] == sent[2:]


def test_a_class_that_changes_between_messages_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local:
        pass

    codec = ObjectCodec()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        codec.encode(Local())
    step = Step(1, [2])
    assert codec.decode(received(codec.encode(step))) == step
    monkeypatch.setattr(Step, "__reduce__", lambda self: (Reduced, (self.number,)), raising=False)
    assert type(codec.decode(received(codec.encode(step)))) is Reduced
    monkeypatch.undo()
    assert codec.decode(received(codec.encode(step))) == step
    reduce: Any = lambda step: (Reduced, (step.ids,))  # noqa: E731
    copyreg.pickle(Step, reduce)
    try:
        assert codec.decode(received(codec.encode(step))).args == ([2],)
    finally:
        del copyreg.dispatch_table[Step]
    monkeypatch.setattr(sys.modules[__name__], "Step", type("Step", (), {}))
    with pytest.raises(pickle.PicklingError):
        codec.encode(step)


def test_a_pickle_is_decoded_too() -> None:
    assert ObjectCodec().decode(received(PickleCodec().encode(Step(1, 2)))) == Step(1, 2)


def test_a_codec_can_be_given_to_another_process() -> None:
    codec = pickle.loads(pickle.dumps(ObjectCodec(allow=[Step])))  # noqa: S301
    assert codec.allow == [Step]
    assert codec.decode(received(codec.encode(Step(1, 2)))) == Step(1, 2)


def test_too_deep_objects_are_pickled() -> None:
    deep: list[Any] = []
    for _ in range(250):
        deep = [deep]
    assert repr(transfer(deep, PICKLE)) == repr(deep)


EXPECTED = (ValueError, TypeError, AttributeError, ImportError, LookupError, pickle.UnpicklingError)


def damaged(message: bytes) -> Iterator[bytes]:
    for at in range(1, len(message)):
        yield message[:at]
        for value in (0, 0x7F, 0x80, 0xFF, message[at] ^ 1):
            yield message[:at] + bytes([value]) + message[at + 1 :]


@pytest.mark.parametrize("index", range(len(PLAIN)))
def test_a_damaged_message_is_an_error_or_another_object(index: int) -> None:
    codec = ObjectCodec()
    message = bytes(codec.encode(PLAIN[index])[0])
    for bad in list(damaged(message))[:3000]:
        with contextlib.suppress(*EXPECTED):
            codec.decode([bytearray(bad)])
    assert repr(codec.decode([bytearray(message)])) == repr(PLAIN[index])
