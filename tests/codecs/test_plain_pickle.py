"""Small plain messages have a pickler of their own: what arrives is what pickle would bring."""

from __future__ import annotations

import collections
import contextlib
import enum
import math
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmcast import PickleCodec, _core
from tests.support.permissions import by_core

pytestmark = by_core

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
KEYS = st.text(max_size=10) | st.integers() | st.tuples(st.booleans(), st.binary(max_size=5))
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=5)
    ),
    max_leaves=30,
)


def arrived(obj: Any) -> Any:
    codec = PickleCodec()
    return codec.decode([bytearray(frame) for frame in codec.encode(obj)])


def by_pickle(frame: bytearray) -> Any:
    return pickle.loads(frame)  # noqa: S301


def spelled(obj: Any) -> str:
    """Return an object with the types of all its parts (1 == True == 1.0)."""
    return repr(obj)


@settings(max_examples=500)
@given(PLAIN)
def test_what_arrives_is_what_was_sent(obj: Any) -> None:
    assert spelled(arrived(obj)) == spelled(obj)


@settings(max_examples=500)
@given(PLAIN)
def test_pickle_reads_what_the_short_way_writes(obj: Any) -> None:
    short = _core.pickle_plain(obj)
    if short is not None:
        assert spelled(by_pickle(bytearray(short))) == spelled(obj)


@pytest.mark.parametrize(
    "obj",
    [
        {"step": 1234, "ids": [1, 2, 3], "done": False},
        [],
        {},
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [None, True, False],
        [0, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63)],
        [0.0, -0.0, math.inf, 1e-300],
        "ä€𝄞\0",
        "x" * 255,
        "x" * 256,
        b"y" * 300,
        {(1, "a"): [{"b": ()}]},
        [[[[[[[1]]]]]]],
    ],
    ids=repr,
)
def test_small_plain_objects_take_the_short_way(obj: Any) -> None:
    short = _core.pickle_plain(obj)
    assert short is not None
    assert spelled(_core.unpickle_plain(bytearray(short), pytest.fail)) == spelled(obj)
    assert spelled(by_pickle(bytearray(short))) == spelled(obj)


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


Point = collections.namedtuple("Point", "x y")
OTHERS = {
    "an enum": Colour.RED,
    "a subclass of str": Text("a"),
    "a named tuple": Point(1, 2),
    "an ordered dict": collections.OrderedDict(a=1),
    "a set": {1, 2},
    "a complex number": 1j,
    "a bytearray": bytearray(b"a"),
    "more than 64 bits": 2**63,
    "half a surrogate pair": "\ud800",
    "more than 1 KiB": "x" * 2000,
    "many numbers": [*range(1000)],
    "many containers": [[] for _ in range(40)],
    "deeply nested": [[[[[[[[[[1]]]]]]]]]],
}


@pytest.mark.parametrize("what", OTHERS)
def test_all_else_is_left_to_pickle_and_arrives_as_ever(what: str) -> None:
    for obj in (OTHERS[what], {"a": [OTHERS[what]]}):
        assert _core.pickle_plain(obj) is None
        got = arrived(obj)
        assert spelled(got) == spelled(obj)
        assert type(got) is type(obj)


def test_what_is_in_two_places_is_one_object_there_too() -> None:
    shared: list[int] = [1]
    first, second = arrived([shared, shared])
    assert first is second
    pair = (shared,)
    one, other = arrived({"a": pair, "b": pair}).values()
    assert one is other
    loop: list[Any] = []
    loop.append(loop)
    got = arrived(loop)
    assert got[0] is got


def test_not_a_number_arrives() -> None:
    assert math.isnan(arrived({"a": math.nan})["a"])


def test_what_pickle_wrote_goes_to_pickle() -> None:
    frame = bytearray(pickle.dumps({"a": [1]}, 5))
    assert _core.unpickle_plain(frame, lambda got: got is frame) is True


def test_nothing_is_kept_alive() -> None:
    message = ["a" * 100, {"b": [1.5]}]
    before = sys.getrefcount(message[0]), sys.getrefcount(message[1])
    for _ in range(100):
        arrived(message)
        _core.pickle_plain([message, {1, 2}])
    assert (sys.getrefcount(message[0]), sys.getrefcount(message[1])) == before


class OtherWay(Exception):
    """Says that it was left to pickle."""


def refuse(_frame: object) -> Any:
    raise OtherWay


@settings(max_examples=1000)
@given(PLAIN, st.data())
def test_damaged_bytes_are_read_as_pickle_reads_them_or_left_to_it(obj: Any, data: Any) -> None:
    short = _core.pickle_plain(obj)
    if short is None:
        return
    damaged = bytearray(short)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(
            st.sampled_from(b"NK]}(.)teausXC\x85\x86\x87\x8a\x8cGMJB\x00\x01\xff")
        )
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    with contextlib.suppress(OtherWay):
        got = _core.unpickle_plain(damaged, refuse)
        assert spelled(got) == spelled(by_pickle(damaged))
