"""What an endpoint tells to those who collect metrics, whoever they are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from shmcast._endpoints.handle import Handle
from shmcast._endpoints.latencies import bounds
from shmcast._operators.discovery import OpenSegment
from shmcast._operators.snapshot import Snapshot, take
from shmcast.errors import Closed, InvalidArgument

if TYPE_CHECKING:
    from shmcast._endpoints.statistics import Statistics

PREFIX = "shmcast_"

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

OTHER_GAUGES = {
    "lag_fragments": "Fragments sent that a reader has not consumed",
    "last_message_age_seconds": "Time since the last message was sent",
    "readers": "Readers of a node, by state",
}
"""What no field of `Statistics` has, each the metric shmcast_<name>."""

LATENCY = "latency_seconds"
LATENCY_TEXT = "One-way latency of frames to a reader, of one message in four"

_BUCKETS_PER_BOUND = 8  # an octave: each bucket is a series
_STATES = ("attached", "dropped", "left")

Labels = dict[str, str]
_Owner = TypeVar("_Owner")


class Endpoint(Protocol):
    """What has metrics: a `ShmBroadcaster`, `Writer`, `Reader`, `Hub` or `Member`."""

    @property
    def handle(self) -> Handle | None:
        """Where its segment is."""

    def statistics(self) -> Statistics:
        """Return what it has done."""


@dataclass
class Figures:
    """The metrics of an endpoint, or of several, as they are now.

    Attributes:
        values: by name without the prefix: each with its labels. What there is none of is not here.
        latencies: the counts of those that have some, with their labels.
    """

    values: dict[str, list[tuple[Labels, float]]] = field(default_factory=dict)
    latencies: list[tuple[Labels, Latencies]] = field(default_factory=list)


@dataclass(frozen=True)
class Latencies:
    """A histogram.

    Attributes:
        buckets: where each ends, in seconds, and how many there are up to there; "+Inf" is last.
        seconds: the sum of all.
    """

    buckets: list[tuple[str, float]]
    seconds: float


def merged(parts: Iterable[Figures]) -> Figures:
    """Return the metrics of several endpoints as one."""
    found = Figures()
    for part in parts:
        for name, samples in part.values.items():
            found.values.setdefault(name, []).extend(samples)
        found.latencies.extend(part.latencies)
    return found


class Metered:
    """An endpoint whose figures are asked for, for as long as it is there and open.

    Args:
        endpoint: a `ShmBroadcaster`, `Writer`, `Reader`, `Hub` or `Member`.
        name: what the label `broadcaster` says; None: its segment's label.

    Raises:
        InvalidArgument: it is no endpoint.
        Closed: it was closed, and has no metrics any more.
    """

    def __init__(self, endpoint: Endpoint, name: str | None) -> None:
        if not callable(getattr(endpoint, "statistics", None)):
            raise InvalidArgument(f"register(): {endpoint!r} is no endpoint of shmcast")
        self._endpoint = weakref.ref(endpoint)
        if self.is_gone:
            raise Closed(f"register(): {endpoint!r} was closed, and has no metrics any more")
        handle = endpoint.handle
        self._segment = None if handle is None else _file_of(handle)
        if name is None:
            name = self._look().label or type(endpoint).__name__
        self.name: str = str(name)

    @property
    def is_gone(self) -> bool:
        """Whether the endpoint is closed, or collected."""
        endpoint = self._endpoint()
        return endpoint is None or getattr(endpoint, "closed", False)

    def figures(self) -> Figures:
        """Return the metrics as they are now; none of an endpoint that is gone."""
        found = Figures()
        endpoint = self._endpoint()
        if endpoint is None or self.is_gone:
            return found
        own = endpoint.statistics()
        members = [("writer" if own.readers or own.lag else "self", own)]
        members += [(f"reader {index}", reader) for index, reader in enumerate(own.readers)]
        for member, statistics in members:
            labels = self._labels(member=member)
            for name in (*COUNTERS, *GAUGES):
                _add(found, name, labels, getattr(statistics, name))
            if statistics.latencies:
                latencies = Latencies(_cumulated(statistics.latencies), statistics.latency_seconds)
                found.latencies.append((labels, latencies))
        for index, behind in enumerate(own.lag):
            _add(found, "lag_fragments", self._labels(member=f"reader {index}"), behind)
        self._of_segment(found)
        return found

    def _of_segment(self, found: Figures) -> None:
        seen = self._look()
        if seen.sent_age is not None:
            _add(found, "last_message_age_seconds", self._labels(member="writer"), seen.sent_age)
        if seen.writer is not None:
            for state in _STATES:
                count = sum(reader.seat == state for reader in seen.readers)
                _add(found, "readers", self._labels(state=state), count)

    def _look(self) -> Snapshot:
        return Snapshot("", ()) if self._segment is None else take(self._segment)

    def _labels(self, **more: str) -> Labels:
        return {"broadcaster": self.name, **more}


class Endpoints:
    """The endpoints that one registry or provider has, each by a name of its own."""

    def __init__(self) -> None:
        self._all: dict[str, Metered] = {}

    def add(self, metered: Metered) -> None:
        """Take in an endpoint, and let go of those that are gone.

        Raises:
            InvalidArgument: another that is open has the name.
        """
        there = {name: other for name, other in self._all.items() if not other.is_gone}
        if metered.name in there:
            raise InvalidArgument(
                f"register(): another endpoint has the name {metered.name!r} here, and each needs "
                "its own; pass name="
            )
        self._all = {**there, metered.name: metered}  # (anew: somebody may be looking)

    def figures(self) -> Figures:
        """Return the metrics of all as they are now."""
        return merged(metered.figures() for metered in self._all.values())


class Collectors(Generic[_Owner]):
    """The endpoints of each registry or provider, for as long as that is there.

    Args:
        kind: of these.
        noun: what the error calls one.
        begin: lets a new one collect from these endpoints.
    """

    def __init__(
        self, kind: type[Any], noun: str, begin: Callable[[_Owner, Endpoints], object]
    ) -> None:
        self._kind = kind
        self._noun = noun
        self._begin = begin
        self._lock = threading.Lock()
        self._all: weakref.WeakKeyDictionary[_Owner, Endpoints] = weakref.WeakKeyDictionary()

    def add(self, owner: _Owner, endpoint: Endpoint, name: str | None) -> None:
        """Let a registry or provider have the metrics of an endpoint.

        Raises:
            InvalidArgument: one is none, or another endpoint that is open has the name.
            Closed: the endpoint was closed.
        """
        metered = Metered(endpoint, name)
        if not isinstance(owner, self._kind):
            raise InvalidArgument(f"register(): {owner!r} is no {self._noun}")
        with self._lock:
            endpoints = self._all.get(owner)
            if endpoints is None:
                endpoints = Endpoints()
                self._begin(owner, endpoints)
                self._all[owner] = endpoints
            endpoints.add(metered)


def _add(found: Figures, name: str, labels: Labels, value: float) -> None:
    found.values.setdefault(name, []).append((labels, value))


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
