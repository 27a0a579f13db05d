"""`shmcast.otel`: what an OpenTelemetry reader collects, which is what Prometheus scrapes."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry

import shmcast
from shmcast import Reader, Writer, metrics, otel

Collected = dict[tuple[str, str], float]


class Provider:
    """A meter provider, and what its reader collects."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def collect(self) -> Collected:
        """Return the values by name and by the attributes but the broadcaster's name."""
        data = self._reader.get_metrics_data()
        found: Collected = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                assert (scope.scope.name, scope.scope.version) == ("shmcast", shmcast.__version__)
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        assert isinstance(point, NumberDataPoint)
                        attributes = {k: str(v) for k, v in (point.attributes or {}).items()}
                        who = attributes.pop("broadcaster") + ": " + "".join(attributes.values())
                        assert (metric.name, who) not in found
                        found[metric.name, who] = point.value
        return found


@pytest.fixture
def provider() -> Provider:
    return Provider()


def scraped(registry: CollectorRegistry) -> Collected:
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = dict(sample.labels)
            who = labels.pop("broadcaster") + ": " + "".join(labels.values())
            found[sample.name, who] = sample.value
    return found


def test_a_reader_collects_what_prometheus_scrapes(provider: Provider) -> None:
    registry = CollectorRegistry()
    with Writer(2, arena_bytes=1 << 20) as writer, Reader(writer.handle, 0) as reader:
        metrics.register(writer, "decode", registry)
        otel.register(writer, "decode", provider.meters)
        for _ in range(40):
            writer.send(b"x" * 100)
        for _ in range(30):
            reader.recv(10)
        collected, expected = provider.collect(), scraped(registry)
    age = ("shmcast_last_message_age_seconds", "decode: writer")
    assert 0 <= collected.pop(age) <= expected.pop(age)
    assert collected == expected
    assert collected["shmcast_messages_total", "decode: reader 0"] == 30
    assert collected["shmcast_latency_seconds_bucket", "decode: reader 0+Inf"] > 0


def test_each_collection_looks_anew_at_all_endpoints(provider: Provider) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        otel.register(writer, "there", provider.meters)
        otel.register(reader, "here", provider.meters)
        for count in range(3):
            found = provider.collect()
            assert found["shmcast_messages_total", "there: writer"] == count
            assert found["shmcast_messages_total", "here: self"] == count
            writer.send("x")
            reader.recv(10)


def test_what_is_closed_or_gone_has_no_metrics(provider: Provider) -> None:
    closed, dropped = Writer(1), Writer(1)
    for writer in (closed, dropped):
        otel.register(writer, "decode", provider.meters)
        assert provider.collect()
        if writer is closed:
            writer.close()
            assert provider.collect() == {}
    del writer, dropped
    gc.collect()
    assert provider.collect() == {}


def test_the_programs_own_provider_is_the_default(provider: Provider) -> None:
    set_meter_provider(provider.meters)  # (once in a process: no other test does)
    with Writer(1, label="named") as writer:
        otel.register(writer)
        who = {who for name, who in provider.collect() if name == "shmcast_messages_total"}
    assert {name.partition(":")[0] for name in who} == {"named"}


def test_what_is_no_endpoint_is_refused(provider: Provider) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="is no endpoint"):
        otel.register(object(), provider=provider.meters)  # type: ignore[arg-type]


def test_what_is_no_provider_is_refused() -> None:
    with Writer(1) as writer, pytest.raises(shmcast.InvalidArgument, match="5 is no MeterProvider"):
        otel.register(writer, provider=5)  # type: ignore[arg-type]


def test_each_endpoint_needs_a_name_of_its_own(provider: Provider) -> None:
    with Writer(1) as first, Writer(1) as second:
        otel.register(first, "a", provider.meters)
        with pytest.raises(shmcast.InvalidArgument, match="another endpoint has the name 'a'"):
            otel.register(second, "a", provider.meters)
        first.close()
        otel.register(second, "a", provider.meters)


def test_without_the_package_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.metrics'] = None\n"
        "try:\n    import shmcast.otel\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("MissingDependency shmcast.otel needs opentelemetry-api: pip")
