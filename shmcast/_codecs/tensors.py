"""Codec: how CPU tensors are reduced to a buffer and rebuilt. Imported once torch is in use."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any, cast

import torch

from shmcast import _core
from shmcast._codecs.arrays import memory_of
from shmcast._codecs.base import OUT_OF_BAND_BYTES

_STRIDED = torch.strided


def reduce_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Reduces a `torch.Tensor` (exactly, no subclass): dense ones on the CPU to one buffer.

    torch's own reduction writes a zip archive into the pickle, for storages shared or not. Here a
    tensor carries its own elements only. Dense layouts (transposed, channels-last) keep their
    strides; others arrive contiguous.
    """
    # This runs for each of perhaps many small tensors: each call of torch that makes a tensor costs
    # a microsecond, each look at one a tenth.
    if not tensor.is_cpu or tensor.layout is not _STRIDED or tensor.is_quantized or tensor.__dict__:
        return cast("tuple[Any, ...]", tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL))  # type: ignore[no-untyped-call]
    if not tensor.is_contiguous() and _core.Loan.covers(tensor.data_ptr()):
        has_gaps = not tensor.permute(_dims_by_stride(tensor)).is_contiguous()
        if has_gaps and not (tensor.is_conj() or tensor.is_neg()):
            return _reduce_strided(tensor)
    plain, strides = contiguous_elements(tensor)
    raw: bytearray | pickle.PickleBuffer | None = None
    nbytes = plain.nbytes
    if nbytes >= OUT_OF_BAND_BYTES:
        raw = pickle.PickleBuffer(_core.view(plain.data_ptr(), nbytes, plain))
    elif nbytes:
        raw = _core.copy(plain.data_ptr(), nbytes)
    return _rebuild_tensor, (raw, tensor.dtype, tuple(tensor.shape), strides, tensor.requires_grad)


def _reduce_strided(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Reduces a strided tensor to the bytes from its first to its last element, gaps included."""
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    nbytes = (steps + 1) * tensor.element_size() if tensor.numel() else 0
    buffer = pickle.PickleBuffer(_core.view(tensor.data_ptr(), nbytes, tensor)) if nbytes else None
    shape = tuple(tensor.shape)
    return _rebuild_strided, (buffer, tensor.dtype, shape, tensor.stride(), tensor.requires_grad)


def _rebuild_strided(buffer: bytearray | bytes | memoryview | None, *kind: Any) -> torch.Tensor:
    tensor = _rebuild_tensor(buffer, *kind)
    if buffer is None or type(memory_of(buffer)) is _core.Lease:
        return tensor
    # Its own, it has no gaps, and no elements that are one (strides of 0).
    return tensor.detach().contiguous().requires_grad_(tensor.requires_grad)


def contiguous_elements(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """A tensor's elements without gaps, as a contiguous tensor; may want a gradient.

    Returns:
        The elements in the order of memory, if they lie without gaps, else in C order. And the
        strides to see them in their places again; None: C order.
    """
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor, None) if tensor.is_contiguous() else _dense(tensor.detach())


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor that lie without gaps, in the order of memory."""
    # No view(-1): the one element of a contiguous tensor may have any stride, and keeps it.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _dims_by_stride(tensor: torch.Tensor) -> list[int]:
    """The dimensions as they lie in memory, the outermost first."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def _dense(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """The elements in memory order as a contiguous tensor, and the strides to see them again."""
    permuted = tensor.permute(_dims_by_stride(tensor))
    if permuted.is_contiguous():
        return permuted, tensor.stride()
    return tensor.contiguous(), None


def _rebuild_tensor(
    buffer: bytearray | bytes | memoryview | None,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    requires_grad: bool,
) -> torch.Tensor:
    if buffer is None:
        tensor = torch.empty(shape, dtype=dtype)
    else:
        memory = memory_of(buffer)
        if type(memory) is _core.Lease:
            memory = _writable_memory(memory)
        tensor = torch.frombuffer(memory, dtype=dtype)
        if strides is not None:
            tensor = tensor.as_strided(shape, strides)
        elif len(shape) != 1:
            tensor = tensor.view(shape)
    return tensor.requires_grad_() if requires_grad else tensor


def _writable_memory(lease: _core.Lease) -> _core.CopyOnWrite | _core.View:
    """The memory of a view, for torch, which has no read-only tensors.

    What is written to becomes this process's own, page by page. Pinned pages can't be copied so:
    a write to them is a segmentation fault.
    """
    if lease.is_pinned:
        return _core.view(lease.address, lease.nbytes, lease)
    return lease.copy_on_write()


def _reduce_parameter(parameter: torch.nn.Parameter) -> tuple[Any, ...]:
    return _rebuild_parameter, (parameter.data, parameter.requires_grad)


def _rebuild_parameter(data: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


@functools.lru_cache(maxsize=256)
def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as text that `dtype_from_name` understands."""
    return str(dtype).removeprefix("torch.")


@functools.lru_cache(maxsize=256)
def dtype_from_name(text: str) -> torch.dtype:
    """What was spelled."""
    return cast("torch.dtype", getattr(torch, text))


REDUCERS: dict[type, Callable[[Any], Any]] = {
    torch.Tensor: reduce_tensor,
    torch.nn.Parameter: _reduce_parameter,
}

REBUILDERS = (_rebuild_tensor, _rebuild_strided)
"""What a reduced tensor is rebuilt by; their first two arguments are a buffer and a dtype."""
