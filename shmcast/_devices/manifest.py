"""What a message says about its device tensors: the manifest, which is its first frame.

Imported once torch is in use.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import NamedTuple

import torch

from shmcast._codecs.base import Received

PACK_BYTES = 256 * 1024
"""Smaller tensors are packed: a copy on the device is cheaper than one more broadcast."""

ALIGNMENT = 256
"""Packed tensors begin at multiples of this many bytes, as kernels expect of fresh memory."""

_FIRST_BYTE = 0  # of a manifest; a pickle's is 0x80


class TensorSpec(NamedTuple):
    """What receivers must know of a device tensor before it arrives."""

    device_type: str
    """Such as "cuda"."""
    device_index: int | None
    """The index of its device at the source."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """In elements, of a dense layout such as channels-last or transposed, or of one whose elements
    share memory; None: C order."""
    nbytes: int
    """The size of its memory."""
    requires_grad: bool
    is_parameter: bool

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} of shape {self.shape}"

    def empty(self, device_type: str) -> torch.Tensor:
        """Return such a tensor, uninitialised, without grad, on the current device of a type.

        With "meta" it has no memory.
        """
        if self.strides is None:
            return torch.empty(self.shape, dtype=self.dtype, device=device_type)
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device_type)

    def has_layout_of(self, tensor: torch.Tensor) -> bool:
        """Return whether the elements of a tensor of this shape lie in memory as the source's."""
        if tensor.is_conj() or tensor.is_neg():
            return False
        if self.strides is None:
            return tensor.is_contiguous()
        return tensor.stride() == self.strides


def restore_autograd(tensor: torch.Tensor, requires_grad: bool, is_parameter: bool) -> torch.Tensor:
    """Return a tensor as autograd saw it at the source: as a parameter, or requiring grad."""
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_() if requires_grad else tensor


@dataclass(frozen=True)
class Manifest:
    """What a message says about its device tensors."""

    number: int
    """Counts the broadcaster's messages with device tensors, from 1."""
    specs: list[TensorSpec]
    """In the order in which the pickle has the tensors."""
    groups: list[list[int]]
    """The tensors of each broadcast, by index, in the broadcasts' order. Several are packed."""

    def to_bytes(self) -> bytes:
        """Return a frame that `read` understands."""
        # Like tensors share a spec, which is written once. As a plain tuple: naming a class costs
        # pickle several times as much.
        unique = {id(spec): spec for spec in self.specs}
        places = {key: i for i, key in enumerate(unique)}
        which = [places[id(spec)] for spec in self.specs]
        plain = (self.number, list(map(tuple, unique.values())), which, self.groups)
        return bytes((_FIRST_BYTE,)) + pickle.dumps(plain, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def read(cls, frame: Received) -> Manifest:
        """Return the manifest in a message's first frame."""
        number, plain, which, groups = pickle.loads(memoryview(frame)[1:])  # noqa: S301 (trusted writer)
        unique = list(map(TensorSpec._make, plain))
        return cls(number, [unique[i] for i in which], groups)


def has_manifest(frames: list[Received]) -> bool:
    """Return whether a message has device tensors: then its first frame is a manifest."""
    return len(frames) > 1 and frames[0][0] == _FIRST_BYTE


def grouped(specs: list[TensorSpec]) -> list[list[int]]:
    """Return the tensors of each broadcast, by index.

    Small ones on one type of device go together, large ones alone, empty ones not at all.

    Raises:
        ValueError: tensors are on several devices of one type.
    """
    indices = {spec.device_type: spec.device_index for spec in specs}
    small: dict[str, list[int]] = {}
    large = []
    for i, spec in enumerate(specs):
        if spec.device_index != indices[spec.device_type]:
            raise ValueError(
                f"its tensors are on {spec.device_type}:{spec.device_index} and {spec.device_type}:"
                f"{indices[spec.device_type]}; in a process group each rank has one device: move "
                "them to one"
            )
        if spec.nbytes >= PACK_BYTES:
            large.append([i])
        elif spec.nbytes:
            small.setdefault(spec.device_type, []).append(i)
    return [*small.values(), *large]


class OutgoingTensors(NamedTuple):
    """A message's device tensors at the source."""

    manifest: Manifest
    buffers: list[torch.Tensor]
    """The bytes to send for each group of the manifest: contiguous tensors."""
