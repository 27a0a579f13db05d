"""What shmcast reduces itself arrives with all that pickle's own round trip keeps."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import shmcast
from shmcast import PickleCodec, Reader, Writer
from shmcast._codecs.base import Received

Array = npt.NDArray[Any]
SIZES = [0, 1, 7, 5000]
SECONDS = 30.0


def transfer(obj: Any) -> tuple[Any, int]:
    codec = PickleCodec()
    frames: list[Received] = [bytearray(frame) for frame in codec.encode(obj)]
    return codec.decode(frames), sum(map(len, frames))


def pickled(obj: Any) -> Any:
    return pickle.loads(pickle.dumps(obj, 5))  # noqa: S301


# Arrays


class Tagged(np.ndarray):
    """As numpy's documentation has it: an attribute that is set by `__array_finalize__`."""

    def __array_finalize__(self, obj: Any) -> None:
        self.info = getattr(obj, "info", "none")


class Kept(np.ndarray):
    """Keeps an attribute by a reduction of its own."""

    info: str

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = super().__reduce__()
        return (*reduced[:2], (reduced[2], self.info))

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[0])
        self.info = state[1]


def kept(array: Array) -> Array:
    got = array.view(Kept)
    got.info = "kept"
    return got


def frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


ARRAYS: dict[str, Callable[[Array], Array]] = {
    "plain": lambda a: a,
    "read-only": frozen,
    "read-only, transposed": lambda a: frozen(np.stack([a, a]).T),
    "read-only, strided": lambda a: frozen(a[::2]),
    "over bytes": lambda a: np.frombuffer(a.tobytes() or b"", np.uint8),
    "broadcast": lambda a: np.broadcast_to(a, (6, a.size)),
    "windows": lambda a: np.lib.stride_tricks.sliding_window_view(
        np.append(a, [*a, 1.0]), 1 + a.size
    ),
    "backwards": lambda a: a[::-1],
    "S0": lambda a: np.zeros(a.shape, [("a", "S0")])["a"],
    "U0": lambda a: np.zeros(a.shape, [("a", "U0")])["a"],
    "V0": lambda a: np.zeros(a.shape, "V0"),
    "no fields": lambda a: np.zeros(a.shape, []),
    "metadata": lambda a: a.astype(np.dtype("<f8", metadata={"unit": "m"})),
    "metadata of a field": lambda a: np.zeros(
        a.shape, [("x", np.dtype("<f8", metadata={"unit": "m"}))]
    ),
    "aligned": lambda a: np.zeros(a.shape, np.dtype([("x", "u1"), ("y", "<i4")], align=True)),
    "titles": lambda a: np.zeros(a.shape, [(("a title", "x"), "<f4")]),
    "big-endian": lambda a: a.astype(">f8"),
    "datetimes": lambda a: a.astype("M8[25s]"),
    "objects": lambda a: a.astype(object),
    "long double": lambda a: a.astype(np.longdouble),
    "matrix": lambda a: np.asmatrix(a),
    "records": lambda a: np.rec.array(a.astype(np.int64).view([("x", "<i4"), ("y", "<i4")])),
    "masked": lambda a: np.ma.masked_array(a, a > 3),
    "text": lambda a: np.char.chararray(a.shape, 5),
    "attribute by finalizing": lambda a: a.view(Tagged),
    "attribute by reducing": kept,
    "strided subclass": lambda a: a.view(Tagged)[::2],
    "read-only subclass": lambda a: frozen(a.view(Tagged)),
}
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    ARRAYS["strings"] = lambda a: a.astype(np.dtypes.StringDType())


@pytest.mark.filterwarnings("ignore:the matrix subclass", "ignore:The chararray class")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_arrive_as_by_pickle(kind: str, size: int) -> None:
    # Once more with plain ones, which are equal in all that dtypes compare.
    for make in (ARRAYS["plain"], ARRAYS[kind], ARRAYS["plain"]):
        sent = make(np.arange(float(size)))
        got, nbytes = transfer(sent)
        expected = pickled(sent)
        assert type(got) is type(expected)
        assert about(got.dtype) == about(expected.dtype)
        assert got.shape == expected.shape
        assert got.strides == expected.strides or sent.size < 2
        assert got.flags.writeable == expected.flags.writeable
        assert vars_of(got) == vars_of(expected)
        assert got.tolist() == expected.tolist()
        assert nbytes < 500 + 2 * max(sent.nbytes, len(pickle.dumps(sent)))


def about(dtype: np.dtype[Any]) -> Any:
    """Return all that tells a dtype from others."""
    parts = {name: (about(part[0]), part[1:]) for name, part in (dtype.fields or {}).items()}
    flags = (dtype.itemsize, dtype.isalignedstruct, dtype.type, dtype.byteorder)
    return repr(dtype), flags, dict(dtype.metadata or {}), parts


def vars_of(array: Array) -> dict[str, Any]:
    own = {**getattr(array, "__dict__", {})}
    return {name: value for name, value in own.items() if not name.startswith("_")}


def test_arrays_whose_elements_share_memory_are_sent_once() -> None:
    row = np.arange(1000.0)
    for sent in (
        np.broadcast_to(row, (500, 1000)),
        np.lib.stride_tricks.sliding_window_view(row, 300),
    ):
        got, nbytes = transfer(sent)
        assert nbytes < row.nbytes + 500
        assert np.array_equal(got, sent)
        got[0, 0] = -1  # and arrive as arrays of their own
        assert got[1, 0] != -1


@pytest.mark.filterwarnings("ignore:the matrix subclass", "ignore:The chararray class")
def test_subclasses_of_arrays_go_through_the_arena_and_arrive_as_views() -> None:
    with Writer(1, arena_bytes=1 << 22) as writer, Reader(writer.handle, 0) as reader:
        for sent in (np.arange(100_000.0).view(Tagged), np.asmatrix(np.ones((300, 300)))):
            for copy in (True, False):
                writer.send(sent)
                got = reader.recv(SECONDS, copy)
                assert type(got) is type(sent)
                assert np.array_equal(got, sent)
                assert got.flags.writeable == copy
        loan = writer.empty(100_000).view(Tagged)
        loan[:] = 5
        writer.send(loan)
        assert not loan.flags.writeable
        assert np.all(reader.recv(SECONDS, copy=False) == 5)
        assert writer.statistics().arena_frames == 5


def test_what_was_lent_arrives_writable_however_often_it_is_sent() -> None:
    with Writer(1, arena_bytes=1 << 22) as writer, Reader(writer.handle, 0) as reader:
        loan = writer.empty(1 << 18, np.uint8)
        for _ in range(2):
            writer.send(loan)
            assert reader.recv(SECONDS).flags.writeable


# Tensors


def tagged(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = {"of": [1, "two"]}  # type: ignore[attr-defined]
    return tensor


TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "plain": lambda t: t,
    "requires grad": lambda t: t.requires_grad_(),
    "no leaf": lambda t: t.requires_grad_() * 2,
    "attributes": tagged,
    "attributes and grad": lambda t: tagged(t.requires_grad_()),
    "parameter": torch.nn.Parameter,
    "frozen parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "parameter with attributes": lambda t: tagged(torch.nn.Parameter(t)),
    "transposed": lambda t: torch.stack([t, t]).T,
    "expanded": lambda t: t.expand(6, -1),
    "expanded inside": lambda t: t[:, None].expand(-1, 6),
    "windows": lambda t: torch.cat([t, t, torch.ones(1)]).unfold(0, 1 + len(t), 1),
    "conjugated": lambda t: torch.complex(t, t).conj(),
    "negative": lambda t: torch.complex(t, t).conj().imag,
    "nested": lambda t: torch.nested.nested_tensor([t, t[: len(t) // 2]]),
    "jagged": lambda t: torch.nested.nested_tensor([t, t[:1]], layout=torch.jagged),
    "sparse": lambda t: t.to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
}
if hasattr(torch.nn, "Buffer"):  # from torch 2.5 on
    TENSORS["buffer"] = torch.nn.Buffer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_arrive_as_by_pickle(kind: str, size: int) -> None:
    sent = TENSORS[kind](torch.arange(float(size)))
    got, expected = transfer(sent)[0], pickled(sent)
    assert type(got) is type(expected)
    for name in ("dtype", "layout", "device", "requires_grad", "is_leaf", "is_nested"):
        assert getattr(got, name) == getattr(expected, name)
    if not got.is_nested:
        assert got.shape == expected.shape
        if got.layout is torch.strided and size > 1 and kind != "negative":  # that has gaps
            assert got.stride() == expected.stride()
    if kind == "jagged":  # a class with attributes of torch's own
        got, expected = got.unbind(), expected.unbind()
    else:
        assert vars(got) == vars(expected)
        got, expected = (each.detach().resolve_conj().resolve_neg() for each in (got, expected))
    assert repr(got) == repr(expected)


def test_tensors_whose_elements_share_memory_are_sent_once() -> None:
    mask = torch.ones(1, 1, 1, 2048).expand(8, 16, 2048, 2048)
    windows = torch.arange(5000.0).unfold(0, 1000, 1)
    for sent in (mask, windows):
        got, nbytes = transfer([sent])
        assert nbytes < 25_000
        assert got[0].stride() == sent.stride()
        assert torch.equal(got[0][..., :3, :5], sent[..., :3, :5])
        assert got[0].untyped_storage().nbytes() < 25_000


def test_hooks_are_warned_of_as_by_pickle() -> None:
    tensor = torch.ones(3, requires_grad=True)
    tensor.register_hook(lambda grad: grad)  # type: ignore[no-untyped-call]
    for send in (pickled, transfer):
        with pytest.warns(UserWarning, match="backward hook"):
            send(tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transfer(torch.ones(3, requires_grad=True))


def test_an_attribute_may_be_the_tensor_itself() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.me = parameter  # type: ignore[attr-defined]
    got = transfer(parameter)[0]
    assert got.me is got


@pytest.mark.parametrize("how", ["default", "context"])
def test_the_default_device_is_for_the_program_not_for_what_arrives(how: str) -> None:
    sent = {"empty": torch.empty(0, 3), "full": torch.ones(2), "large": torch.ones(2000)}
    with Writer(1, arena_bytes=1 << 18) as writer, Reader(writer.handle, 0) as reader:
        writer.send(sent)
        if how == "default":
            torch.set_default_device("meta")
            try:
                got = reader.recv(SECONDS)
                loans = [writer.empty_tensor(1 << 18) for _ in range(2)]
            finally:
                torch.set_default_device(None)
        else:
            with torch.device("meta"):
                got = reader.recv(SECONDS)
                loans = [writer.empty_tensor(1 << 18) for _ in range(2)]
    assert {tensor.device.type for tensor in [*got.values(), *loans]} == {"cpu"}


def test_a_view_for_which_the_system_grants_no_pages_is_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from shmcast._codecs import tensors

    class Refused:
        is_pinned = False

        def __init__(self, memory: bytes | None) -> None:
            self.memory = memory
            self.nbytes = 4
            self.address = 0

        def copy_on_write(self) -> None:
            raise OSError(12, "Cannot allocate memory")

        def __bytes__(self) -> bytes:
            raise AssertionError

        def __iter__(self) -> Any:
            if self.memory is None:
                raise MemoryError
            return iter(self.memory)

    got: Any = tensors._writable(Refused(b"abcd"))  # type: ignore[arg-type]
    assert got == b"abcd"
    with pytest.warns(shmcast.ShmcastWarning, match="ulimit -d"):
        tensors._writable(Refused(None))  # type: ignore[arg-type]
