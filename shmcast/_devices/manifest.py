"""What a message says about its device tensors: the manifest, and the frames that carry it.

Imported once torch is in use.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import NamedTuple

import torch

from shmcast._codecs.base import Received

PACK_BYTES = 256 * 1024
"""Tensors of fewer bytes are packed: a copy on the device is cheaper than a broadcast more."""


ALIGNMENT = 256
"""Bytes: where a packed tensor may begin, as far as kernels ask for in fresh memory."""


_FIRST_BYTE = 0  # a manifest's first byte; a pickle's is 0x80


class TensorSpec(NamedTuple):
    """What receivers must know of a device tensor before it comes."""

    device_type: str
    """Its device's type."""
    device_index: int | None
    """Its device's index at the source."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """Of a dense layout that is not contiguous (channels-last, transposed), in elements."""
    nbytes: int
    """Of its elements."""
    requires_grad: bool
    is_parameter: bool

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} of shape {self.shape}"


@dataclass(frozen=True)
class Manifest:
    """What a message says about its device tensors."""

    number: int
    """Of the broadcaster's messages with device tensors, from 1."""
    specs: list[TensorSpec]
    """In the order in which the pickle has them."""
    groups: list[list[int]]
    """Which tensors go in one broadcast, by index: packed, unless there is one. In order."""

    def to_bytes(self) -> bytes:
        """A frame that `read` understands."""
        # Like tensors share a spec, which is written once. As a plain tuple: naming a class costs
        # pickle several times as much.
        unique = {id(spec): spec for spec in self.specs}
        places = {key: i for i, key in enumerate(unique)}
        which = [places[id(spec)] for spec in self.specs]
        plain = (self.number, list(map(tuple, unique.values())), which, self.groups)
        return bytes((_FIRST_BYTE,)) + pickle.dumps(plain, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def read(cls, frame: Received) -> Manifest:
        """The manifest in a message's first frame."""
        number, plain, which, groups = pickle.loads(memoryview(frame)[1:])  # noqa: S301 (trusted writer)
        unique = list(map(TensorSpec._make, plain))
        return cls(number, [unique[i] for i in which], groups)


def grouped(specs: list[TensorSpec]) -> list[list[int]]:
    """The tensors, by index, that go in one broadcast: the small ones of one kind of device.

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
    """What of a message takes the device lane, behind its frames."""

    manifest: Manifest
    elements: list[torch.Tensor]
    """Each device tensor's elements in the order of its memory: contiguous."""


def has_manifest(frames: list[Received]) -> bool:
    """Return whether a message's device tensors follow: its first frame is a manifest."""
    return len(frames) > 1 and frames[0][0] == _FIRST_BYTE
