"""Every object arrives equal; arrays and tensors arrive owned, writable, and out of the pickle."""

from __future__ import annotations

import copyreg
import datetime
import gc
import pickle
import threading
import weakref
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import shmcast
from shmcast import PickleCodec, Reader, Writer
from shmcast._codecs.base import OUT_OF_BAND_BYTES, Received
from tests.support.objects import DTYPES

Point = namedtuple("Point", "x y")
Array = npt.NDArray[Any]


def transfer(obj: Any, codec: PickleCodec | None = None) -> tuple[Any, list[int]]:
    """Return what arrives, in memory of the receiver's own, and the frames' sizes."""
    codec = codec or PickleCodec()
    frames: list[Received] = [bytearray(frame) for frame in codec.encode(obj)]
    return codec.decode(frames), [len(frame) for frame in frames]


@dataclass
class Step:
    ids: list[int]
    table: dict[str, Any]
    parent: Any = None


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
        | st.binary(max_size=9000) | st.fractions() | st.datetimes(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    )
)  # fmt: skip
def test_plain_objects_arrive_equal(obj: Any) -> None:
    assert transfer(obj)[0] == obj


def test_classes_instances_functions_and_cycles_arrive() -> None:
    step = Step([1], {"p": Point(1, 2), "f": Fraction(1, 3), "t": datetime.date(2026, 1, 1)})
    step.parent = step
    got = transfer([step, step, Step, len, Any, Exception("x")])[0]
    assert got[0].table == step.table
    assert got[0].parent is got[0] is got[1]
    assert got[2:5] == [Step, len, Any]
    assert got[5].args == ("x",)


dtypes = st.one_of(
    npst.scalar_dtypes(),
    npst.array_dtypes(npst.scalar_dtypes(), min_size=1),
    npst.unicode_string_dtypes(max_len=3),
)


@settings(max_examples=200)
@given(data=st.data())
def test_arrays_of_every_dtype_and_layout_arrive_owned(data: st.DataObject) -> None:
    dtype = data.draw(dtypes)
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    raw = data.draw(st.randoms(use_true_random=False)).randbytes
    size = int(np.prod(shape)) * dtype.itemsize
    array: Array = np.ndarray(shape, dtype, raw(size))  # read-only: over bytes
    layout = data.draw(st.sampled_from(["C", "F", "transposed", "strided", "read-only"]))
    match layout:
        case "C":
            array = array.copy()
        case "F":
            array = array.copy(order="F")
        case "transposed":
            array = array.transpose()
        case "strided" if array.ndim:
            array = array[::-2]
    got, _ = transfer({"a": array})
    check_same_array(got["a"], array)


def check_same_array(got: Array, sent: Array) -> None:
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert got.tobytes() == sent.tobytes()
    assert got.flags.writeable == pickled(sent).flags.writeable


def pickled(obj: Any) -> Any:
    """Return what arrives by pickle's own way."""
    return pickle.loads(pickle.dumps(obj, 5))  # noqa: S301


@pytest.mark.parametrize("nbytes", [OUT_OF_BAND_BYTES - 1, OUT_OF_BAND_BYTES, 1 << 20])
@pytest.mark.parametrize("read_only", [False, True])
def test_large_buffers_are_frames_of_their_own(nbytes: int, read_only: bool) -> None:
    array = np.arange(nbytes, dtype=np.uint8)
    array.flags.writeable = not read_only
    got, sizes = transfer([array, "text"])
    check_same_array(got[0], array)
    if not read_only:
        got[0][:] = 7
    if nbytes < OUT_OF_BAND_BYTES:
        assert len(sizes) == 1
    else:
        assert sizes[1:] == [nbytes]
        assert sizes[0] < 200


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a.reshape(100, 100).T,
        lambda a: a.reshape(100, 100)[:, ::2],
        lambda a: np.broadcast_to(a[:100], (50, 100)),
        lambda a: a.view("datetime64[s]"),
        lambda a: a.view([("x", "<i4"), ("y", ">f4")]),
        lambda a: a.astype(">i8"),
    ],
    ids=["transposed", "strided", "broadcast", "datetime", "structured", "big-endian"],
)
def test_large_arrays_that_numpy_would_copy_into_the_pickle_do_not_go_there(
    make: Callable[[Array], Array],
) -> None:
    array = make(np.arange(10_000, dtype=np.int64))
    got, sizes = transfer(array)
    check_same_array(got, array)
    assert sizes[1:] == ([array.nbytes] if array.strides[0] else [])  # a row that was broadcast


def test_arrays_of_objects_and_subclasses_keep_their_own_way() -> None:
    objects = np.array([{"a": 1}, None, [2]], dtype=object)
    masked = np.ma.masked_array(np.arange(5000.0), np.arange(5000) % 2 == 1)
    got_objects, got_masked = transfer([objects, masked])[0]
    assert list(got_objects) == list(objects)
    assert (got_masked == masked).all()
    assert got_masked.mask.sum() == 2500


def test_the_same_array_twice_arrives_as_one() -> None:
    array = np.zeros(10_000)
    (one, two), sizes = transfer([array, array])
    assert one is two
    assert len(sizes) == 2


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 3),
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "strided": lambda t: t[:, ::2, 1:],
    "expanded": lambda t: t[:1].expand(7, -1, -1, -1),
    "0-dim": lambda t: t[1, 2, 3, 4],
    "empty": lambda t: t[:0],
}


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_and_layout_arrive(dtype: torch.dtype, layout: str) -> None:
    noise = torch.randint(0, 2 if dtype is torch.bool else 120, (2, 6, 8, 16 * dtype.itemsize))
    tensor = LAYOUTS[layout](noise.to(torch.uint8).view(dtype))
    got, sizes = transfer([tensor])
    check_same_tensor(got[0], tensor)
    assert layout in ("strided", "empty") or got[0].stride() == tensor.stride()
    rows = tensor[:1] if layout == "expanded" else tensor  # one, sent once
    nbytes = rows.numel() * dtype.itemsize
    assert sizes[1:] == ([nbytes] if nbytes >= OUT_OF_BAND_BYTES else [])


def check_same_tensor(got: torch.Tensor, sent: torch.Tensor) -> None:
    assert type(got) is type(sent)
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert got.requires_grad == sent.requires_grad
    assert bits(got) == bits(sent)


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def test_a_single_element_may_have_any_stride() -> None:
    tensor = torch.arange(6)[4::5]
    assert (tensor.is_contiguous(), tensor.stride()) == (True, (5,))
    assert torch.equal(transfer(tensor)[0], tensor)


def test_dense_layouts_keep_their_strides() -> None:
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    got = transfer(tensor)[0]
    assert got.stride() == tensor.stride()
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_tensors_arrive_writable_with_their_grad_flag_and_as_parameters() -> None:
    leaf = torch.randn(40, 50, requires_grad=True)
    sent = [leaf, leaf * 2, torch.nn.Parameter(torch.randn(2000)), torch.randn(3).conj(),
            torch.randn(5, dtype=torch.complex64).conj()]  # fmt: skip
    got = transfer(sent)[0]
    for one, other in zip(got, sent, strict=True):
        check_same_tensor(one, other)
    got[0].detach().fill_(1)
    got[0].sum().backward()
    assert got[0].grad is not None


def test_tensors_that_are_more_than_their_elements_keep_torchs_own_way() -> None:
    sparse = torch.eye(3).to_sparse()
    tagged = torch.zeros(3)
    tagged.tag = "kept"  # type: ignore[attr-defined]
    got_sparse, got_tagged = transfer([sparse, tagged])[0]
    assert torch.equal(got_sparse.to_dense(), torch.eye(3))
    assert got_tagged.tag == "kept"


def test_a_view_sends_its_own_elements_and_not_the_whole_storage() -> None:
    assert sum(transfer(torch.zeros(1_000_000)[:10])[1]) < 1000
    assert sum(transfer(np.zeros(1_000_000)[:10])[1]) < 1000


class Registered:
    pass


def test_types_registered_with_copyreg_are_reduced_as_registered() -> None:
    copyreg.pickle(Registered, lambda _: (int, (5,)))  # type: ignore[arg-type, return-value]
    try:
        assert transfer([Registered(), Registered])[0] == [5, Registered]
    finally:
        del copyreg.dispatch_table[Registered]


def test_nothing_is_kept_alive_by_the_codec() -> None:
    codec = PickleCodec()
    array = np.zeros(100_000)
    gone = weakref.ref(array)
    codec.encode([array])
    gc.disable()
    try:
        del array
        assert gone() is None
    finally:
        gc.enable()


class Nested:
    """Its reduction uses the same codec, as one that logs or sends might."""

    codec: PickleCodec | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.codec is not None
        return bytes, (self.codec.encode("inner")[0],)


def test_an_object_whose_reduction_encodes_another_is_fine() -> None:
    Nested.codec = PickleCodec()
    assert pickle.loads(transfer([Nested()], Nested.codec)[0][0]) == "inner"  # noqa: S301


def fail() -> None:
    raise RuntimeError("no")


class Unloadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ()


def test_what_cannot_be_pickled_is_told_before_anything_is_sent() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for bad in (lambda: 0, threading.Lock(), [{"deep": (n for n in [1])}]):
            with pytest.raises(shmcast.EncodeError, match="writer: can't encode") as caught:
                writer.send(bad)
            assert caught.value.__cause__ is not None
        writer.send("good")
        assert reader.recv() == "good"
        assert writer.statistics().messages == 1


def test_what_cannot_be_unpickled_is_that_readers_error_and_the_next_arrives() -> None:
    with Writer(1, slots=2, slot_bytes=128) as writer, Reader(writer.handle, 0) as reader:
        for k in range(10):  # more than the ring holds: the slots are given back
            writer.send(Unloadable(), timeout=10)
            with pytest.raises(shmcast.DecodeError, match="reader 0") as caught:
                reader.recv()
            assert isinstance(caught.value.__cause__, RuntimeError)
            writer.send(k, timeout=10)
            assert reader.recv() == k


class Reversed:
    """A codec of a user: strings as one frame for each word."""

    def encode(self, obj: str, /) -> Sequence[bytes]:
        return [word.encode() for word in reversed(obj.split())]

    def decode(self, frames: list[Received], /) -> str:
        return " ".join(bytes(frame).decode() for frame in frames)


@pytest.mark.parametrize("words", [0, 1, 2, 1000])
def test_a_users_codec_may_make_any_number_of_frames(words: int) -> None:
    text = " ".join(map(str, range(words)))
    with (
        Writer(1, codec=Reversed()) as writer,
        Reader(writer.handle, 0, codec=Reversed()) as reader,
    ):
        writer.send(text)
        assert reader.recv() == " ".join(reversed(text.split()))


def test_a_codec_that_makes_no_buffers_is_told() -> None:
    class Bad:
        def encode(self, obj: Any, /) -> Any:
            return obj

        def decode(self, frames: list[Received], /) -> Any:
            raise NotImplementedError

    with Writer(1, codec=Bad()) as writer, Reader(writer.handle, 0) as reader:
        for frames in (5, ["text"], [memoryview(b"abcdef")[::2]]):
            with pytest.raises(shmcast.EncodeError, match=r"Bad\.encode must return"):
                writer.send(frames)
        writer.send([pickle.dumps("fine")])
        assert reader.recv() == "fine"


def test_a_codec_can_be_given_to_another_process() -> None:
    codec = PickleCodec(allow=["collections.deque"])
    codec.encode([1])
    again = pickle.loads(pickle.dumps(codec))  # noqa: S301
    assert again.allow == codec.allow
    assert again.decode([bytearray(frame) for frame in again.encode([2])]) == [2]
