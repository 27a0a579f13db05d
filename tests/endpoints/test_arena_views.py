"""What arrives in the arena: read-only arrays, and tensors whose pages are their reader's own."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from shmcast import Reader, Writer
from tests.support.arena_roles import ARENA, LARGE, MIB, SECONDS, Array, filled
from tests.support.objects import DTYPES, describe, fill_with_zeros
from tests.support.objects import tensor as make_tensor

# What arrives


ARRAYS: dict[str, Callable[[], Array]] = {
    "floats": lambda: np.arange(LARGE, dtype=np.float64),
    "big-endian": lambda: np.arange(LARGE, dtype=">i4"),
    "datetimes": lambda: np.arange(LARGE).astype("datetime64[ms]"),
    "structured": lambda: np.ones(LARGE, [("id", "<u4"), ("x", "<f2", (3,)), ("when", "<M8[s]")]),
    "strings": lambda: np.array(["grüß", "dich"] * LARGE),
    "bytes": lambda: np.full(LARGE, b"ab"),
    "bools": lambda: np.ones(LARGE, np.bool_),
    "complex": lambda: np.full((512, 512), 1 + 2j),
    "F order": lambda: np.asfortranarray(np.arange(MIB).reshape(1024, -1)),
    "transposed": lambda: np.arange(MIB, dtype=np.int32).reshape(64, 32, -1).transpose(2, 1, 0),
    "strided": lambda: np.arange(4 * LARGE).reshape(1024, -1)[::2, 1::3],
    "backwards": lambda: np.arange(LARGE)[::-1],
    "read-only": lambda: np.frombuffer(bytes(range(256)) * 1024, np.uint8),
    "0-dim": lambda: np.array("x" * LARGE),
    "one element of 1 MiB": lambda: np.zeros((1, 1), "V1048576"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_arrive_as_read_only_views(kind: str) -> None:
    sent = ARRAYS[kind]()
    with Writer(1, arena_bytes=64 * MIB) as writer, Reader(writer.handle, 0) as reader:
        writer.send([sent, np.empty((0, 3), sent.dtype)])
        got, empty = reader.recv(SECONDS, copy=False)
        assert reader.statistics().arena_frames == 1
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert got.tobytes() == sent.tobytes()
        assert (empty.shape, empty.dtype) == ((0, 3), sent.dtype)
        assert not got.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            got.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            got[...] = got
        assert got.flags.aligned or sent.dtype.type is np.void
        writer.send(sent)
        copied = reader.recv(SECONDS)
        assert copied.flags.writeable == (kind != "read-only")
        assert copied.tobytes() == sent.tobytes()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        *((dtype, "contiguous") for dtype in DTYPES),
        *((torch.bfloat16, layout) for layout in ("transposed", "channels last", "strided")),
    ],
    ids=str,
)
def test_tensors_of_every_dtype_and_layout_arrive_as_views(
    writer: Writer, reader: Reader, dtype: torch.dtype, layout: str
) -> None:
    sent = make_tensor(dtype, (32, 16, 16, 32), layout)
    writer.send({"a": sent, "empty": sent[:0], "0-dim": sent[0, 0, 0, 0]})
    got = reader.recv(SECONDS, copy=False)
    assert reader.statistics().arena_frames == (sent.nbytes >= LARGE)
    assert describe(got["a"]) == describe(sent)
    assert describe(got["0-dim"]) == describe(sent[0, 0, 0, 0])
    assert got["empty"].shape == sent[:0].shape
    assert got["a"].stride() == (sent.stride() if layout != "strided" else got["a"].stride())
    fill_with_zeros(got["a"])  # it may be written to


def test_tensors_that_want_a_gradient_and_parameters_arrive_as_views(
    writer: Writer, reader: Reader
) -> None:
    sent = torch.nn.Parameter(torch.arange(float(LARGE)))
    writer.send([sent, torch.ones(LARGE, requires_grad=True)])
    parameter, leaf = reader.recv(SECONDS, copy=False)
    assert reader.statistics().arena_frames == 2
    assert isinstance(parameter, torch.nn.Parameter)
    assert leaf.requires_grad
    (parameter * leaf).sum().backward()
    assert torch.equal(leaf.grad, sent.detach())


def test_pickle_buffers_arrive_as_read_only_memory(writer: Writer, reader: Reader) -> None:
    writer.send([pickle.PickleBuffer(bytearray(b"ab" * MIB)), pickle.PickleBuffer(b"c" * MIB)])
    one, two = reader.recv(SECONDS, copy=False)
    assert reader.statistics().arena_frames == 2
    for got, sent in ((one, b"ab" * MIB), (two, b"c" * MIB)):
        assert isinstance(got, memoryview)
        assert got.readonly
        assert got == sent


# Who writes to a tensor


def test_what_a_reader_writes_to_a_tensor_nobody_else_sees() -> None:
    with (
        Writer(2, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0) as reader,
        Reader(writer.handle, 1) as other,
    ):
        loan = writer.empty_tensor(MIB, torch.uint8)
        loan.fill_(7)
        writer.send([loan, filled(MIB, 8)])
        mine, array = reader.recv(SECONDS, copy=False)
        theirs, their_array = other.recv(SECONDS, copy=False)
        mine[: MIB // 2] = 1
        mine[-1] = 2
        assert int(mine[0]) == 1
        assert int(mine[MIB // 2]) == 7
        theirs.fill_(3)
        assert int(mine[-1]) == 2
        assert torch.all(loan == 7)
        assert np.array_equal(array, filled(MIB, 8))
        assert np.array_equal(their_array, filled(MIB, 8))
        place = loan.data_ptr()
        del mine, theirs, loan
        again = writer.empty_tensor(MIB, torch.uint8)  # later messages in the same extent
        assert again.data_ptr() == place
        assert torch.all(again == 7)
        again[0] = 9
        writer.send(again)
        for one in (reader, other):
            got = one.recv(SECONDS, copy=False)
            assert int(got[0]) == 9
            assert torch.all(got[1:] == 7)


def test_what_was_written_to_a_tensor_stays_while_it_is_kept(
    writer: Writer, reader: Reader
) -> None:
    kept = []
    for k in range(3):
        writer.send(torch.full((MIB,), k, dtype=torch.uint8))
        kept.append(reader.recv(SECONDS, copy=False))
        kept[-1][::2] = 100 + k
    for k, tensor in enumerate(kept):
        assert torch.all(tensor[::2] == 100 + k)
        assert torch.all(tensor[1::2] == k)
