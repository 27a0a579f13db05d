"""Who is counted as a member of this node, and for how long."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

import shmcast
from shmcast import Handle, Reader, WaitPolicy, Writer
from shmcast._endpoints.waiting import CpuBudget, is_crowded
from shmcast._host import census
from tests.support.processes import Crew, Worker, results


def members() -> int:
    count = census.members()
    assert count is not None
    return count


def test_a_thread_counts_once_however_many_endpoints_it_has() -> None:
    before = members()
    with Writer(1) as first:
        assert members() == before + 1
        with Writer(1), Reader(first.handle, 0):
            assert members() == before + 1
        assert members() == before + 1
    assert members() == before


def test_threads_of_one_process_count_each() -> None:
    before = members()
    seats = [census.enter()]
    thread = threading.Thread(target=lambda: seats.append(census.enter()))
    thread.start()
    thread.join()
    assert members() == before + 2
    for seat in seats * 2:  # idempotent
        seat.leave()
    assert members() == before


def enter(_index: int) -> int:
    _kept.append(census.enter())
    return members()


def leave(_index: int) -> int:
    _kept.pop().leave()
    return members()


_kept: list[census.Seat] = []  # in a worker


def test_other_processes_are_counted(crew: Crew) -> None:
    before = members()
    assert crew.run(1, enter) == [before + 1]
    crew.run(3, enter)
    assert members() == before + 3  # worker 0 a second time: the same thread
    crew.run(3, leave)
    assert crew.run(1, leave) == [before]


def test_a_killed_process_is_counted_no_more() -> None:
    before = members()
    worker = Worker("victim")
    worker.start(enter, 0).result()
    assert members() == before + 1
    worker.end()  # SIGKILL
    assert members() == before


def pin(_index: int, cpus: set[int]) -> int:
    os.sched_setaffinity(0, cpus)
    return enter(0)


def test_who_is_pinned_to_other_cpus_is_not_counted() -> None:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("one CPU only")
    mine, other = sorted(cpus)[:2]
    before = members()
    worker = Worker("pinned")
    worker.start(pin, 0, {other}).result()
    assert members() == before + 1
    try:
        os.sched_setaffinity(0, {mine})
        seat = census.enter()
        assert members() == before + 1  # this thread alone
        os.sched_setaffinity(0, {other})
        assert members() == before + 2
        seat.leave()
    finally:
        os.sched_setaffinity(0, cpus)
        worker.end()


def test_a_fork_neither_counts_nor_ends_what_the_parent_is() -> None:
    before = members()
    seat = census.enter()
    pid = os.fork()
    if pid == 0:
        seat.leave()
        # The parent's thread is another process's now, and this one has none.
        os._exit(0 if members() == before + 1 else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert members() == before + 1
    seat.leave()
    assert members() == before


def test_the_census_leaves_no_file() -> None:
    seat = census.enter()
    assert not list(Path("/dev/shm").glob("*census*"))
    seat.leave()


def test_a_collected_endpoint_leaves_its_seat_even_in_the_middle_of_the_register() -> None:
    """As when the garbage collector runs inside of one of its methods."""
    before = members()
    seat = census.enter()
    with census._register._guard:
        seat.leave()
    assert members() == before


def test_locks_in_our_name_are_many_members_and_no_more() -> None:
    folder = os.open("/dev/shm", os.O_RDONLY)
    everything = (fcntl.F_RDLCK, 0, os.getuid() * census._BYTES_PER_USER, census._BYTES_PER_USER, 0)
    fcntl.fcntl(folder, fcntl.F_OFD_SETLK, census._FLOCK.pack(*everything))
    assert census._ENOUGH <= members() <= census._ENOUGH + 1
    os.close(folder)
    assert members() < census._ENOUGH


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
