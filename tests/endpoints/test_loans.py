"""Loans: arrays and tensors in the arena that are filled, sent uncopied, frozen, and used again."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Reader, Writer, _core
from tests.endpoints.test_arena import PAGE, address, check_whole, is_free
from tests.support.arena_roles import ARENA, LARGE, MIB, SECONDS, Array, filled
from tests.support.objects import DTYPES, describe

QUANTIZED = [torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4]


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer(1, arena_bytes=ARENA) as writer:
        yield writer


@pytest.fixture
def reader(writer: Writer) -> Iterator[Reader]:
    with Reader(writer.handle, 0) as reader:
        yield reader


def extents(writer: Writer) -> list[int]:
    """Those that the last message speaks of."""
    return list(writer._ring.sent())


def send_uncopied(writer: Writer, obj: Any, frames: int = 1) -> None:
    """Sends an object and checks that none of its buffers was copied to another extent."""
    before = writer.statistics()
    lent = {lent.extent for lent in writer._lender._all()}  # type: ignore[union-attr]
    writer.send(obj, SECONDS)
    after = writer.statistics()
    assert set(extents(writer)) <= lent
    assert after.arena_frames == before.arena_frames + frames
    assert after.arena_full == before.arena_full
    # Nor was it streamed: the message is small.
    assert after.fragments - before.fragments == 1


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
        tensor.zero_()
    assert tensor.data_ptr() % PAGE == 0
    tensor = writer.empty_tensor((100, 100), dtype)
    tensor.view(torch.uint8).copy_(torch.arange(tensor.nbytes).view(100, -1) % 2)
    send_uncopied(writer, {"a": tensor})
    got = reader.recv(SECONDS, copy=False)["a"]
    assert describe(got) == describe(tensor)
    got.zero_()
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
            if is_dense or not copy:
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


# Frozen, and thawed


def test_a_sent_array_is_frozen_until_every_reader_is_done(no_gc: None) -> None:
    with (
        Writer(2, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0) as one,
        Reader(writer.handle, 1) as two,
    ):
        loan = writer.empty(MIB, np.uint8)
        assert writer.thaw(loan)  # it was not sent
        loan[:] = 1
        writer.send(loan)

        def check_frozen() -> None:
            assert not writer.thaw(loan)
            assert not writer.thaw(loan[5:])
            with pytest.raises(ValueError, match="read-only"):
                loan[0] = 5

        check_frozen()  # nobody has received it
        copied = one.recv(SECONDS)
        check_frozen()
        view = two.recv(SECONDS, copy=False)
        check_frozen()
        part = view[3:4]
        del view
        check_frozen()
        del part
        assert writer.thaw(loan)
        loan[:] = 2
        assert np.array_equal(copied, filled(MIB, 1))
        writer.send(loan)
        check_frozen()
        for reader in (one, two):
            assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, 2))
        assert writer.thaw(loan)


def test_each_send_thaws_what_is_done(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    writer.send(loan)
    writer.send("not yet")
    assert not loan.flags.writeable
    reader.recv(SECONDS)
    assert not loan.flags.writeable
    writer.send("now")
    assert loan.flags.writeable


def test_a_frozen_loan_can_be_sent_again_and_is_one_thing(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    loan[:] = 6
    for _ in range(3):
        send_uncopied(writer, loan)
    views = [reader.recv(SECONDS, copy=False) for _ in range(2)]
    views.clear()
    assert not writer.thaw(loan)  # the third is unread
    views.append(reader.recv(SECONDS, copy=False))
    assert not writer.thaw(loan)
    assert np.array_equal(views.pop(), filled(MIB, 6))
    assert writer.thaw(loan)


def test_a_view_that_was_not_in_the_message_stays_writable(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    kept, sent = loan[:10], loan[PAGE:]
    writer.send(sent)
    assert (kept.flags.writeable, sent.flags.writeable, loan.flags.writeable) == (
        True,
        False,
        False,
    )
    assert not loan[1:].flags.writeable  # made from now on
    reader.recv(SECONDS)
    assert writer.thaw(loan)
    assert sent.flags.writeable


def test_what_its_owner_made_read_only_stays_so(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    view = loan[:]
    view.flags.writeable = False
    writer.send([loan, view])
    reader.recv(SECONDS)
    assert writer.thaw(loan)
    assert loan.flags.writeable
    assert not view.flags.writeable


def test_a_send_that_fails_freezes_nothing(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    with pytest.raises(shmcast.EncodeError):
        writer.send([loan, lambda: None])
    assert loan.flags.writeable
    with pytest.raises(shmcast.Timeout):
        writer.send([loan, bytes(2 * ARENA)], 0)
    assert loan.flags.writeable
    with pytest.raises(shmcast.Timeout):
        reader.recv(0)  # what there is of it: room for the next one
    loan[:] = 4
    writer.send(loan, SECONDS)
    assert np.array_equal(reader.recv(SECONDS), filled(MIB, 4))


def test_thaw_is_true_of_what_this_writer_does_not_freeze(writer: Writer, reader: Reader) -> None:
    with Writer(1, arena_bytes=ARENA) as other:
        for array in (other.empty(10), np.empty(10), torch.empty(10), other.empty_tensor(10)):
            writer.send(array)
            assert writer.thaw(array)
    for thing in ([1, 2], None, b"bytes"):
        with pytest.raises(shmcast.InvalidArgument, match="is no array or tensor"):
            writer.thaw(thing)  # type: ignore[arg-type]


def test_writing_to_a_frozen_tensor_is_warned_of(writer: Writer, reader: Reader) -> None:
    tensor = writer.empty_tensor((2, MIB // 2), torch.uint8)
    tensor.fill_(1)
    writer.send(tensor)
    tensor[1].fill_(2)
    reader.recv(SECONDS)
    with pytest.warns(shmcast.ShmcastWarning, match=r"torch.uint8.*written to after it was sent"):
        assert writer.thaw(tensor)
    writer.send(tensor)
    reader.recv(SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert writer.thaw(tensor)  # told once
        tensor.fill_(3)  # thawed: it may be
        writer.send(tensor)
        reader.recv(SECONDS)
        writer.send("looks, too")
        assert writer.thaw(tensor)


def test_writing_to_a_frozen_tensor_is_warned_of_though_it_was_sent_again(
    writer: Writer, reader: Reader
) -> None:
    tensor = writer.empty_tensor(MIB, torch.uint8)
    writer.send(tensor)
    tensor.fill_(2)
    writer.send(tensor)
    for _ in range(2):
        reader.recv(SECONDS)
    with pytest.warns(shmcast.ShmcastWarning, match="written to after it was sent"):
        assert writer.thaw(tensor)


def test_inference_mode_has_loans_without_the_warning(writer: Writer, reader: Reader) -> None:
    with torch.inference_mode():
        tensor = writer.empty_tensor((2, MIB // 2), torch.uint8).view(-1)
        writer.send(tensor)
        assert not writer.thaw(tensor)
        tensor.fill_(2)
        reader.recv(SECONDS)
        assert writer.thaw(tensor)


@pytest.mark.parametrize(
    "view", [lambda t: t.view(-1), lambda t: t[1:], lambda t: t.detach(), lambda t: t.numpy()]
)
def test_a_view_of_a_tensor_whose_first_name_is_gone_is_still_a_loan(
    writer: Writer, reader: Reader, view: Callable[[torch.Tensor], Any], no_gc: None
) -> None:
    kept = view(writer.empty_tensor((4, LARGE), torch.uint8))
    assert writer.thaw(kept)
    send_uncopied(writer, kept)
    assert not writer.thaw(kept)
    reader.recv(SECONDS)
    assert writer.thaw(kept)
    del kept
    assert is_free(writer)
    assert not writer._lender._lent  # type: ignore[union-attr]


# Dropped


@pytest.mark.parametrize("lend", ["empty", "empty_tensor"])
def test_a_loan_that_is_dropped_unsent_is_free_at_once(
    writer: Writer, reader: Reader, lend: str, no_gc: None
) -> None:
    for _ in range(1000):
        loan = getattr(writer, lend)(LARGE)
        del loan
    loan = getattr(writer, lend)(LARGE)
    view = loan[1:][:5]
    del loan
    assert not is_free(writer)
    del view
    check_whole(writer, reader)
    assert writer.statistics().arena_full == 1


@pytest.mark.parametrize("lend", ["empty", "empty_tensor"])
def test_a_loan_that_is_dropped_after_send_is_the_readers(lend: str, no_gc: None) -> None:
    with (
        Writer(2, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0) as one,
        Reader(writer.handle, 1) as two,
    ):
        loan = getattr(writer, lend)(MIB // 4)
        loan[:] = 1.5
        writer.send(loan)
        del loan
        assert not is_free(writer)
        view = one.recv(SECONDS, copy=False)
        two.recv(SECONDS)
        for k in range(10):
            writer.send(filled(MIB, k))
            for reader in (one, two):
                assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, k))
        assert (view == 1.5).all()
        assert not is_free(writer)
        del view
        check_whole(writer, one, two)


def test_a_loan_outlives_its_writer(no_gc: None) -> None:
    writer = Writer(1, arena_bytes=ARENA)
    reader = Reader(writer.handle, 0)
    array, tensor = writer.empty(MIB, np.uint8), writer.empty_tensor(MIB, torch.uint8)
    array[:], tensor[:] = 1, 2
    writer.send(array)
    writer.close()
    for call in (writer.empty, writer.empty_tensor):
        with pytest.raises(shmcast.Closed, match=r"after close\(\)"):
            call(10)
    with pytest.raises(shmcast.Closed, match=r"thaw after close\(\)"):
        writer.thaw(array)
    del writer
    tensor += 1
    assert torch.all(tensor == 3)
    assert np.array_equal(array, filled(MIB, 1))
    assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, 1))
    reader.close()


def test_another_writer_copies_a_loan_and_does_not_freeze_it(
    writer: Writer, reader: Reader, no_gc: None
) -> None:
    with Writer(1, arena_bytes=ARENA) as other, Reader(other.handle, 0) as its_reader:
        array, tensor = writer.empty((2, MIB // 2), np.uint8), writer.empty_tensor(LARGE)
        array[:], tensor[:] = 1, 2
        other.send([array, tensor, array[:, ::-1]])
        assert array.flags.writeable
        assert other.statistics().arena_frames == 3
        array[:], tensor[:] = 3, 4
        got = its_reader.recv(SECONDS, copy=False)
        assert np.all(got[0] == 1)
        assert torch.all(got[1] == 2)
        assert np.all(got[2] == 1)
        assert writer.thaw(array)
        with Writer(1) as plain, Reader(plain.handle, 0) as plain_reader:
            plain.send(tensor[::2])
            assert torch.all(plain_reader.recv(SECONDS) == 4)


def test_loans_may_end_in_another_thread_at_any_time(writer: Writer, reader: Reader) -> None:
    ends: list[Array] = []
    done = threading.Event()

    def end() -> None:
        while not done.is_set():
            ends.clear()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        for k in range(1500):
            ends.append(writer.empty(PAGE, np.uint8))
            ends.append(writer.empty(PAGE, np.uint8))
            writer.send(k)
            assert reader.recv(SECONDS) == k
    finally:
        done.set()
        thread.join()
    ends.clear()
    check_whole(writer, reader)


def test_more_than_one_thread_in_a_writer_is_told(writer: Writer) -> None:
    with Reader(writer.handle, 0):
        sender = threading.Thread(target=send_until_closed, args=(writer,))
        sender.start()
        with pytest.raises(shmcast.ConcurrentUse):
            lend_for_ever(writer)
        writer.close()
        sender.join()


def lend_for_ever(writer: Writer) -> None:
    while True:
        writer.empty(PAGE, np.uint8)


def send_until_closed(writer: Writer) -> None:
    with pytest.raises(shmcast.Closed):
        writer.send(bytes(2 * ARENA))
