"""Codec: reduce numpy arrays to a buffer and rebuild them. Imported once numpy is in use."""

from __future__ import annotations

import ast
import functools
import pickle
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shmcast._core import Lease, Loan, view

AnyArray = npt.NDArray[Any]

_VIEWS_PER_SWEEP = 64


def _reduce_array(array: AnyArray) -> tuple[Any, ...]:
    """Reduce an `np.ndarray` (exactly, no subclass) of any shape, layout and dtype.

    numpy's own reduction copies an array that is not contiguous into the pickle, and keeps the
    read-only flag. Here such an array is made C-contiguous and travels out-of-band too.
    """
    dtype = array.dtype
    if dtype.hasobject:
        return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[return-value]
    if array.base is not None:
        loan = _loan_behind(array)
        if loan is not None:
            _remember_view(loan, array)
        has_gaps = not (array.flags.c_contiguous or array.flags.f_contiguous)
        # By address: anything may stand between, a tensor or what sliding_window_view makes.
        if has_gaps and array.size and Loan.covers(array.__array_interface__["data"][0]):
            return _reduce_strided(array)
    order: Literal["C", "F"] = "C"
    if not array.flags.c_contiguous:
        if array.flags.f_contiguous:
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
    return _rebuild_array, (buffer, _typestr(dtype) or dtype, array.shape, order)


def _loan_behind(array: AnyArray) -> Loan | None:
    base: object = array.base
    while type(base) is np.ndarray:
        base = base.base
    return base if type(base) is Loan else None


def _remember_view(loan: Loan, array: AnyArray) -> None:
    """Note the array with its loan: the writer makes it read-only once it is sent."""
    views = loan.views
    if len(views) % _VIEWS_PER_SWEEP == 0:
        views[:] = [reference for reference in views if reference() is not None]
    views.append(weakref.ref(array))


def _reduce_strided(array: AnyArray) -> tuple[Any, ...]:
    """Reduce a strided array to the bytes from its first to its last element, gaps included."""
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    before = -sum(step for step in reach if step < 0)
    after = sum(step for step in reach if step > 0) + array.itemsize
    address = array.__array_interface__["data"][0]
    buffer = pickle.PickleBuffer(view(address - before, before + after, array))
    dtype = array.dtype
    return _rebuild_strided, (buffer, _typestr(dtype) or dtype, array.shape, array.strides, before)


@functools.lru_cache(maxsize=256)
def _typestr(dtype: np.dtype[Any]) -> str | None:
    """Return the few characters that make this dtype; a pickled dtype costs ten times as much.

    None: they don't tell all of it.
    """
    return dtype.str if np.dtype(dtype.str) == dtype and dtype.metadata is None else None


def _rebuild_array(
    buffer: bytearray | bytes | memoryview | None,
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    order: Literal["C", "F"],
) -> AnyArray:
    if buffer is None:
        return np.empty(shape, dtype, order)
    return np.ndarray(shape, dtype, memory_of(buffer), order=order)


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


def memory_of(buffer: bytearray | bytes | memoryview) -> Any:
    """Return the memory of an unpickled buffer: a bytearray, to be written to, or a `Lease`.

    If the sender's memory was read-only, pickle wraps the buffer in a read-only view (out-of-band)
    or makes it bytes (in-band).
    """
    if isinstance(buffer, memoryview):
        buffer = buffer.obj  # type: ignore[assignment]
    return buffer if isinstance(buffer, bytearray | Lease) else bytearray(buffer)


@functools.lru_cache(maxsize=256)
def dtype_name(dtype: str | np.dtype[Any]) -> str:
    """Return the text that `dtype_from_name` makes this dtype of.

    Args:
        dtype: of a reduced array, which may have such a text in its place already.

    Raises:
        TypeError: there is no such text; or ValueError.
    """
    if isinstance(dtype, str):
        return dtype
    text = repr(dtype.descr) if dtype.names is not None else dtype.str
    if dtype_from_name(text) != dtype:
        raise TypeError(f"dtype {dtype} has no description in text")
    return text


@functools.lru_cache(maxsize=256)
def dtype_from_name(text: str) -> np.dtype[Any]:
    """Return the dtype of a text by `dtype_name`: a type string, or a structured dtype's fields."""
    if text.startswith("["):
        return np.lib.format.descr_to_dtype(ast.literal_eval(text))
    return np.dtype(text)


REDUCERS: dict[type, Callable[[Any], Any]] = {np.ndarray: _reduce_array}
"""How to reduce an object, by its type."""

REBUILDERS: tuple[Callable[..., Any], ...] = (_rebuild_array, _rebuild_strided)
"""What rebuilds a reduced array; their first two arguments are a buffer and a dtype."""
