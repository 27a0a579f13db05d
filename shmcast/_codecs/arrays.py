"""Codec: reduce numpy arrays to a buffer and rebuild them. Imported once numpy is in use."""

from __future__ import annotations

import ast
import functools
import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from shmcast._codecs import object_classes
from shmcast._core import Lease, Loan, PartialLease, view

if TYPE_CHECKING:
    import numpy.typing as npt

AnyArray: TypeAlias = "npt.NDArray[Any]"


def reduce_array(array: AnyArray) -> tuple[Any, ...]:
    """Reduce an `np.ndarray` (exactly, no subclass) of any shape, layout and dtype.

    numpy's own reduction copies an array that is not contiguous into the pickle. Here such an array
    is made C-contiguous and travels out-of-band too. As there, an array that is contiguous and
    read-only stays read-only.
    """
    dtype = array.dtype
    if dtype.hasobject or not dtype.itemsize:
        return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[return-value]
    loan = None
    flags = array.flags
    is_contiguous = flags.c_contiguous or flags.f_contiguous
    if array.base is not None:
        loan = _loan_behind(array)
        if loan is not None:
            loan.remember(array)
        # By address: anything may stand between, a tensor or what sliding_window_view makes.
        if not is_contiguous and array.size:
            reach = _span(array) // array.itemsize
            if reach < array.size or Loan.covers(array.__array_interface__["data"][0]):
                return _reduce_strided(array)
    order: Literal["C", "F"] = "C"
    if not flags.c_contiguous:
        if is_contiguous:
            order = "F"
        else:
            array = np.ascontiguousarray(array)
    buffer = None
    if array.nbytes:
        # As bytes: the buffer protocol has no code for datetimes, bfloat16 and their like.
        raw = array.reshape(-1, order=order).view(np.uint8)
        # Not of a memoryview: CPython's garbage collector crashes on an exception's cycle that has
        # a PickleBuffer and its memoryview. For that reason view() makes none either.
        buffer = pickle.PickleBuffer(raw)  # type: ignore[arg-type]
    # A loan that was sent is frozen by its writer, not by the program.
    is_read_only = is_contiguous and loan is None and not flags.writeable and _has_buffer(array)
    rebuild = _rebuild_read_only if is_read_only else _rebuild_array
    return rebuild, (buffer, _dtype_in_brief(dtype), array.shape, order)


def _reduce_subclass(array: AnyArray) -> tuple[Any, ...]:
    """Reduce an instance of a subclass of `np.ndarray` that has numpy's own reduction.

    As there, what arrives is contiguous and writable, and has no attributes but those which
    `__array_finalize__` sets.
    """
    plain = np.asarray(array)
    if plain.dtype.hasobject or not plain.dtype.itemsize:
        return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[return-value]
    loan = _loan_behind(array)
    if loan is not None:
        loan.remember(array)
    if not (plain.flags.c_contiguous or plain.flags.f_contiguous):
        plain = np.ascontiguousarray(plain)
    _, description = reduce_array(plain)
    return _rebuild_subclass, (type(array), *description)


def _loan_behind(array: AnyArray) -> Loan | None:
    base: object = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if type(base) is Loan else None


def _span(array: AnyArray) -> int:
    """Return the bytes from the first to the last in memory of an array that is not empty."""
    steps = zip(array.shape, array.strides, strict=True)
    return int(array.itemsize + sum((n - 1) * abs(step) for n, step in steps))


def _reduce_strided(array: AnyArray) -> tuple[Any, ...]:
    """Reduce a strided array to the bytes from its first to its last element, gaps included.

    Of an array whose elements share memory (broadcast, sliding windows) these are the fewest.
    """
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    before = -sum(step for step in reach if step < 0)
    address = array.__array_interface__["data"][0]
    buffer = pickle.PickleBuffer(view(address - before, _span(array), array))
    dtype = _dtype_in_brief(array.dtype)
    return _rebuild_strided, (buffer, dtype, array.shape, array.strides, before)


def _dtype_in_brief(dtype: np.dtype[Any]) -> np.dtype[Any] | str:
    """Return a dtype or, if they tell all of it, the few characters that make it.

    A pickled dtype costs ten times as much.
    """
    # Metadata is not compared: dtypes that differ in it are one to the cache.
    return dtype if dtype.metadata is not None else _typestr(dtype) or dtype


@functools.lru_cache(maxsize=256)
def _typestr(dtype: np.dtype[Any]) -> str | None:
    return dtype.str if np.dtype(dtype.str) == dtype else None


def _rebuild_array(
    buffer: bytearray | bytes | memoryview | None,
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    order: Literal["C", "F"],
) -> AnyArray:
    if type(buffer) is bytearray and type(dtype) is str:  # as most are, and without keywords
        return np.ndarray(shape, _DTYPES.get(dtype, dtype), buffer, 0, None, order)
    if buffer is None:
        return np.empty(shape, dtype, order)
    return np.ndarray(shape, dtype, memory_of(buffer), order=order)


def _has_buffer(array: AnyArray) -> bool:
    """Return whether numpy exports the array's memory: pickle keeps the flag of such only."""
    try:
        memoryview(array).release()  # type: ignore[arg-type]
    except (TypeError, ValueError):  # of datetimes, say
        return False
    return True


def _rebuild_read_only(*description: Any) -> AnyArray:
    array = _rebuild_array(*description)
    array.flags.writeable = False
    return array


def _rebuild_strided(
    buffer: bytearray | bytes | memoryview,
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
) -> AnyArray:
    memory = memory_of(buffer)
    array = np.ndarray(shape, dtype, memory, offset, strides)
    # A copy has no gaps, and no elements that share memory (strides of 0).
    return array if type(memory) is Lease else array.copy()


def _rebuild_subclass(
    cls: type[AnyArray],
    buffer: bytearray | bytes | memoryview | None,
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    order: Literal["C", "F"],
) -> AnyArray:
    memory = None if buffer is None else memory_of(buffer)
    # As in numpy's own way, neither __new__ nor __init__ runs, and __array_finalize__ gets None.
    return np.ndarray.__new__(cls, shape, dtype, memory, order=order)


def memory_of(
    buffer: bytearray | bytes | memoryview, kind: Literal["arrays", "tensors"] = "arrays"
) -> Any:
    """Return the memory of an unpickled buffer: a bytearray, to be written to, or a `Lease`.

    If the sender's memory was read-only, pickle wraps the buffer in a read-only view (out-of-band)
    or makes it bytes (in-band).

    Args:
        buffer: the buffer.
        kind: what it is the memory of: the receiver may want copies of some.
    """
    owner: object = buffer.obj if isinstance(buffer, memoryview) else buffer
    if type(owner) is PartialLease and owner.copied != kind:
        return owner.lease
    return owner if isinstance(owner, bytearray | Lease) else bytearray(buffer)


def dtype_name(dtype: str | np.dtype[Any]) -> str:
    """Return the text that `dtype_from_name` makes this dtype of.

    Args:
        dtype: of a reduced array, which may have such a text in its place already.

    Raises:
        TypeError: there is no such text; or ValueError.
    """
    if isinstance(dtype, str):
        return dtype
    if dtype.metadata is not None:  # not compared, so not for the cache
        raise TypeError(f"dtype {dtype!r} has metadata, which PickleCodec takes")
    return _described(dtype)


@functools.lru_cache(maxsize=256)
def _described(dtype: np.dtype[Any]) -> str:
    text = repr(dtype.descr) if dtype.names is not None else dtype.str
    if dtype.isalignedstruct:
        text = _ALIGNED + text
    if not _is_same(dtype_from_name(text), dtype):
        raise TypeError(f"dtype {dtype!r} has no description in text")
    return text


def _is_same(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Return whether dtypes are equal in what `==` does not compare, too, but for metadata."""
    return one == other and one.type is other.type and one.isalignedstruct == other.isalignedstruct


@functools.lru_cache(maxsize=256)
def dtype_from_name(text: str) -> np.dtype[Any]:
    """Return the dtype of a text by `dtype_name`: a type string, or a structured dtype's fields."""
    if text.startswith(_ALIGNED):
        packed: Any = dtype_from_name(text.removeprefix(_ALIGNED))
        fields: Any = {
            "names": packed.names,
            "formats": [packed.fields[name][0] for name in packed.names],
            "offsets": [packed.fields[name][1] for name in packed.names],
            "itemsize": packed.itemsize,
        }
        aligned: np.dtype[Any] = np.dtype(fields, align=True)
        return aligned
    if text.startswith("["):
        return np.lib.format.descr_to_dtype(ast.literal_eval(text))
    return np.dtype(text)


_ALIGNED = "aligned "
"""Begins the text of a structured dtype that was made with `align=True`."""

REDUCERS: dict[type, Callable[[Any], Any]] = {np.ndarray: reduce_array}
"""How to reduce an object, by its type."""

_OWN_WAY = ("__reduce__", "__reduce_ex__", "__setstate__")


def reducer_of(cls: type) -> Callable[[Any], Any] | None:
    """Return how to reduce instances of exactly this class; None: in pickle's own way."""
    reducer = REDUCERS.get(cls)
    if reducer is not None:
        return reducer
    is_like = all(getattr(cls, name) is getattr(np.ndarray, name) for name in _OWN_WAY)
    return _reduce_subclass if is_like else None


def _facts(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], str, int]:
    return dtype, sys.intern(dtype.str), dtype.itemsize


PLAIN: tuple[Any, ...] = (
    *(_rebuild_array, Loan, Loan.remember),
    *(part for dtype in map(np.dtype, "lifdqLIhHbB?FDeQ") for part in _facts(dtype)),
)
"""What the core needs to reduce most arrays: what rebuilds them; what may lie behind one, and is
told of it; then dtypes, each with what `reduce_array` makes of it and its size in bytes. By their
addresses: of each there is one object.
"""

_DTYPES: dict[str, Any] = {d.str: np.dtype(d.str) for d in PLAIN[3::3]}
"""The dtypes of most arrays by their texts, which take numpy 0.2 µs to read."""

object_classes.ARRAYS.extend((_rebuild_array, np.ndarray, _DTYPES, Lease, (0,)))
object_classes.IN_CORE.append((reduce_array, object_classes.ARRAY, PLAIN))

REBUILDERS: tuple[Callable[..., Any], ...] = (_rebuild_array, _rebuild_strided, _rebuild_read_only)
"""What rebuilds a reduced array; their first two arguments are a buffer and a dtype."""
