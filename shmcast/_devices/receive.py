"""An object whose device tensors are coming: it gets its place first, then they do.

Imported once torch is in use.
"""

from __future__ import annotations

from typing import Any

import torch

from shmcast._codecs.base import Received
from shmcast._devices import buffers as _landing
from shmcast._devices import out as _into
from shmcast._devices.codec import unpickle
from shmcast._devices.manifest import Manifest
from shmcast._devices.out import mismatch
from shmcast.errors import DecodeError, InvalidArgument, ShmcastError


class Arrival:
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
        self._places: list[tuple[torch.Tensor, torch.Tensor, int | None]] = []
        self._copies: list[_into.Pair] = []  # to be made when all has arrived
        self._error: ShmcastError | None = None

    def prepare(self) -> list[torch.Tensor]:
        """The memory that the tensors are to be received in.

        Without `out` the object is not looked at: that can be done while they are on their way.
        """
        targets = None if self._out is None else self._find_targets()
        self._landing = _landing.Landing(self._manifest, targets)
        return self._landing.pieces

    def assemble(self) -> None:
        """Makes the object, before its tensors have arrived or after."""
        tensors = self._landing.tensors()
        if self._out is None:
            self._obj = self._unpickle(_landing.finish(tensors, self._manifest.specs))
        for into, got, number in self._places:
            source = got if number is None else tensors[number]
            if source is not into:
                self._copies.append((into, source))

    def obj(self) -> Any:
        """The object, when its tensors have arrived.

        Raises:
            DecodeError: it can't be unpickled.
            InvalidArgument: it does not match `out`.
        """
        if self._error is not None:
            raise self._error
        _into.copy_all(self._copies)
        return self._obj

    def _find_targets(self) -> dict[int, torch.Tensor]:
        """Lays the object beside `out`; returns which of its tensors are received into."""
        specs = self._manifest.specs
        # Tensors without memory, to see which one belongs where.
        stubs = _landing.finish([_landing.empty(spec, "meta") for spec in specs], specs)
        numbers = {id(stub): i for i, stub in enumerate(stubs)}
        obj = self._unpickle(stubs)
        if self._error is None:
            pairs = self._fit(obj, numbers)
            self._places = [(into, got, numbers.get(id(got))) for into, got in pairs]
        return {number: into for into, _, number in self._places if number is not None}

    def _fit(self, obj: Any, numbers: dict[int, int]) -> list[_into.Pair]:
        """Lays the object beside `out`; device tensors are stubs, numbered by identity."""
        specs = self._manifest.specs
        devices = {spec.kind: torch.empty(0, device=spec.kind).device for spec in specs}

        def arrives_on(tensor: torch.Tensor) -> torch.device:
            number = numbers.get(id(tensor))
            return tensor.device if number is None else devices[specs[number].kind]

        try:
            self._obj, pairs = _into.fit(obj, self._out, arrives_on)
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
