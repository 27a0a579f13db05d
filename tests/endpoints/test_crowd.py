"""When nobody spins: members of one's own that outnumber the CPUs. Strangers count for nothing."""

from __future__ import annotations

import fcntl
import math
import os
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

import shmcast
from shmcast import Handle, Reader, WaitPolicy, Writer
from shmcast._host.cpus import CpuQuota
from tests.support.processes import Crew

CPUS = sorted(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: nobody ever spins")


def spun_in_vain(handle: Handle, index: int = 0) -> float:
    """Return for how long a new reader has spun in a wait for nothing."""
    with Reader(handle, index, wait=WaitPolicy.adaptive()) as reader:
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.05)
        return reader.statistics().spun_seconds


@pytest.fixture(autouse=True)
def no_quota() -> Iterator[None]:
    with mock.patch.object(CpuQuota, "read", return_value=math.inf):
        yield


def test_two_members_on_two_cpus_spin() -> None:
    with Writer(1) as writer:
        assert spun_in_vain(writer.handle) > 0


def test_readers_yet_to_come_count() -> None:
    with Writer(len(CPUS)) as writer:
        assert spun_in_vain(writer.handle) == 0


def test_readers_that_have_left_count_no_more() -> None:
    with Writer(len(CPUS)) as writer:
        for index in range(1, len(CPUS)):
            Reader(writer.handle, index).close()
        assert spun_in_vain(writer.handle) > 0


def test_a_quota_is_as_good_as_fewer_cpus() -> None:
    with Writer(1) as writer, mock.patch.object(CpuQuota, "read", return_value=1.5):
        assert spun_in_vain(writer.handle) == 0


def test_a_reader_that_has_few_cpus_parks(crew: Crew) -> None:
    with Writer(1) as writer:
        assert crew.workers[0].start(spin_pinned, writer.handle, CPUS[0]).result() == 0


def spin_pinned(handle: Handle, cpu: int) -> float:
    os.sched_setaffinity(0, {cpu})
    try:
        return spun_in_vain(handle)
    finally:
        os.sched_setaffinity(0, CPUS)


def test_members_that_are_pinned_to_other_cpus_do_not_count(crew: Crew) -> None:
    def write_pinned() -> Writer:
        os.sched_setaffinity(0, {CPUS[0]})  # of this thread
        return Writer(1)

    with ThreadPoolExecutor(1) as thread, thread.submit(write_pinned).result() as writer:
        assert crew.workers[0].start(spin_pinned, writer.handle, CPUS[1]).result() > 0


def test_idle_members_of_another_writer_do_not_count() -> None:
    with Writer(len(CPUS)) as other, Writer(1) as writer:
        threads = [
            threading.Thread(target=wait_until_closed, args=(other.handle, index))
            for index in range(len(CPUS))
        ]
        for thread in threads:
            thread.start()
        other.wait_ready(30)
        assert spun_in_vain(writer.handle) > 0
        other.close()
        for thread in threads:
            thread.join()


def wait_until_closed(handle: Handle, index: int) -> None:
    with Reader(handle, index) as reader, pytest.raises(shmcast.Closed):
        reader.recv(30)


@pytest.mark.parametrize("length", [0, 2**62], ids=["of all", "of much"])
def test_locks_of_strangers_mean_nothing(length: int) -> None:
    folder = os.open("/dev/shm", os.O_RDONLY)
    try:
        lock = struct.pack("@hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, 0, length, 0)
        fcntl.fcntl(folder, fcntl.F_OFD_SETLK, lock)
        with Writer(1) as writer:
            began = time.monotonic()
            assert spun_in_vain(writer.handle) > 0
            assert time.monotonic() - began < 20
    finally:
        os.close(folder)


def test_endpoints_open_nothing_that_others_could_lock() -> None:
    def open_files() -> set[str]:
        found = set()
        for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
            try:
                found.add(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
            except FileNotFoundError:  # that of the list itself
                continue
        return found

    with Writer(1) as writer:
        spun_in_vain(writer.handle)
        assert "/dev/shm" not in open_files()
