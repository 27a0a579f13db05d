"""`shmcast.metrics`: what a Prometheus server scrapes over HTTP."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families

import shmcast
from shmcast import Hub, Reader, ShmBroadcaster, Statistics, Writer, metrics
from shmcast._operators import metered

DASHBOARD = Path(__file__).parents[2] / "docs" / "operations" / "grafana.json"

Scraped = dict[tuple[str, str], float]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def scrape(registry: CollectorRegistry) -> Iterator[Callable[[], Scraped]]:
    """Return what a server says, by name and by the member or state; of histograms all buckets."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)

    def scrape() -> Scraped:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                assert labels["broadcaster"] == "decode"
                who = labels.get("member", labels.get("state", "")) + labels.get("le", "")
                found[sample.name, who] = sample.value
        return found

    yield scrape
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_writer_and_its_readers_are_scraped(
    registry: CollectorRegistry, scrape: Callable[[], Scraped]
) -> None:
    with Writer(2, arena_bytes=1 << 20) as writer, Reader(writer.handle, 0) as reader:
        metrics.register(writer, "decode", registry)
        for _ in range(40):
            writer.send(b"x" * 100)
        for _ in range(30):
            reader.recv(10)
        found = scrape()
        counted = sum(reader.statistics().latencies)
    assert found["shmcast_messages_total", "writer"] == 40
    assert found["shmcast_messages_total", "reader 0"] == 30
    assert found["shmcast_payload_bytes_total", "reader 0"] >= 3000
    assert found["shmcast_lag_fragments", "reader 0"] == 10
    assert found["shmcast_lag_fragments", "reader 1"] == 40
    assert found["shmcast_readers", "attached"] == 1
    assert found["shmcast_readers", "dropped"] == 0
    assert 0 <= found["shmcast_last_message_age_seconds", "writer"] < 50
    assert found["shmcast_latency_seconds_count", "reader 0"] == counted > 0
    assert found["shmcast_latency_seconds_bucket", "reader 0+Inf"] == counted
    assert found["shmcast_latency_seconds_sum", "reader 0"] > 0
    buckets = [v for (name, who), v in found.items() if name.endswith("_bucket") and "r 0" in who]
    assert buckets == sorted(buckets)


def test_a_reader_is_scraped_as_itself(
    registry: CollectorRegistry, scrape: Callable[[], Scraped]
) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        metrics.register(reader, "decode", registry)
        writer.send("x")
        reader.recv(10)
        found = scrape()
    assert found["shmcast_messages_total", "self"] == 1
    assert found["shmcast_latency_seconds_count", "self"] == 1


def test_every_field_of_the_statistics_is_a_metric() -> None:
    fields = {field.name for field in dataclasses.fields(Statistics)}
    others = {"lag", "readers", "latencies", "latency_seconds"}
    assert {*metered.COUNTERS} | {*metered.GAUGES} | others == fields


def test_what_is_closed_or_gone_has_no_metrics(
    registry: CollectorRegistry, scrape: Callable[[], Scraped]
) -> None:
    writer, hub = Writer(1), Hub(1)
    metrics.register(writer, "decode", registry)
    writer.close()
    assert scrape() == {}
    metrics.register(hub, "decode", registry)
    assert scrape()
    hub.close()
    del hub
    gc.collect()
    assert scrape() == {}


def test_the_name_is_the_label_by_default(registry: CollectorRegistry) -> None:
    with Writer(1, label="named") as writer:
        metrics.register(writer, registry=registry)
        [label] = {s.labels["broadcaster"] for family in registry.collect() for s in family.samples}
    assert label.startswith("named: ")


def test_several_endpoints_share_their_families(registry: CollectorRegistry) -> None:
    with Writer(1, label="one") as one, Writer(1, label="two") as two:
        metrics.register(one, "one", registry)
        metrics.register(two, "two", registry)
        text = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]
        # (Clashing families are an error here.)
        families = list(parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
    names = [family.name for family in families]
    assert len(names) == len(set(names)) > 5
    (sent,) = (family for family in families if family.name == "shmcast_messages")
    assert {sample.labels["broadcaster"] for sample in sent.samples} == {"one", "two"}


def test_each_endpoint_needs_a_name_of_its_own(registry: CollectorRegistry) -> None:
    with Writer(1) as other:
        with Writer(1) as writer:
            metrics.register(writer, "decode", registry)
            for endpoint in (writer, other):
                with pytest.raises(shmcast.InvalidArgument, match=r"'decode'.*pass name="):
                    metrics.register(endpoint, "decode", registry)
        metrics.register(other, "decode", registry)  # free again


def test_what_is_no_endpoint_is_refused(registry: CollectorRegistry) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="is no endpoint"):
        metrics.register(object(), registry=registry)  # type: ignore[arg-type]


def test_a_closed_broadcaster_has_no_metrics(registry: CollectorRegistry) -> None:
    with ShmBroadcaster.over(0, 1, lambda mine: [mine]) as alone:
        metrics.register(alone, "decode", registry)
        assert [*registry.collect()]
        assert not alone.closed
    assert alone.closed
    assert not [*registry.collect()]
    with pytest.raises(shmcast.Closed):
        metrics.register(alone, "decode", registry)


def test_what_is_closed_is_refused(registry: CollectorRegistry) -> None:
    with Writer(1, label="unmetered") as writer, Reader(writer.handle, 0) as reader:
        pass
    for endpoint in (writer, reader):
        with pytest.raises(shmcast.Closed, match="was closed, and has no metrics"):
            metrics.register(endpoint, registry=registry)
    assert not [*registry.collect()]


def test_the_dashboard_asks_for_metrics_that_there_are(
    registry: CollectorRegistry, scrape: Callable[[], Scraped]
) -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"shmcast_\w+", target["expr"])
    }
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        metrics.register(writer, "decode", registry)
        writer.send("x")
        reader.recv(10)
        there = {name for name, _ in scrape()}
    assert len(asked) > 10
    assert asked <= there


def test_without_the_package_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "try:\n    import shmcast.metrics\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("MissingDependency shmcast.metrics needs prometheus-client: pip")


def test_what_is_no_registry_is_refused() -> None:
    with Writer(1) as writer, pytest.raises(shmcast.InvalidArgument, match="5 is no registry"):
        metrics.register(writer, registry=5)  # type: ignore[arg-type]
