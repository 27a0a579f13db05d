"""Errors are pickle's in type and text; what raises half way has sent nothing and left nothing."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

import shmcast
from shmcast import ObjectCodec, PickleCodec, Reader, Writer
from tests.support import zoo, zoo_objects
from tests.support.differential import by_pickle, check, difference, outcome, sent, through
from tests.support.permissions import by_core

SECONDS = 30.0
WRONG = {**zoo_objects.REFUSED, **zoo_objects.UNMADE}


@pytest.mark.parametrize("what", WRONG)
def test_errors_are_those_of_pickle(what: str) -> None:
    codec, obj = ObjectCodec(), WRONG[what]()
    for wrapped in (obj, [1, {"a": obj}], zoo.Point(obj), [zoo.Reduced(obj)]):
        for _ in range(2):
            expected = outcome(by_pickle, wrapped)
            got = outcome(lambda o: through(codec, o), wrapped)
            assert got == expected, difference(expected, got)
            assert expected[0] not in ("value", "too deep")
    check(codec, zoo_objects.CASES["dataclasses"]())


@pytest.mark.parametrize("what", zoo_objects.REFUSED)
def test_what_is_refused_is_refused_by_the_source(what: str) -> None:
    obj = zoo_objects.REFUSED[what]()
    with pytest.raises(Exception) as expected:  # noqa: PT011 (compared below)
        pickle.dumps(obj, 5)
    with pytest.raises(expected.type) as caught:
        ObjectCodec().encode(obj)
    assert str(caught.value) == str(expected.value)


def test_a_message_whose_encoding_raises_half_way_has_sent_nothing() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for make in zoo_objects.REFUSED.values():
            obj = [zoo_objects.CASES["dataclasses"](), "x" * 100_000, zoo.Reduced(1), make()]
            with pytest.raises(shmcast.EncodeError, match="nothing was sent"):
                writer.send(obj)
            with pytest.raises(shmcast.Timeout):
                reader.recv(0)
        assert writer.statistics().messages == 0
        for name in ("dataclasses", "reduce", "strings"):
            writer.send(zoo_objects.CASES[name]())
            assert outcome(lambda _: reader.recv(SECONDS), None) == outcome(
                by_pickle, zoo_objects.CASES[name]()
            )


def test_what_cant_be_made_is_that_messages_error_alone() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for make in zoo_objects.UNMADE.values():
            obj = [zoo_objects.CASES["dataclasses"](), make()]
            writer.send(obj)
            writer.send("next")
            expected, text = outcome(by_pickle, obj)
            with pytest.raises(shmcast.DecodeError) as caught:
                reader.recv(SECONDS)
            assert type(caught.value.__cause__).__name__ == expected
            assert str(caught.value.__cause__) == text
            assert reader.recv(SECONDS) == "next"


class Nested:
    """Its reduction encodes a message, by the codec that encodes it."""

    codec: Any = None

    def __reduce__(self) -> Any:
        inner = through(Nested.codec, {"inner": [1, zoo.Point(2)]})
        return dict, (inner,)


def test_a_reduction_may_use_the_codec_that_runs_it() -> None:
    Nested.codec = codec = ObjectCodec()
    for _ in range(3):
        check(codec, [zoo.Point(1), Nested(), [shared := [1], shared], Nested()])


class RaisesOnce:
    raises = True

    def __reduce__(self) -> Any:
        if RaisesOnce.raises:
            raise RuntimeError("once")
        return list, ()


def test_a_codec_is_as_new_after_an_error() -> None:
    codec = ObjectCodec()
    shared = [1, 2]
    obj = [shared, zoo.Point(shared), RaisesOnce(), shared]
    for _ in range(3):
        RaisesOnce.raises = True
        with pytest.raises(RuntimeError, match="once"):
            codec.encode(obj)
        RaisesOnce.raises = False
        check(codec, obj)
        check(codec, [shared, shared])


def test_what_is_too_deep_is_told_and_what_is_not_arrives() -> None:
    codec = ObjectCodec()
    deep: Any = []
    for _ in range(200_000):
        deep = [deep]
    for obj in (deep, {"a": (deep,)}, zoo.Point(deep)):
        with pytest.raises(RecursionError):
            codec.encode(obj)
    while deep:  # (freed step by step)
        deep = deep.pop()
    check(codec, zoo_objects.CASES["deep"]())


def repeated(codec: ObjectCodec, depth: int) -> bytearray:
    """Return a message of `depth` lists in one another, made of its repeating bytes."""

    def nested(levels: int) -> bytes:
        obj: Any = [None]
        for _ in range(levels):
            obj = [obj]
        return bytes(codec.encode(obj)[0])

    short, long = nested(20), nested(21)
    grown = len(long) - len(short)
    at = next(i for i in range(len(short)) if short[i:] == long[i + grown :])
    unit = long[at : at + grown]
    return bytearray(short[:at] + unit * depth + short[at:])


@by_core
def test_a_message_that_is_too_deep_is_an_error() -> None:
    codec = ObjectCodec()
    assert codec.decode([repeated(codec, 1)]) == codec.decode([repeated(codec, 1)])
    for depth in (10_000, 3_000_000):
        with pytest.raises((RecursionError, ValueError, pickle.UnpicklingError)):
            codec.decode([repeated(codec, depth)])
    check(codec, zoo_objects.CASES["deep"]())


CUT = [
    "dataclasses",
    "ints",
    "strings",
    "a string column",
    "bags",
    "enums",
    "named tuples",
    "floats",
]


@pytest.mark.parametrize("what", CUT)
def test_a_message_that_is_cut_short_is_an_error(what: str) -> None:
    codec = ObjectCodec()
    (whole,) = sent(codec, zoo_objects.CASES[what]())
    step = max(1, len(whole) // 300)
    for length in {*range(1, len(whole), step), len(whole) - 1}:
        with pytest.raises(Exception):  # noqa: B017, PT011 (which one is not promised)
            codec.decode([whole[:length]])
    check(codec, zoo_objects.CASES[what]())


def test_no_frames_and_other_bytes_are_errors() -> None:
    codec = ObjectCodec()
    for frames in (
        [],
        [b""],
        [b"\xf5"],
        [b"\xf5\x00"],
        [b"garbage"],
        [b"\x00" * 20],
        [b"\xf5" * 9],
    ):
        with pytest.raises(Exception):  # noqa: B017, PT011
            codec.decode([bytearray(frame) for frame in frames])
    check(codec, zoo_objects.CASES["bags"]())


@pytest.mark.parametrize("allow", [(), ("tests.support.zoo.*",), ("collections.*", zoo.Point)])
def test_an_allow_list_refuses_what_it_refuses_in_a_pickle(allow: tuple[Any, ...]) -> None:
    mine, pickles = ObjectCodec(allow=allow), PickleCodec(allow=allow)
    refused = 0
    for name, make in zoo_objects.CASES.items():
        if name in ("by name", "methods"):  # (others may be named first)
            continue
        obj = make()
        expected = outcome(lambda o: pickles.decode(sent(PickleCodec(), o)), obj)
        got = outcome(lambda o: mine.decode(sent(ObjectCodec(), o)), obj)
        assert got[0] == expected[0], (name, expected, got)
        if got[0] == "value":
            assert got == expected, name
        else:
            refused += 1
            assert "which this codec does not allow" in got[1], name
    assert refused


def test_an_allow_list_refuses_before_anything_is_called() -> None:
    made: list[int] = []
    Reports.made = made
    for obj in (Reports(), [zoo.Point(1), Reports()], {"a": (Reports(),)}):
        frames = sent(ObjectCodec(), obj)
        made.clear()
        with pytest.raises(pickle.UnpicklingError, match="report, which this codec does not allow"):
            ObjectCodec(allow=[zoo.Point]).decode(frames)
        assert made == []
        ObjectCodec().decode([*map(bytearray, frames)])
        assert made


class Reports:
    made: Any = None

    def __reduce__(self) -> Any:
        return report, (1,)


def report(number: int) -> int:
    Reports.made.append(number)
    return number


def test_a_lock_in_a_message_is_named_with_its_path() -> None:
    with Writer(1) as writer, pytest.raises(shmcast.EncodeError, match=r"in `Point\.y\[1\]\.key`"):
        writer.send(zoo.Point(1, [2, zoo.Cell(threading.Lock())]))
