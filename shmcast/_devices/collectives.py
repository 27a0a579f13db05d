"""One message's device tensors on their way: its collectives are begun, waited for, and may fail.

Imported once torch is in use.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _coalescing_manager

from shmcast._devices.manifest import Manifest
from shmcast.errors import DeviceError, DeviceTimeout

_MIN_SECONDS = 1.0
"""A shorter time-out counts as this one: a broadcast that was begun can't be taken back."""

_MAX_SECONDS = 30 * 86400.0  # C++ clocks overflow where Python's don't
_POLL_INTERVAL = timedelta(seconds=0.05)  # waits come back so often, for signals and deaths


class PeerProgress(Protocol):
    """How far the other ranks are with the device tensors of messages, and who lives."""

    def announce_start(self) -> None:
        """Tell all ranks that this one begins with the next message's device tensors."""

    def started(self) -> list[int | None]:
        """Return with how many messages each rank has begun; None for ranks of other nodes.

        By rank in the group.
        """

    def check_alive(self) -> None:
        """Raise PeerDied if a rank has died, NodeLost if a node is lost."""


@dataclass(frozen=True)
class Route:
    """What carries a broadcaster's device tensors."""

    group: dist.ProcessGroup
    backends: dict[str, str]
    """The group's backend for each type of device that it carries."""
    group_src: int
    ranks: list[int]
    """The group's global ranks."""
    progress: PeerProgress
    """How far the ranks are."""

    def missing(self, number: int) -> list[int]:
        """The global ranks of this node that have not begun with message `number`."""
        counts = zip(self.ranks, self.progress.started(), strict=True)
        return [rank for rank, n in counts if n is not None and n < number]

    def unseen(self) -> list[int]:
        """The global ranks on other nodes, of which nothing is known here."""
        return [
            rank for rank, n in zip(self.ranks, self.progress.started(), strict=True) if n is None
        ]


class DeviceBroadcast:
    """Begins the broadcasts of one message's device tensors.

    Args:
        route: what carries them.
        manifest: of the message.
        buffers: for each group of the manifest its bytes, a contiguous tensor to be sent or filled.
        timeout: seconds that they may take, None for the group's own time-out.
    """

    def __init__(
        self, route: Route, manifest: Manifest, buffers: list[torch.Tensor], timeout: float | None
    ) -> None:
        if timeout is not None:
            timeout = min(max(timeout, _MIN_SECONDS), _MAX_SECONDS)
        self._route = route
        self._manifest = manifest
        self._buffers = buffers  # not every backend keeps what it works on
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        route.progress.announce_start()
        self._collectives = list(self._broadcast())

    def _broadcast(self) -> Iterator[_Collective]:
        """Enqueues the broadcasts in the manifest's order, one kind of device after the other."""
        route, options = self._route, dist.BroadcastOptions()
        options.rootRank = route.group_src
        by_type: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for group, buffer in zip(self._manifest.groups, self._buffers, strict=True):
            by_type.setdefault(self._manifest.specs[group[0]].device_type, []).append(
                (group[0], buffer)
            )
        for device_type, buffers in by_type.items():
            is_in_stream = route.backends[device_type] == "nccl"
            if is_in_stream and len(buffers) > 1:
                # In one launch. Its time-out is the group's: NCCL takes no other.
                device = buffers[0][1].device
                with _coalescing_manager(route.group, device, async_ops=True) as together:
                    for _, buffer in buffers:
                        route.group.broadcast([buffer], options)
                yield _Collective(together, buffers[0][0], is_in_stream)
                continue
            if self._timeout is not None and not is_in_stream:
                options.timeout = timedelta(seconds=self._timeout)
            for first, buffer in buffers:
                yield _Collective(route.group.broadcast([buffer], options), first, is_in_stream)

    def wait(self) -> None:
        """Until all tensors are there: in stream order with NCCL, else now.

        Raises:
            DeviceTimeout: they are not, in time.
            DeviceError: the group failed.
            PeerDied: a rank has died.
            NodeLost: a node can't be reached any more.
        """
        for collective in self._collectives:
            try:
                self._wait(collective)
            except TimeoutError as error:
                raise self._failure(DeviceTimeout, collective, error) from error
            except RuntimeError as error:
                self._check_for_death()
                # Nothing but its text tells a time-out of the group from other failures.
                is_late = re.search("time(d )?out", str(error), re.IGNORECASE)
                kind = DeviceTimeout if is_late else DeviceError
                raise self._failure(kind, collective, error) from error

    def _wait(self, collective: _Collective) -> None:
        if collective.is_in_stream:
            # Once all ranks have enqueued their parts, their devices will do them.
            if self._deadline is not None:
                self._wait_for_members(self._deadline)
            collective.work.wait()
            return
        while True:
            try:
                collective.work.wait(_POLL_INTERVAL)
                return
            except RuntimeError:
                self._route.progress.check_alive()
                if collective.work.is_completed():
                    collective.work.wait()  # raises its error, unless it was completed just now
                    return
                if self._deadline is not None and time.monotonic() > self._deadline:
                    raise

    def _check_for_death(self) -> None:
        """Raises PeerDied if that is why a broadcast failed: sockets end before their process."""
        for _ in range(100):
            self._route.progress.check_alive()
            time.sleep(1e-3)

    def _wait_for_members(self, deadline: float) -> None:
        pause = 20e-6
        while self._route.missing(self._manifest.number):
            self._route.progress.check_alive()
            if time.monotonic() > deadline:
                raise TimeoutError("ranks are missing")
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)

    def _failure(
        self, kind: type[DeviceError], collective: _Collective, error: Exception
    ) -> DeviceError:
        specs = self._manifest.specs
        missing = self._route.missing(self._manifest.number)
        if missing:
            names = ", ".join(map(str, missing))
            who = f"rank{'s' if len(missing) > 1 else ''} {names} did not take part"
        elif unseen := self._route.unseen():
            names = ", ".join(map(str, unseen))
            who = f"all ranks of this node had begun; of ranks {names} on other nodes it is unknown"
        else:
            who = "all ranks had begun"
        limit = "" if self._timeout is None else f" within {self._timeout:g} s"
        return kind(
            f"device tensor {collective.first} of {len(specs)}, {specs[collective.first]}, was not "
            f"delivered{limit}: {who} ({error})"
        )


@dataclass(frozen=True)
class _Collective:
    """One collective on its way."""

    work: Any  # torch's Work, or what the coalescing manager gives
    first: int  # the index of the first tensor that it brings
    is_in_stream: bool  # its wait() makes the stream wait, not the host
