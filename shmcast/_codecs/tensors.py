"""Codec: reduce CPU tensors to a buffer and rebuild them. Imported once torch is in use."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any, cast

import torch

from shmcast._codecs.arrays import memory_of
from shmcast._codecs.base import OUT_OF_BAND_BYTES
from shmcast._core import CopyOnWrite, Lease, Loan, View, copy, view

_STRIDED = torch.strided


def reduce_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Reduce a `torch.Tensor` (exactly, no subclass): dense ones on the CPU to one buffer.

    torch's own reduction writes a zip archive into the pickle, whether or not the storage is
    shared. Here a tensor carries its own elements only. Dense layouts (transposed, channels-last)
    keep their strides; others arrive contiguous.
    """
    # This runs for each of perhaps many small tensors: each call of torch that makes a tensor costs
    # a microsecond, each look at one a tenth.
    if not tensor.is_cpu or tensor.layout is not _STRIDED or tensor.is_quantized or tensor.__dict__:
        return cast("tuple[Any, ...]", tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL))  # type: ignore[no-untyped-call]
    if not tensor.is_contiguous() and Loan.covers(tensor.data_ptr()):
        has_gaps = not tensor.permute(_dims_by_stride(tensor)).is_contiguous()
        if has_gaps and not (tensor.is_conj() or tensor.is_neg()):
            return _reduce_strided(tensor)
    elements, strides = contiguous_elements(tensor)
    raw: bytearray | pickle.PickleBuffer | None = None
    nbytes = elements.nbytes
    if nbytes >= OUT_OF_BAND_BYTES:
        raw = pickle.PickleBuffer(view(elements.data_ptr(), nbytes, elements))
    elif nbytes:
        raw = copy(elements.data_ptr(), nbytes)
    return _rebuild_tensor, (raw, tensor.dtype, tuple(tensor.shape), strides, tensor.requires_grad)


def _reduce_strided(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Reduce a strided tensor to the bytes from its first to its last element, gaps included."""
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    nbytes = (steps + 1) * tensor.element_size() if tensor.numel() else 0
    buffer = pickle.PickleBuffer(view(tensor.data_ptr(), nbytes, tensor)) if nbytes else None
    shape = tuple(tensor.shape)
    return _rebuild_strided, (buffer, tensor.dtype, shape, tensor.stride(), tensor.requires_grad)


def contiguous_elements(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """Return a tensor's elements without gaps, as a contiguous tensor; it may require grad.

    Returns:
        The elements: in the order of memory if they lie there without gaps, else in C order. And
        the strides, in elements, that restore the tensor's layout; None: C order.
    """
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor, None) if tensor.is_contiguous() else _dense(tensor.detach())


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor without gaps as a vector of bytes, in the order of memory."""
    # No view(-1): the one element of a contiguous tensor may have any stride, and keeps it.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _dims_by_stride(tensor: torch.Tensor) -> list[int]:
    """Return the dimensions in the order of memory, the outermost first."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def _dense(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """Do the work of `contiguous_elements` for a tensor that is not contiguous."""
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
        if type(memory) is Lease:
            memory = _writable(memory)
        tensor = torch.frombuffer(memory, dtype=dtype)
        if strides is not None:
            tensor = tensor.as_strided(shape, strides)
        elif len(shape) != 1:
            tensor = tensor.view(shape)
    return tensor.requires_grad_() if requires_grad else tensor


def _rebuild_strided(
    buffer: bytearray | bytes | memoryview | None, *description: Any
) -> torch.Tensor:
    tensor = _rebuild_tensor(buffer, *description)
    if buffer is None or type(memory_of(buffer)) is Lease:
        return tensor
    # A copy has no gaps, and no elements that share memory (strides of 0).
    return tensor.detach().contiguous().requires_grad_(tensor.requires_grad)


def _writable(lease: Lease) -> CopyOnWrite | View:
    """Return a lease's memory for torch, which has no read-only tensors.

    A page that is written to becomes this process's own. Pinned pages can't be copied in this way:
    a write to them is a segmentation fault.
    """
    if lease.is_pinned:
        return view(lease.address, lease.nbytes, lease)
    return lease.copy_on_write()


def _reduce_parameter(parameter: torch.nn.Parameter) -> tuple[Any, ...]:
    return _rebuild_parameter, (parameter.data, parameter.requires_grad)


def _rebuild_parameter(data: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


@functools.lru_cache(maxsize=256)
def dtype_name(dtype: torch.dtype) -> str:
    """Return the text that `dtype_from_name` makes this dtype of, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


@functools.lru_cache(maxsize=256)
def dtype_from_name(text: str) -> torch.dtype:
    """Return the dtype of a text by `dtype_name`."""
    return cast("torch.dtype", getattr(torch, text))


REDUCERS: dict[type, Callable[[Any], Any]] = {
    torch.Tensor: reduce_tensor,
    torch.nn.Parameter: _reduce_parameter,
}
"""How to reduce an object, by its type."""

REBUILDERS: tuple[Callable[..., Any], ...] = (_rebuild_tensor, _rebuild_strided)
"""What rebuilds a reduced tensor; their first two arguments are a buffer and a dtype."""
