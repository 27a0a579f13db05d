"""The device lane: broadcast tensors in device memory over a process group.

It knows torch and process groups, not shared memory. The message that describes the tensors takes
the ring; their elements follow here. Any group with a backend for the device will do, so that gloo
and tensors in host memory can stand in for NCCL and a GPU's. Imported once torch is in use.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shmcast._codecs.base import Received
from shmcast._codecs.object_codec import ObjectCodec
from shmcast._codecs.pickle_codec import PickleCodec
from shmcast._devices.codec import Carrier, DeviceCodec, DevicePickleCodec
from shmcast._devices.collectives import DeviceBroadcast, PeerProgress, Route
from shmcast._devices.manifest import Manifest, OutgoingTensors
from shmcast._devices.receive import IncomingMessage
from shmcast._devices.work import Work
from shmcast.errors import (
    Closed,
    DeviceError,
    InvalidArgument,
    NodeLost,
    PeerDied,
    ShmcastWarning,
)


@dataclass(frozen=True)
class Terms:
    """What must be the same on all ranks."""

    device_types: tuple[str, ...] | None
    backends: tuple[tuple[str, str], ...]
    is_dedicated: bool


class DeviceLane:
    """Broadcasts device tensors from the source to the other ranks.

    Args:
        group: the process group that carries them: the broadcaster's ranks in the same order.
        is_dedicated: whether the caller chose this group for the lane. Else it is the
            broadcaster's own, and tensors for which it has no backend are staged through host
            memory.
        device_types: the types of devices whose tensors take the lane; None: all but "cpu".
        label: how errors name this rank.
        codec: the one to encode and decode as, apart from device tensors; None: `ObjectCodec()`.

    Raises:
        InvalidArgument: a dedicated group has no backend for one of the `device_types`.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        is_dedicated: bool,
        device_types: Collection[str] | None,
        label: str,
        codec: ObjectCodec | PickleCodec | None = None,
    ) -> None:
        codec = ObjectCodec() if codec is None else codec
        backends = _backends(group)
        if not is_dedicated:
            # gloo stages other devices' tensors through host memory, too, and then takes a socket.
            backends = {k: b for k, b in backends.items() if k == "cpu" or b != "gloo"}
        lacking = sorted(set(device_types or ()) - set(backends))
        if is_dedicated and lacking:
            raise InvalidArgument(
                f"{label}: device_group has no backend for device_types {lacking}: it has "
                f"{backends}"
            )
        # A proxy, because the lane refers to the end of frames, and the end to the codec. Part of
        # that cycle is in the core, where the garbage collector can't look.
        self.codec: DeviceCodec | DevicePickleCodec = (
            DevicePickleCodec(weakref.proxy(self), codec.allow)
            if isinstance(codec, PickleCodec)
            else DeviceCodec(weakref.proxy(self), codec.allow, codec.fallback)
        )
        """Finds the device tensors in objects to send."""
        self.carries_cpu: bool = "cpu" in (device_types or ())
        """Whether tensors in host memory take the lane, too."""
        self.terms = Terms(
            None if device_types is None else tuple(sorted(device_types)),
            tuple(sorted(backends.items())),
            is_dedicated,
        )
        self._group: dist.ProcessGroup | None = group
        self._backends = backends
        self._is_dedicated = is_dedicated
        self._device_types = device_types
        self._label = label
        self._number = 0  # of the last message whose tensors this rank began to broadcast
        self._failure = ""  # why this rank can take part in no more broadcasts
        self._has_warned = False
        self._route: Route | None = None

    def connect(self, group_src: int, ranks: list[int], progress: PeerProgress) -> None:
        """Say which ranks the lane connects, before the first message.

        Args:
            group_src: the source's rank in the group.
            ranks: the group's global ranks.
            progress: how far they are.
        """
        assert self._group is not None  # noqa: S101 (it comes before close())
        self._route = Route(self._group, self._backends, group_src, ranks, progress)

    def close(self) -> None:
        """Let go of the process group: who destroys it must not wait for the garbage collector."""
        self._group = self._route = None

    def carrier_of(self, device_type: str) -> Carrier:
        """Return what carries the tensors on a type of device.

        Raises:
            TypeError: nothing does; the error says why.
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
                stacklevel=6,  # the caller of the broadcaster
            )
        return Carrier.STAGING

    def next_number(self) -> int:
        """Return the number of the next message with device tensors.

        Raises:
            DeviceError: an earlier one has failed, so that the ranks may be out of step.
        """
        if self._failure:
            raise self._out_of_service()
        return self._number + 1

    def _out_of_service(self) -> DeviceError:
        return DeviceError(
            f"{self._label}: no more device tensors can be broadcast since one failed "
            f"({self._failure}); make a new device group and a new broadcaster"
        )

    def send(self, outgoing: OutgoingTensors, obj: Any, timeout: float | None) -> Work:
        """Begin to broadcast the device tensors of a message that is in the ring, at the source.

        Args:
            outgoing: what the codec has found in `obj`.
            obj: what the work returns.
            timeout: seconds that the broadcasts may take; None: the group's own time-out.

        Raises:
            DeviceError: the broadcasts could not begin here; the others time out.
        """
        return self._begin(outgoing.manifest, lambda: outgoing.buffers, timeout, lambda: obj)

    def receive(self, frames: list[Received], out: Any, timeout: float | None) -> Work:
        """Begin to receive the device tensors of a message; the work's `wait` makes its object.

        This rank takes part in the broadcasts whatever is wrong with the object, so that the others
        don't notice. The work's `wait` then raises the error.

        Args:
            frames: the message's, of which the first is its manifest.
            out: an object whose tensors to receive into; None: into new ones.
            timeout: as for `send`.

        Raises:
            DeviceError: the broadcasts could not begin here, and the others time out; or an earlier
                one has failed.
        """
        manifest = Manifest.read(frames[0])
        self._check_in_step(manifest)
        incoming = IncomingMessage(self._label, manifest, frames, out, self.codec)
        return self._begin(manifest, incoming.prepare, timeout, incoming.result)

    def _check_in_step(self, manifest: Manifest) -> None:
        expected = self.next_number()
        if manifest.number != expected:
            self._failure = (
                f"this rank has missed one: it took part in {expected - 1}, and now comes number "
                f"{manifest.number}"
            )
            raise self._out_of_service()

    def _begin(
        self,
        manifest: Manifest,
        prepare: Callable[[], list[torch.Tensor]],
        timeout: float | None,
        result: Callable[[], Any],
    ) -> Work:
        route = self._route
        if route is None:
            raise Closed(f"{self._label}: closed")
        try:
            broadcast = DeviceBroadcast(route, manifest, prepare(), timeout)
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            if not isinstance(error, Exception):
                raise
            raise DeviceError(
                f"{self._label}: can't take part in the broadcast of {len(manifest.specs)} device "
                f"tensors: {self._failure}; the other ranks will time out"
            ) from error
        self._number = manifest.number
        return Work(functools.partial(self._finish, broadcast, result))

    def _finish(self, broadcast: DeviceBroadcast, result: Callable[[], Any]) -> Any:
        try:
            broadcast.wait()
        except (NodeLost, PeerDied) as error:
            self._failure = str(error)
            raise
        except DeviceError as error:
            self._failure = str(error)
            raise type(error)(
                f"{self._label}: {error}; objects without device tensors can still be sent, "
                "for others make a new device group and a new broadcaster"
            ) from error.__cause__
        return result()


def _backends(group: dist.ProcessGroup) -> dict[str, str]:
    """Return the group's backend for each type of device."""
    try:
        pairs = (item.split(":", 1) for item in dist.get_backend_config(group).split(","))
        return dict(pairs)
    except (KeyError, RuntimeError, ValueError, AssertionError, TypeError):
        # Made by hand, and not registered: it knows by itself.
        return {
            device.type: group._get_backend(device).name()  # noqa: SLF001 (torch has no other way)
            for device in group._device_types  # noqa: SLF001
        }
