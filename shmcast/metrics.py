"""Prometheus metrics of broadcasters: `pip install 'shmcast[metrics]'`.

    shmcast.metrics.register(broadcaster)

Whatever serves the registry, `prometheus_client.start_http_server(9400)` say, then serves these,
too. Reading them slows no message down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
)
from shmcast.errors import MissingDependency

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

__all__ = ["register"]

_KINDS: tuple[tuple[type[CounterMetricFamily | GaugeMetricFamily], dict[str, str]], ...] = (
    (CounterMetricFamily, COUNTERS),
    (GaugeMetricFamily, GAUGES | OTHER_GAUGES),
)


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
        InvalidArgument: it is no endpoint, or another that is open has the name; or `registry` is
            none.
        Closed: the endpoint was closed.
    """
    _collectors.add(registry, endpoint, name)


class _EndpointsCollector(Collector):
    """All endpoints of a registry: a family of metrics may be there once only."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    def describe(self) -> Iterable[Metric]:
        """Name no metrics: what there is depends on the endpoints."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now; none of endpoints that are gone or closed."""
        found = self._endpoints.figures()
        for kind, texts in _KINDS:
            for name, text in texts.items():
                samples = found.values.get(name, ())
                if samples:
                    family = kind(PREFIX + name, text, labels=[*samples[0][0]])
                    for labels, value in samples:
                        family.add_metric([*labels.values()], value)
                    yield family
        yield from _histogram(found)


_collectors: Collectors[CollectorRegistry] = Collectors(
    CollectorRegistry,
    "registry of prometheus_client",
    lambda registry, endpoints: registry.register(_EndpointsCollector(endpoints)),
)


def _histogram(found: Figures) -> Iterator[Metric]:
    if found.latencies:
        labels = [*found.latencies[0][0]]
        family = HistogramMetricFamily(PREFIX + LATENCY, LATENCY_TEXT, labels=labels)
        for labels_of, latencies in found.latencies:
            family.add_metric([*labels_of.values()], latencies.buckets, latencies.seconds)
        yield family
