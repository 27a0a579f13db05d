"""Codec: how CPU tensors are reduced to a buffer and rebuilt. Imported once torch is in use."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, cast

import torch

from shmcast._arrays import writable


def _reduce_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Reduces a `torch.Tensor` (exactly, no subclass): dense ones on the CPU to one buffer.

    torch's own reduction writes a zip archive into the pickle, for storages shared or not. Here a
    tensor carries its own elements only. Dense layouts (transposed, channels-last) keep their
    strides; others arrive contiguous.
    """
    if (
        tensor.device.type != "cpu"
        or tensor.layout is not torch.strided
        or tensor.is_quantized
        or tensor.__dict__
    ):
        return cast("tuple[Any, ...]", tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL))  # type: ignore[no-untyped-call]
    plain = tensor.detach().resolve_conj().resolve_neg()
    strides = None
    if not plain.is_contiguous():
        plain, strides = _dense(plain)
    raw = None
    if plain.numel():
        # No view(-1): the one element of a contiguous tensor may have any stride, and keeps it.
        elements = plain.as_strided((plain.numel(),), (1,))
        raw = pickle.PickleBuffer(memoryview(elements.view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return _rebuild_tensor, (raw, tensor.dtype, tuple(tensor.shape), strides, tensor.requires_grad)


def _dense(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """The elements in memory order as a contiguous tensor, and the strides to see them again."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    permuted = tensor.permute(order)
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
        tensor = torch.frombuffer(writable(buffer), dtype=dtype)
        tensor = tensor.view(shape) if strides is None else tensor.as_strided(shape, strides)
    return tensor.requires_grad_() if requires_grad else tensor


def _reduce_parameter(parameter: torch.nn.Parameter) -> tuple[Any, ...]:
    return _rebuild_parameter, (parameter.data, parameter.requires_grad)


def _rebuild_parameter(data: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


REDUCERS: dict[type, Callable[[Any], Any]] = {
    torch.Tensor: _reduce_tensor,
    torch.nn.Parameter: _reduce_parameter,
}
