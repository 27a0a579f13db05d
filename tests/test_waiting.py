"""The wait policies, as data and in action, and the CPUs that they count on."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import pytest

import shmcast
from processes import Crew, results
from shmcast import Handle, PickleCodec, Reader, WaitPolicy, Writer
from shmcast.waiting import usable_cpus

FOREVER = 2**63 - 1


@pytest.mark.parametrize(
    ("policy", "room", "crowded"),
    [
        (WaitPolicy.spin(), FOREVER, FOREVER),
        (WaitPolicy.semaphore(), 0, 0),
        (WaitPolicy.adaptive(max_spin=0.001), 1_000_000, 0),
        (WaitPolicy.adaptive(max_spin=0), 0, 0),
    ],
    ids=str,
)
def test_how_long_each_policy_spins(policy: WaitPolicy, room: int, crowded: int) -> None:
    assert policy.spin_ns(members=4, cpus=4.0) == room
    assert policy.spin_ns(members=4, cpus=3.5) == crowded
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301


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
    """(spins, parks) of each reader, for messages that are all waited for."""
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
    if usable_cpus() > readers:
        pytest.skip(f"{usable_cpus():g} CPUs are enough for {readers} readers and a writer")
    assert [spins for spins, _ in send_slowly(crew, None, readers)] == [0] * readers


class Rehearsed(PickleCodec):
    """Counts its rehearsals."""

    count = 0

    def rehearse(self) -> None:
        super().rehearse()
        self.count += 1


def test_a_spinning_reader_rehearses_its_codec_until_the_message_is_there() -> None:
    codec = Rehearsed()
    with (
        Writer(1) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.spin(), codec=codec) as reader,
    ):
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.append(reader.recv(30)))
        thread.start()
        while codec.count < 3:
            pass
        writer.send("now")
        thread.join()
        assert got == ["now"]


def test_a_parked_reader_rehearses_nothing() -> None:
    codec = Rehearsed()
    with (
        Writer(1) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.semaphore(), codec=codec) as reader,
    ):
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.2)
        assert reader.statistics().parks > 0
        assert codec.count == 0


def test_a_rehearsal_that_fails_is_told_and_loses_nothing() -> None:
    class Bad(PickleCodec):
        def rehearse(self) -> None:
            raise TypeError("cannot rehearse")

    with (
        Writer(1) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.spin(), codec=Bad()) as reader,
    ):
        with pytest.raises(TypeError, match="cannot rehearse"):
            reader.recv(30)
        writer.send("still here")
        assert reader.recv(30) == "still here"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path / "proc"


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


AFFINITY = len(os.sched_getaffinity(0))


def test_without_a_quota_the_affinity_counts(proc: Path, cgroups: Path) -> None:
    assert usable_cpus(proc, cgroups) == AFFINITY
    write(proc / "cgroup", "0::/a\n")
    write(cgroups / "a/cpu.max", "max 100000\n")
    assert usable_cpus(proc, cgroups) == AFFINITY


def test_the_smallest_quota_on_the_way_up_counts(proc: Path, cgroups: Path) -> None:
    write(proc / "cgroup", "0::/pod/container\n")
    write(cgroups / "pod/container/cpu.max", "80000 100000\n")
    write(cgroups / "pod/cpu.max", "50000 100000\n")
    assert usable_cpus(proc, cgroups) == 0.5


def test_a_path_of_the_host_is_looked_up_at_the_containers_own_root(
    proc: Path, cgroups: Path
) -> None:
    write(proc / "cgroup", "0::/system.slice/docker-1234.scope\n")
    write(cgroups / "cpu.max", "25000 100000\n")
    assert usable_cpus(proc, cgroups) == 0.25


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_cgroup_v1(proc: Path, cgroups: Path, mount: str) -> None:
    write(proc / "cgroup", "4:memory:/m\n2:cpu,cpuacct:/docker/1\n")
    write(cgroups / mount / "docker/1/cpu.cfs_quota_us", "75000\n")
    write(cgroups / mount / "docker/1/cpu.cfs_period_us", "100000\n")
    write(cgroups / mount / "docker/cpu.cfs_quota_us", "-1\n")
    write(cgroups / mount / "docker/cpu.cfs_period_us", "100000\n")
    assert usable_cpus(proc, cgroups) == 0.75


def test_an_unreadable_quota_is_no_quota(proc: Path, cgroups: Path) -> None:
    write(proc / "cgroup", "0::/a\n")
    write(cgroups / "a/cpu.max", "what?\n")
    assert usable_cpus(proc, cgroups) == AFFINITY
