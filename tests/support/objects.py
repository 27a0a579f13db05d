"""Objects with tensors for tests: made anew in each process, and described to be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64,
    torch.complex128, torch.complex32, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):  # from torch 2.7 on
    DTYPES.append(torch.float8_e8m0fnu)

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1),
    "channels last": lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "strided": lambda t: t[::2],
    "expanded": lambda t: t[:1].expand(7, *t.shape[1:]),
    "0-dim": lambda t: t.reshape(-1)[-1],
    "empty": lambda t: t[:0],
}


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Batch:
    ids: Any
    extra: Any = None


@dataclass(frozen=True)
class Frozen:
    weights: Any


def tensor(
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (2, 4, 3, 5),
    layout: str = "contiguous",
    device: str = "cpu",
) -> torch.Tensor:
    """Make a tensor, of the same elements in every call."""
    count = torch.Size(shape).numel() * dtype.itemsize
    noise = (torch.arange(count) * 31 % 120).to(torch.uint8)
    if dtype is torch.bool:
        noise %= 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf support is experimental")  # on a GPU
        return LAYOUTS[layout](noise.view(dtype).view(shape)).to(device)


def fill_with_zeros(tensor: torch.Tensor) -> None:
    """Do what `zero_()` does, also to float8 tensors, which it does not fill before torch 2.7."""
    tensor.copy_(torch.zeros((), dtype=torch.uint8))


def describe(obj: Any) -> Any:
    """Return what tells `obj` from every other object, made of plain and small parts."""
    match obj:
        case torch.Tensor():
            what = (type(obj).__name__, obj.dtype, obj.device.type, tuple(obj.shape))
            return (*map(str, what), obj.requires_grad, digest(obj), describe(vars(obj)))
        case dict():
            return {key: describe(value) for key, value in obj.items()}
        case list() | tuple():
            return [type(obj).__name__, *map(describe, obj)]
        case _ if dataclasses.is_dataclass(obj):
            return [type(obj).__name__, describe(vars(obj))]
    return repr(obj)


def digest(obj: torch.Tensor) -> str:
    """Return a digest of a tensor's elements."""
    plain = obj.detach().resolve_conj().resolve_neg().cpu().contiguous()
    elements = plain.as_strided((plain.numel(),), (1,))  # one element may have any stride
    raw = elements.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return hashlib.sha256(raw).hexdigest()[:16]


OBJECTS: list[Any] = [
    None,
    {"step": 1, "ids": [1, 2, 3]},
    b"x" * 300_000,
    [np.arange(100_000), torch.arange(50_000, dtype=torch.bfloat16)],
]


def fingerprint(obj: Any) -> str:
    """Return what tells an object from every other one, short enough to be sent back."""
    if isinstance(obj, torch.Tensor):
        return f"{obj.dtype} {fingerprint(obj.view(torch.uint8).numpy())}"
    if isinstance(obj, np.ndarray):
        return f"{obj.dtype} {obj.shape} {hashlib.sha256(obj.tobytes()).hexdigest()}"
    if isinstance(obj, list):
        return " ".join(map(fingerprint, obj))
    return repr(obj)


class Unsendable:
    """What no codec encodes."""

    def __reduce__(self) -> Any:
        raise TypeError("it can't be sent")


class Undecodable:
    """What is encoded, and can't be decoded."""

    def __reduce__(self) -> Any:
        return int, ("no number",)
