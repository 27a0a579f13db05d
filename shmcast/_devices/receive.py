"""Receiving an object: into `out`, and with device tensors whose elements arrive after it.

Imported once torch is in use.
"""

from __future__ import annotations

from typing import Any

import torch

from shmcast._codecs.base import Received
from shmcast._devices.buffers import ReceiveBuffers
from shmcast._devices.codec import DeviceCodec, DevicePickleCodec
from shmcast._devices.inert import RunsCode, unpickle_inert
from shmcast._devices.manifest import Manifest, TensorSpec, restore_autograd
from shmcast._devices.out import copy_pairs, match_out
from shmcast._devices.work import Work, finished
from shmcast.errors import DecodeError, InvalidArgument, ShmcastError


def receive_into(label: str, obj: Any, out: Any) -> Work:
    """Return the work that receives an object without device tensors into `out`; None: as it is.

    Its `wait` raises InvalidArgument if the object does not match `out`.
    """
    if out is None:
        return finished(obj)

    def copy() -> Any:
        try:
            matched, pairs = match_out(obj, out, lambda tensor: tensor.device)
        except Exception as error:
            raise _mismatch(label, error) from error
        try:
            copy_pairs(pairs)
        except RuntimeError as error:
            raise _uncopied(label, error) from error
        return matched

    return Work(copy)


class IncomingMessage:
    """A message with device tensors, which was received while they have yet to arrive.

    The object is made when they have arrived: its classes may look at them. An error of it comes
    after their broadcast, too, so that the others don't notice.

    Args:
        label: how errors name this rank.
        manifest: the message's.
        frames: the message's.
        out: an object whose tensors to receive into; None: into new ones.
        codec: makes the object.
    """

    def __init__(
        self,
        label: str,
        manifest: Manifest,
        frames: list[Received],
        out: Any,
        codec: DeviceCodec | DevicePickleCodec,
    ) -> None:
        self._label = label
        self._manifest = manifest
        self._frames = frames
        self._out = out
        self._codec = codec
        self._obj: Any = None
        self._is_made = False  # the object is final, but for its tensors
        # A tensor of out, the message's in its place, and the latter's index if on a device.
        self._matches: list[tuple[torch.Tensor, torch.Tensor, int | None]] = []
        self._error: ShmcastError | None = None

    def prepare(self) -> list[torch.Tensor]:
        """Return the bytes to receive into for each group of the manifest: contiguous tensors.

        No code of the object's classes runs: the tensors have no elements yet.
        """
        targets = {} if self._out is None else self._find_targets()
        self._buffers = ReceiveBuffers(self._manifest, targets)
        return self._buffers.by_group

    def result(self) -> Any:
        """Make the object and return it, when its tensors have arrived.

        With NCCL they have arrived for work that is enqueued on the current stream from now on.

        Raises:
            DecodeError: it can't be unpickled.
            InvalidArgument: it does not match `out`.
        """
        if self._error is None:
            self._assemble(self._buffers.tensors())
        if self._error is not None:
            raise self._error
        return self._obj

    def _assemble(self, tensors: list[torch.Tensor]) -> None:
        if not self._is_made:
            in_place = {id(target) for target, _, _ in self._matches}
            arrived = [
                tensor if id(tensor) in in_place else _restored(tensor, spec)
                for tensor, spec in zip(tensors, self._manifest.specs, strict=True)
            ]
            self._obj = self._unpickle(arrived)
            if self._error is None and self._out is not None:
                self._match(arrived)
            if self._error is not None:
                return
        pairs = [
            (target, got if index is None else tensors[index])
            for target, got, index in self._matches
        ]
        try:
            copy_pairs([(target, source) for target, source in pairs if source is not target])
        except RuntimeError as error:
            self._obj, self._error = None, _uncopied(self._label, error)

    def _find_targets(self) -> dict[int, torch.Tensor]:
        """Match the object with `out`; return the tensors to receive into, by index.

        An object whose classes run code when it is unpickled is matched when its tensors have
        arrived, and they are received into memory of their own.
        """
        specs = self._manifest.specs
        # Tensors without memory show which one belongs where.
        stubs = [_restored(spec.empty("meta"), spec) for spec in specs]
        try:
            self._obj, self._is_made = unpickle_inert(self._frames, stubs, self._codec.find)
        except RunsCode:
            return {}
        except Exception as error:
            self._error = self._undecodable(error)
            return {}
        self._match(stubs)
        return {index: target for target, _, index in self._matches if index is not None}

    def _match(self, tensors: list[torch.Tensor]) -> None:
        """Match the object with `out`.

        Args:
            tensors: what is in the places of its device tensors, by index.
        """
        specs = self._manifest.specs
        indices = {id(tensor): i for i, tensor in enumerate(tensors)}
        types = {spec.device_type for spec in specs}
        devices = {each: torch.empty(0, device=each).device for each in types}

        def arrives_on(tensor: torch.Tensor) -> torch.device:
            index = indices.get(id(tensor))
            return tensor.device if index is None else devices[specs[index].device_type]

        try:
            self._obj, pairs = match_out(self._obj, self._out, arrives_on)
            found = {id(got) for _, got in pairs}
            for stub, index in indices.items():
                if stub not in found:
                    raise InvalidArgument(
                        f"device tensor {index}, {specs[index]}, is inside of an object that is "
                        "no dict, list, tuple, NamedTuple or dataclass"
                    )
        except Exception as error:
            self._refuse(error)
            return
        self._matches = [(target, got, indices.get(id(got))) for target, got in pairs]

    def _refuse(self, error: Exception) -> None:
        self._obj = None
        self._error = _mismatch(self._label, error)

    def _unpickle(self, tensors: list[torch.Tensor]) -> Any:
        try:
            return self._codec.decode_with_tensors(self._frames, tensors)
        except Exception as error:
            self._error = self._undecodable(error)
            return None

    def _undecodable(self, error: Exception) -> DecodeError:
        told = DecodeError(
            f"{self._label}: can't decode a message with {len(self._manifest.specs)} device "
            f"tensors: {type(error).__name__}: {error}; it is consumed, the next recv gets the "
            "next message"
        )
        told.__cause__ = error
        return told


def _restored(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    if spec.requires_grad or spec.is_parameter:
        return restore_autograd(tensor, spec.requires_grad, spec.is_parameter)
    return tensor


def _mismatch(label: str, error: Exception) -> InvalidArgument:
    return InvalidArgument(
        f"{label}: the message does not match out: {error}; the message is consumed, out is as it "
        "was"
    )


def _uncopied(label: str, error: Exception) -> InvalidArgument:
    told = InvalidArgument(
        f"{label}: the message's tensors can't be copied into out: {error}; the message is "
        "consumed, and out may hold a part of it"
    )
    told.__cause__ = error
    return told
