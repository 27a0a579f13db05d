"""Receiving an object: into `out`, and with device tensors whose elements arrive after it.

Imported once torch is in use.
"""

from __future__ import annotations

from typing import Any

import torch

from shmcast._codecs.base import Received
from shmcast._devices.buffers import ReceiveBuffers
from shmcast._devices.codec import unpickle
from shmcast._devices.manifest import Manifest, TensorSpec, restore_autograd
from shmcast._devices.out import Pair, copy_pairs, match_out
from shmcast._devices.work import Work
from shmcast.errors import DecodeError, InvalidArgument, ShmcastError


def receive_into(label: str, obj: Any, out: Any) -> Work:
    """Return the work that receives an object without device tensors into `out`; None: as it is.

    Its `wait` raises InvalidArgument if the object does not match `out`.
    """
    if out is None:
        return Work.done(obj)

    def copy() -> Any:
        try:
            matched, pairs = match_out(obj, out, lambda tensor: tensor.device)
        except Exception as error:
            raise _mismatch(label, error) from error
        copy_pairs(pairs)
        return matched

    return Work(copy)


class IncomingMessage:
    """A message with device tensors, which was received while they have yet to arrive.

    An error of its object is kept until the tensors have arrived, so that this rank takes part in
    their broadcast and the others don't notice.

    Args:
        label: how errors name this rank.
        manifest: the message's.
        frames: the message's.
        out: an object whose tensors to receive into; None: into new ones.
    """

    def __init__(self, label: str, manifest: Manifest, frames: list[Received], out: Any) -> None:
        self._label = label
        self._manifest = manifest
        self._frames = frames
        self._out = out
        self._obj: Any = None
        # A tensor of out, the message's in its place, and the latter's index if on a device.
        self._matches: list[tuple[torch.Tensor, torch.Tensor, int | None]] = []
        self._copies: list[Pair] = []  # to be made when all has arrived
        self._error: ShmcastError | None = None

    def prepare(self) -> list[torch.Tensor]:
        """Return the bytes to receive into for each group of the manifest: contiguous tensors.

        Without `out` this does not unpickle the object, which `assemble` does meanwhile.
        """
        targets = {} if self._out is None else self._find_targets()
        self._buffers = ReceiveBuffers(self._manifest, targets)
        return self._buffers.by_group

    def assemble(self) -> None:
        """Make the object, before its tensors have arrived or after."""
        tensors = self._buffers.tensors()
        if self._out is None:
            self._obj = self._unpickle(_restored(tensors, self._manifest.specs))
        for target, stand_in, index in self._matches:
            source = stand_in if index is None else tensors[index]
            if source is not target:
                self._copies.append((target, source))

    def result(self) -> Any:
        """Return the object, when its tensors have arrived.

        Raises:
            DecodeError: it can't be unpickled.
            InvalidArgument: it does not match `out`.
        """
        if self._error is not None:
            raise self._error
        copy_pairs(self._copies)
        return self._obj

    def _find_targets(self) -> dict[int, torch.Tensor]:
        """Match the object with `out`; return the tensors to receive into, by index."""
        specs = self._manifest.specs
        # Tensors without memory show which one belongs where.
        stubs = _restored([spec.empty("meta") for spec in specs], specs)
        indices = {id(stub): i for i, stub in enumerate(stubs)}
        obj = self._unpickle(stubs)
        if self._error is None:
            pairs = self._match(obj, indices)
            self._matches = [(target, got, indices.get(id(got))) for target, got in pairs]
        return {index: target for target, _, index in self._matches if index is not None}

    def _match(self, obj: Any, indices: dict[int, int]) -> list[Pair]:
        """Match the object with `out`; its device tensors are stubs, whose `id` tells the index."""
        specs = self._manifest.specs
        types = {spec.device_type for spec in specs}
        devices = {each: torch.empty(0, device=each).device for each in types}

        def arrives_on(tensor: torch.Tensor) -> torch.device:
            index = indices.get(id(tensor))
            return tensor.device if index is None else devices[specs[index].device_type]

        try:
            self._obj, pairs = match_out(obj, self._out, arrives_on)
            found = {id(got) for _, got in pairs}
            for stub, index in indices.items():
                if stub not in found:
                    raise InvalidArgument(
                        f"device tensor {index}, {specs[index]}, is inside of an object that is "
                        "no dict, list, tuple, NamedTuple or dataclass"
                    )
        except Exception as error:
            self._obj = None
            self._error = _mismatch(self._label, error)
            return []
        return pairs

    def _unpickle(self, tensors: list[torch.Tensor]) -> Any:
        try:
            return unpickle(self._frames, tensors)
        except Exception as error:
            self._error = DecodeError(
                f"{self._label}: can't decode a message with {len(tensors)} device tensors: "
                f"{type(error).__name__}: {error}; it is consumed, the next recv gets the next "
                "message"
            )
            self._error.__cause__ = error
            return None


def _restored(tensors: list[torch.Tensor], specs: list[TensorSpec]) -> list[torch.Tensor]:
    return [
        restore_autograd(tensor, spec.requires_grad, spec.is_parameter)
        if spec.requires_grad or spec.is_parameter
        else tensor
        for tensor, spec in zip(tensors, specs, strict=True)
    ]


def _mismatch(label: str, error: Exception) -> InvalidArgument:
    return InvalidArgument(
        f"{label}: the message does not match out: {error}; the message is consumed, out is as it "
        "was"
    )
