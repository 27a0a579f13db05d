"""Tensors of torch in the core: as `reduce_tensor` says, without Python code, and practised."""

from __future__ import annotations

import contextlib
import copyreg
import gc
import itertools
import random
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shmcast import ObjectCodec, PickleCodec
from shmcast._codecs import object_classes, tensors
from tests.support.codec_fuzz import damage, practise
from tests.support.differential import python_calls, sent, through
from tests.support.objects import DTYPES

Tensor = torch.Tensor

CORE_DTYPES = [tensors.dtype_from_name(text) for text in tensors._CODES]
SIZES = (1, 5, 3000)


class Sub(Tensor):
    """A program's own kind of tensor."""


def _tagged(tensor: Tensor) -> Tensor:
    tensor.note = 1  # type: ignore[attr-defined]
    return tensor


def _inferred(make: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode():
        return make()


def _untagged(tensor: Tensor) -> Tensor:
    tensor.note = 1  # type: ignore[attr-defined]
    del tensor.note  # type: ignore[attr-defined]
    return tensor


PLAIN: dict[str, Callable[[int], Tensor]] = {
    "a vector": lambda n: torch.arange(float(n)),
    "a matrix": lambda n: torch.arange(float(2 * n)).view(2, n),
    "ones in its shape": lambda n: torch.arange(float(n)).view(1, n, 1),
    "a scalar": lambda n: torch.tensor(float(n)),
    "the end of another": lambda n: torch.arange(float(3 * n))[2 * n :],
    "rows of another": lambda n: torch.arange(4.0 * n).view(4, n)[1:3],
    "one column of one": lambda n: torch.arange(float(n)).view(n, 1)[:, 0],
    "detached": lambda n: torch.arange(float(n)).requires_grad_().detach(),
    "of inference mode": lambda n: _inferred(lambda: torch.arange(float(n))),
    "of numpy": lambda n: torch.from_numpy(np.arange(float(n))),
    "of a bytearray": lambda n: torch.frombuffer(bytearray(8 * n), dtype=torch.float64),
    "reinterpreted": lambda n: torch.arange(float(n)).view(torch.int32),
    "with an attribute no more": lambda n: _untagged(torch.arange(float(n))),
}
"""What the core reduces and rebuilds, for a number of elements."""

OTHERS: dict[str, Callable[[int], Any]] = {
    "requires grad": lambda n: torch.arange(float(n)).requires_grad_(),
    "no leaf": lambda n: torch.arange(float(n)).requires_grad_() * 2,
    "an attribute": lambda n: _tagged(torch.arange(float(n))),
    "a parameter": lambda n: torch.nn.Parameter(torch.arange(float(n))),
    "a frozen parameter": lambda n: torch.nn.Parameter(torch.arange(float(n)), False),
    "a subclass": lambda n: torch.arange(float(n)).as_subclass(Sub),
    "transposed": lambda n: torch.arange(float(2 * n + 2)).view(2, n + 1).T,
    "strided": lambda n: torch.arange(float(2 * n + 2))[::2],
    "expanded": lambda n: torch.arange(float(n)).expand(6, -1),
    "complex": lambda n: torch.arange(float(n)).to(torch.complex64),
    "conjugated": lambda n: torch.arange(float(n)).to(torch.complex64).conj(),
    "negative": lambda n: torch.view_as_complex(torch.ones(n, 2)).conj().imag,
    "zeros without memory": lambda n: torch._efficientzerotensor((n,)),
    "sparse": lambda n: torch.arange(float(n)).to_sparse(),
    "sparse by rows": lambda n: torch.ones(2, n).to_sparse_csr(),
    "quantized": lambda n: torch.quantize_per_tensor(torch.ones(n), 0.1, 0, torch.qint8),
    "nested": lambda n: torch.nested.nested_tensor([torch.ones(n), torch.ones(1)]),
    "on no device": lambda n: torch.ones(n, device="meta"),
}
"""What goes the way that there is for all."""


def facts(tensor: Tensor) -> tuple[Any, ...]:
    """Return all that tells one tensor from another."""
    told: tuple[Any, ...] = (
        (type(tensor), tensor.dtype, tensor.layout, tensor.device, tensor.is_nested),
        (tensor.requires_grad, tensor.is_leaf, tensor.is_inference(), vars(tensor)),
        None if tensor.is_nested else tensor.shape,
    )
    if tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type == "cpu":
        storage = tensor.untyped_storage()
        told += (tensor.stride(), storage.nbytes(), storage.resizable())
        if not tensor.is_quantized:
            return *told, repr(tensor.tolist())
    return *told, repr(tensor)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [*PLAIN, *OTHERS])
def test_a_tensor_arrives_as_by_the_codec_that_reduces_it(kind: str, size: int) -> None:
    tensor = {**PLAIN, **OTHERS}[kind](size)
    codec = ObjectCodec()
    expected = facts(through(PickleCodec(), [tensor])[0])
    for obj in ([tensor], [tensor, (tensor, 1), tensor], {"a": tensor, "b": [tensor]}):
        for _ in range(3):
            got = through(codec, obj)
            parts = [got["a"], *got["b"]] if isinstance(got, dict) else got
            first, *rest = (part[0] if type(part) is tuple else part for part in parts)
            assert facts(first) == expected
            assert all(part is first for part in rest)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 1500), (), (2, 0), (1, 2, 1, 3, 1)], ids=str)
def test_elements_of_every_dtype_arrive(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.empty(shape, dtype=dtype)
    raw = tensors.as_bytes(tensor)
    raw.copy_(torch.arange(len(raw)) % (2 if dtype is torch.bool else 251))
    got = through(ObjectCodec(), [tensor])[0]
    assert (got.dtype, got.shape, got.stride()) == (dtype, tensor.shape, tensor.stride())
    assert torch.equal(tensors.as_bytes(got), raw)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", PLAIN)
def test_no_python_code_runs_for_most_tensors(kind: str, size: int) -> None:
    codec, obj = ObjectCodec(), {"a": PLAIN[kind](size), "b": 3}
    frames = sent(codec, obj)
    codec.decode(frames)
    assert not python_calls(lambda: codec.encode(obj))
    assert not python_calls(lambda: codec.decode(frames))


@pytest.mark.parametrize("dtype", CORE_DTYPES, ids=str)
def test_no_python_code_runs_for_most_dtypes(dtype: torch.dtype) -> None:
    codec, obj = ObjectCodec(), [torch.ones(2, 3, dtype=dtype)]
    frames = sent(codec, obj)
    codec.decode(frames)
    assert not python_calls(lambda: codec.encode(obj))
    assert not python_calls(lambda: codec.decode(frames))


def test_the_dtypes_of_engines_are_among_these() -> None:
    engines = {torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.int64, torch.bool}
    assert {*CORE_DTYPES} >= engines | {torch.uint8, torch.int8, torch.int16, torch.float64}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OTHERS)
def test_code_of_others_runs_for_the_rest(kind: str) -> None:
    codec, obj = ObjectCodec(), [OTHERS[kind](5)]
    codec.encode(obj)
    assert python_calls(lambda: codec.encode(obj))


def test_an_empty_tensor_is_encoded_by_the_core() -> None:
    codec, obj = ObjectCodec(), [torch.empty(3, 0, 2, dtype=torch.int16)]
    codec.encode(obj)
    assert not python_calls(lambda: codec.encode(obj))
    assert through(codec, obj)[0].shape == (3, 0, 2)


def _strided(of: Tensor, cuts: list[slice | int], order: int) -> Tensor:
    orders = [*itertools.permutations(range(of.dim()))]
    return of.permute(orders[order % len(orders)])[tuple(cuts[: of.dim()])]


_cuts = st.lists(
    st.one_of(
        st.builds(slice, st.integers(0, 3), st.none() | st.integers(0, 9), st.integers(1, 3)),
        st.just(0),
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), max_size=4),
    dtype=st.sampled_from(CORE_DTYPES),
    cuts=_cuts,
    order=st.integers(0, 23),
)
def test_any_part_of_a_tensor_arrives_as_by_the_codec_that_reduces_it(
    shape: list[int], dtype: torch.dtype, cuts: list[slice | int], order: int
) -> None:
    count = int(np.prod(shape, dtype=int))
    part = _strided(torch.arange(count).to(dtype).view(shape), cuts, order)
    assert facts(through(_CODEC, [part])[0]) == facts(through(PickleCodec(), [part])[0])


_CODEC = ObjectCodec()


def test_what_arrives_is_the_receivers_own() -> None:
    for tensor in (torch.arange(4), torch.zeros(4096)):
        got = through(ObjectCodec(), [tensor])[0]
        got.fill_(7)
        assert not (tensor == 7).any()


def test_the_frame_lives_as_long_as_the_tensors_memory(no_gc: None) -> None:
    codec = ObjectCodec()
    frames = sent(codec, [torch.ones(3000)])
    frame = frames[1]
    idle = sys.getrefcount(frame)
    views = [codec.decode(frames)[0][5:].view(-1, 5)]
    held = sys.getrefcount(frame)
    assert held == idle + 1
    assert views[0].sum() == 2995
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    held = sys.getrefcount(frame)
    assert held == idle


def test_memory_that_torch_drops_without_the_gil_is_given_back(no_gc: None) -> None:
    codec = ObjectCodec()
    frames = sent(codec, [torch.ones(3000, 1)])
    frame = frames[1]
    idle = sys.getrefcount(frame)
    got = [codec.decode(frames)[0].requires_grad_()]
    loss = (got[0] * got[0]).sum()  # which saves it, and drops it in a thread of autograd's
    got.clear()
    loss.backward()
    del loss
    held = sys.getrefcount(frame)
    assert held == idle


def test_memory_that_shrank_is_told_of() -> None:
    for count in (10, 3000):
        codec, tensor = ObjectCodec(), torch.ones(count)
        codec.encode([tensor])
        tensor.untyped_storage().resize_(count * 4 - 1)
        with pytest.raises(ValueError, match="its memory was freed"):
            codec.encode([tensor])


class Reduced:
    """Makes its message take the careful way."""

    def __reduce__(self) -> Any:
        return int, ("3",)


def test_the_careful_way_has_tensors_too() -> None:
    codec, tensor = ObjectCodec(), torch.ones(3000)
    obj = [Reduced(), tensor, tensor]
    for _ in range(2):
        got = through(codec, obj)
        assert got[1] is got[2]
        assert facts(got[1]) == facts(through(PickleCodec(), [tensor])[0])
    ran = python_calls(lambda: codec.encode(obj))
    assert ran == {"__reduce__"}


@pytest.mark.parametrize("size", [10, 3000])
def test_memory_that_goes_while_a_name_is_learnt_is_not_read(size: int) -> None:
    codec, tensor = ObjectCodec(), torch.ones(size)

    def free(frame: FrameType, _event: str, _arg: object) -> None:
        if (
            frame.f_code is object_classes.name_of.__code__
            and frame.f_locals["obj"] is tensors._rebuild_tensor
        ):
            tensor.untyped_storage().resize_(0)

    before = sys.gettrace()
    sys.settrace(free)
    try:
        with pytest.raises(ValueError, match="its memory was freed"):
            codec.encode([Reduced(), tensor])
    finally:
        sys.settrace(before)
    assert tensor.untyped_storage().nbytes() == 0


def test_an_entry_of_copyreg_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, obj = ObjectCodec(), [torch.arange(2)]
    assert type(through(codec, obj)[0]) is Tensor
    monkeypatch.setitem(copyreg.dispatch_table, Tensor, lambda tensor: (list, (tensor.tolist(),)))
    assert through(codec, obj) == [[0, 1]]
    monkeypatch.undo()
    assert type(through(codec, obj)[0]) is Tensor


def test_the_code_of_a_mode_runs_where_it_did_and_not_when_tensors_arrive() -> None:
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        asked = 0

        def __torch_function__(  # type: ignore[no-untyped-def]
            self, func, _types, args=(), kwargs=None
        ):
            self.asked += 1
            return func(*args, **(kwargs or {}))

    codec, obj = ObjectCodec(), [torch.ones(2, 3)]
    codec.encode(obj)
    with Mode() as mode:
        frames = sent(codec, obj)
        assert mode.asked > 0
        asked = mode.asked
        got = codec.decode(frames)
        practise(codec, codec)
        assert mode.asked == asked
    assert facts(got[0]) == facts(through(PickleCodec(), obj)[0])


@pytest.mark.parametrize("size", [4, 1500])
def test_messages_with_small_tensors_are_practised(size: int) -> None:
    codec = ObjectCodec()
    codec.practise_encode(None)
    held = [{"ids": torch.ones(2, size), "name": "step"}]  # by another, as what is practised
    frames = [bytes(frame) for frame in codec.encode(held[0])]
    got = codec.decode([bytearray(frame) for frame in frames])
    again: list[Any] = []
    assert not python_calls(lambda: again.extend(codec.practise_encode(None)))
    assert [bytes(frame) for frame in again] == frames
    kept: Any = codec.practice_frames()
    assert kept is not None
    for _ in range(5):
        assert not python_calls(lambda: codec.practise_decode(kept))
    assert codec.practice_frames() is kept
    assert (got["ids"] == 1).all()


@pytest.mark.parametrize("kind", ["of numpy", "of a bytearray", "a part of much"])
def test_memory_of_others_is_not_kept_for_practice(kind: str, no_gc: None) -> None:
    codec = ObjectCodec()
    codec.practise_encode(None)
    tensor = torch.ones(1 << 20)[:8] if kind == "a part of much" else PLAIN[kind](8)
    idle = sys.getrefcount(tensor)
    codec.encode([tensor])
    held = sys.getrefcount(tensor)
    assert held == idle


class Call:
    """Is reduced to a call of what rebuilds tensors."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = arguments

    def __reduce__(self) -> Any:
        return tensors._rebuild_tensor, self._arguments


@pytest.mark.parametrize(
    "arguments",
    [
        (bytearray(16), torch.float64, (2,), None, False),
        (bytearray(16), "float64", [2], None, False),
        (bytearray(16), "float64", torch.Size([2]), None, False),
        (bytes(16), "float64", (2,), None, False),
        (bytearray(16), "float64", (2,), (1,), False),
        (bytearray(16), "float64", (2,), None, True),
        (bytearray(16), "float64", (-1,), None, False),
        (bytearray(16), "complex64", (2,), None, False),
        (None, "float64", (2,), None, False),
    ],
)
def test_other_arguments_make_a_tensor_as_ever(arguments: tuple[Any, ...]) -> None:
    got = through(ObjectCodec(), [Call(*arguments)])[0]
    assert got.shape == (2,)
    assert str(got.dtype).endswith(str(arguments[1]))
    assert got.requires_grad is arguments[4]


@pytest.mark.parametrize(
    "arguments",
    [
        (bytearray(15), "float64", (2,), None, False),
        (bytearray(16), "float64", (3, 1), None, False),
        (bytearray(16), "float64", (1 << 62, 1 << 62), None, False),
        (bytearray(16), "float64", (1 << 70, 1), None, False),
        (bytearray(16), "float64", (0, 1), None, False),
        (bytearray(0), "float64", (2,), None, False),
        (bytearray(16), "float64", ("a", 1), None, False),
        (bytearray(16), "float63", (2,), None, False),
        (bytearray(16), "float64", (2,), None),
        (bytearray(16), "float64", (2,), None, False, 1),
    ],
)
def test_what_makes_no_tensor_is_an_error(arguments: tuple[Any, ...]) -> None:
    codec = ObjectCodec()
    frames = sent(codec, [Call(*arguments)])
    with pytest.raises((ValueError, TypeError, RuntimeError, AttributeError)):
        codec.decode(frames)
    codec.practise_decode(frames)
    assert codec.practice_frames() is None


def test_the_memory_of_tensors_that_came_and_went_is_given_back() -> None:
    codec = ObjectCodec()
    frames = sent(codec, [torch.ones(4), torch.ones(3000)])
    codec.decode(frames)
    gc.collect()
    frame = frames[1]
    idle, objects = sys.getrefcount(frame), len(gc.get_objects())
    for _ in range(200):
        codec.decode(frames)
        codec.encode([torch.ones(4), torch.ones(3000)])
    gc.collect()
    held = sys.getrefcount(frame)
    assert held == idle
    assert len(gc.get_objects()) < objects + 100


def test_a_damaged_message_is_an_error_or_another_object() -> None:
    codec = ObjectCodec()
    obj = {
        "ids": np.arange(7),
        "a": torch.ones(2, 3, dtype=torch.bfloat16),
        "b": [torch.ones(30, 40), torch.ones(4)],
    }
    whole = sent(codec, obj)
    for seed in range(3000):
        chance = random.Random(seed)  # noqa: S311
        frames: list[Any] = [damage(chance, bytearray(whole[0])), *map(bytearray, whole[1:])]
        with contextlib.suppress(Exception):
            got = codec.decode(frames)
            repr(got)
            practise(codec, codec)
    assert repr(codec.decode(whole)) == repr(obj)


def test_where_torch_lacks_a_function_python_code_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_from_dlpack", "_len_torch_function_stack"):
        with monkeypatch.context() as torch_lacks:
            torch_lacks.setattr(tensors._C, name, None)
            assert tensors._plain(tensors._CODES, tensors._C._from_dlpack) == ()
    monkeypatch.setattr(object_classes, "IN_CORE", [])
    known = object_classes.TENSORS[:]
    object_classes.TENSORS.clear()
    try:
        codec, obj = ObjectCodec(), [torch.ones(2, 3), torch.ones(3000)]
        for _ in range(2):
            frames = sent(codec, obj)
            got: list[Any] = []
            assert "reduce_tensor" in python_calls(lambda: codec.encode(obj))
            assert "_rebuild_tensor" in python_calls(lambda: got.extend(codec.decode(frames)))  # noqa: B023
            assert [*map(facts, got)] == [*map(facts, through(PickleCodec(), obj))]
    finally:
        object_classes.TENSORS.extend(known)
