"""Loans: arrays and tensors in the arena that are filled, and sent without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Reader, Writer, _core
from tests.support.arena import PAGE, address, extents, is_free, send_uncopied
from tests.support.arena_roles import ARENA, MIB, SECONDS, Array, filled
from tests.support.differential import python_calls
from tests.support.objects import DTYPES, describe, fill_with_zeros

QUANTIZED = [torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4]


# What is lent


@pytest.mark.parametrize("shape", [7, 0, (), (3, 4), [2, 0, 5], (np.int64(3), 2), torch.Size((2,))])
@pytest.mark.parametrize("dtype", [np.float32, "<M8[ns]", np.dtype([("a", "i4"), ("b", "f2", 3)])])
def test_an_array_has_the_shape_and_dtype_asked_for(writer: Writer, shape: Any, dtype: Any) -> None:
    array = writer.empty(shape, dtype)
    assert (array.shape, array.dtype) == (np.empty(shape, dtype).shape, np.dtype(dtype))
    assert type(array) is np.ndarray
    assert array.flags.writeable
    assert array.flags.c_contiguous
    array[...] = np.zeros((), dtype)
    if array.size:
        assert address(array) % PAGE == 0


def test_default_dtypes_are_numpys_and_torchs(writer: Writer) -> None:
    assert writer.empty(3).dtype == np.empty(3).dtype
    assert writer.empty_tensor(3).dtype == torch.get_default_dtype()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_are_lent_and_sent(
    writer: Writer, reader: Reader, dtype: torch.dtype
) -> None:
    for shape in (5000, (), (3, 0), [50, 100], torch.Size((2, 3))):
        tensor = writer.empty_tensor(shape, dtype)
        assert (tensor.shape, tensor.dtype) == (torch.empty(shape).shape, dtype)
        assert tensor.is_contiguous()
        fill_with_zeros(tensor)
    assert tensor.data_ptr() % PAGE == 0
    tensor = writer.empty_tensor((100, 100), dtype)
    tensor.view(torch.uint8).copy_(torch.arange(tensor.nbytes).view(100, -1) % 2)
    send_uncopied(writer, {"a": tensor})
    got = reader.recv(SECONDS, copy=False)["a"]
    assert describe(got) == describe(tensor)
    fill_with_zeros(got)
    assert torch.any(tensor.view(torch.uint8))


def raw(tensor: torch.Tensor) -> memoryview:
    return memoryview(_core.view(tensor.data_ptr(), tensor.nbytes, tensor))


def every_dtype() -> list[torch.dtype]:
    return sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_torch_has_no_other_dtypes_that_fail() -> None:
    with Writer(1, arena_bytes=ARENA) as writer, Reader(writer.handle, 0) as reader:
        for dtype in every_dtype():
            if dtype in QUANTIZED:
                continue
            tensor = writer.empty_tensor(8192, dtype)
            raw(tensor)[:] = bytes(range(256)) * (tensor.nbytes // 256)
            send_uncopied(writer, tensor)
            got = reader.recv(SECONDS, copy=False)
            assert (got.dtype, got.shape) == (dtype, tensor.shape)
            assert raw(got) == raw(tensor)


@pytest.mark.parametrize("dtype", QUANTIZED, ids=str)
def test_quantized_tensors_are_refused(writer: Writer, dtype: torch.dtype) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=f"dtype={dtype}.*scale"):
        writer.empty_tensor(8, dtype)


@pytest.mark.parametrize(
    "shape", [-1, (2, -1), 2.5, None, "ab", (2, None), (2**70,), (2**40, 2**40), 2**63]
)
def test_a_shape_that_is_none_is_refused_by_value(writer: Writer, shape: Any) -> None:
    for lend in (writer.empty, writer.empty_tensor):
        with pytest.raises(shmcast.InvalidArgument, match="shape="):
            lend(shape)


@pytest.mark.parametrize("dtype", [object, "O", [("a", object)], "nonsense", 5])
def test_a_dtype_that_cannot_be_shared_is_refused_by_value(writer: Writer, dtype: Any) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="dtype="):
        writer.empty(3, dtype)


@pytest.mark.parametrize("dtype", [np.float32, "float32", 5])
def test_a_tensors_dtype_is_torchs(writer: Writer, dtype: Any) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=r"no torch\.dtype"):
        writer.empty_tensor(3, dtype)


def test_without_an_arena_there_are_no_loans() -> None:
    with Writer(1) as writer:
        for call in (writer.empty, writer.empty_tensor, writer.thaw):
            with pytest.raises(shmcast.InvalidArgument, match=r"needs an arena.*arena_bytes="):
                call(np.empty(3))


def test_without_room_a_loan_is_ordinary_memory_that_is_never_frozen(
    writer: Writer, reader: Reader
) -> None:
    taken = writer.empty(ARENA, np.uint8)
    array, tensor = writer.empty(MIB, np.uint8), writer.empty_tensor((2, 3))
    assert writer.statistics().arena_full == 2
    array[:], tensor[:] = 1, 2
    del taken
    writer.send([array, tensor])
    assert array.flags.writeable
    assert writer.thaw(array)
    assert writer.thaw(tensor)
    got = reader.recv(SECONDS, copy=False)
    assert np.array_equal(got[0], array)
    assert torch.equal(got[1], tensor)


def test_nothing_is_no_loan(writer: Writer) -> None:
    writer.empty((3, 0))
    writer.empty_tensor(0)
    assert writer.statistics().arena_full == 0
    assert is_free(writer)


# Sent without a copy


VIEWS: dict[str, Callable[[Array], Array]] = {
    "itself": lambda a: a,
    "a slice": lambda a: a[100:],
    "rows": lambda a: a[3:900:7],
    "columns": lambda a: a[:, 10:500],
    "every third element": lambda a: a[:, ::3],
    "backwards": lambda a: a[::-1],
    "both ways backwards": lambda a: a[::-2, ::-3],
    "backwards in columns": lambda a: a[5:900, ::-1],
    "transposed": lambda a: a.T,
    "a transposed part": lambda a: a[10:20].T,
    "more dimensions": lambda a: a.reshape(4, -1, 16, 2).transpose(2, 0, 3, 1),
    "flat": lambda a: a.ravel(),
    "another dtype": lambda a: a.view(np.float32),
    "a new axis": lambda a: a[:, None, ::2],
    "the last page": lambda a: a.reshape(-1)[-1024:],
}


@pytest.mark.parametrize("kind", VIEWS)
def test_any_view_of_a_lent_array_is_sent_without_a_copy(kind: str) -> None:
    with Writer(1, arena_bytes=ARENA) as writer, Reader(writer.handle, 0) as reader:
        loan = writer.empty((1000, 512), np.int32)
        loan[...] = np.arange(loan.size, dtype=np.int32).reshape(loan.shape)
        view = VIEWS[kind](loan)
        expected = view.copy()
        send_uncopied(writer, [{"x": view}])
        assert not view.flags.writeable
        assert not loan.flags.writeable
        got = reader.recv(SECONDS, copy=False)[0]["x"]
        assert (got.dtype, got.shape, got.strides) == (view.dtype, view.shape, view.strides)
        assert not got.flags.writeable
        assert np.array_equal(got, expected)
        send_uncopied(writer, view)
        copied = reader.recv(SECONDS)
        assert copied.flags.writeable
        assert np.array_equal(copied, expected)
        del got
        assert writer.thaw(view)
        assert view.flags.writeable
        assert loan.flags.writeable
        loan[...] = 0
        assert np.array_equal(copied, expected)


TENSOR_VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "itself": lambda t: t,
    "a slice": lambda t: t[100:],
    "rows": lambda t: t[3:900:7],
    "columns": lambda t: t[:, 10:500],
    "transposed": lambda t: t.T,
    "a strided transposed part": lambda t: t[10:20, ::3].T,
    "permuted": lambda t: t.view(4, -1, 16, 2).permute(2, 0, 3, 1),
    "another dtype": lambda t: t.view(torch.float32),
    "detached": lambda t: t.detach()[5:],
    "expanded": lambda t: t[:2, None, :].expand(2, 5, -1),
}


@pytest.mark.parametrize("kind", TENSOR_VIEWS)
def test_any_view_of_a_lent_tensor_is_sent_without_a_copy(kind: str) -> None:
    with Writer(1, arena_bytes=ARENA) as writer, Reader(writer.handle, 0) as reader:
        loan = writer.empty_tensor((1000, 512), torch.int32)
        loan.copy_(torch.arange(loan.numel(), dtype=torch.int32).view(loan.shape))
        view = TENSOR_VIEWS[kind](loan)
        send_uncopied(writer, [{"x": view}])
        for copy in (False, True):
            got = reader.recv(SECONDS, copy) if copy else reader.recv(SECONDS, copy)[0]["x"]
            assert torch.equal(got, view)
            assert got.dtype == view.dtype
            is_dense = view.untyped_storage().nbytes() == loan.nbytes == view.nbytes
            if is_dense or kind == "expanded" or not copy:
                assert got.stride() == view.stride()
            else:
                assert got.is_contiguous()
            if not copy:
                send_uncopied(writer, view)


def test_numpy_and_torch_share_a_loan(writer: Writer, reader: Reader) -> None:
    array = writer.empty(MIB, np.uint8)
    array[:] = 3
    send_uncopied(writer, [torch.from_numpy(array), array[5:]], 2)
    assert extents(writer) == [0, 0]
    assert not array.flags.writeable
    one, two = reader.recv(SECONDS, copy=False)
    assert torch.all(one == 3)
    assert np.all(two == 3)
    assert not writer.thaw(array)
    del one
    assert not writer.thaw(array)
    del two
    assert writer.thaw(array)
    tensor = writer.empty_tensor(MIB, torch.uint8)
    tensor.fill_(4)
    send_uncopied(writer, tensor.numpy()[1:])
    assert np.all(reader.recv(SECONDS) == 4)
    assert writer.thaw(tensor)


def test_a_message_may_have_several_loans_and_one_several_times(
    writer: Writer, reader: Reader
) -> None:
    one, two = writer.empty(MIB, np.uint8), writer.empty_tensor(MIB, torch.uint8)
    one[:], two[:] = 1, 2
    small = writer.empty(PAGE, np.uint8)
    small[:] = 3
    send_uncopied(writer, [one, two, one[1:], small, two[7:], one], 5)  # pickle knows `one` again
    got = reader.recv(SECONDS, copy=False)
    for k, value in enumerate((1, 2, 1, 3, 2, 1)):
        assert (got[k] == value).all()
    del got
    for loan in (one, two, small):
        assert writer.thaw(loan)


def test_what_takes_less_than_a_page_is_copied(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    loan[:] = 1
    writer.send([loan[: PAGE - 1], "text"])
    assert extents(writer) == []
    assert writer.statistics().arena_frames == 0
    loan[:] = 2
    assert np.array_equal(reader.recv(SECONDS, copy=False)[0], filled(PAGE - 1, 1))


@pytest.mark.parametrize("nbytes", [MIB, 64 * MIB])
def test_a_loan_of_any_size_takes_one_fragment(nbytes: int) -> None:
    with (
        Writer(1, slots=2, slot_bytes=512, arena_bytes=nbytes) as writer,
        Reader(writer.handle, 0) as reader,
    ):
        loan = writer.empty(nbytes, np.uint8)
        loan[::PAGE] = 9
        send_uncopied(writer, loan)
        got = reader.recv(SECONDS, copy=False)
        assert len(got) == nbytes
        assert np.all(got[::PAGE] == 9)
        assert writer.statistics().arena_reserved_bytes == nbytes


# The way of a loan


LOANS: dict[str, Callable[[Writer], Any]] = {
    "an array": lambda writer: writer.empty(MIB, np.uint8),
    "a matrix": lambda writer: writer.empty((64, MIB // 256), np.float32),
    "rows of one": lambda writer: writer.empty((64, MIB // 256), np.float32)[3:9],
    "a view of a view": lambda writer: writer.empty(MIB, np.uint8)[PAGE:][PAGE:],
    "a tensor": lambda writer: writer.empty_tensor((64, MIB // 64), torch.uint8),
    "rows of a tensor": lambda writer: writer.empty_tensor((64, MIB // 64), torch.bfloat16)[2:40],
    "an array of a tensor": lambda writer: writer.empty_tensor(MIB, torch.uint8).numpy(),
    "a tensor of an array": lambda writer: torch.from_numpy(writer.empty(MIB, np.uint8)),
}


@pytest.mark.parametrize("kind", LOANS)
def test_no_python_code_runs_to_encode_a_loan(writer: Writer, reader: Reader, kind: str) -> None:
    loan = LOANS[kind](writer)
    loan[:] = 3
    codec = writer._codec
    for _ in range(2):  # the second time it is frozen
        send_uncopied(writer, {"a": loan, "b": 1})
        got = reader.recv(SECONDS, copy=False)["a"]
        assert (got == 3).all()
        del got
        if kind != "an array of a tensor":
            assert not python_calls(lambda: codec.encode({"a": loan, "b": 1}))
            writer._end.forget_views()


def test_no_python_code_runs_to_make_an_array_of_a_view(writer: Writer, reader: Reader) -> None:
    loan = writer.empty((8, MIB // 64), np.float64)
    loan[:] = 5
    for _ in range(2):
        writer.send([loan, "a"])
        messages: Any = reader._end.messages
        frames = messages[SECONDS, False]
        got: list[Any] = []
        ran = python_calls(lambda: got.extend(reader._decode(frames)))  # noqa: B023
        assert got[0].shape == loan.shape
        assert not got[0].flags.writeable
        assert (got[0] == 5).all()
        got.clear()
        frames.clear()
    assert not ran


@pytest.mark.parametrize("lend", ["empty", "empty_tensor"])
def test_practice_keeps_no_loan_and_no_view(lend: str, no_gc: None) -> None:
    with Writer(1, arena_bytes=ARENA) as writer, Reader(writer.handle, 0) as reader:
        writer.warm()
        loan: Any = getattr(writer, lend)(MIB // 8)
        writer.send({"a": loan, "b": 1})
        del loan
        writer.warm()
        got = reader.recv(SECONDS, copy=False)
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.01)  # which practises, if it spins
        assert not is_free(writer)
        del got
        assert is_free(writer)
