"""The device lane: tensors in device memory, over a process group that reaches it.

It knows torch and process groups, not shared memory. The message that names the tensors takes the
ring; their elements follow here. Any group will do that has a backend for the device, so that gloo
and tensors in host memory can stand for NCCL and a GPU's. Imported once torch is in use.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shmcast._codecs.base import Received
from shmcast._codecs.tensors import as_bytes
from shmcast._devices.buffers import pack
from shmcast._devices.codec import Carrier, DeviceCodec
from shmcast._devices.collectives import DeviceBroadcast, PeerProgress, Route
from shmcast._devices.manifest import Manifest, OutgoingTensors
from shmcast._devices.receive import IncomingMessage
from shmcast._devices.work import Work
from shmcast.errors import DeviceError, InvalidArgument, NodeLost, PeerDied, ShmcastWarning


@dataclass(frozen=True)
class Terms:
    """What all ranks must have alike."""

    device_types: tuple[str, ...] | None
    backends: tuple[tuple[str, str], ...]
    is_dedicated: bool


class DeviceLane:
    """Broadcasts device tensors from the source to the other ranks.

    Args:
        group: the process group that carries them; the same ranks, in order, as the broadcaster's.
        is_dedicated: the caller chose this group for it. Otherwise it is the broadcaster's own,
            and tensors for which it has no backend are staged through host memory.
        device_types: types of devices whose tensors take the lane; None: all but "cpu".
        label: how errors name this rank.

    Raises:
        InvalidArgument: a dedicated group has no backend for one of the `device_types`.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        is_dedicated: bool,
        device_types: Collection[str] | None,
        label: str,
    ) -> None:
        backends = _backends(group)
        if not is_dedicated:
            # gloo brings other devices' tensors to host memory, too, and then takes a socket.
            backends = {k: b for k, b in backends.items() if k == "cpu" or b != "gloo"}
        lacking = sorted(set(device_types or ()) - set(backends))
        if is_dedicated and lacking:
            raise InvalidArgument(
                f"{label}: device_group has no backend for device_types {lacking}: it has "
                f"{backends}"
            )
        # A proxy: the endpoint has the codec, the lane will have the endpoint, and part of that
        # cycle is in the core, where the garbage collector can't look.
        self.codec: DeviceCodec = DeviceCodec(weakref.proxy(self))
        """Finds the tensors in objects to send, and makes objects with those that arrived."""
        self.carries_cpu: bool = "cpu" in (device_types or ())
        """Whether host memory is taken for a device."""
        self.terms = Terms(
            None if device_types is None else tuple(sorted(device_types)),
            tuple(sorted(backends.items())),
            is_dedicated,
        )
        self._group = group
        self._backends = backends
        self._is_dedicated = is_dedicated
        self._device_types = device_types
        self._label = label
        self._number = 0  # of the last message whose tensors this rank began to broadcast
        self._broken = ""  # why no more can be
        self._has_warned = False
        self._route: Route | None = None

    def connect(self, group_src: int, ranks: list[int], progress: PeerProgress) -> None:
        """Bring the lane together with the other ranks', before the first message.

        Args:
            group_src: the source's rank in the group.
            ranks: the group's global ranks.
            progress: how far the ranks are, and who lives.
        """
        self._route = Route(self._group, self._backends, group_src, ranks, progress)

    def carrier_of(self, device_type: str) -> Carrier:
        """How tensors on this type of device travel.

        Raises:
            TypeError: not at all.
        """
        types = self._device_types
        if device_type == "cpu" and not self.carries_cpu:
            return Carrier.HOST
        if device_type == "meta":
            raise TypeError("a meta tensor has no elements to send")
        if types is not None and device_type not in types:
            raise TypeError(
                f"a tensor on {device_type}, which is none of device_types={sorted(types)}"
            )
        if device_type in self._backends:
            return Carrier.GROUP
        if self._is_dedicated:
            raise TypeError(
                f"a tensor on {device_type}, for which device_group has no backend: it has "
                f"{self._backends}"
            )
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self._label}: the group has no backend of its own for {device_type} tensors, so "
                "they are staged through host memory; pass a device_group that has one (NCCL)",
                ShmcastWarning,
                stacklevel=7,  # the caller of the broadcaster
            )
        return Carrier.STAGING

    def next_number(self) -> int:
        """The number of the next message with device tensors.

        Raises:
            DeviceError: an earlier one has failed, so that the ranks may not be in step.
        """
        if self._broken:
            raise DeviceError(
                f"{self._label}: no more device tensors can be broadcast since one failed "
                f"({self._broken}); make a new device group and a new broadcaster"
            )
        return self._number + 1

    def send(self, outgoing: OutgoingTensors, obj: Any, timeout: float | None) -> Work:
        """On the source: broadcast the device tensors of a message that is in the ring.

        Args:
            outgoing: what the codec has found in `obj`.
            obj: what the work returns.
            timeout: seconds that it may take, None for the group's own time-out.

        Raises:
            DeviceError: the broadcasts could not be begun.
        """
        manifest, elements = outgoing

        def buffers() -> list[torch.Tensor]:
            return [
                pack([elements[i] for i in group])
                if len(group) > 1
                else as_bytes(elements[group[0]])
                for group in manifest.groups
            ]

        return self._begin(manifest, buffers, timeout, lambda: obj)

    def receive(self, frames: list[Received], out: Any, timeout: float | None) -> Work:
        """Elsewhere: make the object of a message whose device tensors are coming.

        This rank takes part in their broadcast whatever is wrong with the object, so that the
        others don't notice.

        Args:
            frames: of the message, the first of them its manifest.
            out: an object whose tensors to receive into; None: into new ones.
            timeout: as for `send`.

        Raises:
            DeviceError: the broadcasts could not be begun here; the others time out.
        """
        manifest = Manifest.read(frames[0])
        self._check_in_step(manifest)
        incoming = IncomingMessage(self._label, manifest, frames, out)
        work = self._begin(manifest, incoming.prepare, timeout, incoming.result)
        incoming.assemble()  # while they are on their way
        return work

    def _check_in_step(self, manifest: Manifest) -> None:
        expected = self.next_number()
        if manifest.number != expected:
            self._broken = (
                f"this rank has missed one: it took part in {expected - 1}, and now comes number "
                f"{manifest.number}"
            )
            self.next_number()

    def _begin(
        self,
        manifest: Manifest,
        prepare: Callable[[], list[torch.Tensor]],
        timeout: float | None,
        result: Callable[[], Any],
    ) -> Work:
        assert self._route is not None  # noqa: S101 (connect() comes first)
        try:
            broadcast = DeviceBroadcast(self._route, manifest, prepare(), timeout)
        except BaseException as error:
            self._broken = f"{type(error).__name__}: {error}"
            if not isinstance(error, Exception):
                raise
            raise DeviceError(
                f"{self._label}: can't take part in the broadcast of {len(manifest.specs)} device "
                f"tensors: {self._broken}; the other ranks will time out"
            ) from error
        self._number = manifest.number

        def end() -> Any:
            try:
                broadcast.wait()
            except (NodeLost, PeerDied) as error:
                self._broken = str(error)
                raise
            except DeviceError as error:
                self._broken = str(error)
                raise type(error)(
                    f"{self._label}: {error}; objects without device tensors can still be sent, "
                    "for others make a new device group and a new broadcaster"
                ) from error.__cause__
            return result()

        return Work(end)


def _backends(group: dist.ProcessGroup) -> dict[str, str]:
    """The group's backend for each type of device."""
    pairs = (item.split(":", 1) for item in dist.get_backend_config(group).split(","))
    return dict(pairs)
