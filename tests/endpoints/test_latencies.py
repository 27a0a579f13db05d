"""One-way latencies: counted by readers, in a segment that others look at."""

from __future__ import annotations

import time

import pytest

from shmcast import Hub, Member, Reader, Writer, _core
from shmcast._endpoints.latencies import bounds, merged, quantile, since

MANY = 1000


def test_a_quarter_of_the_messages_is_counted() -> None:
    writer = Writer(2, slots=1024, slot_bytes=128)
    with writer, Reader(writer.handle, 0) as first, Reader(writer.handle, 1) as second:
        for _ in range(MANY):
            writer.send("x")
            first.recv(10)
        ours, theirs = first.statistics(), writer.statistics()
        assert 0.9 < sum(ours.latencies) * _core.LATENCY_SAMPLING / MANY < 1.1
        assert (theirs.readers[0].latencies, theirs.latencies) == (ours.latencies, ())
        assert 0 < ours.latency(0.5) <= ours.latency(0.99) <= ours.latency(1.0)
        assert ours.latency_seconds >= sum(ours.latencies) * bounds()[0] / 100
        assert second.statistics().latency(0.5) == 0.0
        assert theirs.latency(0.5) == ours.latency(0.5)


def test_what_waits_in_the_ring_gets_older() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send("x")  # (the first is counted)
        sent = _core.observe(writer.handle.holder[1])["sent"]
        waited = time.monotonic() - sent
        reader.recv(10)
        assert reader.statistics().latency_seconds >= waited > 0


def test_a_hub_counts_those_of_replies() -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        for _ in range(20):
            hub.send("question")
            member.recv(10)
            member.reply("answer")
            hub.recv(0, 10)
        assert hub.statistics().latency(0.5) > 0
        assert hub.reply_statistics().latency(0.5) > 0


def test_a_quantile_lies_in_its_bucket() -> None:
    counts = [0] * (len(bounds()) + 1)
    assert quantile(counts, 0.5) == quantile((), 0.5) == 0.0
    counts[10] = 99
    counts[-1] = 1
    assert bounds()[9] < quantile(counts, 0.5) < bounds()[10]
    assert quantile(counts, 1.0) == bounds()[-1]
    assert quantile([4, *[0] * len(bounds())], 0.25) == pytest.approx(bounds()[0] / 4)


def test_counts_of_several_readers_and_of_a_while() -> None:
    assert merged([(1, 2), (), (3, 4)]) == (4, 6)
    assert merged([]) == ()
    assert since((1, 2), (3, 2)) == (2, 0)
    assert since((), (3, 2)) == (3, 2)
    assert since((5, 5), (1, 6)) == (0, 1)  # another reader has come
