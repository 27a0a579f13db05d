"""Device memory of one message's tensors: where they are packed, and where they arrive.

Imported once torch is in use. Broadcasts carry bytes: no backend knows every dtype.
"""

from __future__ import annotations

import itertools
import operator

import torch

from shmcast._codecs.tensors import as_bytes
from shmcast._devices.codec import restore_autograd
from shmcast._devices.manifest import ALIGNMENT, Manifest, TensorSpec

# torch.cat knows these; others are cut into bytes first, which costs a few µs each.
_CAT_DTYPES = {
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8,
    torch.int16, torch.int32, torch.int64, torch.bool,
}  # fmt: skip


def pack(elements: list[torch.Tensor]) -> torch.Tensor:
    """The bytes of several tensors, each from a multiple of ALIGNMENT on.

    Args:
        elements: contiguous tensors on one device, of any shapes and dtypes, none of them empty.

    Returns:
        A tensor of bytes. One launch has made it where all are of one of the common dtypes.
    """
    gap = None
    runs = []
    for dtype, run in itertools.groupby(elements, operator.attrgetter("dtype")):
        is_plain = dtype in _CAT_DTYPES
        pieces = []
        for tensor in run:
            piece = tensor if tensor.dim() == 1 else tensor.view(-1)
            pieces.append(piece if is_plain else as_bytes(tensor))
            over = tensor.nbytes % ALIGNMENT
            if over:
                if gap is None:
                    gap = torch.empty(ALIGNMENT, dtype=torch.uint8, device=tensor.device)
                pieces.append(gap[over:].view(dtype) if is_plain else gap[over:])
        runs.append(torch.cat(pieces).view(torch.uint8))
    return torch.cat(runs) if len(runs) > 1 else runs[0]


class ReceiveBuffers:
    """Memory for a message's tensors, on the current device of each kind.

    Args:
        manifest: of the message.
        targets: tensors to receive into, by index. Those whose layout is not the message's, and
            those that come packed, are passed over.
    """

    def __init__(self, manifest: Manifest, targets: dict[int, torch.Tensor] | None = None) -> None:
        self._manifest = manifest
        self._single: dict[int, torch.Tensor] = {}
        self.buffers: list[torch.Tensor] = []
        """For each group of the manifest the bytes to receive into, a contiguous tensor."""
        for group in manifest.groups:
            first = manifest.specs[group[0]]
            if len(group) > 1:
                total = sum(_aligned(manifest.specs[i].nbytes) for i in group)
                piece = torch.empty(total, dtype=torch.uint8, device=first.device_type)
            else:
                target = (targets or {}).get(group[0])
                if target is None or not _has_layout(target, first):
                    target = empty(first, first.device_type)
                self._single[group[0]] = target
                piece = as_bytes(target.detach())
            self.buffers.append(piece)

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that arrive, now or later. They do not want a gradient yet."""
        specs, found = self._manifest.specs, dict(self._single)
        for group, piece in zip(self._manifest.groups, self.buffers, strict=True):
            if len(group) > 1:
                unpacked = _unpack(piece, [specs[i] for i in group])
                found.update(zip(group, unpacked, strict=True))
        return [
            found[i] if i in found else empty(spec, spec.device_type)
            for i, spec in enumerate(specs)
        ]


def empty(spec: TensorSpec, device_type: str) -> torch.Tensor:
    """A tensor like the source's, on the current device of a kind; "meta": without memory."""
    if spec.strides is None:
        return torch.empty(spec.shape, dtype=spec.dtype, device=device_type)
    return torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device=device_type)


def restore_autograd_of(tensors: list[torch.Tensor], specs: list[TensorSpec]) -> list[torch.Tensor]:
    """The tensors as they were at the source: parameters, or with their gradients wanted."""
    return [
        restore_autograd(tensor, spec.requires_grad, spec.is_parameter)
        if spec.requires_grad or spec.is_parameter
        else tensor
        for tensor, spec in zip(tensors, specs, strict=True)
    ]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _unpack(memory: torch.Tensor, specs: list[TensorSpec]) -> list[torch.Tensor]:
    """Each of the tensors in what `pack` has made of them."""
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


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = itertools.accumulate(reversed(shape[1:]), operator.mul, initial=1)
    return tuple(reversed([*steps])) if shape else ()


def _has_layout(tensor: torch.Tensor, spec: TensorSpec) -> bool:
    """Whether the elements of `tensor` lie in memory as the source's do."""
    if tensor.is_conj() or tensor.is_neg():
        return False
    if spec.strides is None:
        return tensor.is_contiguous()
    return tensor.stride() == spec.strides
