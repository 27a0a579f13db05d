"""Prometheus metrics of broadcasters: `pip install 'shmcast[metrics]'`.

    shmcast.metrics.register(broadcaster)

Whatever serves the registry, `prometheus_client.start_http_server(9400)` say, then serves these,
too. Reading them slows no message down.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from shmcast._endpoints.handle import Handle
from shmcast._endpoints.latencies import bounds
from shmcast._operators.discovery import OpenSegment
from shmcast._operators.snapshot import Snapshot, take
from shmcast.errors import InvalidArgument, MissingDependency

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise MissingDependency(
        "shmcast.metrics needs prometheus-client: pip install 'shmcast[metrics]'"
    ) from _error

if TYPE_CHECKING:
    from shmcast._endpoints.statistics import Statistics

__all__ = ["register"]

COUNTERS = {
    "messages": "Messages sent, or received whole",
    "payload_bytes": "Bytes of their frames",
    "fragments": "Slots filled or emptied for them",
    "abandoned": "Messages given up half-way",
    "spins": "Waits that ended while spinning",
    "parks": "Times that the endpoint went to sleep",
    "wakeups": "Sleeps that ended because what was waited for was there",
    "wakes": "System calls made to wake others",
    "preemptions": "Times that the core was taken away from a spinner",
    "parked_crowded": "Sleeps because the members outnumber the CPUs",
    "parked_preempted": "Sleeps because the core had been taken away",
    "parked_beside_peer": "Sleeps on the CPU of the member waited for",
    "parked_unpaced": "Sleeps because no message was foreseen, or soon",
    "spun_seconds": "Time spent spinning",
    "parked_seconds": "Time spent asleep",
    "tensor_sets": "Messages with device tensors whose broadcasts were begun",
    "arena_frames": "Buffers sent or received in the arena",
    "arena_full": "Buffers and loans that found no room in the arena",
    "non_temporal_bytes": "Bytes that went past the caches",
    "spilled": "Messages of which a part was spilled",
    "spill_full": "Messages that found no memory to be spilled to",
    "relayed": "Messages sent to other nodes, or received for one",
    "relayed_bytes": "Bytes of the collectives between nodes",
    "estimate_hits": "Collectives between nodes for which the estimate of the size was enough",
    "estimate_misses": "Those for which it was not",
}
"""Fields of `Statistics` that only grow, each the metric shmcast_<field>_total."""

GAUGES = {
    "gap_seconds": "Median of the last gaps between messages",
    "arena_reserved_bytes": "Bytes of the arena that have memory",
    "arena_huge_bytes": "Those of them that are in huge pages",
    "spill_reserved_bytes": "Bytes of memory taken for what busy readers hold up",
    "spill_huge_bytes": "Those of them that are in huge pages",
}
"""Fields of `Statistics` that may shrink, each the metric shmcast_<field>."""

_LABELS = ("broadcaster", "member")
_BUCKETS_PER_BOUND = 8  # an octave: each bucket is a series


class Endpoint(Protocol):
    """What has metrics: a `ShmBroadcaster`, `Writer`, `Reader`, `Hub` or `Member`."""

    @property
    def handle(self) -> Handle | None:
        """Where its segment is."""

    def statistics(self) -> Statistics:
        """Return what it has done."""


def register(
    endpoint: Endpoint, name: str | None = None, registry: CollectorRegistry = REGISTRY
) -> None:
    """Let a registry have the metrics of an endpoint, for as long as that is there and open.

    A source, a writer or a hub has those of all its readers, too. The label `broadcaster` is the
    name; `member` is "writer", "reader `index`", or "self" for an endpoint that receives.

    Args:
        endpoint: a `ShmBroadcaster`, `Writer`, `Reader`, `Hub` or `Member`.
        name: what to call it; None: its segment's label. Of several in one process, each needs its
            own.
        registry: whose; the default is prometheus_client's own.

    Raises:
        InvalidArgument: it is no endpoint.
    """
    if not callable(getattr(endpoint, "statistics", None)):
        raise InvalidArgument(f"register(): {endpoint!r} is no endpoint of shmcast")
    registry.register(_EndpointCollector(endpoint, name))


class _EndpointCollector(Collector):
    def __init__(self, endpoint: Endpoint, name: str | None) -> None:
        self._endpoint = weakref.ref(endpoint)
        self._name = name
        handle = endpoint.handle
        self._segment = None if handle is None else _file_of(handle)
        if name is None:
            self._name = self._look().label or type(endpoint).__name__

    def describe(self) -> Iterable[Metric]:
        """Name no metrics: others of this class have the same."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now; none of an endpoint that is gone or closed."""
        endpoint = self._endpoint()
        if endpoint is None or getattr(endpoint, "closed", False):
            return
        own = endpoint.statistics()
        members = [("writer" if own.readers or own.lag else "self", own)]
        members += [(f"reader {index}", reader) for index, reader in enumerate(own.readers)]
        yield from self._figures(members)
        yield self._latencies(members)
        lag = self._gauge("lag_fragments", "Fragments sent that a reader has not consumed")
        for index, behind in enumerate(own.lag):
            lag.add_metric(self._labels(f"reader {index}"), behind)
        yield lag
        yield from self._of_segment()

    def _figures(self, members: Sequence[tuple[str, Statistics]]) -> Iterator[Metric]:
        for field, text in COUNTERS.items():
            counter = CounterMetricFamily(f"shmcast_{field}", text, labels=_LABELS)
            for member, statistics in members:
                counter.add_metric(self._labels(member), getattr(statistics, field))
            yield counter
        for field, text in GAUGES.items():
            gauge = self._gauge(field, text)
            for member, statistics in members:
                gauge.add_metric(self._labels(member), getattr(statistics, field))
            yield gauge

    def _latencies(self, members: Sequence[tuple[str, Statistics]]) -> Metric:
        family = HistogramMetricFamily(
            "shmcast_latency_seconds",
            "One-way latency of frames to a reader, of one message in four",
            labels=_LABELS,
        )
        for member, statistics in members:
            if statistics.latencies:
                buckets = _cumulated(statistics.latencies)
                family.add_metric(self._labels(member), buckets, statistics.latency_seconds)
        return family

    def _of_segment(self) -> Iterator[Metric]:
        seen = self._look()
        if seen.sent_age is not None:
            age = self._gauge("last_message_age_seconds", "Time since the last message was sent")
            age.add_metric(self._labels("writer"), seen.sent_age)
            yield age
        if seen.writer is not None:
            states = GaugeMetricFamily(
                "shmcast_readers", "Readers of a node, by state", labels=("broadcaster", "state")
            )
            for state in ("attached", "dropped", "left"):
                count = sum(reader.seat == state for reader in seen.readers)
                states.add_metric([str(self._name), state], count)
            yield states

    def _look(self) -> Snapshot:
        return Snapshot("", ()) if self._segment is None else take(self._segment)

    def _labels(self, member: str) -> list[str]:
        return [str(self._name), member]

    @staticmethod
    def _gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"shmcast_{name}", text, labels=_LABELS)


def _file_of(handle: Handle) -> OpenSegment:
    """Return where the segment is open: at its writer, who may be this process."""
    pid, fd = handle.holder
    return OpenSegment(handle.name[1:], [f"/proc/{pid}/fd/{fd}"], [pid])


def _cumulated(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the buckets of a histogram as Prometheus has them: bounds, and counts up to there."""
    ends = bounds()
    buckets = [
        (repr(ends[last]), float(sum(counts[: last + 1])))
        for last in range(0, len(ends), _BUCKETS_PER_BOUND)
    ]
    return [*buckets, ("+Inf", float(sum(counts)))]
