"""SGLang's collectives of Python objects, of which each scheduler makes some in every iteration.

Each stands before SGLang's own function, by which ranks find each other, and which goes on where
they can't share memory.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shmcast._endpoints.handle import Handle
from shmcast._endpoints.reader import Reader
from shmcast._endpoints.writer import Writer
from shmcast.compat._groups.broadcasters import Broadcasters, default_group, timeout_of
from shmcast.errors import SegmentError, ShmcastError, Timeout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_log = logging.getLogger("sglang.shmcast")
_OFFERS = 16
"""Messages after which nobody waits any more for a receiver to attach: it is on another host."""


class Broadcast:
    """`broadcast_pyobj` over a `ShmBroadcaster` for each group and source, made on first use.

    Args:
        own: SGLang's function.
        broadcasters: of this process's groups.
    """

    def __init__(self, own: Callable[..., list[Any]], broadcasters: Broadcasters) -> None:
        self._own = own
        self._broadcasters = broadcasters

    def __call__(
        self,
        data: list[Any],
        rank: int,
        dist_group: ProcessGroup | None = None,
        src: int = 0,
        force_cpu_device: bool = True,
    ) -> list[Any]:
        """Return the source's list, on every rank of a group; a collective.

        Args:
            data: on the source, a list of anything that can be pickled; ignored elsewhere.
            rank: this process's global rank.
            dist_group: the group; None: the default one.
            src: the source's global rank.
            force_cpu_device: see SGLang; nothing goes over a device here.

        Raises:
            TypeError: on the source, `data` has no length.
            ShmcastError: what `ShmBroadcaster.broadcast_object` raises; its `Timeout` after the
                group's time-out.
        """
        made = self._broadcasters.of(dist_group, src)
        if made is None:
            return self._own(data, rank, dist_group, src, force_cpu_device)
        if made.broadcaster.is_src:
            len(data)  # as SGLang's own asks, before anything is sent
            made.broadcaster.broadcast_object(data, made.timeout)
            return data
        return _received(made.broadcaster.broadcast_object(None, made.timeout))


class Offer:
    """Goes in the place of a message, over SGLang's own function.

    Args:
        handle: of a ring that the receiver may attach to; None: the next message comes over it.
        data: the message; with a handle.
    """

    def __init__(self, handle: Handle | None, data: Any = None) -> None:
        self.handle = handle
        self.data = data


class PointToPoint:
    """`point_to_point_pyobj` over a ring for each pair of ranks.

    The first messages take SGLang's own way, and offer a ring. As soon as the receiver has attached
    to it, a last one there says that the next comes over the ring. So neither waits for the other
    more than with SGLang's own: stages that send in a circle can't block one another.

    Args:
        own: SGLang's function.
    """

    def __init__(self, own: Callable[..., list[Any]]) -> None:
        self._own = own
        self._ends: weakref.WeakKeyDictionary[ProcessGroup, _Ends] = weakref.WeakKeyDictionary()

    def __call__(
        self,
        data: list[Any],
        rank: int,
        group: ProcessGroup | None = None,
        src: int = 0,
        dst: int = 1,
        async_send: bool = False,
    ) -> list[Any]:
        """Send a list from one rank to another one.

        Args:
            data: on the source, a list of anything that can be pickled; ignored elsewhere.
            rank: this process's global rank.
            group: by which they find each other.
            src: the source's global rank.
            dst: the receiver's.
            async_send: the source need not wait.

        Returns:
            On the source what is to be waited for, nothing with a ring; on the receiver the list.

        Raises:
            ShmcastError: what `Writer.send` and `Reader.recv` raise; their `Timeout` after the
                group's time-out.
        """

        def own(data: list[Any]) -> list[Any]:
            return self._own(data, rank, group, src, dst, async_send)

        group_or_default = default_group() if group is None else group
        ends = self._ends.get(group_or_default)
        if ends is None:
            ends = self._ends[group_or_default] = _Ends(timeout_of(group_or_default))
        if rank == src:
            len(data)  # as above
            return ends.out[src, dst].send(data, own)
        if rank == dst:
            return ends.into[src, dst].receive(own)
        return []


class _Ends:
    """What this process has in a group, by the ranks of source and receiver."""

    def __init__(self, timeout: float | None) -> None:
        self.out = defaultdict[tuple[int, int], _Out](functools.partial(_Out, timeout))
        self.into = defaultdict[tuple[int, int], _In](functools.partial(_In, timeout))


class _Out:
    """A source's part."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._writer: Writer | None = None
        self._is_over_ring = False
        self._offers = 0

    def send(self, data: list[Any], own: Callable[[list[Any]], list[Any]]) -> list[Any]:
        works: list[Any] = []
        if self._offers == 0:
            self._writer = _writer()
        if self._writer is not None and not self._is_over_ring:
            if _is_attached(self._writer):
                works = own([Offer(None)])
                self._is_over_ring = True
            elif self._offers > _OFFERS:
                self._writer.close()
                self._writer = None
        if self._writer is not None and self._is_over_ring:
            self._writer.send(data, self._timeout)
            return works
        self._offers += 1
        if self._offers == 1 and self._writer is not None:
            return own([Offer(self._writer.handle, data)])
        return own(data)


class _In:
    """A receiver's part."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._reader: Reader | None = None
        self._is_over_ring = False

    def receive(self, own: Callable[[list[Any]], list[Any]]) -> list[Any]:
        if not self._is_over_ring:
            data = own([])
            if len(data) != 1 or not isinstance(data, list) or not isinstance(data[0], Offer):
                return data
            offer = data[0]
            if offer.handle is not None:
                self._reader = _reader(offer.handle)
                return _received(offer.data)
            self._is_over_ring = True
        assert self._reader is not None  # noqa: S101 (it has attached, or nothing came over it)
        return _received(self._reader.recv(self._timeout))


def _received(data: Any) -> list[Any]:
    """Return what SGLang's own gives a receiver: a list in the place of anything empty."""
    received: list[Any] = data if len(data) else []
    return received


def _writer() -> Writer | None:
    try:
        return Writer(1, label="point_to_point_pyobj, source")
    except ShmcastError as error:
        _log.warning("SGLang's own point_to_point_pyobj is used, not shmcast's: %s", error)
        return None


def _reader(handle: Handle) -> Reader | None:
    try:
        return Reader(handle, 0, label="point_to_point_pyobj, receiver")
    except SegmentError:  # the source is on another host
        return None


def _is_attached(writer: Writer) -> bool:
    try:
        writer.wait_ready(0)
    except Timeout:
        return False
    return True
