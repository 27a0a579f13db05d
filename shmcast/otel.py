"""OpenTelemetry metrics of broadcasters: `pip install 'shmcast[otel]'`.

    shmcast.otel.register(broadcaster)

Whatever reader the program's `MeterProvider` has then exports them, by the names that they have for
Prometheus. Reading them slows no message down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

from shmcast._operators.metered import (
    COUNTERS,
    GAUGES,
    LATENCY,
    LATENCY_TEXT,
    OTHER_GAUGES,
    PREFIX,
    Collectors,
    Endpoint,
    Endpoints,
    Figures,
    Labels,
)
from shmcast.errors import MissingDependency

try:
    from opentelemetry.metrics import (
        CallbackOptions,
        MeterProvider,
        Observation,
        get_meter_provider,
    )
except ImportError as _error:
    raise MissingDependency(
        "shmcast.otel needs opentelemetry-api: pip install 'shmcast[otel]'"
    ) from _error

__all__ = ["register"]

_Samples = list[tuple[Labels, float]]


def register(
    endpoint: Endpoint, name: str | None = None, provider: MeterProvider | None = None
) -> None:
    """Let a meter provider have the metrics of an endpoint, while that is there and open.

    They are what `shmcast.metrics.register` has, by the same names and with the same labels as
    attributes. There is no observable histogram in OpenTelemetry: the latencies are three counters,
    `shmcast_latency_seconds_bucket` with the attribute `le`, `_count` and `_sum`.

    Args:
        endpoint: a `ShmBroadcaster`, `Writer`, `Reader`, `Hub` or `Member`.
        name: what to call it; None: its segment's label. Of several in one process, each needs its
            own.
        provider: whose; None: the program's own, which should have been set before.

    Raises:
        InvalidArgument: it is no endpoint, or another that is open has the name; or `provider` is
            none.
        Closed: the endpoint was closed.
    """
    _providers.add(get_meter_provider() if provider is None else provider, endpoint, name)


class _Instruments:
    """The instruments of a provider, which observe all of its endpoints.

    A provider calls them one by one, whenever somebody reads it. The first one looks, for all.
    """

    def __init__(self, provider: MeterProvider, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._names: list[str] = []
        self._seen: dict[str, _Samples] = {}  # in the last look, and not taken since
        self._looking = threading.Lock()
        meter = provider.get_meter("shmcast", version("shmcast"))
        for field, text in COUNTERS.items():
            name = f"{PREFIX}{field}_total"
            meter.create_observable_counter(name, [self._observer(name)], "", text)
        for suffix in ("bucket", "count", "sum"):
            name = f"{PREFIX}{LATENCY}_{suffix}"
            meter.create_observable_counter(name, [self._observer(name)], "", LATENCY_TEXT)
        for field, text in (GAUGES | OTHER_GAUGES).items():
            name = PREFIX + field
            meter.create_observable_gauge(name, [self._observer(name)], "", text)

    def _observer(self, name: str) -> Callable[[CallbackOptions], Sequence[Observation]]:
        self._names.append(name)

        def observe(_options: CallbackOptions) -> Sequence[Observation]:
            return [Observation(value, dict(labels)) for labels, value in self._taken(name)]

        return observe

    def _taken(self, name: str) -> _Samples:
        """Return what was seen, once: who asks again wants a new look."""
        with self._looking:
            if name not in self._seen:
                self._seen = {each: [] for each in self._names}
                for of, labels, value in _flat(self._endpoints.figures()):
                    self._seen[of].append((labels, value))
            return self._seen.pop(name)


def _flat(found: Figures) -> Iterator[tuple[str, Labels, float]]:
    """Yield each figure with its metric's whole name."""
    for field, samples in found.values.items():
        name = PREFIX + field + ("_total" if field in COUNTERS else "")
        for labels, value in samples:
            yield name, labels, value
    name = PREFIX + LATENCY
    for labels, latencies in found.latencies:
        for le, count in latencies.buckets:
            yield f"{name}_bucket", labels | {"le": le}, count
        yield f"{name}_count", labels, latencies.buckets[-1][1]
        yield f"{name}_sum", labels, latencies.seconds


_providers: Collectors[MeterProvider] = Collectors(
    MeterProvider, "MeterProvider of OpenTelemetry", _Instruments
)
