"""Codec: how numpy arrays are reduced to a buffer and rebuilt. Imported once numpy is in use."""

from __future__ import annotations

import ast
import functools
import pickle
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shmcast import _core

AnyArray = npt.NDArray[Any]


def _reduce_array(array: AnyArray) -> tuple[Any, ...]:
    """Reduces an `np.ndarray` (exactly, no subclass) of any shape, layout and dtype.

    numpy's own reduction copies what is not contiguous into the pickle, and keeps the read-only
    flag. Here such arrays are made C-contiguous and travel out-of-band too.
    """
    dtype = array.dtype
    if dtype.hasobject:
        return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[return-value]
    if array.base is not None:
        loan = _loan_behind(array)
        if loan is not None:
            _remember_view(loan, array)
        has_gaps = not (array.flags.c_contiguous or array.flags.f_contiguous)
        # (What stands between may be anything: a tensor, or what sliding_window_view makes.)
        if has_gaps and array.size and _core.Loan.covers(array.__array_interface__["data"][0]):
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
        # (Of a memoryview it would crash CPython's garbage collector, where an exception's cycle
        # has both; which is why _core.view() makes none either.)
        buffer = pickle.PickleBuffer(raw)  # type: ignore[arg-type]
    return _rebuild_array, (buffer, _typestr(dtype) or dtype, array.shape, order)


def _loan_behind(array: AnyArray) -> _core.Loan | None:
    base: object = array.base
    while type(base) is np.ndarray:
        base = base.base
    return base if type(base) is _core.Loan else None


def _remember_view(loan: _core.Loan, array: AnyArray) -> None:
    """For the writer, who makes the array read-only if it was sent."""
    views = loan.views
    if len(views) % _VIEWS_PER_SWEEP == 0:
        views[:] = [view for view in views if view() is not None]
    views.append(weakref.ref(array))


_VIEWS_PER_SWEEP = 64


def _reduce_strided(array: AnyArray) -> tuple[Any, ...]:
    """Reduces a strided array to the bytes from its first to its last element, gaps included."""
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    before = -sum(step for step in reach if step < 0)
    after = sum(step for step in reach if step > 0) + array.itemsize
    address = array.__array_interface__["data"][0]
    buffer = pickle.PickleBuffer(_core.view(address - before, before + after, array))
    dtype = array.dtype
    return _rebuild_strided, (buffer, _typestr(dtype) or dtype, array.shape, array.strides, before)


@functools.lru_cache(maxsize=256)
def _typestr(dtype: np.dtype[Any]) -> str | None:
    """The two or three characters that make this dtype; a pickled dtype costs ten times as much."""
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
    # Its own, it has no gaps, and no elements that are one (strides of 0).
    return array if type(memory) is _core.Lease else array.copy()


def memory_of(buffer: bytearray | bytes | memoryview) -> Any:
    """The memory of an unpickled buffer: a bytearray, to be written to, or a `_core.Lease`.

    Pickle wraps a buffer whose sender had it read-only in a read-only view (out-of-band) or makes
    it bytes (in-band, small).
    """
    if isinstance(buffer, memoryview):
        buffer = buffer.obj  # type: ignore[assignment]
    return buffer if isinstance(buffer, bytearray | _core.Lease) else bytearray(buffer)


@functools.lru_cache(maxsize=256)
def dtype_name(dtype: str | np.dtype[Any]) -> str:
    """A dtype, as a reduced array has it, as text that `dtype_from_name` understands.

    Raises:
        TypeError, ValueError: there is no such text.
    """
    if isinstance(dtype, str):
        return dtype
    text = repr(dtype.descr) if dtype.names is not None else dtype.str
    if dtype_from_name(text) != dtype:
        raise TypeError(f"dtype {dtype} has no description in text")
    return text


@functools.lru_cache(maxsize=256)
def dtype_from_name(text: str) -> np.dtype[Any]:
    """What was spelled: one dtype, or the fields of a structured one."""
    if text.startswith("["):
        return np.lib.format.descr_to_dtype(ast.literal_eval(text))
    return np.dtype(text)


REDUCERS: dict[type, Callable[[Any], Any]] = {np.ndarray: _reduce_array}

REBUILDERS = (_rebuild_array, _rebuild_strided)
"""What a reduced array is rebuilt by; their first two arguments are a buffer and a dtype."""
