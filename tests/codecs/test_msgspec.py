"""`MsgspecCodec`: typed messages arrive equal, arrays travel as buffers, and nothing is kept."""

from __future__ import annotations

import datetime
import enum
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Union

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shmcast import MsgspecCodec, Writer
from shmcast._codecs.base import OUT_OF_BAND_BYTES
from shmcast._endpoints.warmup import Warmup
from tests.support.objects import DTYPES, LAYOUTS, describe
from tests.support.typed_roles import (
    MIB,
    Array,
    Opaque,
    Plain,
    Step,
    transfer,
)

# What arrives


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Started(msgspec.Struct, tag=True):
    at: datetime.datetime


class Stopped(msgspec.Struct, tag=True):
    code: int
    inner: Started | Stopped | None = None


class Pair(NamedTuple):
    left: str
    right: list[int]


class Everything(msgspec.Struct):
    flag: bool
    count: int
    ratio: float
    name: str
    raw: bytes
    color: Color
    blocks: list[list[int] | None]
    fixed: tuple[int, str]
    tokens: dict[str, int]
    kinds: frozenset[str]
    plain: Plain
    pair: Pair
    event: Started | Stopped
    free: Any
    array: Array
    maybe: Array | None
    arrays: dict[str, list[np.ndarray]]


integers = st.integers(-(2**63), 2**64 - 1)
texts = st.text(max_size=20)
started = st.builds(Started, st.datetimes())
arrays = npst.arrays(
    npst.scalar_dtypes(), npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=30)
)


everything = st.builds(
    Everything,
    st.booleans(),
    integers,
    st.floats(allow_nan=False),
    texts,
    st.binary(max_size=9000),
    st.sampled_from(Color),
    st.lists(st.none() | st.lists(integers)),
    st.tuples(integers, texts),
    st.dictionaries(texts, integers),
    st.frozensets(texts),
    st.builds(Plain, st.lists(integers), st.floats(allow_nan=False)),
    st.builds(Pair, texts, st.lists(integers)),
    started | st.builds(Stopped, integers, st.none() | started),
    st.none() | texts | st.lists(integers),
    arrays,
    st.none() | arrays,
    st.dictionaries(texts, st.lists(arrays, max_size=3), max_size=3),
)


def take_apart(whole: Everything) -> tuple[list[Any], list[Array]]:
    """Return what can be compared, and the arrays."""
    *values, array, maybe, named = msgspec.structs.astuple(whole)
    found = [array, *([] if maybe is None else [maybe])]
    for some in named.values():
        found += some
    return [*values, maybe is None, {name: len(some) for name, some in named.items()}], found


@settings(max_examples=150)
@given(everything)
def test_objects_of_many_fields_arrive_equal(sent: Everything) -> None:
    (values, found), (got_values, got_found) = map(
        take_apart, (sent, transfer(sent, Everything)[0])
    )
    assert got_values == values
    for got, array in zip(got_found, found, strict=True):
        check_same_array(got, array)


@pytest.mark.parametrize(
    ("message_type", "obj"),
    [
        (Union[Started, Stopped], Stopped(1)),  # noqa: UP007 (as users write it)
        (dict[str, list[Plain]], {"a": [Plain([1])]}),
        (list[int], [1, 2]),
        (Step | None, None),
        (Any, {"a": [1, "b", None]}),
        (Annotated[int, msgspec.Meta(ge=5)], 5),
    ],
    ids=str,
)
def test_a_message_may_be_of_any_type_that_msgspec_knows(message_type: Any, obj: Any) -> None:
    assert transfer(obj, message_type)[0] == obj


def check_same_array(got: Any, sent: Array) -> None:
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert got.tobytes() == sent.tobytes()
    is_contiguous = sent.flags.c_contiguous or sent.flags.f_contiguous
    is_exported = is_contiguous and sent.dtype.kind not in "mM"  # (else pickle makes a new array)
    assert got.flags.writeable == (sent.flags.writeable or not is_exported)


@pytest.mark.parametrize("size", [0, 1, 100, 10_000])
@pytest.mark.parametrize(
    "make",
    [
        lambda a: a,
        lambda a: a.astype(">i8"),
        lambda a: a[::-3],
        lambda a: np.asfortranarray(np.stack([a, a])),
        lambda a: np.broadcast_to(a, (3, len(a))),
        lambda a: a.view("datetime64[s]"),
        lambda a: a.view([("x", "<i4"), ("y", [("u", ">f2"), ("v", "S2")])]),
        lambda a: a.view(np.dtype([("x", "u1"), ("y", "<i4")], align=True)),
        lambda a: a.astype("U3"),
        lambda a: a.sum(keepdims=True).reshape(()),
    ],
    ids=[
        "plain", "big-endian", "strided", "F", "broadcast", "datetime", "structured", "aligned",
        "text", "0-dim",
    ],
)  # fmt: skip
def test_arrays_of_every_dtype_and_layout_arrive_owned_and_writable(
    make: Callable[[Array], Array], size: int
) -> None:
    array = make(np.arange(size, dtype=np.int64))
    array.flags.writeable = False
    got, sizes = transfer([array], list[np.ndarray])
    check_same_array(got[0], array)
    assert got[0].flags.f_contiguous or not array.flags.f_contiguous
    is_broadcast = array.ndim == 2 and not array.strides[0]
    nbytes = array[0].nbytes if is_broadcast else array.nbytes  # the elements, once
    assert sizes[1:] == ([nbytes] if nbytes >= OUT_OF_BAND_BYTES else [])


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_and_layout_arrive(dtype: torch.dtype, layout: str) -> None:
    noise = torch.arange(2 * 6 * 8 * 16 * dtype.itemsize) % (2 if dtype is torch.bool else 120)
    sent = LAYOUTS[layout](noise.to(torch.uint8).view(dtype).view(2, 6, 8, 16))
    (got, none), sizes = transfer((sent, None), tuple[torch.Tensor | None, torch.Tensor | None])
    assert none is None
    assert describe(got) == describe(sent)
    nbytes = (sent[:1] if layout == "expanded" else sent).numel() * dtype.itemsize  # sent once
    assert sizes[1:] == ([nbytes] if nbytes >= OUT_OF_BAND_BYTES else [])


def test_tensors_keep_dense_strides_and_requires_grad_and_can_be_written_to() -> None:
    sent = torch.randn(2, 30, 40, 5).to(memory_format=torch.channels_last).requires_grad_()
    got = transfer({"w": sent}, dict[str, torch.Tensor])[0]["w"]
    assert describe(got) == describe(sent)
    assert got.stride() == sent.stride()
    got.detach().fill_(1)
    got.sum().backward()
    assert got.grad is not None


def test_arrays_and_tensors_arrive_in_fields_of_any_type() -> None:
    got, sizes = transfer([np.arange(3), {"t": torch.ones(5000)}], Any)
    check_same_array(got[0], np.arange(3))
    assert torch.equal(got[1]["t"], torch.ones(5000))
    assert sizes[1:] == [20_000]


@pytest.mark.parametrize("nbytes", [OUT_OF_BAND_BYTES - 1, OUT_OF_BAND_BYTES, MIB])
def test_large_buffers_are_frames_of_their_own(nbytes: int) -> None:
    array = np.arange(nbytes, dtype=np.uint8)
    tensor = torch.from_numpy(array)
    got, sizes = transfer((array, tensor), tuple[np.ndarray, torch.Tensor])
    check_same_array(got[0], array)
    assert torch.equal(got[1], tensor)
    got[0][:] = 7
    got[1][:] = 7
    if nbytes < OUT_OF_BAND_BYTES:
        assert len(sizes) == 1
    else:
        assert sizes[1:] == [nbytes, nbytes]
        assert sizes[0] < 100


def test_extensions_of_the_users_own_stay_as_they_are() -> None:
    extension = msgspec.msgpack.Ext(5, b"abc")
    assert transfer([extension], list[Any])[0] == [extension]


# What the codec keeps


def test_nothing_is_kept_alive_by_the_codec(no_gc: None) -> None:
    codec = MsgspecCodec(list[np.ndarray])
    sent = np.zeros(MIB, np.uint8)
    got = codec.decode([bytearray(frame) for frame in codec.encode([sent])])[0]
    try:
        codec.encode([sent, Opaque()])
    except msgspec.EncodeError as error:
        what = str(error)
    assert what.startswith("$[1] = ")
    references = [weakref.ref(sent), weakref.ref(got)]
    del sent, got
    assert all(reference() is None for reference in references)


class Nested(msgspec.Struct):
    """Decodes another message in the middle of its own."""

    array: np.ndarray
    last: np.ndarray
    inner: list[Any] = []

    def __post_init__(self) -> None:
        if not self.inner:
            frames = NESTED_CODEC.encode(Nested(self.array + 1, self.last + 1, [1]))
            self.inner = [NESTED_CODEC.decode([bytearray(frame) for frame in frames])]


NESTED_CODEC = MsgspecCodec(Nested)


def test_messages_within_messages_do_not_get_each_others_buffers() -> None:
    frames = NESTED_CODEC.encode(Nested(np.zeros(5000), np.full(5000, 5.0)))
    got = NESTED_CODEC.decode([bytearray(frame) for frame in frames])
    assert (got.array[0], got.last[0]) == (0, 5)


def test_threads_do_not_get_each_others_buffers() -> None:
    codec = MsgspecCodec(list[np.ndarray])
    wrong = []

    def work(value: int) -> None:
        for _ in range(200):
            frames = codec.encode([np.full(5000, value, np.uint8)] * 3)
            got = codec.decode([bytearray(frame) for frame in frames])
            if len(frames) != 4 or any((array != value).any() for array in got):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


# What it warms up with


class Tree(msgspec.Struct):
    children: list[Tree]
    parent: Tree | None = None


@pytest.mark.parametrize(
    ("message_type", "sample"),
    [
        (int, 1),
        (dict[str, list[float]], {"a": [0.5]}),
        (list[Started | Stopped | None], [Stopped(1)]),  # no datetime is made up
        (tuple[Color, Pair], (Color.RED, Pair("a", [1]))),
        (Tree, Tree([])),
        (Plain, Plain([1], 0.5)),
        (frozenset[bytes], frozenset([b"a"])),
    ],
    ids=str,
)
def test_the_sample_has_one_of_everything(message_type: Any, sample: Any) -> None:
    make = MsgspecCodec(message_type).sample
    assert make is not None
    assert make() == sample


@pytest.mark.parametrize("message_type", [Step, Everything, list[torch.Tensor], dict[str, Array]])
def test_a_sample_with_an_array_has_a_buffer_and_warms_the_codec_up(message_type: Any) -> None:
    codec = MsgspecCodec(message_type)
    warmup = Warmup.with_sample_of(codec, "writer")
    assert warmup is not None
    for _ in range(40):
        warmup.send()
        warmup.receive()
    assert codec.sample is not None
    assert len(codec.encode(codec.sample())) == 2


class Picky(msgspec.Struct):
    name: str

    def __post_init__(self) -> None:
        if len(self.name) < 3:
            raise ValueError("too short")


WIDE = msgspec.defstruct("WIDE", [(f"field_{i}", int) for i in range(200)])


@pytest.mark.parametrize(
    "message_type",
    [Annotated[int, msgspec.Meta(ge=5)], Picky, datetime.datetime, WIDE],
    ids=["constraint", "refused", "no example", "large"],
)
def test_without_a_sample_the_codec_is_not_warmed_up(message_type: Any) -> None:
    codec = MsgspecCodec(message_type)
    assert codec.sample is None
    with Writer(1, codec=codec) as writer:
        writer.warm()
        assert writer.statistics().messages == 0
