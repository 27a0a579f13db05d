"""What arrives by the default codec is what pickle would bring, whatever was sent before."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.workloads import catalogue
from shmcast import ObjectCodec, PickleCodec
from tests.support import zoo, zoo_objects
from tests.support.canonical import canonical
from tests.support.differential import by_pickle, check, difference, outcome, sent, through


@pytest.mark.parametrize("what", zoo_objects.CASES)
def test_objects_arrive_as_by_pickle(what: str) -> None:
    make, codec = zoo_objects.CASES[what], ObjectCodec()
    obj = make()
    for _ in range(3):  # a second message meets what the first has left in caches
        check(codec, obj)
    check(codec, make())
    check(codec, obj, ObjectCodec())
    check(ObjectCodec(), obj, codec)
    check(codec, {"twice": [obj, (obj,)], "again": make()})


def test_objects_arrive_by_the_codec_of_pickles_too() -> None:
    codec = PickleCodec()
    for make in zoo_objects.CASES.values():
        check(codec, [make(), make()])


class OtherDict(dict[str, Any]):
    """Sends another than it is."""

    def __reduce__(self) -> Any:
        return dict, ({"other": 1},)


def test_the_attributes_of_an_instance_are_reduced_if_they_are_no_plain_dict() -> None:
    codec, obj = ObjectCodec(), Attributes()
    obj.__dict__ = OtherDict(x=1)
    check(codec, [obj, obj])
    assert vars(codec.decode([*map(bytearray, codec.encode(obj))])) == {"other": 1}


class Attributes:
    """Has what it is given."""


class NoPairs:
    """Says that its items are pairs, which they are not, and has them only once."""

    def __init__(self) -> None:
        self.items = iter([1, 2])

    def __reduce__(self) -> Any:
        return dict, (), None, None, self.items


def test_items_that_are_no_pairs_are_an_error() -> None:
    with pytest.raises(TypeError, match="dict items iterator must return 2-tuples"):
        ObjectCodec().encode([NoPairs()])


def test_an_encoder_keeps_no_strings() -> None:
    codec, text = ObjectCodec(), "-".join(["a", "string"])
    before = sys.getrefcount(text)
    codec.encode([text] * 100_000)
    codec.encode([f"{text}{i}" for i in range(10)] + [text] * 5)
    assert sys.getrefcount(text) == before


@pytest.mark.parametrize("seed", range(4))
def test_objects_arrive_after_any_others(seed: int) -> None:
    codec = ObjectCodec()
    names = random.Random(seed).choices([*zoo_objects.CASES], k=2 * len(zoo_objects.CASES))  # noqa: S311
    for name in names:
        check(codec, zoo_objects.CASES[name]())


def test_messages_are_decoded_in_any_order_twice_or_never() -> None:
    encoder, decoders = ObjectCodec(), [ObjectCodec(), ObjectCodec()]
    chance = random.Random(1)  # noqa: S311
    names = chance.choices([*zoo_objects.CASES], k=2 * len(zoo_objects.CASES))
    messages = [(name, sent(encoder, zoo_objects.CASES[name]())) for name in names]
    chance.shuffle(messages)
    for name, frames in messages[: len(messages) * 2 // 3]:
        expected = outcome(by_pickle, zoo_objects.CASES[name]())
        for _ in range(chance.randint(1, 2)):
            got = outcome(chance.choice(decoders).decode, [*map(bytearray, frames)])
            assert got == expected, f"{name}:\n{difference(expected, got)}"


def test_a_message_needs_none_before_it() -> None:
    encoder = ObjectCodec()
    for name, make in zoo_objects.CASES.items():
        for _ in range(2):
            expected = outcome(by_pickle, make())
            got = outcome(ObjectCodec().decode, sent(encoder, make()))
            assert got == expected, f"{name}:\n{difference(expected, got)}"


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.binary(max_size=20) | st.sampled_from([*zoo.Colour, *zoo.Mode, *zoo.Name])
)  # fmt: skip
KEYS = SCALARS | st.tuples(SCALARS, SCALARS)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, max_size=5)
    return (
        several
        | several.map(tuple)
        | several.map(zoo.Items)
        | st.dictionaries(KEYS, inner, max_size=5)
        | st.sets(KEYS, max_size=5)
        | st.builds(zoo.Point, inner, inner, inner)
        | st.builds(zoo.Cell, inner, inner)
        | st.builds(zoo.Pair, inner, inner)
        | st.builds(zoo.GetState, inner)
        | st.builds(lambda item: [item, item], inner)
    )


SHARED_CODEC = ObjectCodec()


@settings(max_examples=150)
@given(st.recursive(SCALARS, _nested, max_leaves=30))
def test_what_hypothesis_makes_arrives_as_by_pickle(obj: Any) -> None:
    check(SHARED_CODEC, obj)


ENGINES = [
    name
    for name in catalogue.WORKLOADS
    if "B" not in name.split() and "tensors" not in name and "array" not in name
    and name not in ("1 MiB", "16 MiB", "multimodal", "trace", "trace, fast", "metadata only")
]  # fmt: skip


@pytest.mark.parametrize("name", ENGINES)
def test_what_engines_send_arrives_as_by_pickle(name: str) -> None:
    codec = ObjectCodec()
    for obj in catalogue.workload(name).make():
        for _ in range(2):
            assert canonical(through(codec, obj)) == canonical(by_pickle(obj))


def test_the_steps_of_an_engine_arrive_as_by_pickle() -> None:
    encoder, decoder = ObjectCodec(), ObjectCodec()
    for step in catalogue.workload("trace").make()[:30]:
        check(encoder, step, decoder)


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


ARRAYS: dict[str, Callable[[], Any]] = {
    "small": lambda: np.arange(5),
    "large": lambda: np.arange(5000),
    "two dimensions": lambda: np.arange(12.0).reshape(3, 4),
    "Fortran's order": lambda: np.asfortranarray(np.arange(12).reshape(3, 4)),
    "strided": lambda: np.arange(12).reshape(3, 4)[:, ::2],
    "of objects": lambda: np.array(["a", None, [1]], object),
    "structured": lambda: np.zeros(3, [("a", "<i4"), ("b", "<f8", (2,))]),
    "none of it": lambda: np.zeros((0, 3)),
    "one number": lambda: np.array(5),
    "read-only": lambda: _read_only(np.arange(3)),
    "read-only, large": lambda: _read_only(np.arange(3000.0)),
    "scalars": lambda: [np.float64(1.5), np.int64(3), np.bool_(True), np.str_("a")],
    "a scalar twice": lambda: [shared := np.int64(3), shared, np.int64(3)],
    "an array twice": lambda: [shared := np.arange(3), shared, {"k": shared}],
    "a large one twice": lambda: [shared := np.arange(3000), shared],
    "dtypes": lambda: [np.dtype("int32"), np.dtype([("a", "i4")]), np.float32],
    "datetimes": lambda: np.arange("2025-01", "2025-03", dtype="M8[D]"),
    "strings": lambda: np.array(["a", "bcd"]),
    "in dataclasses": lambda: [zoo.Point(np.arange(i), i) for i in range(10)],
    "in slots beside code": lambda: [zoo.Cell(np.arange(3), zoo.Reduced(1))],
}


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_arrive_as_by_pickle(what: str) -> None:
    codec = ObjectCodec()
    for _ in range(3):
        check(codec, {"a": ARRAYS[what](), "b": [ARRAYS[what]()]})


def test_arrays_arrive_owned_and_large_ones_as_frames() -> None:
    codec = ObjectCodec()
    array = np.arange(5000)
    frames = sent(codec, {"a": array, "p": zoo.Point(array)})
    assert [len(frame) for frame in frames[1:]] == [array.nbytes]
    got = codec.decode(frames)
    assert got["a"] is got["p"].x
    got["a"][0] = 7
    assert array[0] == 0


@pytest.mark.parametrize("size", [0, 3, 5000])
def test_tensors_arrive_as_by_pickle_codec(size: int) -> None:
    codec = ObjectCodec()
    tensor = torch.arange(size, dtype=torch.float32)
    parameter = torch.nn.Parameter(tensor.clone())
    obj = {"t": [tensor, tensor], "p": zoo.Point(parameter, zoo.Reduced(tensor)), "d": tensor.dtype}
    for _ in range(2):
        got = through(codec, obj)
        assert got["t"][0] is got["t"][1] is got["p"].y.args[0]
        assert torch.equal(got["t"][0], tensor)
        assert type(got["p"].x) is torch.nn.Parameter
        assert got["p"].x.requires_grad
        assert got["d"] is torch.float32


msgspec: Any = pytest.importorskip("msgspec")


class Request(msgspec.Struct):  # type: ignore[misc]
    id: str
    tokens: Any = ()
    parent: Any = None


class Compact(msgspec.Struct, array_like=True, gc=False, frozen=True):  # type: ignore[call-arg, misc]
    a: Any
    b: Any = None


class Checked(msgspec.Struct):  # type: ignore[misc]
    a: int

    def __post_init__(self) -> None:
        Checked.made += 1


Checked.made = 0


class Child(Request, kw_only=True):  # type: ignore[call-arg]
    more: Any


class WithDict(msgspec.Struct, dict=True):  # type: ignore[call-arg, misc]
    a: Any


def _in_itself() -> Request:
    request = Request("a")
    request.parent = [request]
    return request


STRUCTS: dict[str, Callable[[], Any]] = {
    "one": lambda: Request("a", [1, 2]),
    "several": lambda: [Request(f"r{i}", [i]) for i in range(20)],
    "alike": lambda: [Compact(shared := [1], shared), Compact(shared), Compact(1, 2)],
    "twice": lambda: [shared := Request("a"), shared],
    "in itself": _in_itself,
    "child": lambda: Child(id="a", more=[1]),
    "beside code": lambda: [Compact(zoo.Reduced(1)), zoo.Reduced(Compact(2))],
    "in dataclasses": lambda: zoo.Point([Compact(i) for i in range(9)], Request("b")),
    "a dict": lambda: zoo_objects.filled(WithDict([1]), more=2),
}


@pytest.mark.parametrize("what", STRUCTS)
def test_structs_arrive_as_by_pickle(what: str) -> None:
    codec = ObjectCodec()
    for _ in range(3):
        check(codec, STRUCTS[what]())


def test_a_structs_post_init_runs_as_often_as_by_pickle() -> None:
    counts = []
    for send in (by_pickle, lambda obj: through(ObjectCodec(), obj)):
        obj = [Checked(1), Checked(2)]
        Checked.made = 0
        send(obj)
        counts.append(Checked.made)
    assert counts[0] == counts[1]


def test_what_arrives_is_no_part_of_what_was_sent() -> None:
    codec = ObjectCodec()
    obj = {"a": [1], "p": zoo.Point([2], {}), "b": bytearray(b"x"), "s": {1}}
    got = through(codec, obj)
    got["a"].append(5)
    got["p"].x.append(5)
    got["p"].y["k"] = 5
    got["b"].append(5)
    got["s"].add(5)
    assert canonical(through(codec, obj)) == canonical(by_pickle(obj))
    assert obj == {"a": [1], "p": zoo.Point([2], {}), "b": bytearray(b"x"), "s": {1}}


def test_the_frames_of_a_message_stay_as_they_are_when_the_next_is_encoded() -> None:
    codec = ObjectCodec()
    kept = codec.encode({"a": [1, 2], "b": "c" * 300})
    first = [bytes(frame) for frame in kept]
    for _ in range(3):
        codec.encode(["other"] * 50)
    assert [bytes(frame) for frame in kept] == first


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="pickle does it all there"
)
def test_messages_of_plain_objects_are_no_pickles() -> None:
    codec = ObjectCodec()
    for obj in ({"a": 1}, [zoo.Point(1, "x")], zoo.Cell(1), (zoo.Pair(), zoo.Colour.RED)):
        assert codec.encode(obj)[0][0] == 0xF5
