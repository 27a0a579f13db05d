"""`Reader`: receives the objects of one writer of this host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shmcast._codecs.base import Codec
from shmcast._endpoints import settings
from shmcast._endpoints.awaited import AwaitedReceiver
from shmcast._endpoints.base import Endpoint
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.objects import checked_codec
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._endpoints.warmup import Warmup

if TYPE_CHECKING:
    from shmcast._endpoints.statistics import Statistics


class Reader(AwaitedReceiver, Endpoint):
    """Receives the objects of one writer on this host, all of them and in order.

    Args:
        handle: the writer's `handle`.
        index: this reader's number, from 0 to `handle.readers` - 1; each is taken once.
        wait: what to do while there is no message; `WaitPolicy.adaptive()` by default.
        codec: turns frames into objects; `ObjectCodec()` by default.
        rejoin: take the place of a reader that has died, if the writer drops such; the first
            message received is the first that is sent from now on. A vacant place is taken, too.
        pin: register the writer's arena with CUDA, so that copies from views to a GPU are
            asynchronous (`non_blocking=True`). Memory is not used again while such a copy, on the
            stream that is current when the view goes, is in flight; for others see
            `record_stream`. Tensors that are views are then read-only, too: writing to one is a
            segmentation fault.
        warn_after: see `Writer`.
        switch_interval: see `Writer`.
        label: how errors name this endpoint; "reader `index`" by default.
        peer_label: how errors name the members; "reader `i`" and "writer" by default.

    Attributes:
        handle: where readers find the writer's segment.

    Raises:
        InvalidArgument: the index is out of range, or another argument of the wrong kind.
        AlreadyAttached: the index is taken, or was.
        SegmentNotFound: there is no such segment on this host, or not any more; or its name is gone
            and the kernel lets this process not in by the writer's descriptor.
        SegmentMismatch: the segment found is not the one that the handle speaks of.
        HostError: the operating system refuses; the message says why, and the way out.
    """

    _end: FrameReader

    def __init__(
        self,
        handle: Handle,
        index: int,
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        rejoin: bool = False,
        pin: bool = False,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        switch_interval: float | None = None,
        label: str | None = None,
        peer_label: Callable[[int], str] | None = None,
    ) -> None:
        label = f"reader {index}" if label is None else label
        codec = checked_codec(settings.codec(codec), label)
        warmup = Warmup.with_sample_of(codec, label)
        frames = FrameReader(
            handle,
            index,
            wait=wait,
            rejoin=rejoin,
            pin=pin,
            warn_after=settings.seconds(settings.WARN_AFTER, warn_after),
            switch_interval=settings.switch_interval(switch_interval),
            label=label,
            peer_label=peer_label,
            warmup=None if warmup is None else warmup.receive,
        )
        Endpoint.__init__(self, frames)
        AwaitedReceiver.__init__(self, frames, codec, warmup)

    def statistics(self) -> Statistics:
        """Return what this reader has done so far. From any thread."""
        return self._end.statistics()
