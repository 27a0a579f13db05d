"""Codec: reduce CPU tensors to a buffer and rebuild them. Imported once torch is in use."""

from __future__ import annotations

import contextlib
import functools
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.utils.hooks import warn_if_has_hooks

from shmcast._codecs import object_classes
from shmcast._codecs.arrays import memory_of
from shmcast._codecs.base import OUT_OF_BAND_BYTES
from shmcast._core import CopyOnWrite, Lease, Loan, StorageView, View, copy_storage, view
from shmcast.errors import ShmcastWarning

_STRIDED = torch.strided
_has_names: Callable[[torch.Tensor], bool] | None = getattr(torch.Tensor, "has_names", None)

Reduced = tuple[Any, ...]
"""What a reducer returns, as `object.__reduce__` does."""


def reduce_tensor(tensor: torch.Tensor) -> Reduced:
    """Reduce a `torch.Tensor` (exactly, no subclass): dense ones on the CPU to one buffer.

    torch's own reduction writes a zip archive into the pickle, whether or not the storage is
    shared. Here a tensor carries its own elements only. Dense layouts (transposed, channels-last)
    keep their strides, as do those whose elements share memory (expanded); others arrive
    contiguous.

    Raises:
        ValueError: its memory was freed.
    """
    # This runs for each of perhaps many small tensors: each call of torch that makes a tensor costs
    # a microsecond, each look at one a tenth.
    if (
        not tensor.is_cpu
        or tensor.layout is not _STRIDED
        or tensor.is_quantized
        or tensor.is_nested
        or (_has_names is not None and _has_names(tensor))
    ):
        return reduce_by_torch(tensor)
    requires_grad = tensor.requires_grad
    if requires_grad and tensor._backward_hooks:  # noqa: SLF001
        warn_if_has_hooks(tensor)
    try:
        reduced = _reduce_dense(tensor, requires_grad)
    except BufferError:
        reduced = _reduce_dense(with_memory(tensor), requires_grad)
    attributes = tensor.__dict__
    return with_attributes(reduced, attributes) if attributes else reduced


def _reduce_dense(tensor: torch.Tensor, requires_grad: bool) -> Reduced:
    """Reduce a tensor to one buffer.

    Raises:
        BufferError: it has no memory.
    """
    if not tensor.is_contiguous() and Loan.covers(tensor.data_ptr()):
        has_gaps = span_of(tensor) > tensor.numel()
        if has_gaps and not (tensor.is_conj() or tensor.is_neg()):
            return _reduce_strided(tensor)
    elements, strides = contiguous_elements(tensor)
    raw: bytearray | pickle.PickleBuffer | None = None
    nbytes = elements.nbytes
    if nbytes >= OUT_OF_BAND_BYTES:
        raw = _export(elements, nbytes, elements.data_ptr() != tensor.data_ptr())
    elif nbytes:
        raw = copy_storage(elements.untyped_storage(), _offset(elements), nbytes)
    dtype = dtype_name(tensor.dtype)
    return _rebuild_tensor, (raw, dtype, tuple(tensor.shape), strides, requires_grad)


def _reduce_strided(tensor: torch.Tensor) -> Reduced:
    """Reduce a strided tensor to the bytes from its first to its last element, gaps included."""
    nbytes = span_of(tensor) * tensor.element_size()
    buffer = _export(tensor, nbytes, False)
    dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
    return _rebuild_strided, (buffer, dtype, shape, tensor.stride(), tensor.requires_grad)


def _export(elements: torch.Tensor, nbytes: int, is_copy: bool) -> pickle.PickleBuffer:
    """Return the memory of a tensor from its first element on.

    The storage is kept, not the tensor, which may get another one while its memory is being read.
    """
    storage = elements.untyped_storage()
    if is_copy or not storage.resizable():
        return pickle.PickleBuffer(view(elements.data_ptr(), nbytes, storage))
    return pickle.PickleBuffer(StorageView(storage, _offset(elements), nbytes))


def _offset(tensor: torch.Tensor) -> int:
    """Return where a tensor begins in its storage, in bytes."""
    return int(tensor.storage_offset()) * tensor.element_size()


def reduce_by_torch(tensor: torch.Tensor) -> Reduced:
    """Reduce a tensor in torch's own way.

    Raises:
        ValueError: its memory was freed, which torch does not notice.
    """
    is_plain = tensor.is_cpu and tensor.layout is _STRIDED and not tensor.is_nested
    if is_plain and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        try:
            check_memory(tensor)
        except BufferError:
            with_memory(tensor)  # says why
    return cast("Reduced", tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL))  # type: ignore[no-untyped-call]


def check_memory(tensor: torch.Tensor) -> None:
    """Raise BufferError if a strided tensor has no memory, or less than its elements take."""
    if tensor.numel():
        needed = (tensor.storage_offset() + span_of(tensor)) * tensor.element_size()
        if not tensor.data_ptr() or tensor.untyped_storage().nbytes() < needed:
            raise BufferError("the storage is too small")


def with_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return what stands for a tensor without memory.

    Raises:
        ValueError: nothing does.
    """
    if tensor._is_zerotensor():  # noqa: SLF001 (autograd makes such: all elements are 0)
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    raise ValueError(
        f"a tensor of {tensor.dtype}, shape {tuple(tensor.shape)}, whose storage has "
        f"{tensor.untyped_storage().nbytes()} bytes: its memory was freed or given back (FSDP "
        "frees what it shards); send it while it has its elements"
    )


def with_attributes(reduced: Reduced, attributes: dict[str, Any]) -> Reduced:
    """Return a reduction that sets attributes on what it rebuilds."""
    return (*reduced, attributes, None, None, _set_attributes)


def _set_attributes(tensor: torch.Tensor, attributes: dict[str, Any]) -> None:
    tensor.__dict__.update(attributes)


def contiguous_elements(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """Return a tensor's elements without gaps, as a contiguous tensor; it may require grad.

    Returns:
        The elements: in the order of memory if they lie there without gaps, or if some share
        memory; else in C order. And the strides, in elements, that restore the tensor's layout;
        None: C order.

    Raises:
        BufferError: it has no memory. (A tensor in C order is not looked at.)
    """
    if tensor.is_conj() or tensor.is_neg():
        check_memory(tensor)
        tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor, None) if tensor.is_contiguous() else _dense(tensor.detach())


def as_bytes(tensor: torch.Tensor, nbytes: int | None = None) -> torch.Tensor:
    """Return a view of a tensor without gaps as a vector of bytes, in the order of memory.

    Args:
        tensor: it has no gaps; its elements may share memory.
        nbytes: the size of that memory; None: no elements share any.
    """
    # No view(-1): the one element of a contiguous tensor may have any stride, and keeps it.
    count = tensor.numel() if nbytes is None else nbytes // tensor.element_size()
    return tensor.as_strided((count,), (1,)).view(torch.uint8)


def _dims_by_stride(tensor: torch.Tensor) -> list[int]:
    """Return the dimensions in the order of memory, the outermost first."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def span_of(tensor: torch.Tensor) -> int:
    """Return how many elements lie from a tensor's first to its last, both included."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def shares_elements(tensor: torch.Tensor) -> bool:
    """Return whether elements of a tensor lie in the same place, as those of an expanded one."""
    return span_of(tensor) < tensor.numel()


def _dense(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """Do the work of `contiguous_elements` for a tensor that is not contiguous."""
    check_memory(tensor)
    permuted = tensor.permute(_dims_by_stride(tensor))
    if permuted.is_contiguous():
        return permuted, tensor.stride()
    span = span_of(tensor)
    if span < tensor.numel():  # an expanded mask, say: 8 KiB may stand for gigabytes
        return tensor.as_strided((span,), (1,)), tensor.stride()
    return tensor.contiguous(), None


def _rebuild_tensor(
    buffer: bytearray | bytes | memoryview | None,
    dtype: str | torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    requires_grad: bool,
) -> torch.Tensor:
    dtype = dtype_from_name(dtype) if isinstance(dtype, str) else dtype
    if buffer is None:
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
    else:
        memory = memory_of(buffer, "tensors")
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
    memory = None if buffer is None else memory_of(buffer, "tensors")
    tensor = _rebuild_tensor(memory, *description)
    if memory is None or type(memory) is Lease:
        return tensor
    # A copy has no gaps.
    return tensor.detach().contiguous().requires_grad_(tensor.requires_grad)


def _writable(lease: Lease) -> CopyOnWrite | View | bytearray:
    """Return a lease's memory for torch, which has no read-only tensors.

    A page that is written to becomes this process's own. Pinned pages can't be copied in this way:
    a write to them is a segmentation fault. So it is where the system grants no memory to be
    written to (ulimit -d, vm.max_map_count), which is warned of: the message would be lost.
    """
    if not lease.is_pinned:
        with contextlib.suppress(OSError):
            return lease.copy_on_write()
        with contextlib.suppress(MemoryError):
            return bytearray(lease)
        warnings.warn(
            f"a tensor of {lease.nbytes} bytes was received as a view, and the system grants no "
            "memory for what is written to it: writing to it is a segmentation fault. Raise the "
            "limit (ulimit -d, ulimit -v, sysctl vm.max_map_count), or drop views earlier",
            ShmcastWarning,
            stacklevel=2,
        )
    return view(lease.address, lease.nbytes, lease)


def _reduce_parameter(parameter: torch.nn.Parameter) -> Reduced:
    reduced = _rebuild_parameter, (parameter.data, parameter.requires_grad)
    attributes = parameter.__dict__
    return with_attributes(reduced, attributes) if attributes else reduced


def _rebuild_parameter(data: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


def reducer_of(cls: type) -> Callable[[Any], Any] | None:
    """Return how to reduce instances of exactly this class; None: in pickle's own way."""
    reducer = REDUCERS.get(cls)
    if reducer is not None:
        return reducer
    own = issubclass(cls, torch.Tensor) and cls.__reduce_ex__ is torch.Tensor.__reduce_ex__
    return reduce_by_torch if own else None


@functools.lru_cache(maxsize=256)
def dtype_name(dtype: str | torch.dtype) -> str:
    """Return the text that `dtype_from_name` makes this dtype of, such as "bfloat16".

    Args:
        dtype: of a reduced tensor, such a text already; or any.
    """
    return sys.intern(str(dtype).removeprefix("torch."))


@functools.lru_cache(maxsize=256)
def dtype_from_name(text: str) -> torch.dtype:
    """Return the dtype of a text by `dtype_name`."""
    return cast("torch.dtype", getattr(torch, text))


REDUCERS: dict[type, Callable[[Any], Any]] = {
    torch.Tensor: reduce_tensor,
    torch.nn.Parameter: _reduce_parameter,
}
"""How to reduce an object, by its type."""

_C: Any = torch._C  # noqa: SLF001 (what is looked up in the classes there would run Python code)
_GETTERS = ("layout", "is_cpu", "is_nested", "requires_grad", "dtype", "shape")
_METHODS = ("is_contiguous", "is_neg", "untyped_storage", "storage_offset", "has_names")
_STORAGE_METHODS = ("data_ptr", "nbytes", "resizable")


def _functions() -> dict[str, Any]:
    """Return the functions with which the core looks at tensors, None for what torch lacks."""
    of_tensors, of_storages = vars(_C.TensorBase), vars(_C.StorageBase)
    return {
        "_len_torch_function_stack": getattr(_C, "_len_torch_function_stack", None),
        **{name: of_tensors.get(name) for name in (*_GETTERS, *_METHODS)},
        **{name: of_storages.get(name) for name in _STORAGE_METHODS},
    }


def _codes() -> dict[str, int]:
    """Return DLPack's codes of dtypes, times 256, with their bits: of those that torch takes."""
    codes = {
        **{f"int{bits}": 0x000 | bits for bits in (8, 16, 32, 64)},
        **{f"uint{bits}": 0x100 | bits for bits in (8, 16, 32, 64)},
        **{f"float{bits}": 0x200 | bits for bits in (16, 32, 64)},
        "bfloat16": 0x410,
        "bool": 0x608,
    }
    return {text: code for text, code in codes.items() if _is_taken(text)}


def _is_taken(text: str) -> bool:
    try:
        tensor = torch.zeros(2, dtype=dtype_from_name(text), device="cpu")
        return bool(_C._from_dlpack(_C._to_dlpack(tensor)).dtype is tensor.dtype)  # noqa: SLF001
    except Exception:
        return False


_C_FUNCTIONS = types.GetSetDescriptorType | types.MethodDescriptorType | types.BuiltinFunctionType


def _plain(codes: dict[str, int], make: Any) -> tuple[Any, ...]:
    """Return what the core needs to reduce most tensors, in the order of core/python/tensor.hpp.

    Empty: this torch has not all of it, or in Python.
    """
    functions = _functions()
    needed = {**functions, "_from_dlpack": make}
    if _has_names is None:  # torch has no names for dimensions any more
        del needed["has_names"]
    if not all(isinstance(function, _C_FUNCTIONS) for function in needed.values()):
        return ()
    dtypes = (
        part
        for text, code in codes.items()
        for part in (dtype_from_name(text), dtype_name(text), (code & 0xFF) // 8)
    )
    mode_count, *looks = functions.values()
    return _rebuild_tensor, StorageView, view, mode_count, _STRIDED, *looks, *dtypes


_make_tensor = getattr(_C, "_from_dlpack", None)
_CODES = _codes()
_PLAIN = _plain(_CODES, _make_tensor)


def let_core_reduce(reducer: Callable[[torch.Tensor], Any]) -> None:
    """Let the core stand in for a reducer, for most tensors on the CPU.

    Args:
        reducer: does with them what `reduce_tensor` does.
    """
    if _PLAIN:
        object_classes.IN_CORE.append((reducer, object_classes.TENSOR, _PLAIN))


let_core_reduce(reduce_tensor)
if _PLAIN:
    object_classes.TENSORS.extend((_rebuild_tensor, _make_tensor, _CODES, (0,)))

REBUILDERS: tuple[Callable[..., Any], ...] = (_rebuild_tensor, _rebuild_strided)
"""What rebuilds a reduced tensor; their first two arguments are a buffer and a dtype."""
