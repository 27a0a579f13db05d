"""The broadcasts of one message's device tensors: begin them, wait for them, explain a failure.

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

_MIN_SECONDS = 1.0  # of a time-out: a broadcast that has begun can't be taken back
_MAX_SECONDS = 30 * 86400.0  # of a time-out: C++ clocks overflow where Python's don't
_POLL_INTERVAL = timedelta(seconds=0.05)  # a wait looks this often for signals and deaths


class PeerProgress(Protocol):
    """How far the ranks are with the device tensors of messages, and whether they live."""

    def announce_start(self) -> None:
        """Tell all ranks of this node that this one starts the next message's device tensors."""

    def started(self) -> list[int | None]:
        """Return for how many messages each rank of the group has started the device tensors.

        In the group's order; None for ranks of other nodes.
        """

    def check_alive(self) -> None:
        """Raise PeerDied if a rank has died, NodeLost if a node is lost."""


@dataclass(frozen=True)
class Route:
    """What carries a broadcaster's device tensors."""

    group: dist.ProcessGroup
    backends: dict[str, str]
    """The group's backend for each type of device, such as {"cuda": "nccl"}."""
    group_src: int
    ranks: list[int]
    """The group's global ranks."""
    progress: PeerProgress

    def missing(self, number: int) -> list[int]:
        """Return the global ranks of this node that have not started message `number`."""
        return [rank for rank, n in self._started() if n is not None and n < number]

    def unseen(self) -> list[int]:
        """Return the global ranks on other nodes, whose progress is not known here."""
        return [rank for rank, n in self._started() if n is None]

    def _started(self) -> Iterator[tuple[int, int | None]]:
        return zip(self.ranks, self.progress.started(), strict=True)


class DeviceBroadcast:
    """The broadcasts of one message's device tensors; making it begins them.

    Args:
        route: what carries them.
        manifest: the message's.
        buffers: the bytes to send or to receive into for each group of the manifest: contiguous
            tensors.
        timeout: seconds that they may take, where less than 1 counts as 1; None: the group's own
            time-out.
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
        """Enqueue the broadcasts in the manifest's order, one type of device after the other."""
        route, specs = self._route, self._manifest.specs
        options = dist.BroadcastOptions()
        options.rootRank = route.group_src
        by_type: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for (first, *_), buffer in zip(self._manifest.groups, self._buffers, strict=True):
            by_type.setdefault(specs[first].device_type, []).append((first, buffer))
        for device_type, buffers in by_type.items():
            is_in_stream = route.backends[device_type] == "nccl"
            if is_in_stream and len(buffers) > 1:
                # In one launch, with the group's time-out: NCCL takes no other. The manager is
                # private to torch because nothing public does this: batch_isend_irecv, which uses
                # it, takes sends and receives only.
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
        """Wait until all tensors have arrived; with NCCL, make the current stream wait.

        Raises:
            DeviceTimeout: they have not arrived in time.
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
                # Only the text tells a time-out of the group from its other failures.
                is_late = re.search("time(d )?out", str(error), re.IGNORECASE)
                kind = DeviceTimeout if is_late else DeviceError
                raise self._failure(kind, collective, error) from error

    def _wait(self, collective: _Collective) -> None:
        if collective.is_in_stream:
            # When all ranks have enqueued their parts, their devices will run them.
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
        """Raise PeerDied if a death explains a failure: sockets end before their process does."""
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
    """One collective that has begun."""

    work: Any  # torch's Work, or what the coalescing manager yields
    first: int  # the index of its first tensor
    is_in_stream: bool  # whether its wait() makes the stream wait, not the host
