"""Who is counted as a member of this node, and for how long."""

from __future__ import annotations

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

import shmcast
from shmcast import Handle, Reader, WaitPolicy, Writer
from shmcast._host import census
from shmcast._host.cpus import CpuBudget, is_crowded
from tests.support.processes import Crew, results


def members(*threads: int) -> int:
    """Return how many of these threads are counted; other programs may run at the same time."""
    found = [thread for thread in census._register.threads() if thread in threads]
    with mock.patch.object(census._register, "threads", return_value=iter(found)):
        count = census.members()
    assert count is not None
    return count


def endpoints_of_one_thread() -> None:
    me = threading.get_native_id()
    assert members(me) == 0
    with Writer(1) as first:
        assert members(me) == 1
        with Writer(1), Reader(first.handle, 0):
            assert members(me) == 1
        assert members(me) == 1
    assert members(me) == 0


def test_a_thread_counts_once_however_many_endpoints_it_has() -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(endpoints_of_one_thread).result()


def test_threads_of_one_process_count_each() -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        ids = [thread.submit(threading.get_native_id).result() for thread in (one, other)]
        seats = [thread.submit(census.enter).result() for thread in (one, other)]
        assert members(*ids) == 2
        for seat in seats * 2:  # idempotent
            seat.leave()
        assert members(*ids) == 0


def enter(_index: int) -> None:
    _kept.append(census.enter())


def leave(_index: int) -> None:
    _kept.pop().leave()


_kept: list[census.Seat] = []  # in a worker


def test_other_processes_are_counted(crew: Crew) -> None:
    pids = [worker.pid for worker in crew.workers[:3]]
    assert members(*pids) == 0
    crew.run(1, enter)
    assert members(*pids) == 1
    crew.run(3, enter)
    assert members(*pids) == 3  # worker 0 a second time: the same thread
    crew.run(3, leave)
    assert members(*pids) == 1
    crew.run(1, leave)
    assert members(*pids) == 0


def test_a_killed_process_is_counted_no_more() -> None:
    with Crew(1) as crew:
        crew.run(1, enter)
        pid = crew.workers[0].pid
        assert members(pid) == 1
    assert members(pid) == 0  # SIGKILL


def pin(index: int, cpus: set[int]) -> None:
    os.sched_setaffinity(0, cpus)
    enter(index)


def is_counted_on(cpu: int, thread: int) -> bool:
    """Return whether a thread that is pinned to `cpu` counts another one."""
    os.sched_setaffinity(0, {cpu})
    return members(thread) == 1


def test_who_is_pinned_to_other_cpus_is_not_counted() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU only")
    with Crew(1) as crew, ThreadPoolExecutor(1) as thread:
        crew.run(1, pin, {cpus[1]})
        pid = crew.workers[0].pid
        assert members(pid) == 1
        assert not thread.submit(is_counted_on, cpus[0], pid).result()
        assert thread.submit(is_counted_on, cpus[1], pid).result()


def fork_with_a_seat(_index: int) -> None:
    seat = census.enter()
    pid = os.fork()
    if pid == 0:
        seat.leave()
        # The parent's thread is another process's now, and this one has none.
        os._exit(0 if members(os.getppid(), os.getpid()) == 1 else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert members(os.getpid()) == 1
    seat.leave()
    assert members(os.getpid()) == 0


def test_a_fork_neither_counts_nor_ends_what_the_parent_is(crew: Crew) -> None:
    crew.run(1, fork_with_a_seat)


def test_the_census_leaves_no_file() -> None:
    seat = census.enter()
    assert not list(Path("/dev/shm").glob("*census*"))
    seat.leave()


def test_a_collected_endpoint_leaves_its_seat_even_in_the_middle_of_the_register() -> None:
    """As when the garbage collector runs inside of one of its methods."""
    with ThreadPoolExecutor(1) as thread:
        me = thread.submit(threading.get_native_id).result()
        seat = thread.submit(census.enter).result()
        with census._register._guard:
            seat.leave()
        assert members(me) == 0


def test_locks_in_our_name_are_many_members_and_no_more() -> None:
    folder = os.open("/dev/shm", os.O_RDONLY)
    everything = (fcntl.F_RDLCK, 0, os.getuid() * census._BYTES_PER_USER, census._BYTES_PER_USER, 0)
    fcntl.fcntl(folder, fcntl.F_OFD_SETLK, census._FLOCK.pack(*everything))
    assert census._ENOUGH <= (census.members() or 0) <= census._ENOUGH + 1
    os.close(folder)
    assert (census.members() or 0) < census._ENOUGH


def test_without_locks_the_members_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "_FOLDER", Path("/nowhere"))
    monkeypatch.setattr(census, "_register", census._Register())
    seat = census.enter()
    assert census.members() is None
    seat.leave()


class Budget(CpuBudget):
    """A number of CPUs for tests."""

    def __init__(self, cpus: float) -> None:
        self._cpus = cpus

    def usable(self) -> float:
        return self._cpus


def test_crowded_is_when_members_outnumber_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: int | None = 4
    monkeypatch.setattr(census, "members", lambda: listed)
    # Four are listed, of this segment (2 members) and others.
    assert not is_crowded(Budget(4.0), members=2, attached=1)
    assert is_crowded(Budget(3.5), members=2, attached=1)
    # The missing readers of this segment are expected.
    assert is_crowded(Budget(4.0), members=5, attached=3)
    assert not is_crowded(Budget(4.0), members=5, attached=4)
    listed = None
    assert is_crowded(Budget(4.0), members=5, attached=4)
    assert not is_crowded(Budget(4.0), members=4, attached=3)


def wait_for_one(_index: int, handle: Handle) -> int:
    with Reader(handle, 0, wait=WaitPolicy.adaptive()) as reader:
        reader.wait_ready(30)
        before = reader.statistics().spins
        for _ in range(20):
            reader.recv(30)
        return reader.statistics().spins - before


def test_members_of_another_writer_end_the_spinning(crew: Crew) -> None:
    """One writer and one reader may spin on two CPUs; with others about, they park."""
    others = int(CpuBudget().usable()) + 1
    if others > len(crew.workers) - 1:
        pytest.skip(f"more CPUs than the crew's {len(crew.workers)} workers")
    waiting = crew.workers[1:]
    for worker in waiting[:others]:
        worker.start(enter, 0).result()
    with Writer(1) as writer:
        jobs = crew.start(1, wait_for_one, writer.handle)
        writer.wait_ready(30)
        for k in range(20):
            while any(writer.statistics().lag):
                pass
            writer.send(k, 30)
        assert results(jobs) == [0]
    for worker in waiting[:others]:
        worker.start(leave, 0).result()


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
