"""An object whose device tensors are coming: it gets its place first, then they do.

Imported once torch is in use.
"""

from __future__ import annotations

from typing import Any

import torch

from shmcast._codecs.base import Received
from shmcast._devices.buffers import ReceiveBuffers, empty, restore_autograd_of
from shmcast._devices.codec import unpickle
from shmcast._devices.manifest import Manifest
from shmcast._devices.out import Pair, copy_pairs, match_out, mismatch
from shmcast.errors import DecodeError, InvalidArgument, ShmcastError


class IncomingMessage:
    """A message with device tensors that was received.

    What is wrong with its object is kept until the tensors have arrived, so that this rank takes
    part in their broadcast and the others don't notice.

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
        # What to receive into, what stands there in the message, and its number if on a device.
        self._matches: list[tuple[torch.Tensor, torch.Tensor, int | None]] = []
        self._copies: list[Pair] = []  # to be made when all has arrived
        self._error: ShmcastError | None = None

    def prepare(self) -> list[torch.Tensor]:
        """The memory that the tensors are to be received in.

        Without `out` the object is not looked at: that can be done while they are on their way.
        """
        targets = None if self._out is None else self._find_targets()
        self._buffers = ReceiveBuffers(self._manifest, targets)
        return self._buffers.buffers

    def assemble(self) -> None:
        """Makes the object, before its tensors have arrived or after."""
        tensors = self._buffers.tensors()
        if self._out is None:
            self._obj = self._unpickle(restore_autograd_of(tensors, self._manifest.specs))
        for into, got, number in self._matches:
            source = got if number is None else tensors[number]
            if source is not into:
                self._copies.append((into, source))

    def result(self) -> Any:
        """The object, when its tensors have arrived.

        Raises:
            DecodeError: it can't be unpickled.
            InvalidArgument: it does not match `out`.
        """
        if self._error is not None:
            raise self._error
        copy_pairs(self._copies)
        return self._obj

    def _find_targets(self) -> dict[int, torch.Tensor]:
        """Lays the object beside `out`; returns which of its tensors are received into."""
        specs = self._manifest.specs
        # Tensors without memory, to see which one belongs where.
        stubs = restore_autograd_of([empty(spec, "meta") for spec in specs], specs)
        numbers = {id(stub): i for i, stub in enumerate(stubs)}
        obj = self._unpickle(stubs)
        if self._error is None:
            pairs = self._match(obj, numbers)
            self._matches = [(into, got, numbers.get(id(got))) for into, got in pairs]
        return {number: into for into, _, number in self._matches if number is not None}

    def _match(self, obj: Any, numbers: dict[int, int]) -> list[Pair]:
        """Lays the object beside `out`; device tensors are stubs, numbered by identity."""
        specs = self._manifest.specs
        devices = {
            spec.device_type: torch.empty(0, device=spec.device_type).device for spec in specs
        }

        def arrives_on(tensor: torch.Tensor) -> torch.device:
            number = numbers.get(id(tensor))
            return tensor.device if number is None else devices[specs[number].device_type]

        try:
            self._obj, pairs = match_out(obj, self._out, arrives_on)
            found = {id(got) for _, got in pairs}
            for stub, number in numbers.items():
                if stub not in found:
                    raise InvalidArgument(
                        f"device tensor {number}, {specs[number]}, is inside of an object that is "
                        "no dict, list, tuple, NamedTuple or dataclass"
                    )
        except Exception as error:
            self._obj = None
            self._error = mismatch(self._label, error)
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
