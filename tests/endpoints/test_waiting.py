"""The wait policies, as data and in action."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import shmcast
from shmcast import Handle, ObjectCodec, Reader, WaitPolicy, Writer
from shmcast._codecs.base import Frame, Received
from tests.support.processes import Crew, results


@pytest.mark.parametrize("max_spin", [-1, float("nan")])
def test_a_spin_time_that_is_none_is_refused(max_spin: float) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=rf"max_spin={max_spin}"):
        WaitPolicy.adaptive(max_spin)


def receive(index: int, handle: Handle, wait: WaitPolicy | None, count: int) -> tuple[int, int]:
    with Reader(handle, index, wait=wait) as reader:
        reader.wait_ready(30)
        ready = reader.statistics()
        for k in range(count):
            assert reader.recv(30) == k
        done = reader.statistics()
        return done.spins - ready.spins, done.parks - ready.parks


def send_slowly(crew: Crew, wait: WaitPolicy | None, readers: int) -> list[tuple[int, int]]:
    """Return (spins, parks) of each reader, for messages that are all waited for."""
    count = 50
    with Writer(readers) as writer:
        jobs = crew.start(readers, receive, writer.handle, wait, count)
        writer.wait_ready(30)
        for k in range(count):
            while any(writer.statistics().lag):
                pass  # every reader has the last message: it waits, or will, for this one
            writer.send(k, 30)
        return results(jobs)


def test_a_spinner_never_parks(crew: Crew) -> None:
    assert [parks for _, parks in send_slowly(crew, WaitPolicy.spin(), 1)] == [0]


def test_a_semaphore_reader_never_spins(crew: Crew) -> None:
    assert [spins for spins, _ in send_slowly(crew, WaitPolicy.semaphore(), 2)] == [0, 0]


def test_adaptive_never_spins_where_members_outnumber_the_cpus(crew: Crew) -> None:
    readers = 8
    if len(os.sched_getaffinity(0)) > readers:
        pytest.skip(f"there are CPUs enough for {readers} readers and a writer")
    assert [spins for spins, _ in send_slowly(crew, None, readers)] == [0] * readers


def wait_in_vain(wait: WaitPolicy) -> tuple[shmcast.Statistics, float]:
    """Return a reader's statistics after it waited for so long for nothing."""
    seconds = 0.12
    with Writer(1) as writer, Reader(writer.handle, 0, wait=wait) as reader:
        with pytest.raises(shmcast.Timeout):
            reader.recv(seconds)
        return reader.statistics(), seconds


def test_statistics_tell_how_a_spinner_spent_its_time() -> None:
    spent, seconds = wait_in_vain(WaitPolicy.spin())
    assert spent.spun_seconds >= 0.5 * seconds  # (the rest is practice)
    assert (spent.parks, spent.parked_seconds, spent.wakeups) == (0, 0, 0)


def test_statistics_tell_how_a_sleeper_spent_its_time() -> None:
    spent, seconds = wait_in_vain(WaitPolicy.semaphore())
    assert spent.parked_seconds >= 0.9 * seconds
    assert (spent.spins, spent.spun_seconds, spent.wakeups) == (0, 0, 0)
    assert spent.parks >= 2  # it looks for signals now and then


def test_an_adaptive_wait_in_vain_is_mostly_asleep() -> None:
    spent, seconds = wait_in_vain(WaitPolicy.adaptive())
    assert spent.parked_seconds > 0.5 * seconds


def test_the_writer_sees_what_its_readers_do_and_what_gap_they_learned(crew: Crew) -> None:
    with Writer(2) as writer:
        assert [reader.messages for reader in writer.statistics().readers] == [0, 0]
        assert [reader.gap_seconds for reader in writer.statistics().readers] == [0, 0]
        jobs = crew.start(2, receive, writer.handle, WaitPolicy.semaphore(), 10)
        writer.wait_ready(30)
        for k in range(10):
            seen = [reader.parks for reader in writer.statistics().readers]
            while any(
                now.parks < before + 2
                for now, before in zip(writer.statistics().readers, seen, strict=True)
            ):
                pass  # until both have slept for a whole slice
            writer.send(k, 30)
        results(jobs)
        for reader in writer.statistics().readers:
            assert reader.messages == 10
            assert reader.gap_seconds > 0
            assert 1 <= reader.wakeups <= reader.parks
        assert writer.statistics().wakes >= 10


class Warmed(ObjectCodec):
    """Counts how often it is warmed up."""

    encoded = 0
    decoded = 0

    def sample(self) -> Any:
        return "sample"

    def encode(self, obj: Any, /) -> list[Frame]:
        self.encoded += obj == "sample"
        return super().encode(obj)

    def decode(self, frames: list[Received], /) -> Any:
        obj = super().decode(frames)
        self.decoded += obj == "sample"
        return obj


def test_a_spinning_reader_warms_up_until_the_message_is_there() -> None:
    codec = Warmed()
    with (
        Writer(1) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.spin(), codec=codec) as reader,
    ):
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.append(reader.recv(30)))
        thread.start()
        while codec.decoded < 3:
            pass
        writer.send("now")
        thread.join()
        assert got == ["now"]
        assert reader.statistics().messages == 1


def test_a_parked_reader_warms_nothing_up() -> None:
    codec = Warmed()
    with (
        Writer(1) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.semaphore(), codec=codec) as reader,
    ):
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.2)
        assert reader.statistics().parks > 0
        assert codec.decoded == 0


def test_warm_is_noticed_by_nobody() -> None:
    codec = Warmed()
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0) as reader:
        before = codec.encoded
        for _ in range(100):
            writer.warm()
        assert codec.encoded >= before + 100
        assert writer.statistics().messages == 0
        with pytest.raises(shmcast.Timeout):
            reader.recv(0)
        writer.send("real")
        assert reader.recv(30) == "real"
    with pytest.raises(shmcast.Closed, match=r"writer: warm after close\(\)"):
        writer.warm()


def test_a_codec_without_a_sample_is_not_warmed_up() -> None:
    class Plain:
        def encode(self, obj: bytes) -> list[Frame]:
            return [obj]

        def decode(self, frames: list[Received]) -> bytes:
            return bytes(frames[0])

    with Writer(1, codec=Plain()) as writer, Reader(writer.handle, 0, codec=Plain()) as reader:
        writer.warm()
        writer.send(b"x")
        assert reader.recv(30) == b"x"


@pytest.mark.parametrize("sample", [lambda: None, bytes(10_000)], ids=["no pickle", "too large"])
def test_a_sample_that_cannot_be_sent_is_refused(sample: Any) -> None:
    class Bad(ObjectCodec):
        def sample(self) -> Any:
            return sample

    with pytest.raises(shmcast.InvalidArgument, match=r"writer: codec=.*Bad.* sample\(\)"):
        Writer(1, codec=Bad())


def test_a_warmup_that_fails_is_told_and_loses_nothing() -> None:
    class Bad(ObjectCodec):
        def decode(self, frames: list[Received], /) -> Any:
            obj = super().decode(frames)
            if obj == self.sample():
                raise TypeError("cannot warm up")
            return obj

    with (
        Writer(1) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.spin(), codec=Bad()) as reader,
    ):
        with pytest.raises(TypeError, match="cannot warm up"):
            reader.recv(30)
        writer.send("still here")
        assert reader.recv(30) == "still here"


def test_an_operator_overrides_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCAST_WAIT", "semaphore")
    with Writer(1, wait=WaitPolicy.spin()) as writer, Reader(writer.handle, 0) as reader:
        assert writer.wait_policy == reader.wait_policy == WaitPolicy.semaphore()
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.05)
        assert reader.statistics().spun_seconds == 0
    monkeypatch.setenv("SHMCAST_WAIT", "adaptive")
    with Writer(1, wait=WaitPolicy.spin()) as writer:
        assert writer.wait_policy == WaitPolicy.adaptive()
    monkeypatch.setenv("SHMCAST_WAIT", "")
    with Writer(1, wait=WaitPolicy.spin()) as writer:
        assert writer.wait_policy == WaitPolicy.spin()


def test_an_override_that_is_no_policy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCAST_WAIT", "fast")
    with pytest.raises(shmcast.InvalidArgument, match=r"SHMCAST_WAIT='fast'.*spin, semaphore"):
        Writer(1)


def test_the_policy_of_a_living_endpoint_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(1, wait=WaitPolicy.spin()) as writer, Reader(writer.handle, 0) as reader:
        for policy in (WaitPolicy.semaphore(), WaitPolicy.spin(), WaitPolicy.semaphore()):
            reader.change_wait_policy(policy)
            assert reader.wait_policy == policy
            before = reader.statistics()
            with pytest.raises(shmcast.Timeout):
                reader.recv(0.01)
            after = reader.statistics()
            has_slept = after.parks > before.parks
            assert has_slept is (policy == WaitPolicy.semaphore())
        writer.change_wait_policy(WaitPolicy.adaptive(0.001))
        assert writer.wait_policy == WaitPolicy.adaptive(0.001)
        for no_policy in ("spin", None):
            with pytest.raises(shmcast.InvalidArgument, match=f"wait={no_policy!r} is not a Wait"):
                writer.change_wait_policy(no_policy)  # type: ignore[arg-type]
        monkeypatch.setenv("SHMCAST_WAIT", "spin")
        writer.change_wait_policy(WaitPolicy.semaphore())
        assert writer.wait_policy == WaitPolicy.spin()
    with pytest.raises(shmcast.Closed, match=r"reader 0: change_wait_policy after close\(\)"):
        reader.change_wait_policy(WaitPolicy.spin())


def test_what_names_peers_and_when_a_wait_is_long_are_checked_at_once() -> None:
    with pytest.raises(shmcast.InvalidArgument, match="writer: reader_label=3 must be callable"):
        Writer(1, reader_label=3)  # type: ignore[arg-type]
    with Writer(1) as writer:
        with pytest.raises(shmcast.InvalidArgument, match="reader 0: peer_label='a' must be"):
            Reader(writer.handle, 0, peer_label="a")  # type: ignore[arg-type]
        with pytest.raises(shmcast.InvalidArgument, match="writer: warn_after=-1 must"):
            writer.warning_after(-1)
