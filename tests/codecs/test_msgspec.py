"""`MsgspecCodec`: typed messages arrive equal, arrays travel as buffers, errors name the field."""

from __future__ import annotations

import datetime
import enum
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Union

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import shmcast
from shmcast import MsgspecCodec, Reader, ShmBroadcaster, Writer
from shmcast._codecs.pickle_codec import OUT_OF_BAND_BYTES, Received
from shmcast._endpoints.warmup import Practice
from tests.support import fake_nodes
from tests.support.objects import DTYPES, LAYOUTS, describe
from tests.support.processes import Crew
from tests.support.subprocess_programs import run_to_its_end
from tests.support.typed_roles import SECONDS, Request, Step, parts, receive_steps, step

Array = npt.NDArray[Any]
MIB = 1 << 20


def transfer(obj: Any, message_type: Any) -> tuple[Any, list[int]]:
    """What arrives, from memory that the sender's is not part of; and the frames' sizes."""
    frames: list[Received] = [bytearray(frame) for frame in MsgspecCodec(message_type).encode(obj)]
    sizes = [len(frame) for frame in frames]
    return MsgspecCodec(message_type).decode(frames), sizes


# What arrives


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Started(msgspec.Struct, tag=True):
    at: datetime.datetime


class Stopped(msgspec.Struct, tag=True):
    code: int
    inner: Started | Stopped | None = None


@dataclass
class Plain:
    ids: list[int]
    scale: float = 1.0


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
    """What can be compared, and the arrays."""
    *values, array, maybe, named = msgspec.structs.astuple(whole)
    found = [array, *([] if maybe is None else [maybe])]
    for some in named.values():
        found += some
    return [*values, maybe is None, {name: len(some) for name, some in named.items()}], found


@settings(max_examples=150, deadline=None)
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
    assert got.flags.writeable


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
    assert sizes[1:] == ([array.nbytes] if array.nbytes >= OUT_OF_BAND_BYTES else [])


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_and_layout_arrive(dtype: torch.dtype, layout: str) -> None:
    noise = torch.arange(2 * 6 * 8 * 16 * dtype.itemsize) % (2 if dtype is torch.bool else 120)
    sent = LAYOUTS[layout](noise.to(torch.uint8).view(dtype).view(2, 6, 8, 16))
    (got, none), sizes = transfer((sent, None), tuple[torch.Tensor | None, torch.Tensor | None])
    assert none is None
    assert describe(got) == describe(sent)
    nbytes = sent.numel() * dtype.itemsize
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


# What can't be sent


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (
            Step(1, [Request("a", [1]), Request("b", [2, 5j])]),  # type: ignore[list-item]
            r"\$\.cached\[1\]\.new_block_ids\[1\] = 5j \(Request\.new_block_ids is declared as "
            r"list\[int\]\): .*builtins\.complex",
        ),
        (
            Step(1, spec={"a": [2**64]}),
            r"\$\.spec\['a'\]\[0\] = 18446744073709551616 \(Step\.spec is declared as dict\[str, "
            r"list\[int\]\]\): .*ints",
        ),
        (
            Step(1, bitmask=np.array([None])),
            r"\$\.bitmask = <numpy\.ndarray> \(Step\.bitmask is declared as .*\): .*dtype object",
        ),
        (
            Step(np.int64(1)),  # type: ignore[arg-type]
            r"\$\.number = <numpy\.int64> \(Step\.number is declared as int\)",
        ),
        (Step(1, finished={b"a", 5j}), r"\$\.finished\[\d\] = 5j "),  # type: ignore[arg-type]
        (Step(1, spec={5j: [1]}), r"\$\.spec\.key\(5j\) = 5j "),  # type: ignore[dict-item]
        (Plain([1], {"deep": (1, {2, "\ud800"})}), r"\$\.scale\['deep'\]\[1\]\[\d\] = "),  # type: ignore[arg-type]
        (threading.Lock(), r"\$ = <.*lock.* \(the message is declared as Step\): .*_thread\.lock"),
        (int, r"\$ = <class 'int'> \(the message is declared as Step\): "),
    ],
    ids=[
        "list", "dict", "array", "scalar", "set", "key", "dataclass", "message", "class",
    ],
)  # fmt: skip
def test_what_cannot_be_encoded_is_named_with_its_path_before_anything_is_sent(
    sent: Any, error: str
) -> None:
    with (
        Writer(1, codec=MsgspecCodec(Step)) as writer,
        Reader(writer.handle, 0, codec=MsgspecCodec(Step)) as reader,
    ):
        with pytest.raises(shmcast.EncodeError, match=f"writer: can't encode .*{error}.*nothing"):
            writer.send(sent)
        writer.send(step(1))
        assert parts(reader.recv(SECONDS)) == parts(step(1))
        assert writer.statistics().messages == 1


def tagged() -> torch.Tensor:
    tensor = torch.zeros(3)
    tensor.tag = "more than its elements"  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (torch.zeros(3, device="meta"), "tensor of torch.float32 on meta"),
        (torch.eye(3).to_sparse(), "on cpu, torch.sparse_coo: only dense ones"),
        (tagged(), "without attributes of their own"),
        (torch.nn.Parameter(torch.zeros(3)), "torch.nn.parameter.Parameter .*not exactly"),
        (np.ma.masked_array([1], [True]), "MaskedArray .*not exactly a numpy.ndarray"),
    ],
    ids=["device", "sparse", "attributes", "Parameter", "masked"],
)
def test_arrays_that_are_more_than_elements_in_host_memory_are_errors(
    value: Any, error: str
) -> None:
    with pytest.raises(msgspec.EncodeError, match=rf"^\$\['a'\] = <.*{error}"):
        MsgspecCodec(dict[str, Any]).encode({"a": value})


def test_an_object_that_is_part_of_itself_is_named() -> None:
    inner: dict[str, Any] = {}
    inner["again"] = inner
    with pytest.raises(msgspec.EncodeError, match=r"^\$\[1\]\['again'\] = .*recursion"):
        MsgspecCodec(list[Any]).encode([1, inner])


def test_a_value_of_another_type_than_declared_is_the_readers_error_and_the_next_arrives() -> None:
    codec = MsgspecCodec(dict[str, Request])
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0, codec=codec) as reader:
        writer.send({"a": Request("a", [1, "x"])})  # type: ignore[list-item]
        with pytest.raises(
            shmcast.DecodeError, match=r"Expected `int`, got `str` - at `\$\[\.\.\.\]\[1\]\[1\]`"
        ):
            reader.recv(SECONDS)
        writer.send({"a": Request("a", [1])})
        assert reader.recv(SECONDS) == {"a": Request("a", [1])}


def test_constraints_are_checked_where_a_message_arrives() -> None:
    few = Annotated[list[int], msgspec.Meta(max_length=2)]
    with pytest.raises(msgspec.ValidationError, match="length <= 2"):
        transfer([1, 2, 3], few)


# What is no type for it


class Opaque:
    pass


class Within(msgspec.Struct):
    good: Step
    bad: list[Opaque | None]


class Undefined(msgspec.Struct):
    bad: Missing  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("message_type", "error"),
    [
        (
            Within,
            r"MsgspecCodec\(Within\): Within\.bad has .*test_msgspec\.Opaque, which msgspec can",
        ),
        (dict[str, Opaque], r"test_msgspec\.Opaque"),
        (list[np.float32], r"numpy\.float32"),
        (torch.nn.Parameter, r"torch\.nn\.parameter\.Parameter"),
        (np.ndarray | torch.Tensor, r"numpy\.ndarray \| torch\.Tensor.* not supported"),
        (Undefined, "'Missing' is not defined"),
        (5, r"MsgspecCodec\(5\): .*not supported"),
    ],
    ids=str,
)
def test_a_type_that_cannot_travel_is_named_at_once(message_type: Any, error: str) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=error):
        MsgspecCodec(message_type)


def test_without_msgspec_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(shmcast.MissingDependency, match=r"pip install 'shmcast\[msgspec\]'"):
        MsgspecCodec(int)


LIGHT = """
import sys, shmcast
assert not {"msgspec", "numpy", "torch"} & set(sys.modules)
shmcast.MsgspecCodec(list[int])
assert not {"numpy", "torch"} & set(sys.modules)
print("done")
"""


def test_msgspec_is_imported_when_it_is_used_and_numpy_and_torch_are_not() -> None:
    ran = run_to_its_end(LIGHT)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


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


# What it practises on


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
def test_a_sample_with_an_array_has_a_buffer_and_can_be_practised_on(message_type: Any) -> None:
    codec = MsgspecCodec(message_type)
    practice = Practice.with_sample_of(codec, "writer")
    assert practice is not None
    for _ in range(40):
        practice.send()
        practice.receive()
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
def test_without_a_sample_it_does_not_practise_the_codec(message_type: Any) -> None:
    codec = MsgspecCodec(message_type)
    assert codec.sample is None
    with Writer(1, codec=codec) as writer:
        writer.warm()
        assert writer.statistics().messages == 0


# Endpoints


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("readers", [1, 8])
def test_every_reader_gets_every_message(crew: Crew, readers: int, copy: bool) -> None:
    with Writer(readers, codec=MsgspecCodec(Step), arena_bytes=8 * MIB) as writer:
        jobs = crew.start(readers, receive_steps, writer.handle, 20, copy)
        for number in range(20):
            writer.send(step(number, 64, 1024), SECONDS)
            writer.warm()
        assert [job.result() for job in jobs] == [20] * readers
        assert writer.statistics().arena_frames == 20


class Batch(msgspec.Struct):
    mask: Array | None = None
    pixels: torch.Tensor | None = None


def test_views_are_of_the_writers_arena_and_nobody_elses_to_change() -> None:
    sent = Batch(np.full(MIB, 1, np.uint8), torch.ones(2, MIB // 4)[:, ::2].T)
    codec = MsgspecCodec(Batch)
    with (
        Writer(1, codec=codec, arena_bytes=8 * MIB) as writer,
        Reader(writer.handle, 0, codec=codec) as reader,
    ):
        for _ in range(20):  # more than the arena holds: views that are gone make room
            writer.send(sent)
            got = reader.recv(SECONDS, copy=False)
            assert not got.mask.flags.writeable
            assert np.array_equal(got.mask, sent.mask)  # type: ignore[arg-type]
            got.pixels[0] = 5  # a page of its own
            assert torch.equal(got.pixels[1:], sent.pixels[1:])  # type: ignore[index]
        assert writer.statistics().arena_frames == 40
        assert writer.statistics().arena_full == 0


def test_loans_are_sent_without_a_copy_and_frozen_until_every_reader_is_done() -> None:
    codec = MsgspecCodec(Batch)
    with (
        Writer(1, codec=codec, arena_bytes=8 * MIB) as writer,
        Reader(writer.handle, 0, codec=codec) as reader,
    ):
        sent = Batch(writer.empty(MIB, np.uint8)[::2], writer.empty_tensor((2, MIB // 4)).T)
        assert sent.mask is not None
        assert sent.pixels is not None
        sent.mask[:] = 3
        sent.pixels.fill_(4)
        writer.send(sent)
        assert writer.statistics().fragments == 1  # nothing was streamed
        assert not sent.mask.flags.writeable
        got = reader.recv(SECONDS, copy=False)
        assert (got.mask == 3).all()
        assert got.mask.strides == (2,)
        assert torch.equal(got.pixels, sent.pixels)
        assert (writer.thaw(sent.mask), writer.thaw(sent.pixels)) == (False, False)
        del got
        assert (writer.thaw(sent.mask), writer.thaw(sent.pixels)) == (True, True)
        assert sent.mask.flags.writeable


HOSTS = {"one node": "aaaa", "two nodes": "aabb"}


def broadcast_steps(rank: int, hosts: str) -> list[Any]:
    with (
        fake_nodes.on_host(hosts[rank]),
        ShmBroadcaster(src=1, codec=MsgspecCodec(Step | dict[str, Any])) as bc,
    ):
        if bc.is_src:
            with pytest.raises(shmcast.EncodeError, match=r"\$\['pixels'\] = .* on meta"):
                bc.broadcast_object({"pixels": torch.ones(3, device="meta")})
        got = [bc.broadcast_object(step(i) if bc.is_src else None, SECONDS) for i in range(5)]
        mask, pixels = np.arange(MIB), torch.ones(MIB, dtype=torch.bfloat16)
        sent = {"mask": mask, "pixels": pixels} if bc.is_src else None
        arrays = bc.broadcast_tensor_dict(sent, SECONDS)
        assert np.array_equal(arrays["mask"], mask)
        assert torch.equal(arrays["pixels"], pixels)
        assert bc.statistics().messages == 6
        return [parts(one) for one in got]


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_every_rank_gets_the_sources_messages(world: Crew, hosts: str) -> None:
    assert world.run(4, broadcast_steps, hosts) == [[parts(step(i)) for i in range(5)]] * 4


def device_tensors_with_types(_rank: int) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="only PickleCodec does"):
        ShmBroadcaster(codec=MsgspecCodec(Batch), device_types={"cpu"})


def test_a_device_group_is_refused(world: Crew) -> None:
    world.run(4, device_tensors_with_types)
