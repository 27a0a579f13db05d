"""Device memory that the broadcasts of one message send from and receive into.

Imported once torch is in use. Broadcasts carry bytes: no backend knows every dtype.
"""

from __future__ import annotations

import itertools
import operator

import torch

from shmcast._codecs.tensors import as_bytes
from shmcast._devices.manifest import ALIGNMENT, Manifest, TensorSpec

# torch.cat knows these; others are cut into bytes first, which costs a few µs each.
_CAT_DTYPES = {
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8,
    torch.int16, torch.int32, torch.int64, torch.bool,
}  # fmt: skip


def send_buffers(manifest: Manifest, elements: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the bytes to send for each group of the manifest: contiguous tensors.

    Args:
        manifest: the message's.
        elements: those of each of its tensors, in the order of memory: contiguous tensors.
    """
    return [
        _pack([elements[i] for i in group]) if len(group) > 1 else as_bytes(elements[group[0]])
        for group in manifest.groups
    ]


class ReceiveBuffers:
    """Memory to receive a message's tensors into, on the current device of each type.

    Args:
        manifest: the message's.
        targets: tensors to receive into, by index. They are used for tensors that are not packed
            and have the same layout; the others are to be copied there.
    """

    def __init__(self, manifest: Manifest, targets: dict[int, torch.Tensor]) -> None:
        self._manifest = manifest
        self._unpacked: dict[int, torch.Tensor] = {}
        self.by_group: list[torch.Tensor] = []
        """The bytes to receive into for each group of the manifest: contiguous tensors."""
        for group in manifest.groups:
            first = manifest.specs[group[0]]
            if len(group) > 1:
                total = sum(_aligned(manifest.specs[i].nbytes) for i in group)
                buffer = torch.empty(total, dtype=torch.uint8, device=first.device_type)
            else:
                target = targets.get(group[0])
                if target is None or not first.has_layout_of(target):
                    target = first.empty(first.device_type)
                self._unpacked[group[0]] = target
                buffer = as_bytes(target.detach(), first.nbytes)
            self.by_group.append(buffer)

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors, before or after their elements arrive. New ones have no grad yet."""
        specs, tensors = self._manifest.specs, dict(self._unpacked)
        for group, buffer in zip(self._manifest.groups, self.by_group, strict=True):
            if len(group) > 1:
                unpacked = _unpack(buffer, [specs[i] for i in group])
                tensors.update(zip(group, unpacked, strict=True))
        return [
            tensors[i] if i in tensors else spec.empty(spec.device_type)
            for i, spec in enumerate(specs)
        ]


def _pack(elements: list[torch.Tensor]) -> torch.Tensor:
    """Return the bytes of several tensors, each at a multiple of ALIGNMENT.

    It takes one launch if all are of one of the common dtypes.

    Args:
        elements: contiguous tensors on one device, of any shapes and dtypes, none of them empty.
    """
    padding = None
    runs = []
    for dtype, run in itertools.groupby(elements, operator.attrgetter("dtype")):
        knows_dtype = dtype in _CAT_DTYPES
        pieces = []
        for tensor in run:
            piece = tensor if tensor.dim() == 1 else tensor.view(-1)
            pieces.append(piece if knows_dtype else as_bytes(tensor))
            over = tensor.nbytes % ALIGNMENT
            if over:
                if padding is None:
                    padding = torch.empty(ALIGNMENT, dtype=torch.uint8, device=tensor.device)
                pieces.append(padding[over:].view(dtype) if knows_dtype else padding[over:])
        runs.append(torch.cat(pieces).view(torch.uint8))
    return torch.cat(runs) if len(runs) > 1 else runs[0]


def _unpack(memory: torch.Tensor, specs: list[TensorSpec]) -> list[torch.Tensor]:
    """Return the tensors in what `_pack` has made of them."""
    tensors: list[torch.Tensor] = []
    offset = 0
    for _, run in itertools.groupby(specs, id):  # like tensors share their spec
        spec, *others = run
        count, nbytes = 1 + len(others), _aligned(spec.nbytes)
        itemsize = spec.dtype.itemsize
        strides = spec.strides or _contiguous_strides(spec.shape)
        run_of_tensors = memory.view(spec.dtype).as_strided(
            (count, *spec.shape), (nbytes // itemsize, *strides), offset // itemsize
        )
        # `data`, because views would share a version counter, and autograd would take a write to
        # one for a write to all.
        tensors += [tensor.data for tensor in run_of_tensors.unbind()]
        offset += count * nbytes
    return tensors


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = itertools.accumulate(reversed(shape[1:]), operator.mul, initial=1)
    return tuple(reversed([*steps])) if shape else ()
